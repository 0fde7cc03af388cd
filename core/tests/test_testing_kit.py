"""The conformance kit. For every check a small wrong component fails it, and no other: a check that nothing fails is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ConfigDict, Field, field_validator
from rlhf_core.errors import ConfigError, PluginError
from rlhf_core.functional import masked_mean
from rlhf_core.interfaces import (
    ComponentSpec,
    Config,
    FeedbackSource,
    Metric,
    Needs,
    PromptSource,
    RewardModel,
    RewardShaper,
    Traits,
)
from rlhf_core.plugins import PluginInfo, Plugins, load_plugins
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.decoding import Compaction
from rlhf_core.records import Demonstration, Prompt, Scores, Span
from rlhf_core.rl import OnPolicyConfig, OnPolicyOptimizer
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

HERE = __name__


def plugins_with(kind: str, component: type[Any] | str) -> Plugins:
    """As if a distribution with this one component were installed, named "mine"."""
    name = component if isinstance(component, str) else component.__qualname__
    config = "Plain" if isinstance(component, str) else component.Config.__qualname__
    home = HERE if isinstance(component, str) else component.Config.__module__
    spec = ComponentSpec(kind, "mine", f"{HERE}:{name}", f"{home}:{config}", "a part")
    core = load_plugins(disable="all")
    return Plugins(core.manager, [core.plugins[0], PluginInfo("mine", "dist-mine", "1.0", components=(spec,))])


def failures(kind: str, component: type[Any] | str) -> dict[str, str]:
    """The checks that the component fails, with their words."""
    examples = {"policy/mine": [tiny_model()]} if kind == "policy" else {}
    results = run_checks("dist-mine", plugins_with(kind, component), examples=examples)
    return {result.check: result.reason for result in results if result.outcome == "failed"}


# --- wrong configs, states and classes, as metrics -------------------------------------------------------------------


class Plain(Config):
    """Nothing to set."""


class Abstract(Metric[Plain]):
    """Does not implement `measure`."""


class Callback(Config):
    callback: Callable[[], None] | None = Field(default=None, description="what no JSON can hold")


class Inner(Config):
    depth: int = 1


class Silent(Config):
    inner: Inner = Field(default_factory=Inner, description="says what it is, but its own field does not")


class Lax(Config):
    model_config = ConfigDict(extra="ignore")


class Doubling(Config):
    minutes: int = Field(default=2, validate_default=True, description="given in hours")

    @field_validator("minutes")
    @classmethod
    def _to_minutes(cls, hours: int) -> int:
        return hours * 60


class Length(Metric[Plain]):
    """A metric as it should be."""

    def measure(self, rollout):
        return rollout.lengths.float()


class WithCallback(Length):
    Config = Callback


class WithSilent(Length):
    Config = Silent


class WithLax(Length):
    Config = Lax


class WithDoubling(Length):
    Config = Doubling


class CannotBeBuilt(Length):
    def __init__(self, config, context):
        raise ValueError("no such file")


class KeepsASet(Length):
    def state_dict(self):
        return {"seen": {"a"}}


class GrowsWhenLoaded(Length):
    count = 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"] + 1


class Averages(Length):
    def measure(self, rollout):
        return rollout.lengths.float().mean()


class Clears(Length):
    def measure(self, rollout):
        return rollout.logprobs.zero_().sum(1)


# --- wrong rewards ---------------------------------------------------------------------------------------------------


class Words(RewardModel[Plain]):
    """A reward as it should be: words per response, and credit for the first character."""

    def values(self, samples):
        return torch.tensor([float(len(s.response.split())) for s in samples])

    def score(self, samples):
        return Scores(self.values(samples), tuple((Span(0, 1, 1.0),) if s.response else () for s in samples))


class OneColumn(Words):
    def score(self, samples):
        return Scores(self.values(samples)[:, None])


class LooksAtTheEnds(Words):
    def values(self, samples):
        return super().values(samples) + float(samples[0].prompt.render() < samples[-1].prompt.render())


class CountsTheBatch(Words):
    def values(self, samples):
        return super().values(samples) + 0.1 * len(samples)


class DividesByLength(Words):
    def values(self, samples):
        return torch.tensor([1 / len(s.response) for s in samples])


class ClearsFields(Words):
    def values(self, samples):
        for sample in samples:
            sample.prompt.fields.clear()
        return super().values(samples)


class SpansBeyond(Words):
    def score(self, samples):
        return Scores(self.values(samples), tuple((Span(0, len(s.response) + 1, 1.0),) for s in samples))


# --- wrong shapers ---------------------------------------------------------------------------------------------------


class Twice(RewardShaper[Plain]):
    """A shaper as it should be."""

    level = "token"

    def shape(self, rewards, rollout):
        return 2 * rewards, {"twice": 2.0}


class Tokens(Twice):
    level = "tokens"


class Wide(Twice):
    def shape(self, rewards, rollout):
        return rewards.double(), {}


class TensorStatistics(Twice):
    def shape(self, rewards, rollout):
        return rewards, {"mean": rewards.mean()}


class InPlace(Twice):
    def shape(self, rewards, rollout):
        return rewards.mul_(2), {}


class PaysPadding(Twice):
    def shape(self, rewards, rollout):
        return rewards - 0.1, {}


class PunishesAbstaining(Twice):
    level = "sequence"

    def shape(self, rewards, rollout):
        return rewards - 1, {}


class CentresOverAll(Twice):
    level = "sequence"

    def shape(self, rewards, rollout):
        return (rewards - rewards.mean()).masked_fill(rollout.abstained, 0.0), {}


class PerColumn(Twice):
    def shape(self, rewards, rollout):
        return rewards / rewards.shape[1], {}


class ForgetsItsCount(Twice):
    count = 0

    def shape(self, rewards, rollout):
        self.count += 1
        return rewards * self.count, {}


# --- wrong optimizers ------------------------------------------------------------------------------------------------


class SmallSteps(OnPolicyConfig):
    prompts_per_step: int = Field(default=4, description="few")
    samples_per_prompt: int = Field(default=2, description="two")
    minibatch_size: int = Field(default=8, description="all at once")


class Reinforce(OnPolicyOptimizer[SmallSteps]):
    """An optimizer as it should be: the score above the mean of the batch."""

    baseline = True

    def prepare(self, rollout):
        scores, live = rollout.rewards.sum(1), rollout.mask.any(1)
        return {"advantages": scores - masked_mean(scores, live)}

    def loss(self, batch, new):
        logprobs = torch.where(batch.mask, new.logprobs, 0.0).sum(1)
        return -batch.sample_mean(batch.advantages * logprobs), {}


class DividesByWidth(Reinforce):
    def prepare(self, rollout):
        return {"advantages": super().prepare(rollout)["advantages"] / rollout.mask.shape[1]}


class MeanOfMeans(Reinforce):
    def loss(self, batch, new):
        return -masked_mean(batch.advantages[:, None] * new.logprobs, batch.mask), {}


class ForgetsTheMask(Reinforce):
    def prepare(self, rollout):
        unseen = rollout.logprobs.masked_fill(rollout.mask, 0.0).square().sum()
        return {"advantages": super().prepare(rollout)["advantages"] * (1 + unseen)}


class StandsStill(Reinforce):
    def loss(self, batch, new):
        return 0 * new.logprobs.sum(), {}


class WantsALiveSample(Reinforce):
    def prepare(self, rollout):
        rollout.rewards.sum(1)[rollout.mask.any(1)].max()
        return super().prepare(rollout)


class CallsItselfOffline(Reinforce):
    @property
    def traits(self):
        return Traits("offline", baseline=True)


class HidesItsBaseline(Reinforce):
    baseline = False


class ComparesNeighbours(Reinforce):
    def prepare(self, rollout):
        advantages = super().prepare(rollout)["advantages"]
        return {"advantages": advantages * torch.linspace(0.5, 1.5, len(rollout), dtype=advantages.dtype)}


class FlipsTheSign(Reinforce):
    def loss(self, batch, new):
        loss, stats = super().loss(batch, new)
        return -loss, stats


class DividesByTheEnded(Reinforce):
    def prepare(self, rollout):
        # what a fresh policy samples is truncated as well; only among judged and abstained samples is it told apart
        ended = (~rollout.truncated | ~rollout.abstained.any()).to(rollout.rewards).sum()
        return {"advantages": super().prepare(rollout)["advantages"] * (ended / ended)}


class ForgetsItsScale(Reinforce):
    scale = 1.0

    def prepare(self, rollout):
        self.scale *= 1.5
        return {"advantages": self.scale * super().prepare(rollout)["advantages"]}


# --- wrong policies --------------------------------------------------------------------------------------------------


class Shifted(CausalLM):
    """Log-probabilities with something added, the same when sampling and scoring."""

    def shift(self, rollout):
        raise NotImplementedError

    def forward(self, rollout, needs):
        out = super().forward(rollout, needs)
        return replace(out, logprobs=out.logprobs + self.shift(rollout) * rollout.attention)

    @torch.no_grad()
    def generate(self, *arguments, **options):
        rollout = super().generate(*arguments, **options)
        return rollout.replace(logprobs=self.forward(rollout, Needs()).logprobs)


class SeesPadding(Shifted):
    def shift(self, rollout):
        return 0.01 * rollout.prompt_ids.shape[1]


class SeesOthers(Shifted):
    def shift(self, rollout):
        return 0.01 * len(rollout)


class ForgetsTemperature(CausalLM):
    def forward(self, rollout, needs):
        return super().forward(rollout.replace(temperature=1.0), needs)


class ReferenceFollows(CausalLM):
    @contextmanager
    def as_reference(self):
        yield


class SavesItselfAsReference(CausalLM):
    def save_reference(self, directory):
        reference = self._reference
        self.set_reference("stage-start")
        super().save_reference(directory)
        self._reference = reference


class DropsAWeight(CausalLM):
    def state_dict(self):
        state = super().state_dict()
        return {**state, "weights": dict(list(state["weights"].items())[1:])}

    def load_state_dict(self, state):
        whole = super().state_dict()
        super().load_state_dict({**state, "weights": {**whole["weights"], **state["weights"]}})


# --- wrong engines ---------------------------------------------------------------------------------------------------


class Draws(Compaction):
    """An engine as it should be."""


def at(sampling, **changes):
    return sampling.model_copy(update=changes)


class LeavesJunk(Draws):
    def draw(self, *arguments, **options):
        drawn = super().draw(*arguments, **options)
        return replace(drawn, logprobs=drawn.logprobs.masked_fill(~drawn.attention, -1.0))


class NeverTruncates(Draws):
    def draw(self, *arguments, **options):
        drawn = super().draw(*arguments, **options)
        return replace(drawn, truncated=torch.zeros_like(drawn.truncated))


class RecordsWhatItWishes(Draws):
    def draw(self, policy, prompts, sampling, **options):
        drawn = super().draw(policy, prompts, sampling, **options)
        return replace(drawn, logprobs=drawn.logprobs + (sampling.heat == 0.7) * 0.01 * drawn.attention)


class ValuesTheNextState(Draws):
    def draw(self, *arguments, **options):
        drawn = super().draw(*arguments, **options)
        return replace(drawn, values=drawn.values.roll(-1, 1) * drawn.attention)


class RemembersWeights(Draws):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.known = {}

    def draw(self, policy, prompts, sampling, **options):
        key = f"{prompts} {sampling} {options}"
        if key not in self.known:
            self.known[key] = super().draw(policy, prompts, sampling, **options)
        return self.known[key]


class ForgetsTopK(Draws):
    def draw(self, policy, prompts, sampling, **options):
        return super().draw(policy, prompts, at(sampling, top_k=0), **options)


class ForgetsTheLeast(Draws):
    def draw(self, policy, prompts, sampling, **options):
        return super().draw(policy, prompts, at(sampling, min_new_tokens=0), **options)


class ForgetsToStop(Draws):
    def draw(self, policy, prompts, sampling, **options):
        return super().draw(policy, prompts, at(sampling, stop=()), **options)


class ForgetsTheSeed(Draws):
    def draw(self, policy, prompts, sampling, *, seed, sample_ids):
        return super().draw(policy, prompts, sampling, seed=0, sample_ids=sample_ids)


class TouchesRandomness(Draws):
    def draw(self, *arguments, **options):
        torch.rand(1)
        return super().draw(*arguments, **options)


# --- wrong sources ---------------------------------------------------------------------------------------------------


class Told(FeedbackSource[Plain]):
    """A source as it should be."""

    annotator = "ann"

    def __iter__(self) -> Iterator[Any]:
        yield from (Demonstration(prompt="p", response=r, annotator=self.annotator) for r in "abc")


class YieldsDicts(Told):
    def __iter__(self):
        return iter([{"prompt": "p", "response": "a"}])


class RunsDry(Told):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.rows = super().__iter__()

    def __iter__(self):
        return self.rows


class NamesItself(Told):
    built = 0

    def __init__(self, config, context):
        super().__init__(config, context)
        NamesItself.built += 1
        self.annotator = f"reader {self.built}"


class Listed(PromptSource[Plain]):
    """Prompts as they should be."""

    texts: Sequence[str] = "abc"

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return Prompt(text=self.texts[index])


class OneTooMany(Listed):
    def __len__(self):
        return 4


class Shuffles(Listed):
    asked = 0

    def __getitem__(self, index):
        self.asked += 1
        return Prompt(text=self.texts[(index + self.asked // 3) % 3])


# --- each fails its check, and no other ------------------------------------------------------------------------------

MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("metric", Abstract, "resolves_and_implements", "does not implement measure"),
    ("metric", WithCallback, "config_has_a_schema", "no JSON Schema can be made"),
    ("metric", WithSilent, "config_describes_every_field", "Inner does not describe depth; expected a description"),
    ("metric", WithLax, "config_rejects_unknown_keys", 'Lax takes keys that it does not know; expected extra="forbid"'),
    ("metric", WithDoubling, "config_round_trips", "minutes=120) comes back as Doubling(minutes=7200)"),
    ("metric", CannotBeBuilt, "builds_from_its_examples", "raised ValueError: no such file; expected a component"),
    ("metric", KeepsASet, "state_fits_a_checkpoint", "state at /seen is a set"),
    ("metric", GrowsWhenLoaded, "loading_its_own_state_changes_nothing", "loading its own state changes count"),
    ("metric", Averages, "one_float_per_sample", "torch.float32 of shape () for 8 samples; expected floats of shape (8,)"),
    ("metric", Clears, "leaves_its_inputs_alone", "measuring changes the rollout"),
    ("reward", OneColumn, "one_finite_score_per_sample", "of shape (12, 1) for 12 samples; expected floats of shape (12,)"),
    ("reward", LooksAtTheEnds, "order_does_not_matter", "expected the same scores in any order"),
    ("reward", CountsTheBatch, "batch_size_does_not_matter", "expected the same scores in any batch"),
    ("reward", DividesByLength, "reads_empty_and_very_long_text", "ZeroDivisionError for the response '' of 0 characters"),
    ("reward", ClearsFields, "leaves_its_inputs_alone", "scoring changes the samples"),
    ("reward", SpansBeyond, "spans_lie_inside_the_response", "Span(start=0, end=38, credit=1.0) of 'The shop"),
    ("shaper", Tokens, "declares_its_level", "level is 'tokens'; expected 'sequence' or 'token'"),
    ("shaper", Wide, "keeps_shape_and_dtype", "torch.float64 of shape (8, 7); expected torch.float32 of shape (8, 7)"),
    ("shaper", TensorStatistics, "statistics_are_numbers", "statistic 'mean' is tensor("),
    ("shaper", InPlace, "leaves_its_inputs_alone", "shaping changes its inputs"),
    ("shaper", PaysPadding, "masked_positions_stay_zero", "masked positions are paid; expected 0 outside the mask"),
    ("shaper", PunishesAbstaining, "abstained_scores_stay_zero", "an abstained sample gets [-1.0]; expected 0"),
    ("shaper", CentresOverAll, "abstained_samples_do_not_count", "when an abstained sample is left out"),
    ("shaper", PerColumn, "padding_changes_nothing", "three columns of padding change rewards"),
    ("shaper", ForgetsItsCount, "continues_after_a_checkpoint", "expected the same, bit for bit"),
    ("optimizer", DividesByWidth, "padding_changes_nothing", "padding changes a step by"),
    ("optimizer", MeanOfMeans, "micro_batches_change_nothing", "use batch.token_mean and batch.sample_mean"),
    ("optimizer", ForgetsTheMask, "masked_junk_changes_nothing", "junk at masked positions changes a step by"),
    ("optimizer", CallsItselfOffline, "traits_are_true", "'offline', and a step that asks for 1 rollouts"),
    ("optimizer", HidesItsBaseline, "equal_rewards_change_nothing_if_declared", "baseline=False, and equal rewards move"),
    ("optimizer", ComparesNeighbours, "order_changes_nothing", "compare samples by rollout.groups"),
    ("optimizer", FlipsTheSign, "good_samples_become_likelier_and_bad_ones_less_likely", "look at the sign of the loss"),
    ("optimizer", DividesByTheEnded, "a_truncated_batch_is_finite", "a batch of truncated responses raises NumericalError"),
    ("optimizer", StandsStill, "a_step_changes_weights_and_stays_finite", "two steps leave all weights as they were"),
    ("optimizer", WantsALiveSample, "an_abstained_batch_is_harmless", "a batch of abstained samples raises"),
    ("optimizer", ForgetsItsScale, "continues_after_a_checkpoint", "put everything that changes into state_dict"),
    ("policy", SeesPadding, "left_padding_changes_nothing", "three columns of padding move log-probabilities by up to 0.03"),
    ("policy", SeesOthers, "batch_changes_nothing", "differ by up to 0.02 alone and among others"),
    ("policy", ForgetsTemperature, "sampled_logprobs_equal_rescored_ones", "at temperature 0.7 recorded and rescored"),
    ("policy", ReferenceFollows, "reference_is_the_policy_at_stage_start", "when the policy is trained"),
    ("policy", SavesItselfAsReference, "reference_survives_a_resume", "not the policy's"),
    ("policy", DropsAWeight, "continues_after_a_checkpoint", "put all trainable weights into state_dict"),
    ("engine", LeavesJunk, "responses_have_their_form", "logprobs is not 0 in padding"),
    ("engine", NeverTruncates, "responses_end_where_they_say", "truncated=False for the ids ["),
    ("engine", RecordsWhatItWishes, "recorded_logprobs_equal_rescored_ones", "at temperature 0.7 recorded and rescored"),
    ("engine", ValuesTheNextState, "recorded_values_equal_evaluated_ones", "value the state before each token"),
    ("engine", RemembersWeights, "draws_with_the_weights_of_now", "after training, tokens drawn at temperature 0"),
    ("engine", ForgetsTopK, "top_k_is_kept", "with top_k: 2 it draws other tokens than the two likeliest"),
    ("engine", ForgetsTheLeast, "least_length_is_kept", "with min_new_tokens: 5; expected at least 5"),
    ("engine", ForgetsToStop, "stop_strings_are_kept", "a response that ends with the token that completes it"),
    ("engine", ForgetsTheSeed, "the_seed_decides", "another seed draws the same tokens"),
    ("engine", TouchesRandomness, "leaves_the_policy_as_it_was", "it draws from torch's own generator"),
    ("feedback", YieldsDicts, "yields_records", "a dict; expected records such as Comparison"),
    ("feedback", RunsDry, "restarts_from_the_beginning", "3 records, then 0 other ones"),
    ("feedback", NamesItself, "ids_are_stable", "two sources built alike give other ids"),
    ("prompts", OneTooMany, "length_and_index_agree", "len is 4, and [3] raises IndexError"),
    ("prompts", Shuffles, "index_is_stable", "an index gives different prompts at different times"),
]  # fmt: skip
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


@pytest.mark.parametrize(("kind", "component"), [
    ("metric", Length), ("reward", Words), ("shaper", Twice), ("optimizer", Reinforce), ("feedback", Told),
    ("prompts", Listed), ("engine", Draws),
])  # fmt: skip
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


# --- choosing components and naming tests ----------------------------------------------------------------------------


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
        return rollout.lengths.float() if self.config.target else rollout.lengths


def test_without_an_example_what_needs_one_is_skipped_with_the_reason() -> None:
    results = {r.check: r for r in run_checks("dist-mine", plugins_with("metric", WithoutExample))}
    assert results["config_describes_every_field"].outcome == "passed"
    assert results["one_float_per_sample"].outcome == "skipped"
    assert results["one_float_per_sample"].reason == "no example: give conformance_examples"


def test_a_class_gives_examples_and_messages_say_which() -> None:
    found = failures("metric", WithExamples)
    assert list(found) == ["one_float_per_sample"]
    assert found["one_float_per_sample"].startswith("metric 'mine' of dist-mine with {'target': 0}: torch.int64 of")


def test_a_class_that_cannot_be_imported_fails_once() -> None:
    found = failures("metric", "Nobody")
    assert list(found) == ["resolves_and_implements"] and f"{HERE} has no 'Nobody'" in found["resolves_and_implements"]


def test_a_conformance_error_is_an_assertion_with_four_parts() -> None:
    with pytest.raises(AssertionError, match="x: got; expected wanted; mend it") as caught:
        raise ConformanceError("x", "got", "wanted", "mend it")
    assert caught.value.exit_code == 1


# --- stand-ins -------------------------------------------------------------------------------------------------------


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
    with pytest.raises(
        ConfigError, match=r"shaper 'x': tiny_context has no toy of this kind; expected one of feedback"
    ):
        context.component("shaper", "x")


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
