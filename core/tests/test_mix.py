"""The reward `mix`: each formula by hand, scales from feedback by hand, spans, abstention, errors, and a run with it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.api import load
from rlhf_core.components.config import MixConfig
from rlhf_core.components.mix import BATCH, Mix
from rlhf_core.errors import ConfigError, DataError, RegistryErrors, RewardError
from rlhf_core.interfaces import Config, Context, OnlineReward, RewardModel
from rlhf_core.records import (
    Comparison,
    Demonstration,
    Edit,
    Feedback,
    Keywords,
    Prompt,
    Rating,
    Sample,
    Scores,
    Sentiment,
    Span,
)
from rlhf_core.runs import checkpoint


class NoOptions(Config):
    """Nothing to set."""


class Says(RewardModel[NoOptions]):
    """Answers from a list: response -> value, None to abstain; and response -> spans."""

    def __init__(self, said: Mapping[str, float | None], spans: Mapping[str, tuple[Span, ...]] | None = None) -> None:
        super().__init__(NoOptions(), Context(kind="reward", id="says"))
        self.said, self.spans = said, spans

    def score(self, samples: Sequence[Sample]) -> Scores:
        values = [self.said[sample.response] for sample in samples]
        return Scores(
            torch.tensor([math.nan if v is None else v for v in values]),
            None if self.spans is None else tuple(self.spans.get(sample.response, ()) for sample in samples),
            torch.tensor([v is None for v in values]) if None in values else None,
            {"half": torch.tensor([(v or 0.0) / 2 for v in values])} if "parts" in self.said else {},
        )


class Learns(OnlineReward[NoOptions]):
    """A reward that learns while the policy does."""

    def score(self, samples: Sequence[Sample]) -> Scores:
        return Scores(torch.zeros(len(samples)))

    def update(self, rollout: Any, score_logprobs: Any) -> dict[str, float]:
        return {}


def mix(models: Mapping[str, Any], rewards: Mapping[str, float] | None = None, **config: Any) -> Mix:
    """A mix of `models` (id -> what it says, or a reward), all of weight 1 unless `rewards` says otherwise."""
    built = {id: said if isinstance(said, RewardModel) else Says(said) for id, said in models.items()}
    context = Context(kind="reward", id="mixed", resolve=lambda kind, id: built[id])
    return Mix(MixConfig(rewards=dict(rewards or dict.fromkeys(models, 1.0)), **config), context)


def score(model: RewardModel[Any], *responses: str) -> Scores:
    return model.score([Sample(Prompt(text="p"), response) for response in responses])


def values(model: RewardModel[Any], *responses: str) -> list[float]:
    return score(model, *responses).values.tolist()


A = {"x": 2.0, "y": -1.0}
B = {"x": 10.0, "y": 30.0}
SCALED = {"b": {"mean": 20, "std": 10}}  # of B: x is -1, y is 1


# --- the formulas ----------------------------------------------------------------------------------------------------


def test_a_sum_by_hand() -> None:
    assert values(mix({"a": A, "b": B}, {"a": 1.0, "b": 0.5}), "x", "y") == [7.0, 14.0]
    assert values(mix({"a": A, "b": B}, {"a": 1.0, "b": -0.5}, scale=SCALED), "x", "y") == [2.5, -1.5]


def test_a_product_by_hand() -> None:
    fluent, true = {"x": 0.25, "y": 0.81, "z": 0.0}, {"x": 0.8, "y": 0.5, "z": 1.0}
    model = mix({"fluent": fluent, "true": true}, {"fluent": 0.5, "true": 1.0}, combine="product")
    assert values(model, "x", "y", "z") == pytest.approx([0.4, 0.45, 0.0])


def test_a_minimum_by_hand() -> None:
    model = mix({"a": A, "b": B}, {"a": 0.25, "b": 2.0}, combine="minimum", scale=SCALED)
    assert values(model, "x", "y") == [-2.0, -0.25]  # of 0.5 and -2, of -0.25 and 2


SAFE = {"x": 0.4, "y": 0.5}


def test_a_gate_by_hand() -> None:
    gated: dict[str, Any] = {"combine": "gate", "gate": "safe", "threshold": 0.5}
    models = {"a": A, "b": B, "safe": SAFE}
    rest = {"a": 1.0, "b": 0.5}
    assert values(mix(models, rest, below=-3.0, **gated), "x", "y") == [-3.0, 14.0]
    assert values(mix(models, rest, **gated), "x", "y") == pytest.approx([0.4, 14.0])
    scaled = {"safe": {"mean": 0.6, "std": 0.1}}  # the threshold is of the value as it is
    assert values(mix(models, rest, scale=scaled, **gated), "x", "y") == pytest.approx([-2.0, 14.0])
    assert values(mix(models, {**rest, "safe": 10.0}, below=-3.0, **gated), "x", "y") == pytest.approx([-3.0, 19.0])


def test_parts_are_the_values_of_the_components_unscaled() -> None:
    model = mix({"a": A, "b": B, "c": {**A, "parts": 0.0}}, {"a": 3.0, "b": 1.0, "c": 1.0}, scale=SCALED)
    parts = {name: part.tolist() for name, part in score(model, "x", "y").parts.items()}
    assert parts == {"a": [2, -1], "b": [10, 30], "c": [2, -1], "c/half": [1, -0.5]}
    gated = mix({"a": A, "safe": SAFE}, {"a": 1.0}, combine="gate", gate="safe", threshold=0.5)
    assert score(gated, "x").parts.keys() == {"a", "safe"}


def test_no_samples_no_scores() -> None:
    assert score(mix({"a": A})).values.shape == (0,)


# --- abstention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["sum", "product", "minimum"])
def test_one_abstains_all_abstain(combine: str) -> None:
    model = mix({"a": {"x": 1.0, "y": None, "z": 0.5}, "b": {"x": None, "y": 1.0, "z": 0.5}}, combine=combine)
    scores = score(model, "x", "y", "z")
    assert scores.abstained is not None and scores.abstained.tolist() == [True, True, False]
    assert scores.values[:2].tolist() == [0, 0] and scores.values[2] > 0
    assert scores.parts["a"].tolist() == [1.0, 0.0, 0.5]


def test_a_closed_gate_needs_nobody_else() -> None:
    models = {
        "a": {"closed": None, "open": None, "unknown": 1.0},
        "safe": {"closed": 0.0, "open": 1.0, "unknown": None},
    }
    scores = score(
        mix(models, {"a": 1.0}, combine="gate", gate="safe", threshold=0.5, below=-1.0), "closed", "open", "unknown"
    )
    assert scores.abstained is not None and scores.abstained.tolist() == [False, True, True]
    assert scores.values.tolist() == [-1.0, 0.0, 0.0]


# --- spans -----------------------------------------------------------------------------------------------------------

SPANNED = {"please wait": (Span(0, 6, 3.0), Span(7, 11, -1.0))}
POLITE = Says({"please wait": 2.0, "no": 0.0}, SPANNED)
FLAT = Says({"please wait": 1.0, "no": 5.0})


def spans(model: Mix, *responses: str) -> list[list[tuple[int, int, float]]]:
    found = score(model, *responses).spans
    assert found is not None
    return [[(span.start, span.end, span.credit) for span in row] for row in found]


def test_spans_of_a_sum_earn_weight_over_deviation_and_leave_the_rest() -> None:
    model = mix({"polite": POLITE, "flat": FLAT}, {"polite": 2.0, "flat": 1.0}, scale={"polite": {"mean": 1, "std": 4}})
    assert spans(model, "please wait", "no") == [[(0, 6, 1.5), (7, 11, -0.5)], []]
    assert values(model, "please wait") == [1.5]  # spans earn 1; the rest is 1 of `flat` and 2 * (0 - 1) / 4
    both = mix({"polite": POLITE, "again": Says(POLITE.said, SPANNED)})
    (row,) = spans(both, "please wait")
    assert values(both, "please wait") == [sum(credit for _, _, credit in row)] == [4.0]


def test_spans_follow_what_decides() -> None:
    models = {"polite": POLITE, "flat": FLAT}
    least = mix(models, {"polite": 0.25, "flat": 1.0}, combine="minimum")  # of 0.5 and 1
    assert spans(least, "please wait") == [[(0, 6, 0.75), (7, 11, -0.25)]]
    assert spans(mix(models, combine="minimum"), "please wait") == [[]]
    assert spans(mix(models, combine="product"), "please wait") == [[]]
    gated: dict[str, Any] = {"combine": "gate", "gate": "polite"}
    assert spans(mix(models, {"flat": 1.0}, threshold=3, **gated), "please wait") == [[(0, 6, 3.0), (7, 11, -1.0)]]
    assert spans(mix(models, {"flat": 1.0}, threshold=3, below=0, **gated), "please wait") == [[]]
    assert spans(mix(models, {"flat": 1.0}, threshold=1, **gated), "please wait") == [[]]
    assert spans(mix(models, threshold=1, **gated), "please wait") == [[(0, 6, 3.0), (7, 11, -1.0)]]


def test_an_abstained_sample_has_no_spans_and_rewards_without_spans_give_none() -> None:
    assert spans(mix({"polite": POLITE, "mute": {"please wait": None}}), "please wait") == [[]]
    assert score(mix({"flat": FLAT}), "no").spans is None


# --- scales from feedback --------------------------------------------------------------------------------------------


def rating(response: str, weight: float = 1.0) -> Rating:
    return Rating(prompt="p", response=response, score=1, scale=(0, 1), weight=weight)


def test_fit_measures_mean_and_deviation_of_all_responses_by_hand() -> None:
    said = {
        text: float(n) for n, text in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight"], 1)
    }
    feedback: list[Feedback] = [
        rating("one"),
        Comparison(prompt="p", responses=("two", "three"), ranks=(0, 1)),
        Edit(prompt="p", original="four", edited="five"),
        Demonstration(prompt="p", response="six"),
        Sentiment(prompt="p", response="seven", label="neutral"),
        Keywords(prompt="p", response="eight"),
        Keywords(prompt="p", wanted=("thanks",)),
    ]
    model = mix({"n": said, "double": {text: 2 * n for text, n in said.items()}}, {"n": 1.0, "double": 1.0})
    stats = model.fit(feedback)
    # 1 to 8: mean 4.5, variance (64 - 1) / 12 = 5.25
    assert stats == pytest.approx(
        {"responses": 8, "n/mean": 4.5, "n/std": 5.25**0.5, "double/mean": 9, "double/std": 21**0.5}
    )
    assert values(model, "eight") == pytest.approx([2 * 3.5 / 5.25**0.5])


def test_fit_counts_records_by_weight_and_leaves_out_abstentions() -> None:
    model = mix({"a": {"x": 1.0, "y": 3.0, "z": None}})
    stats = model.fit([rating("x", 1), rating("y", 3), rating("z", 9)])
    assert (stats["a/mean"], stats["a/std"]) == pytest.approx((2.5, 0.75**0.5))  # (1.5^2 + 3 * 0.5^2) / 4
    assert values(model, "y") == pytest.approx([0.5 / 0.75**0.5])


def test_fit_goes_through_all_batches_and_leaves_given_scales_alone() -> None:
    model = mix({"a": {"x": 0.0, "y": 2.0}, "b": {"x": 5.0, "y": 5.0}}, scale={"b": {"mean": 5, "std": 2}})
    count = BATCH + BATCH // 2
    stats = model.fit(rating(text) for text in ["x"] * count + ["y"] * count)
    assert stats == pytest.approx({"responses": 3 * BATCH, "a/mean": 1, "a/std": 1})
    assert values(model, "x", "y") == pytest.approx([-1, 1])


def test_the_state_is_the_measured_scales_bit_for_bit(tmp_path: Path) -> None:
    def fresh() -> Mix:
        return mix({"a": {"x": 0.1, "y": 0.7}, "b": B}, scale=SCALED)

    fitted, again = fresh(), fresh()
    assert fitted.state_dict() == {"scale": {}}
    fitted.fit([rating("x"), rating("y"), rating("y")])
    checkpoint.save(tmp_path / "state", fitted.state_dict())
    again.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert again.state_dict() == fitted.state_dict() and again.scale("a") == fitted.scale("a")
    assert values(again, "x", "y") == values(fitted, "x", "y") != values(fresh(), "x", "y")
    with pytest.raises(
        ConfigError, match=r"reward 'mixed': the scales to load are those of a; expected those of c; load a mix"
    ):
        mix({"c": A}).load_state_dict(fitted.state_dict())


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "words"), [
    ({"rewards": {}}, "at least 1 item"),
    ({"combine": "gate"}, "combine: gate needs `gate` .* and `threshold`"),
    ({"combine": "gate", "gate": "a"}, "combine: gate needs"),
    ({"threshold": 1}, "go with combine: gate"),
    ({"below": 1}, "go with combine: gate"),
    ({"combine": "product", "scale": {"a": {}}}, "product takes values as they are; leave out `scale`"),
    ({"combine": "product", "rewards": {"a": -1}}, "product needs weights of 0 or more"),
    ({"scale": {"b": {"std": 2}}}, "`scale` names b, which is not among the rewards"),
    ({"scale": {"a": {"std": 0}}}, "greater than 0"),
    ({"rewards": {"a": math.inf}}, "finite number"),
])  # fmt: skip
def test_configs_that_do_not_fit_together(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MixConfig(**{"rewards": {"a": 1.0}, **config})


def test_a_product_takes_nothing_below_zero() -> None:
    model = mix({"a": {"x": 0.5, "y": -0.5}}, combine="product")
    with pytest.raises(
        RewardError, match=r"reward 'mixed': reward 'a' gives -0.5 for sample 1: 'p' -> 'y'; expected values of 0"
    ):
        score(model, "x", "y")
    assert values(model, "x") == [0.5]


def test_a_component_that_goes_wrong_is_told_by_its_own_name() -> None:
    with pytest.raises(RewardError, match=r"reward 'says': score inf for sample 0"):
        score(mix({"a": {"x": math.inf}}), "x")


def test_rewards_that_learn_online_stay_outside() -> None:
    online = Learns(NoOptions(), Context(kind="reward", id="airl"))
    with pytest.raises(
        ConfigError, match=r"reward 'mixed': reward 'airl' learns while .*put 'airl' under `rewards` of the optimize"
    ):
        mix({"a": A, "airl": online})


@pytest.mark.parametrize(("feedback", "words"), [
    ([], "reward 'a' has no opinion on any response in the feedback; .* take other feedback, or write scale: {a: "),
    ([rating("x", weight=0)], "reward 'a' has no opinion"),
    ([rating("mute")], "reward 'a' has no opinion"),
    ([rating("x", weight=w) for w in (0.1, 0.2, 0.3)], r"reward 'a' gives 0\.7 to every response.*values that differ"),
])  # fmt: skip
def test_feedback_that_gives_no_scale(feedback: list[Rating], words: str) -> None:
    with pytest.raises(DataError, match=words):
        mix({"a": {"x": 0.7, "mute": None}}).fit(feedback)


def test_a_mix_with_nothing_to_measure_is_not_fitted() -> None:
    for model in (mix({"a": A}, combine="product"), mix({"b": B}, scale=SCALED)):
        with pytest.raises(
            ConfigError, match="reward 'mixed': has no scale to measure; leave out its fit-reward stage"
        ):
            model.fit([rating("x")])


# --- in a registry ---------------------------------------------------------------------------------------------------

REGISTRY = """\
schema_version: 1
functions: {length: rewards.py:length, vowels: rewards.py:vowels}
components:
  policy:
    tiny:
      use: causal-lm
      config:
        fresh: {architecture: gpt2, sizes: {n_embd: 16, n_layer: 1, n_head: 2, n_positions: 64},
                tokenizer: {text: [people], vocab_size: 260}}
  feedback:
    people: {use: records, config: {path: people.jsonl}}
  prompts:
    asked: {use: feedback, config: {feedback: people}}
  reward:
    length: {use: function, config: {function: length}}
    vowels: {use: function, config: {function: vowels}}
    inner: {use: mix, config: {rewards: {length: 1}, scale: {length: {std: 2}}}}
    outer: {use: mix, config: {rewards: {inner: 1, vowels: 3}}}
