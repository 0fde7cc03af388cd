"""What is checked: components of installed distributions, and what they can be built from."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
import unittest
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

from pydantic import ValidationError

from ..errors import PluginError, RLHFError, did_you_mean
from ..interfaces import ComponentSpec, Config
from ..plugins import PluginInfo, Plugins

RawExamples: TypeAlias = Sequence[Mapping[str, Any]] | Callable[[Path], Sequence[Mapping[str, Any]]]
"""Config mappings to build a component from, or a function that writes the files they need and returns them."""


class ConformanceError(RLHFError, AssertionError):
    """A component does not do what its kind promises: which one, what was got, what was expected, how to mend it."""

    exit_code = 1


class NotApplicable(unittest.SkipTest):
    """A check has nothing to say about a component; pytest shows it as skipped, with the reason."""


class Subject:
    """A component under test: its spec, its classes, and what it can be built from."""

    def __init__(
        self,
        plugins: Plugins,
        spec: ComponentSpec,
        distribution: str,
        given: RawExamples | None = None,
    ) -> None:
        self.plugins, self.spec, self.distribution, self._given = plugins, spec, distribution, given

    @property
    def label(self) -> str:
        """How tests and tables call it: "optimizer/ppo"."""
        return f"{self.spec.kind}/{self.spec.name}"

    def __str__(self) -> str:
        return f"{self.spec.kind} {self.spec.name!r} of {self.distribution}"

    def fail(self, got: str, expected: str, fix: str = "") -> NoReturn:
        raise ConformanceError(str(self), got, expected, fix)

    @cached_property
    def problems(self) -> list[PluginError]:
        """What keeps its classes from being those of its kind."""
        return list(self.plugins.check_component(self.spec))

    def _class(self, role: Literal["factory", "config"]) -> Any:
        if self.problems:
            raise NotApplicable("its classes are not in order: see resolves_and_implements")
        return self.plugins.import_class(self.spec, role)

    @property
    def component_class(self) -> Any:
        return self._class("factory")

    @property
    def config_class(self) -> type[Config]:
        config: type[Config] = self._class("config")
        return config

    @cached_property
    def folder(self) -> Path:
        """For files that examples need; it goes when the process ends."""
        folder = tempfile.mkdtemp(prefix="rlhf-conformance-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    @cached_property
    def attempt(self) -> list[Example] | Exception:
        """Its examples, each built once by way of trial; or what went wrong."""
        given = self._given or getattr(self.component_class, "conformance_examples", None)
        try:
            raw: Sequence[Mapping[str, Any]] = self._defaults()
            if given is not None:
                raw = given(self.folder) if callable(given) else given
            # relative paths start at the folder
            configs = [self.config_class.model_validate(dict(r), context={"root": self.folder}) for r in raw]
            examples = [Example(self, config, several=len(configs) > 1) for config in configs]
            for example in examples:
                example.build()
        except Exception as error:
            return error
        return examples

    def _defaults(self) -> Sequence[Mapping[str, Any]]:
        """The example without options, if a config needs none."""
        try:
            self.config_class()
        except ValidationError:
            return []
        return [{}]

    @property
    def examples(self) -> list[Example]:
        """What it can be built from. Raises NotApplicable if there is nothing, or if that fails."""
        if isinstance(self.attempt, Exception):
            raise NotApplicable("cannot be built: see builds_from_its_examples")
        if not self.attempt:
            raise NotApplicable("no example: give conformance_examples")
        return self.attempt


@dataclass(frozen=True)
class Example:
    """A component under test together with one config to build it from."""

    subject: Subject
    config: Config
    several: bool = False

    def build(self, **surroundings: Any) -> Any:
        """The component as the runner would make it, in a `tiny_context`; a reward that has no score yet is fitted."""
        component = self.build_fresh(**surroundings)
        if self.subject.spec.kind == "reward":
            _fit_if_asked(component)
        return component

    def build_fresh(self, **surroundings: Any) -> Any:
        """The component as it is made, before it has learnt anything."""
        from .toys import tiny_context

        spec = self.subject.spec
        context = tiny_context(spec.kind, spec.name, **{"directory": self.subject.folder, **surroundings})
        return self.subject.component_class(self.config, context)

    @cached_property
    def first_answer(self) -> Any:
        """What the component, just built, says when it is asked; see `answers`."""
        from .answers import answer

        return answer(self.subject.spec.kind, self.build())

    def with_config(self, **changes: Any) -> Example:
        """The same with other values in its config."""
        return replace(self, config=self.config.model_copy(update=changes))

    def fail(self, got: str, expected: str, fix: str = "") -> NoReturn:
        options = f" with {self.config.model_dump(mode='json', exclude_unset=True)}" if self.several else ""
        raise ConformanceError(f"{self.subject}{options}", got, expected, fix)


def _fit_if_asked(reward: Any) -> None:
    """Fit a reward that refuses to score before it has learnt."""
    from ..records import Prompt, Sample

    try:
        reward.score([Sample(Prompt(text="Hello"), " there")])
    except RLHFError:
        fit_on_examples(reward)


def fit_on_examples(reward: Any) -> bool:
    """Fit a reward on the first kind of `example_feedback` it takes; whether there was one."""
    from .records import example_feedback

    records = example_feedback()
    for kind in dict.fromkeys(record.kind for record in records):
        with suppress(RLHFError):
            reward.fit([record for record in records if record.kind == kind])
            return True
    return False


# --- choosing --------------------------------------------------------------------------------------------------------


def find_subjects(
    plugins: Plugins,
    distributions: str | Iterable[str] | None = None,
    kinds: Collection[str] | None = None,
    examples: Mapping[str, RawExamples] | None = None,
) -> list[Subject]:
    """The components of some distributions (None: of all that are installed and not disabled), of some kinds or all.

    Raises:
        PluginError: there is no such distribution, kind or component; or a plugin of one cannot be used.
    """
    for kind in kinds or ():
        plugins.names(kind)  # raises if there is no such kind
    names = [distributions] if isinstance(distributions, str) else distributions
    chosen = _offered(plugins) if names is None else [info for name in names for info in _plugins_of(plugins, name)]
    for info in chosen:
        if info.status != "ok":
            raise PluginError(f"plugin {info}", f"{info.status}: {info.reason}", "a plugin that can be used")
    given = dict(examples or {})
    subjects = [
        Subject(plugins, spec, info.distribution, given.get(f"{spec.kind}/{spec.name}"))
        for info in chosen
        for spec in info.components
    ]
    labels = [subject.label for subject in subjects]
    for label in given:
        if label not in labels:
            raise PluginError(f"examples[{label!r}]", "not among these components", fix=did_you_mean(label, labels))
    return [subject for subject in subjects if kinds is None or subject.spec.kind in kinds]


def _offered(plugins: Plugins) -> list[PluginInfo]:
    return [info for info in plugins.plugins if info.status != "disabled"]


def _plugins_of(plugins: Plugins, distribution: str) -> list[PluginInfo]:
    """The entry points of a distribution, whose name is compared as pip does."""
    wanted = _normal(distribution)
    found = [info for info in plugins.plugins if _normal(info.distribution) == wanted]
    if not found:
        names = list(dict.fromkeys(info.distribution for info in plugins.plugins))
        usual = f"rlhf-plugin-{wanted}"
        hint = f"did you mean {usual!r}?" if usual in names else did_you_mean(wanted, names)
        raise PluginError(
            f"distribution {distribution!r}", "no plugin of this name is installed", f"one of {', '.join(names)}", hint
        )
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
