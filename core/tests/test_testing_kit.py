"""The conformance kit. For every check a small wrong component fails it, and no other: a check that nothing fails is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from rlhf_core.errors import ConfigError, PluginError
from rlhf_core.interfaces import (
    ComponentSpec,
    Config,
)
from rlhf_core.plugins import PluginInfo, Plugins, load_plugins
from rlhf_core.testing import (
    ConformanceError,
    example_data,
    example_feedback,
    example_rollout,
    example_samples,
    parametrize_components,
    run_checks,
    tiny_context,
    tiny_model,
    tiny_policy,
)
from rlhf_core.testing.compare import close, difference, same
from rlhf_core.testing.kit import checks_of
from rlhf_core.testing.subjects import find_subjects

from . import (
    wrong_engines,
    wrong_environments,
    wrong_everywhere,
    wrong_monitors,
    wrong_optimizers,
    wrong_policies,
    wrong_rewards,
    wrong_shapers,
    wrong_sources,
    wrong_stages,
)
from .wrong_everywhere import Length, Plain
from .wrong_optimizers import StandsStill
from .wrong_rewards import Words
from .wrong_shapers import Twice
from .wrong_sources import ReadsAllOfIt, Told

HERE = __name__
WRONG: list[Any] = [
    wrong_everywhere,
    wrong_rewards,
    wrong_shapers,
    wrong_optimizers,
    wrong_policies,
    wrong_engines,
    wrong_sources,
    wrong_stages,
    wrong_environments,
    wrong_monitors,
]


def plugins_with(kind: str, component: type[Any] | str) -> Plugins:
    """As if a distribution with this one component were installed, named "mine"."""
    name = component if isinstance(component, str) else component.__qualname__
    config = Plain if isinstance(component, str) else component.Config
    home = HERE if isinstance(component, str) else component.__module__
    spec = ComponentSpec(kind, "mine", f"{home}:{name}", f"{config.__module__}:{config.__qualname__}", "a part")
    core = load_plugins(disable="all")
    return Plugins(core.manager, [core.plugins[0], PluginInfo("mine", "dist-mine", "1.0", components=(spec,))])


def failures(kind: str, component: type[Any] | str) -> dict[str, str]:
    """The checks that the component fails, with their words."""
    examples = {"policy/mine": [tiny_model()]} if kind == "policy" else {}
    results = run_checks("dist-mine", plugins_with(kind, component), examples=examples)
    return {result.check: result.reason for result in results if result.outcome == "failed"}


# --- each fails its check, and no other ------------------------------------------------------------------------------

MUTANTS = [mutant for wrong in WRONG for mutant in wrong.MUTANTS]
BY_HAND = {"listing_imports_no_torch"}


@pytest.mark.parametrize(
    ("kind", "mutant", "check", "words"), MUTANTS, ids=[f"{kind}-{mutant.__name__}" for kind, mutant, *_ in MUTANTS]
)
def test_a_wrong_component_fails_its_check_and_no_other(kind: str, mutant: type[Any], check: str, words: str) -> None:
    found = failures(kind, mutant)
    if mutant is StandsStill:  # it does not go the right way either
        found.pop("good_samples_become_likelier_and_bad_ones_less_likely")
    assert list(found) == [check]
    assert found[check].startswith(f"{kind} 'mine' of dist-mine") and words in found[check]


@pytest.mark.parametrize(("kind", "component"), [right for wrong in WRONG for right in wrong.RIGHT])
def test_what_the_wrong_ones_derive_from_is_right(kind: str, component: type[Any]) -> None:
    assert failures(kind, component) == {}


def test_every_check_has_its_mutant() -> None:
    caught = {(kind, check) for kind, _, check, _ in MUTANTS}
    for kind in load_plugins(disable="all").kinds:
        ids = [check.id for check in checks_of(kind)]
        assert len(ids) == len(set(ids))
        for check in checks_of(kind):
            kinds = check.kinds or ("metric",)
            assert check.id in BY_HAND or any((k, check.id) in caught for k in kinds), f"{kind}/{check.id}"
            assert check.summary.endswith(".") and len(check.summary) < 120


def test_listing_that_imports_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three distributions lying on the path: one imports torch at once, one in a config, one not at all."""
    head = "from rlhf_core import ComponentSpec, hookimpl\n\n@hookimpl\ndef rlhf_components():\n    return ["
    for name, extra, config in [("early", "import torch\n", ""), ("late", "", "import torch\n"), ("good", "", "")]:
        (tmp_path / f"kit_{name}-1.dist-info").mkdir()
        (tmp_path / f"kit_{name}-1.dist-info" / "METADATA").write_text(f"Name: kit-{name}\nVersion: 1\n")
        (tmp_path / f"kit_{name}-1.dist-info" / "entry_points.txt").write_text(f"[rlhf]\nkit = kit_{name}\n")
        specs = [f"ComponentSpec('metric', '{name}-{c}', '{HERE}:Length', 'kit_{name}_{c}:Own', '')" for c in "ab"]
        (tmp_path / f"kit_{name}.py").write_text(f"{extra}{head}{', '.join(specs)}]\n")
        own = "from rlhf_core.interfaces import Config\nclass Own(Config): pass\n"
        (tmp_path / f"kit_{name}_a.py").write_text(own)
        (tmp_path / f"kit_{name}_b.py").write_text(config + own)
    (tmp_path / "torch.py").touch()  # for the fresh interpreters, which this spares the real one
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = load_plugins()
    found = {
        result.component: result.reason
        for name in ("early", "late", "good")
        for result in run_checks(f"kit-{name}", loaded)
        if result.check == "listing_imports_no_torch"
    }
    words = "imports torch; expected listing and validation that import no torch"
    assert "its entry point " + words in found["metric/early-a"] and "its entry point" in found["metric/early-b"]
    assert found["metric/late-a"] == "" and f"kit_late_b:Own {words}" in found["metric/late-b"]
    assert found["metric/good-a"] == found["metric/good-b"] == ""