pipelines:
  mixed:
    policy: tiny
    device: cpu
    stages:
      - fit-reward: {reward: outer, feedback: [people]}
      - evaluate: {prompts: asked, rewards: {outer: 1.0}, metrics: [reward], sampling: {max_new_tokens: 4}}
"""
REWARDS = """\
def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]

def vowels(prompts, completions, **columns):
    return [float(sum(c in "aeiou" for c in text)) for text in completions]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # functions of registry files elsewhere are not trusted
    (tmp_path / "rewards.py").write_text(REWARDS)
    people = [Comparison(prompt="Say:", responses=("aa", "aabbbb"), ranks=(0, 1)).model_dump(mode="json")]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(record) + "\n" for record in people))
    (tmp_path / "registry.yaml").write_text(REGISTRY)
    return tmp_path


def test_a_mix_of_a_mix_is_fitted_in_a_run_and_loaded_by_a_registry(project: Path) -> None:
    file = project / "registry.yaml"
    assert values(load(file).build("reward", "outer"), "aab") == [3 / 2 + 3 * 2]
    out = project / "run"
    file.write_text(REGISTRY.replace("inner: 1, vowels: 3", "inner: 1, length: 3"))
    load(file).run("mixed", out=out)
    kept = out / "components" / "reward.outer"
    # lengths 2 and 6: mean 4, deviation 2; half of that for the inner mix
    assert checkpoint.load(kept) == {"scale": {"inner": [2.0, 1.0], "length": [4.0, 2.0]}}
    text = file.read_text().replace("length: 3}}}", f"length: 3}}}}, load: {kept}}}")
    file.write_text(text)
    assert values(load(file).build("reward", "outer"), "aabbbb") == [1 + 3 * 1]


@pytest.mark.parametrize(("own", "words"), [
    ("outer", "reward 'outer' -> reward 'outer'"),
    ("circle", "reward 'circle' -> reward 'outer' -> reward 'circle'"),
])  # fmt: skip
def test_a_mix_that_names_itself_is_an_error_of_the_registry(project: Path, own: str, words: str) -> None:
    file = project / "registry.yaml"
    circle = "    circle: {use: mix, config: {rewards: {outer: 1}}}\npipelines:"
    file.write_text(REGISTRY.replace("{inner: 1,", f"{{{own}: 1,").replace("pipelines:", circle))
    project_of_it = load(file)
    with pytest.raises(RegistryErrors, match=f"components name each other in a circle: {words}"):
        project_of_it.build("reward", "outer")
    assert any(words in str(problem) for problem in project_of_it.validate())
