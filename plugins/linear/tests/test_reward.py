"""The linear reward: it finds hidden rules, says how sure it is, survives a checkpoint, and complains in words."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.api import load
from rlhf_core.errors import ConfigError, DataError, RewardError
from rlhf_core.records import Comparison, Demonstration, Edit, Feedback, Prompt, Rating, Sample, Sentiment
from rlhf_core.runs import checkpoint
from rlhf_core.testing import tiny_model
from rlhf_plugin_linear import rlhf_components
from rlhf_plugin_linear.config import LinearRewardConfig
from rlhf_plugin_linear.reward import LinearReward
from ruamel.yaml import YAML

from .toys import agreement, compared, desk, desk_pairs, hidden_rule, make_reward, rated, values

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SMALL: dict[str, Any] = {"min_count": 1, "held_out": 0.0, "cross": False}


def pair(better: str, worse: str, prompt: str = "Hello", **more: Any) -> Comparison:
    return Comparison(prompt=prompt, responses=(better, worse), ranks=(0, 1), **more)


def rating(response: str, score: float, prompt: str = "Hello", **more: Any) -> Rating:
    return Rating(prompt=prompt, response=response, score=score, scale=more.pop("scale", (1, 5)), **more)


def fitted(records: list[Any], **config: Any) -> LinearReward:
    reward = make_reward(**{**SMALL, **config})
    reward.fit(records)
    return reward


def known(kind: Callable[..., list[Feedback]] = compared, count: int = 200, seed: int = 0) -> list[Feedback]:
    rng = random.Random(seed)
    return kind(hidden_rule("en", rng), rng, count)


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_config_are_light() -> None:
    (point,) = entry_points(group="rlhf", name="linear")
    code = f"import sys, {point.value}, {point.value}.config; print({{'torch', 'sklearn', 'scipy'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_spec_resolves_and_the_readme_lists_every_option() -> None:
    (spec,) = rlhf_components()
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert (factory, config) == (LinearReward, LinearReward.Config)
    for name, option in config.model_fields.items():
        assert option.description
        default = "none" if option.default is None else json.dumps(option.default)
        assert f"| `{name}` | {default} |" in README


def test_the_example_of_the_readme_is_valid() -> None:
    example = YAML(typ="safe").load(StringIO(README.split("```yaml\n")[1].split("```")[0]))
    for entry in example["components"]["reward"].values():
        assert entry["use"] == "linear"
        LinearRewardConfig(**entry.get("config", {}))


# --- it learns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", [compared, rated])
def test_finds_the_hidden_rule(kind: Callable[..., list[Feedback]], language: str, seed: int) -> None:
    rng = random.Random(seed)
    say = hidden_rule(language, rng)
    reward = make_reward(seed)
    reward.fit(kind(say, rng, 600))
    assert agreement(reward, [(f"case {i % 97}", *say()) for i in range(300)]) >= 0.80


def test_svr_finds_the_hidden_rule() -> None:
    rng = random.Random(0)
    say = hidden_rule("en", rng)
    reward = fitted(rated(say, rng, 600), estimator="svr")
    assert agreement(reward, [(f"case {i % 97}", *say()) for i in range(300)]) >= 0.80


def test_what_depends_on_the_prompt_takes_products() -> None:
    rng = random.Random(0)
    records, fresh = desk_pairs(rng, 500), desk(rng, 300)
    assert agreement(fitted(records, cross=True), fresh) >= 0.90
    assert agreement(fitted(records, cross=False), fresh) <= 0.65  # it can see thanks, but not what was asked


def test_edits_are_pairs_and_unchanged_ones_say_nothing() -> None:
    edits = [Edit(prompt="Hello", original=f"bad {i}", edited=f"good {i}") for i in range(9)]
    same = [Edit(prompt="Hello", original="bad", edited="bad")]
    better, worse = values(fitted(edits), ["good", "bad"])
    assert better > 0 > worse
    assert values(fitted([*edits, *same]), ["good", "bad"]) == [better, worse]
    comparisons = [pair(f"good {i}", f"bad {i}") for i in range(9)]
    assert values(fitted([*edits[:4], *comparisons[4:]]), ["good", "bad"]) == pytest.approx([better, worse])


def test_rankings_are_all_their_pairs() -> None:
    rankings = [Comparison(prompt="Hello", responses=("so so", "bad", "good", "fine"), ranks=(1, 2, 0, 0))] * 5
    so_so, bad, good, fine = values(fitted(rankings), ["so so", "bad", "good", "fine"])
    assert good == pytest.approx(fine)
    assert good > so_so > bad


def test_sentiment_is_between_minus_one_and_one() -> None:
    labels = {"awful": "negative", "usual": "neutral", "lovely": "positive"}
    records = [
        Sentiment(prompt=f"p{i}", response=word, label=label) for i in range(40) for word, label in labels.items()
    ]
    assert values(fitted(records), list(labels)) == pytest.approx([-1, 0, 1], abs=0.05)
    scored = [record.model_copy(update={"score": -0.5}) if record.label == "positive" else record for record in records]
    assert values(fitted(scored), ["lovely"]) == pytest.approx([-0.5], abs=0.05)


@pytest.mark.parametrize("C", [None, 0.01])
@pytest.mark.parametrize("estimator", ["ridge", "svr"])
def test_ratings_of_any_scale_become_shares_of_it_however_regularised(estimator: str, C: float | None) -> None:
    records = [rating(word, score, f"p{i}", scale=scale) for i in range(40)
               for word, score, scale in (("poor", 2, (1, 5)), ("good", 9, (0, 10)), ("good", 4.6, (1, 5)))]  # fmt: skip
    assert values(fitted(records, estimator=estimator, C=C), ["poor", "good"]) == pytest.approx([0.25, 0.9], abs=0.05)


# --- weights, confidence, calibration --------------------------------------------------------------------------------


def test_a_record_of_weight_nothing_is_not_there() -> None:
    records = known()
    ghosts = [pair("never said", "please", weight=0.0), pair("unheard", "of", weight=0.0)]
    assert values(fitted([*records, *ghosts]), ["please wait", "never"]) == values(
        fitted(records), ["please wait", "never"]
    )


@pytest.mark.parametrize("kind", [compared, rated])
def test_weights_and_C_are_one_thing(kind: Callable[..., list[Feedback]]) -> None:
    records = known(kind)
    heavy = [record.model_copy(update={"weight": 3.0}) for record in records]
    texts = ["please wait", "never sorry", "cable"]
    # the scale is calibrated with the number of records in view, so directions are compared
    a, b = (torch.tensor(values(fitted(r, C=c), texts)) for r, c in ((heavy, 0.1), (records, 0.3)))
    a, b = a - a.mean(), b - b.mean()
    assert (a / a.norm()).tolist() == pytest.approx((b / b.norm()).tolist(), abs=1e-3)


@pytest.mark.parametrize("estimator", ["ridge", "svr"])
def test_a_heavy_rating_outweighs_a_light_one(estimator: str) -> None:
    records = [
        rating("odd", score, f"p{i}", weight=weight) for i in range(30) for score, weight in ((1, 0.1), (5, 0.9))
    ]
    records += [rating("plain", 3, f"p{i}") for i in range(30)]
    odd, plain = values(fitted(records, estimator=estimator), ["odd", "plain"])
    assert odd > plain


def test_low_confidence_turns_a_pair_round_and_half_says_both_are_alike() -> None:
    records = known(count=100)
    turned = [
        r.model_copy(update={"ranks": r.ranks[::-1], "confidence": 0.0}) for r in records if isinstance(r, Comparison)
    ]
    texts = ["please wait", "never sorry"]
    assert values(fitted(turned), texts) == pytest.approx(values(fitted(records), texts))
    sure, doubtful, lost = (values(fitted([pair(f"good {i}", f"bad {i}", f"p{i}", confidence=c) for i in range(60)]),
                                   ["good"])[0] for c in (1.0, 0.75, 0.5))  # fmt: skip
    assert sure > doubtful > 0 == pytest.approx(lost)


def test_score_differences_are_log_odds() -> None:
    # of a thousand people three in four prefer tea: log(0.75 / 0.25) = 1.0986
    records = [pair(*(("tea", "milk") if i % 4 else ("milk", "tea")), f"p{i}") for i in range(1000)]
    tea, milk = values(fitted(records), ["tea", "milk"])
    assert tea - milk == pytest.approx(1.0986, abs=0.02)
    assert fitted(records, C=100.0)._line.C == 100.0  # type: ignore[union-attr]
    doubtful = [pair("tea", "milk", f"p{i}", confidence=0.75) for i in range(1000)]
    tea, milk = values(fitted(doubtful), ["tea", "milk"])
    assert tea - milk == pytest.approx(1.0986, abs=0.02)
    heavy = [pair("tea", "milk", f"p{i}", weight=3.0) for i in range(500)]
    tea, milk = values(fitted([*heavy, *(pair("milk", "tea", f"q{i}") for i in range(500))]), ["tea", "milk"])
    assert tea - milk == pytest.approx(1.0986, abs=0.02)


def test_what_was_learnt_by_heart_is_not_believed() -> None:
    rng = random.Random(0)
    say = hidden_rule("en", rng)
    records = [pair(say()[0], say()[0], f"p{i}") for i in range(150)]  # the order is a coin's
    reward = fitted(records, C=100.0)
    leads = torch.tensor(values(reward, [r.responses[0] for r in records])) - torch.tensor(
        values(reward, [r.responses[1] for r in records]))  # fmt: skip
    assert float((leads > 0).float().mean()) > 0.9
    assert float(leads.abs().mean()) < 1  # all training pairs being right, they would have it log(151) = 5
    assert values(fitted([pair(f"a{i}", f"b{i}", f"p{i}") for i in range(9)]), ["a1"])[0] > 0


def test_few_prompts_are_judged_by_themselves() -> None:
    records = [pair(f"good {i}", f"bad {i}", f"p{i % 4}") for i in range(8)]
    better, worse = values(fitted(records), ["good", "bad"])
    assert better > worse


# --- what is reported ------------------------------------------------------------------------------------------------


def test_held_out_pairs_are_reported_and_are_not_learnt_from() -> None:
    records = known(count=300)
    held = [record for record in records if record.prompt.in_share(0.3)]
    stats = make_reward(held_out=0.3).fit(records)
    assert stats.keys() == {"accuracy", "margin", "loss", "ece", "pairs"}
    assert stats["pairs"] == len(held)
    assert stats["accuracy"] > 0.6
    assert stats["loss"] < 0.69
    lies = [
        r.model_copy(update={"ranks": r.ranks[::-1]}) if r in held else r for r in records if isinstance(r, Comparison)
    ]
    assert make_reward(held_out=0.3).fit(lies)["accuracy"] == pytest.approx(1 - stats["accuracy"])


def test_held_out_ratings_are_reported() -> None:
    records = known(rated, 300)
    stats = make_reward(held_out=0.3).fit(records)
    assert stats.keys() == {"spearman", "mse", "ratings"}
    assert stats["ratings"] == sum(record.prompt.in_share(0.3) for record in records)
    assert stats["spearman"] > 0.6
    assert 0 < stats["mse"] < 0.05
    assert make_reward(held_out=0).fit(records) == {}


def test_a_rank_correlation_of_equal_numbers_is_nothing() -> None:
    records = [rating("good" if i % 2 else "bad", i % 2 + 1, f"p{i}") for i in range(40)]
    level = [r.model_copy(update={"score": 3.0}) if r.prompt.in_share(0.3) else r for r in records]
    assert make_reward(held_out=0.3).fit(level)["spearman"] == 0


def test_a_solver_that_gives_up_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_plugin_linear.estimators.PASSES", 1)
    with pytest.warns(UserWarning, match="reward 'mine': the solver of svr did not converge; lower C"):
        fitted(known(rated, 60), estimator="svr", C=100.0)


# --- scoring and state -----------------------------------------------------------------------------------------------


def test_scores_are_float32_finite_and_the_same_in_any_batch() -> None:
    reward = fitted(known(), cross=True)
    texts = ["please wait", "", "谢谢", "never " * 5000, "please wait"]
    together = reward.score([Sample(Prompt(text="case 3"), text) for text in texts])
    assert (together.values.dtype, together.values.shape) == (torch.float32, (5,))
    assert together.values.tolist() == [values(reward, [text], "case 3")[0] for text in texts]
    assert together.values[1] == 0
    assert reward.score([]).values.shape == (0,)


@pytest.mark.parametrize(("kind", "config"), [
    (compared, {"cross": True}), (compared, {"analyzer": "char", "ngrams": (1, 3)}),
    (rated, {"cross": True}), (rated, {"estimator": "svr", "features": "response"}),
])  # fmt: skip
def test_scores_survive_a_checkpoint_bit_for_bit(kind: Any, config: dict[str, Any], tmp_path: Path) -> None:
    reward = fitted(known(kind), **config)
    checkpoint.save(tmp_path / "reward", reward.state_dict())
    again = make_reward(**{**SMALL, **config})
    again.load_state_dict(checkpoint.load(tmp_path / "reward"))
    samples = [
        Sample(Prompt(text=f"case {i}"), text) for i, text in enumerate(("please wait", "sorry never", "", "soon"))
    ]
    assert again.score(samples).values.tolist() == reward.score(samples).values.tolist()
    assert sorted(path.name for path in (tmp_path / "reward").iterdir()) == ["sha256.json", "state.json", "tensors.safetensors"]


def test_an_empty_state_takes_back_what_was_fitted() -> None:
    reward = fitted(known())
    reward.load_state_dict(make_reward().state_dict())
    with pytest.raises(RewardError, match="before it is fitted"):
        values(reward, ["please"])


def test_a_fit_repeats_and_replaces_the_one_before() -> None:
    records, texts = known(rated), ["please wait", "sorry never"]
    first, second = (fitted(records, estimator="svr") for _ in range(2))
    assert values(first, texts) == values(second, texts)
    second.fit(known(seed=1)) if second.config.estimator == "auto" else second.fit(known(rated, seed=1))
    assert values(second, texts) != values(first, texts)
    second.fit(records)
    assert values(second, texts) == values(first, texts)


def test_a_run_keeps_what_it_fitted(tmp_path: Path) -> None:
    lines = [record.model_dump_json() for record in known(count=120)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "registry.yaml").write_text(
        """
