"""What components of every kind hold to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from ...interfaces import Config, PolicyOptimizer
from ...plugins import DISABLE
from ..compare import copied, same, through_checkpoint
from ..kit import check_class, check_example
from ..subjects import Example, NotApplicable, Subject
from ..toys import tiny_policy

PROBE = """
import json, sys
from rlhf_core.plugins import load_plugins
plugins = load_plugins()
found = None
for info in plugins.plugins:
    if info.distribution == sys.argv[1]:
        found = found or ("its entry point" if "torch" in sys.modules else "")
        for spec in info.components:
            try:
                plugins.import_class(spec, "config")
            except Exception:
                pass
            if not found and "torch" in sys.modules:
                found = spec.config
print(json.dumps(found))
"""


@check_class()
def listing_imports_no_torch(subject: Subject) -> None:
    """Listing the plugin and importing its configs does not import torch, in a fresh interpreter."""
    others = {info.distribution for info in subject.plugins.plugins} - {subject.distribution}
    found = _imports_torch(subject.distribution, ",".join(sorted(others)))
    if found is None:
        raise NotApplicable(f"a fresh interpreter does not see {subject.distribution}")
    if found in ("its entry point", subject.spec.config):
        subject.fail(
            f"{found} imports torch",
            "listing and validation that import no torch",
            "import torch in the factory's module only, or inside functions",
        )


@cache
def _imports_torch(distribution: str, others: str) -> str | None:
    """What of `distribution` imports torch, "" for nothing, None if it is not there; once per distribution."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, distribution],
        env={**os.environ, DISABLE: others},
        capture_output=True,
        text=True,
        check=True,
    )
    answer: str | None = json.loads(done.stdout.splitlines()[-1])
    return answer


@check_class()
def resolves_and_implements(subject: Subject) -> None:
    """The factory and its config can be imported and are what the kind asks for, with no abstract method left."""
    for problem in subject.problems:
        subject.fail(problem.got, problem.expected or "classes that can be imported", problem.fix)


def _configs(model: type[Config]) -> Iterator[type[Config]]:
    """A config class and those nested in its fields."""
    seen: list[type[Config]] = []

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Config) and annotation not in seen:
            seen.append(annotation)
            for field in annotation.model_fields.values():
                visit(field.annotation)
        for argument in get_args(annotation):
            visit(argument)

    visit(model)
    return iter(seen)


@check_class()
def config_has_a_schema(subject: Subject) -> None:
    """A JSON Schema can be made of the config, for completion in editors."""
    config = subject.config_class
    try:
        json.dumps(config.model_json_schema())
    except Exception as error:
        subject.fail(
            f"no JSON Schema can be made of its config: {error}",
            "fields that JSON can hold",
            "use numbers, strings, lists, mappings and nested Configs",
        )


@check_class()
def config_describes_every_field(subject: Subject) -> None:
    """Every field of the config, nested ones included, says what it means."""
    for config in _configs(subject.config_class):
        silent = [name for name, field in config.model_fields.items() if not (field.description or "").strip()]
        if silent:
            subject.fail(
                f"{config.__name__} does not describe {', '.join(silent)}",
                "a description of every field",
                'write Field(..., description="what it does, and its unit")',
            )


@check_class()
def config_rejects_unknown_keys(subject: Subject) -> None:
    """A misspelt key is an error, in nested configs too."""
    for config in _configs(subject.config_class):
        if config.model_config.get("extra") != "forbid":
            subject.fail(
                f"{config.__name__} takes keys that it does not know",
                'extra="forbid"',
                "leave `extra` in model_config as Config has it",
            )


@check_example()
def config_round_trips(example: Example) -> None:
    """A config written out and read again is the same config: that is how a run directory keeps it."""
    written = json.loads(json.dumps(example.config.model_dump(mode="json")))
    try:
        again = type(example.config).model_validate(written)
    except ValueError as error:
        example.fail(
            f"its config, written as {written}, cannot be read again: {error}",
            "a config that reads what it writes",
            "let validators accept their own results",
        )
    if again != example.config:
        example.fail(
            f"its config {example.config!r} comes back as {again!r}",
            "the same config",
            "let validators leave their own results as they are",
        )


@check_class()
def builds_from_its_examples(subject: Subject) -> None:
    """Every example is a valid config, and the component can be built from it."""
    if isinstance(error := subject.attempt, Exception):
        subject.fail(
            f"building it raised {type(error).__name__}: {error}",
            "a component",
            "mend the example or __init__; other components that it names are those of tiny_context",
        )
    assert subject.examples  # or it is skipped, with the reason


def _ready(example: Example) -> Any:
    """The component, an optimizer bound to a policy."""
    component = example.build()
    if example.subject.spec.kind == "stage":
        raise NotApplicable("a stage has state only inside a run")
    if isinstance(component, PolicyOptimizer):
        policy = tiny_policy()
        policy.set_reference("stage-start")
        component.bind(policy, 2)
    return component


@check_example()
def state_fits_a_checkpoint(example: Example) -> None:
    """The state is tensors and JSON, so that it can be saved without pickle, and comes back as it was."""
    state = _ready(example).state_dict()
    try:
        again = through_checkpoint(state)
    except TypeError as error:
        example.fail(
            str(error),
            "nested dicts and lists of tensors, numbers, strings and None",
            "convert it in state_dict, and back in load_state_dict",
        )
    if not same(again, state):
        example.fail(f"its state {sorted(state)} comes back from a checkpoint changed", "what was saved")


@check_example()
def loading_its_own_state_changes_nothing(example: Example) -> None:
    """`load_state_dict(state_dict())` leaves the state as it is."""
    component = _ready(example)
    before = copied(component.state_dict())
    component.load_state_dict(copied(before))
    after = component.state_dict()
    if not same(before, after):
        changed = [name for name in before.keys() | after.keys() if not same(before.get(name), after.get(name))]
        example.fail(
            f"loading its own state changes {', '.join(sorted(changed))}",
            "the same state",
            "let load_state_dict take back what state_dict gives",
        )
