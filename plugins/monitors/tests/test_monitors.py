"""Each monitor on series worked out by hand: when it speaks, and when it must not."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Context, Observation
from rlhf_core.records import Prompt, Sample, Scores
from rlhf_plugin_monitors.config import (
    AdvantageVarianceConfig,
    DisagreementConfig,
    EntropyCollapseConfig,
    GoldConfig,
    KLBudgetConfig,
    LengthDriftConfig,
    RepetitionDriftConfig,
)
from rlhf_plugin_monitors.drift import Series
from rlhf_plugin_monitors.rewards import Disagreement, Gold
from rlhf_plugin_monitors.samples import AdvantageVariance, RepetitionDrift, repeated, spread
from rlhf_plugin_monitors.statistics import EntropyCollapse, KLBudget, LengthDrift


def samples(*texts: str, prompts: int = 1) -> tuple[Sample, ...]:
    """The texts as responses, to so many prompts in turn."""
    return tuple(Sample(Prompt(text=f"p{i % prompts}"), text) for i, text in enumerate(texts))


def seen(step: int = 1, texts: tuple[str, ...] = (), scores: tuple[float, ...] = (), **stats: float) -> Observation:
    named = {name.replace("__", "/"): value for name, value in stats.items()}
    return Observation("optimize", step, 100, named, samples(*texts), scores)


def context(**rewards) -> Context:
    """A context whose rewards score by a function of the text; None: it abstains."""

    def resolve(kind, id):
        def score(asked):
            values = [rewards[id](sample.response) for sample in asked]
            silent = torch.tensor([value is None for value in values])
            return Scores(torch.tensor([value or 0.0 for value in values]), abstained=silent)

        return SimpleNamespace(score=score)

    return Context(kind="monitor", id="mine", resolve=resolve)


def test_a_series_is_judged_by_its_first_values() -> None:
    """First 1 and 3: level 2, s = sqrt(2). Then 4 and 6: change 3, z = 3 / (sqrt(2) sqrt(1/2 + 1/2)) = 2.1213."""
    series = Series(warmup=2, window=2)
    assert [series.add(value) for value in (1, math.nan, 3, 4, 6)] == [False, False, False, False, True]
    assert (series.level, series.now) == (2, 5)
    assert series.z == pytest.approx(2.1213, abs=1e-4)


def test_a_change_from_a_constant_is_infinite() -> None:
    series = Series(warmup=2, window=1)
    for value in (1.0, 1.0, 1.0):
        series.add(value)
    assert series.z == 0
    series.add(0.5)
    assert series.z == -math.inf


def test_kl_budget() -> None:
    monitor = KLBudget(KLBudgetConfig(budget=10, window=2), Context())
    assert monitor.look(seen(kl__sequence=100)) is None  # one step is no window
    assert monitor.look(seen(kl__sequence=-81)) is None  # mean 9.5
    assert monitor.look(seen(kl__sequence=103)) == "11.0 nats per response from the reference, over a budget of 10"


@pytest.mark.parametrize(("monitor", "name", "fix"), [
    (KLBudget(KLBudgetConfig(), context()), "kl/sequence", "add the shaper kl"),
    (LengthDrift(LengthDriftConfig(), context()), "response/length", "a stage that samples responses"),
    (EntropyCollapse(EntropyCollapseConfig(), context()), "policy/entropy", "a stage that samples responses"),
])  # fmt: skip
def test_a_statistic_that_is_not_there(monitor, name: str, fix: str) -> None:
    words = f"monitor 'mine': stage 'optimize' has no statistic '{name}'; expected it among loss; .*{fix}"
    with pytest.raises(ConfigError, match=words):
        monitor.look(seen(loss=1.0))


@pytest.mark.parametrize(("length", "words"), [
    (29, None),  # 29 is less than 1.5 times 20
    (31, "responses of 31.0 tokens, 20.0 in the first 2 steps"),
    (13, "responses of 13.0 tokens"),  # less than 20 / 1.5
])  # fmt: skip
def test_length_drift_both_ways(length: float, words: str | None) -> None:
    monitor = LengthDrift(LengthDriftConfig(warmup=2, window=1, z=4), Context())
    monitor.look(seen(response__length=19.5))
    monitor.look(seen(response__length=20.5))
    answer = monitor.look(seen(response__length=length))
    assert (answer is None) if words is None else (answer is not None and words in answer)


def test_a_drift_within_the_noise_is_none() -> None:
    """First 5 and 35: level 20, s = 21.2; 45 is 2.25 times as long, and only 0.96 standard errors away."""
    monitor = LengthDrift(LengthDriftConfig(warmup=2, window=1, z=1), Context())
    for length in (5, 35):
        monitor.look(seen(response__length=length))
    assert monitor.look(seen(response__length=45)) is None


def test_entropy_collapse_but_not_a_rise() -> None:
    monitor = EntropyCollapse(EntropyCollapseConfig(warmup=2, window=1), Context())
    answers = [monitor.look(seen(policy__entropy=value)) for value in (2.1, 1.9, 20.0, 0.7, 0.5)]
    assert answers[:4] == [None] * 4  # .7 is more than .3 of 2
    assert answers[4] == "an entropy of 0.5 nats per token, 2 in the first 2 steps"


@pytest.mark.parametrize(("text", "n", "share"), [
    ("please please please please", 1, 3 / 4),
    ("please please please please", 2, 2 / 3),  # three pairs, one of them new
    ("Please help, please", 1, 1 / 3),  # whatever the case
    ("all words are new", 1, 0.0),
    ("好好好好", 1, 3 / 4),  # no spaces needed
])  # fmt: skip
def test_repeated(text: str, n: int, share: float) -> None:
    assert repeated(text, n) == pytest.approx(share)
    assert math.isnan(repeated("one", n)) and math.isnan(repeated("", n))


def test_repetition_drift_shows_the_worst() -> None:
    monitor = RepetitionDrift(RepetitionDriftConfig(warmup=2, window=1, rise=0.3), Context())
    assert monitor.wants_samples(1)
    fine, bad = ("see the page", "one"), ("page page page page", "see the page")
    assert [monitor.look(seen(texts=texts)) for texts in (fine, fine, fine, (), ("one",))] == [None] * 5
    # (2/3 + 0) / 2 of the bigrams
    assert monitor.look(seen(texts=bad)) == (
        "33% of 2-grams repeat earlier ones of the response, 0% in the first 2 steps, such as 'page page page page'"
    )


def test_spread_is_within_prompts_or_over_all() -> None:
    scores = (1.0, 10.0, 3.0, 10.0)  # prompts p0, p1, p0, p1: 1 and 3 have a variance of 2, 10 and 10 of 0
    assert spread(samples(*"abcd", prompts=2), scores) == 1.0
    assert spread(samples(*"abcd", prompts=4), scores) == pytest.approx(22.0)  # mean 6: (25 + 16 + 9 + 16) / 3
    assert math.isnan(spread(samples("a"), (1.0,)))


def test_advantage_variance_that_vanishes_or_explodes() -> None:
    for width, words in ((0.3, "a variance of 0.18"), (40.0, "a variance of 3.2e+03"), (3.0, None)):
        monitor = AdvantageVariance(AdvantageVarianceConfig(warmup=2, window=1), Context())
        for first in (2.0, 2.2):
            monitor.look(seen(texts=("a", "b"), scores=(-first, first)))
        answer = monitor.look(seen(texts=("a", "b"), scores=(-width, width)))
        assert (answer is None) if words is None else (answer is not None and words in answer)


def looks(monitor, *responses: str) -> list[str | None]:
    """What it answers to steps of four samples, each "score gold"."""
    return [monitor.look(seen(texts=(r, r, f"{r}.", f"{r}.")[:4], scores=tuple(score(r) + e for e in (0, 0, 0.1, 0.1))))
            for r in responses]  # fmt: skip


def score(text: str) -> float:
    return float(text.count("!"))


def test_gold_needs_a_score_that_rises_and_a_gold_that_falls() -> None:
    config = GoldConfig(gold="gold", every=3, warmup=2, window=1, z=3)
    assert [config.every == 3 and Gold(config, context(gold=len)).wants_samples(s) for s in (1, 2, 3, 6)] == [
        False, False, True, True
    ]  # fmt: skip
    falls = context(gold=lambda text: 5.0 - text.count("!") + 0.1 * text.endswith("."))
    assert looks(Gold(config, falls), "", "", "", "!!") == [None, None, None, (
        "the score rose from 0.05 to 2.05 while 'gold', kept out of training, fell from 5.05 to 3.05"
    )]  # fmt: skip
    rises = context(gold=lambda text: float(text.count("!")))
    assert looks(Gold(config, rises), "", "", "", "!!") == [None] * 4
    assert looks(Gold(config, falls), "!!", "!!", "") == [None] * 3  # the score falls, and gold rises


def test_gold_leaves_out_what_it_has_no_opinion_of() -> None:
    monitor = Gold(GoldConfig(gold="gold"), context(gold=lambda text: None))
    assert looks(monitor, "", "", "!!", "!!", "!!") == [None] * 5 and monitor.looks == []


def test_disagreement_is_measured_on_each_rewards_own_scale() -> None:
    """A reward of 100 times the score agrees with it; once it turns against it, it does not."""
    config = DisagreementConfig(rewards=["other"], warmup=2, window=1)
    monitor = Disagreement(config, context(other=lambda t: 100.0 * len(t) if "!" not in t else -100.0 * len(t)))
    agree = ("a", "bb", "ccc", "dddd")
    assert [monitor.look(seen(texts=agree, scores=(1, 2, 3, 4))) for _ in range(3)] == [None] * 3
    assert monitor.series.level == pytest.approx(0, abs=1e-6)
    answer = monitor.look(seen(texts=("!!!!", "!!!", "!!", "!!!!!!"), scores=(4, 3, 2, 6)))
    assert answer is not None and answer.startswith("the score and 'other' differ by")