schema_version: 1
components:
  policy: {toy: {use: causal-lm, config: POLICY}}
  feedback: {texts: {use: records, config: {path: pairs.jsonl}}}
  reward:
    classic: {use: linear}
    same: {use: linear}
    kept: {use: linear, load: run/components/reward.classic}
pipelines:
  fit: {policy: toy, stages: [{fit-reward: {reward: classic, feedback: [texts], baseline: same}}]}
""".replace("POLICY", json.dumps(tiny_model())),
        encoding="utf-8",
    )
    project = load(tmp_path / "registry.yaml")
    summary = project.run("fit", out=tmp_path / "run").summary["stages"]["fit-reward"]
    assert summary["held_out"]["pairs"] > 0
    assert summary["baseline"]["held_out"] == summary["held_out"]
    better, worse = values(project.build("reward", "kept"), ["please", "never"])
    assert better != worse


# --- bad input -------------------------------------------------------------------------------------------------------


def test_scoring_before_fitting() -> None:
    with pytest.raises(RewardError) as error:
        values(make_reward(), ["please"])
    assert str(error.value) == (
        "reward 'mine': is asked for scores before it is fitted; expected a fitted model; put a fit-reward stage before, "
        "or give `load:` what an earlier run fitted"
    )


DEMONSTRATION = Demonstration(prompt="Hello", response="Hi")


@pytest.mark.parametrize(("records", "config", "words"), [
    ([DEMONSTRATION], {}, "feedback of kind 'demonstration'; expected comparisons or edits, or else ratings"),
    ([pair("a", "b"), rating("a", 3)], {}, "feedback of kinds 'comparison' and 'rating' in one fit"),
    ([rating("a", 3), Sentiment(prompt="p", response="a", label="neutral")], {}, "kinds 'rating' and 'sentiment'"),
    ([], {}, "no record is left to train on; expected at least one; give more feedback, or a smaller held_out share"),
    ([rating("a", 3, weight=0)], {}, "no record is left to train on"),
    ([rating("a", 3), rating("b", 3)], {}, "every one of 2 training records has the same value"),
    ([pair("a", "b")], {}, "1 pairs to train on; a tie or an unchanged edit is none; expected at least two"),
    ([Comparison(prompt="p", responses=("a", "b"), ranks=(0, 0))] * 3, {}, "0 pairs to train on"),
    ([pair("a", "b"), pair("c", "d")], {"min_count": 3}, "no n-gram is in min_count = 3 of 4 responses"),
    ([pair("?", "!"), pair("", ".")], {}, "no n-gram is in min_count = 1 of 4 responses"),
])  # fmt: skip
def test_feedback_that_cannot_be_learnt_from(records: list[Any], config: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as error:
        fitted(records, **config)
    assert str(error.value).startswith("reward 'mine': ")
    assert words in str(error.value)


def test_a_failed_fit_leaves_the_reward_as_it_was() -> None:
    reward = fitted(known())
    before = values(reward, ["please"])
    with pytest.raises(DataError):
        reward.fit([pair("?", "!"), pair("", ".")])
    assert values(reward, ["please"]) == before


@pytest.mark.parametrize(("estimator", "records", "words"), [
    ("ridge", [pair("a", "b")] * 2, "reward 'mine' estimator: 'ridge', but the feedback is pairs; expected ranking-svm"),
    ("ranking-svm", [rating("a", 3), rating("b", 4)], "'ranking-svm', but the feedback is ratings; expected ridge or svr"),
])  # fmt: skip
def test_an_estimator_that_does_not_go_with_the_feedback(estimator: str, records: list[Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        fitted(records, estimator=estimator)
    assert words in str(error.value)


def test_a_state_of_another_configuration() -> None:
    state = fitted(known(), ngrams=(1, 1)).state_dict()
    with pytest.raises(ConfigError) as error:
        make_reward().load_state_dict(state)
    assert str(error.value) == (
        "reward 'mine' checkpoint: was fitted with ngrams = [1, 1]; expected ngrams = [1, 2] as configured; use the "
        "configuration that it was saved with"
    )


@pytest.mark.parametrize(("config", "words"), [
    ({"estimator": "lasso"}, "'auto', 'ranking-svm', 'ridge' or 'svr'"),
    ({"C": 0}, "greater than 0"),
    ({"ngrams": (2, 1)}, "got [2, 1], expected [shortest, longest] with 1 <= shortest <= longest"),
    ({"ngrams": (0, 1)}, "got [0, 1]"),
    ({"min_count": 0}, "greater than or equal to 1"),
    ({"held_out": 1}, "less than 1"),
    ({"alpha": 1}, "Extra inputs are not permitted"),
])  # fmt: skip
def test_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        LinearRewardConfig(**config)
    assert words in str(error.value)