# --- choosing components and naming tests -----------------------------------------------------------------------------


def test_one_test_per_component_and_check() -> None:
    mark = parametrize_components("rlhf-core", ["metric", "prompts"], examples={"prompts/jsonl": []})
    names, params = mark.args
    ids = [param.id for param in params]
    assert names == ("component", "check")
    assert "metric/kl-config_round_trips" in ids and "prompts/jsonl-index_is_stable" in ids
    assert len(ids) == len(set(ids)) and not any(id.startswith("reward/") for id in ids)


def test_an_xfail_is_strict_and_has_a_reason() -> None:
    mark = parametrize_components("rlhf-core", ["metric"], xfail={("metric/kl", "config_round_trips"): "issue 99"})
    (param,) = [param for param in mark.args[1] if param.marks]
    assert param.id == "metric/kl-config_round_trips"
    assert param.marks[0].kwargs == {"reason": "issue 99", "strict": True}


@pytest.mark.parametrize(("arguments", "words"), [
    ({"distributions": "rlhf-cor"}, "distribution 'rlhf-cor': no plugin of this name .* did you mean 'rlhf-core'"),
    ({"distributions": ["rlhf-core", "nobody"]}, "distribution 'nobody': no plugin of this name is installed"),
    ({"kinds": ["metrc"]}, "kind 'metrc': no installed plugin declares it.*did you mean 'metric'"),
    ({"examples": {"metric/kll": [{}]}}, r"examples\['metric/kll'\]: not among these components; did you mean 'metric/kl'"),
    ({"xfail": {("metric/kl", "config_round_trip"): "why"}}, "did you mean 'metric/kl-config_round_trips'"),
    ({"xfail": {("metric/kl", "config_round_trips"): " "}}, "no reason; expected why it fails, and until when"),
])  # fmt: skip
def test_names_that_do_not_exist(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        parametrize_components(**{"distributions": "rlhf-core", **arguments})


def test_a_plugin_that_cannot_be_used_is_an_error_and_a_disabled_one_is_left_out() -> None:
    core = load_plugins(disable="all")
    broken = PluginInfo("sick", "dist-sick", "1.0", "broken", "ImportError: no module")
    off = PluginInfo("off", "dist-off", "1.0", "disabled", "turned off")
    with pytest.raises(
        PluginError, match=r"plugin dist-sick:sick 1.0: broken: ImportError: no module; expected a plugin"
    ):
        find_subjects(Plugins(core.manager, [core.plugins[0], broken]))
    assert {s.distribution for s in find_subjects(Plugins(core.manager, [core.plugins[0], off]))} == {"rlhf-core"}
    with pytest.raises(PluginError, match=r"dist-off:off 1\.0: disabled"):
        find_subjects(Plugins(core.manager, [core.plugins[0], off]), "Dist_Off")


class Needy(Config):
    target: int = Field(description="a number")


class WithoutExample(Length):
    Config = Needy


class WithExamples(WithoutExample):
    @staticmethod
    def conformance_examples(folder: Path) -> list[dict[str, Any]]:
        return [{"target": 1}, {"target": len(list(folder.iterdir()))}]

    def measure(self, rollout):
        return rollout.lengths.float()[0 if self.config.target else 1 :]


def test_without_an_example_what_needs_one_is_skipped_with_the_reason() -> None:
    results = {r.check: r for r in run_checks("dist-mine", plugins_with("metric", WithoutExample))}
    assert results["config_describes_every_field"].outcome == "passed"
    assert results["one_float_per_sample"].outcome == "skipped"
    assert results["one_float_per_sample"].reason == "no example: give conformance_examples"


class RefusesDtypes(Length):
    refused: tuple[str, ...] = ("float64", "bfloat16")

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        if context.dtype in self.refused:
            raise ConfigError(context.where, f"dtype {context.dtype}", "float32")


class RefusesOneDtype(RefusesDtypes):
    refused = ("float64",)


class HoldsAllOfIt(ReadsAllOfIt):
    streaming = False


@pytest.mark.parametrize(("kind", "component", "check", "reason"), [
    ("metric", RefusesDtypes, "works_in_its_dtype", "it refuses: metric 'mine': dtype float64; expected float32"),
    ("metric", RefusesOneDtype, "works_in_its_dtype", ""),
    ("feedback", HoldsAllOfIt, "streams", "it declares that it reads everything first: streaming = False"),
    ("feedback", Told, "streams", "it reads neither a JSONL file nor other feedback"),
    ("shaper", Twice, "zero_stays_zero_where_declared", "it does not declare zero_stays_zero"),
    ("shaper", Twice, "drifting_from_the_reference_is_not_paid", "it does not ask for the reference"),
    ("reward", Words, "continues_after_a_checkpoint", "it has no state, and learns from no feedback"),
])  # fmt: skip
def test_a_check_with_nothing_to_check_is_skipped_with_the_reason(
    kind: str, component: type[Any], check: str, reason: str
) -> None:
    results = {result.check: result for result in run_checks("dist-mine", plugins_with(kind, component))}
    assert (results[check].outcome, results[check].reason) == ("skipped" if reason else "passed", reason)


def test_a_class_gives_examples_and_messages_say_which() -> None:
    found = failures("metric", WithExamples)
    assert list(found) == ["one_float_per_sample"]
    assert found["one_float_per_sample"].startswith(
        "metric 'mine' of dist-mine with {'target': 0}: torch.float32 of shape (7,)"
    )


def test_a_class_that_cannot_be_imported_fails_once() -> None:
    found = failures("metric", "Nobody")
    assert list(found) == ["resolves_and_implements"] and f"{HERE} has no 'Nobody'" in found["resolves_and_implements"]


def test_a_conformance_error_is_an_assertion_with_four_parts() -> None:
    with pytest.raises(AssertionError, match="x: got; expected wanted; mend it") as caught:
        raise ConformanceError("x", "got", "wanted", "mend it")
    assert caught.value.exit_code == 1


# --- stand-ins --------------------------------------------------------------------------------------------------------


def test_the_example_rollout_holds_what_it_says() -> None:
    for rollout in (example_rollout(), example_rollout(tiny_policy())):
        assert rollout.mask.shape == (8, 7) and rollout.lengths.tolist() == [5, 1, 7, 3, 6, 2, 7, 4]
        assert not rollout.mask[0, 2] and rollout.attention[0, 2]
        assert not rollout.mask[7].any() and rollout.abstained.tolist() == [False] * 7 + [True]
        assert not rollout.rewards[~rollout.mask].any() and rollout.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 4]
        for name in ("logprobs", "reference_logprobs", "values", "entropy"):
            assert not rollout.tensors()[name][~rollout.attention].any()
        assert rollout.bootstrap.shape == (8,) and rollout.top_logprobs.shape == (8, 7, 3)


def test_stand_ins_are_deterministic() -> None:
    first, second = (tiny_policy(tiny_context("policy", dtype="float64")) for _ in range(2))
    assert same(first.state_dict(), second.state_dict())
    assert same(example_rollout(first).tensors(), example_rollout(second).tensors())
    assert same(example_rollout().tensors(), example_rollout().tensors())
    assert not same(example_rollout().tensors(), example_rollout(seed=1).tensors())
    assert example_samples() == example_samples() and len(example_samples()) == 12
    assert {record.kind for record in example_feedback()} == {
        "rating", "comparison", "edit", "demonstration", "keywords", "sentiment",
    }  # fmt: skip


def test_the_tiny_context_answers_by_kind() -> None:
    context = tiny_context()
    assert context.component("policy", "a") is context.component("policy", "a")
    assert next(iter(context.component("feedback", "any"))).kind == "demonstration"
    assert {record.kind for record in context.component("feedback", "comparison")} == {"comparison"}
    with pytest.raises(ConfigError, match=r"stage 'x': tiny_context has no toy of this kind; expected one of feedback"):
        context.component("stage", "x")


def test_example_data_is_scored_and_can_be_another_reward() -> None:
    policy = tiny_policy()
    data = example_data(policy, reward=Words(Plain(), tiny_context()))
    data.begin(0)
    rollout = data.rollout(3, samples_per_prompt=2)
    assert rollout.score.tolist() == [float(len(s.response.split())) for s in rollout.samples]


def test_comparing() -> None:
    nan, inf = float("nan"), float("inf")
    a = torch.tensor([1.0, nan])
    assert same({"x": [a, 1, nan]}, {"x": (a.clone(), 1, nan)}) and not same(a, a.double()) and not same({"x": 1}, {})
    assert difference(a, a) == 0 and difference(a, torch.tensor([1.5, nan])) == 0.5
    assert difference(a, torch.tensor([1.0, 2.0])) == inf == difference(a, a[:1])
    assert close(torch.tensor([1000.0]), torch.tensor([1000.05]), 1e-4)
    assert not close(torch.tensor([0.1]), torch.tensor([0.1002]), 1e-4)
