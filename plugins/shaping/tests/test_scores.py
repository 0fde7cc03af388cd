from __future__ import annotations

import itertools
import random
import statistics
from typing import Any

import pytest
import torch
from rlhf_core.errors import RewardError, RunError
from rlhf_core.records import Message, Prompt
from rlhf_plugin_shaping.scores import Clip, PromptBaseline, Scale, SuccessBonus, prompt_key

from .toys import build, make_rollout, scores

# --- clip ------------------------------------------------------------------------------------------------------------


def test_clip_by_hand() -> None:
    shaped, stats = build(Clip, low=-1, high=2).shape(scores(-3, -1, 0.5, 7), make_rollout([1] * 4))
    assert shaped.tolist() == [-1, -1, 0.5, 2]
    assert stats == {"shaping/clipped": 0.5}


# --- scale -----------------------------------------------------------------------------------------------------------


def test_scale_takes_in_the_batch_before_it_divides() -> None:
    scale = build(Scale)
    first, stats = scale.shape(scores(1, 3), make_rollout([1, 1]))  # mean 2, variance 2
    torch.testing.assert_close(first, scores(1, 3) / 2**0.5)
    assert stats == {"shaping/scale_mean": 2, "shaping/scale_std": 2**0.5}
    second, stats = scale.shape(scores(5, 7), make_rollout([1, 1]))  # of 1, 3, 5, 7: mean 4, variance 20 / 3
    torch.testing.assert_close(second, scores(1.93649, 2.71109))
    assert stats["shaping/scale_mean"] == 4


def test_scale_centers_and_clips() -> None:
    shaped, _ = build(Scale, center=True).shape(scores(1, 5), make_rollout([1] * 2))  # mean 3, variance 8
    torch.testing.assert_close(shaped, scores(-1, 1) / 2**0.5)
    shaped, stats = build(Scale, center=True, clip=0.5).shape(scores(1, 2, 3), make_rollout([1] * 3))
    assert shaped.tolist() == [-0.5, 0, 0.5]
    assert stats["shaping/scale_clipped"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("center", "expected"), [(False, 4), (True, 0)])
def test_scale_is_finite_without_spread(center: bool, expected: float) -> None:
    scale = build(Scale, center=center)
    assert scale.shape(scores(4), make_rollout([1]))[0].tolist() == [expected]  # one score: MOSS-RLHF gives nan
    assert scale.shape(scores(4, 4, 4), make_rollout([1] * 3))[0].tolist() == [expected] * 3
    tenths = torch.full((8,), 0.1)
    tenths[::2] = torch.nextafter(tenths[0], torch.tensor(1.0))
    shaped, _ = build(Scale).shape(tenths, make_rollout([1] * 8))
    assert torch.equal(shaped, tenths), "rounding is not spread"


def test_scale_moments_are_those_of_all_scores_so_far() -> None:
    draw = random.Random(0)
    batches = [[draw.gauss(1e4, 3) for _ in range(draw.randint(1, 9))] for _ in range(40)]
    everything = [score for batch in batches for score in batch]
    scale = build(Scale)
    for batch in batches:
        scale.shape(torch.tensor(batch, dtype=torch.float64), make_rollout([1] * len(batch)))
    assert scale.count == len(everything)
    assert scale.mean == pytest.approx(statistics.fmean(everything), rel=1e-14)
    assert scale.std == pytest.approx(statistics.stdev(everything), rel=1e-10)


def test_scale_keeps_abstained_samples_out_of_the_moments() -> None:
    scale = build(Scale, center=True)
    shaped, _ = scale.shape(scores(0, 1, 2, 3), make_rollout([1] * 4, abstained=[0]))
    assert shaped.tolist() == [0, -1, 0, 1]
    assert scale.state_dict() == {"count": 3, "mean": 2.0, "m2": 2.0}


@pytest.mark.parametrize(("cls", "entries"), [
    (Scale, "count, mean, m2"), (PromptBaseline, "step, overall, prompts, recent")
])  # fmt: skip
def test_what_would_poison_a_state_is_refused(cls: Any, entries: str) -> None:
    shaper = build(cls)
    before = shaper.state_dict()
    for bad in ("nan", "inf"):
        with pytest.raises(RewardError) as error:
            shaper.shape(scores(1, float(bad)), make_rollout([1, 1]))
        assert str(error.value) == (
            "shaper 'mine': got a score that is not finite among 2; expected finite scores; "
            "look at the rewards, and at the shapers before this one"
        )
    assert shaper.state_dict() == before, "the moments are not poisoned"
    with pytest.raises(RunError) as wrong:
        shaper.load_state_dict({"coef": 0.1})
    assert str(wrong.value) == (
        f"shaper 'mine': got a state with coef; expected {entries}; "
        "resume with the shapers that the run was started with"
    )


# --- prompt-baseline -------------------------------------------------------------------------------------------------


def at_step(shaper: Any, step: int, given: list[float], prompts: list[str], abstained: list[int] | None = None) -> Any:
    """The shaped scores of one-token responses, as a list, and the statistics."""
    shaper.progress = (step, 10)
    rollout = make_rollout([1] * len(given), abstained=abstained or [], prompts=prompts)
    shaped, stats = shaper.shape(scores(*given), rollout)
    return shaped.tolist(), stats


def test_prompt_baseline_by_hand() -> None:
    shaper = build(PromptBaseline)
    shaped, stats = at_step(shaper, 0, [2, 4, 9], ["a", "a", "b"])
    assert shaped == [2 - 6.5, 4 - 5.5, 9 - 3], "the first step: less the mean of the other two"
    assert stats == {"shaping/baseline": 5, "shaping/baseline_known": 0}
    shaped, stats = at_step(shaper, 1, [0, 8, 8, 1], ["a", "b", "new", "a"])
    assert shaped == [0 - 3, 8 - 9, 8 - 5, 1 - 3], "a had 2 and 4, b had 9, all had 5 on average"
    assert stats == {"shaping/baseline": 5, "shaping/baseline_known": 0.75}
    assert at_step(shaper, 5, [1, 1, 1, 1], ["a", "b", "new", "newer"])[0] == [
        1 - 1.75,  # 2, 4, 0, 1
        1 - 8.5,  # 9, 8
        1 - 8,
        pytest.approx(1 - 32 / 7),
    ]


def test_prompt_baseline_forgets_with_decay() -> None:
    shaper = build(PromptBaseline, decay=0.5)
    at_step(shaper, 0, [2, 4], ["a", "a"])  # weight 2, mean 3
    at_step(shaper, 1, [6], ["a"])  # weight 0.5 * 2 + 1, mean (3 + 6) / 2
    at_step(shaper, 2, [0], ["b"])  # a is not visited and forgets nothing
    # of all scores: 2 and 4; then 6, which weighs half of both; then 0, which weighs half of all that
    assert at_step(shaper, 3, [0, 0], ["a", "new"])[0] == [-4.5, -2.25]


def test_prompt_baseline_leaves_out_abstained_samples() -> None:
    shaper = build(PromptBaseline)
    assert at_step(shaper, 0, [0, 2, 4], ["a", "a", "a"], abstained=[0])[0] == [0, -2, 2]
    assert at_step(shaper, 1, [0, 7], ["a", "a"], abstained=[0])[0] == [0, 4]
    assert at_step(build(PromptBaseline), 0, [5], ["a"])[0] == [5], "nothing to compare with"


def test_prompt_baseline_waits_for_the_next_step_however_often_it_is_asked() -> None:
    shaper = build(PromptBaseline)
    at_step(shaper, 0, [2], ["a"])
    for given in (10, 20):
        assert at_step(shaper, 1, [given], ["a"])[0] == [given - 2]
    assert at_step(shaper, 2, [0], ["a"])[0] == [pytest.approx(-32 / 3)]


def test_prompt_baseline_goes_on_from_a_state_that_was_saved_within_a_step() -> None:
    shaper, resumed = build(PromptBaseline), build(PromptBaseline)
    at_step(shaper, 0, [2], ["a"])
    at_step(shaper, 1, [10], ["a"])
    resumed.load_state_dict(shaper.state_dict())
    assert at_step(resumed, 1, [7, 7], ["a", "new"])[0] == [7 - 2, 7 - 2], "the 10 of this step still waits"
    assert at_step(resumed, 2, [0, 0], ["a", "newer"])[0] == [pytest.approx(-19 / 3), pytest.approx(-26 / 4)]


@pytest.mark.parametrize("prompts", [["a", "a"], ["a", "b"]], ids=["of one prompt", "of two"])
def test_prompt_baseline_leaves_the_expected_gradient_as_it_is(prompts: list[str]) -> None:
    """All outcomes of two steps of two draws each: a bandit with two arms. The mean score would halve the gradient."""
    likely, pay = [0.3, 0.7], [1.0, 5.0]
    slope = [1 - 0.3, -0.3]  # of log p(arm) in the logit of arm 0
    expected = sum(p * r * g for p, r, g in zip(likely, pay, slope, strict=True))
    found = [0.0, 0.0]
    for arms in itertools.product((0, 1), repeat=4):
        shaper = build(PromptBaseline)
        chance = 1.0
        for arm in arms:
            chance *= likely[arm]
        for step in (0, 1):
            drawn = arms[2 * step : 2 * step + 2]
            shaped, _ = at_step(shaper, step, [pay[arm] for arm in drawn], prompts)
            found[step] += chance * sum(slope[arm] * s for arm, s in zip(drawn, shaped, strict=True)) / 2
    assert found == pytest.approx([expected, expected])


def test_prompt_baseline_takes_away_what_prompts_differ_in() -> None:
    """Prompts worth -10 to 10, responses 1 up or down: after one step what is left is the responses'."""
    draw = random.Random(0)
    prompts = [f"prompt {i}" for i in range(21) for _ in range(8)]
    shaper = build(PromptBaseline)
    for step in range(2):
        given = [i // 8 - 10 + draw.choice((-1.0, 1.0)) for i in range(len(prompts))]
        shaped, _ = at_step(shaper, step, given, prompts)
    assert statistics.pvariance(given) > 30
    assert statistics.pvariance(shaped) < 1.5


def test_the_same_prompt_has_the_same_key_in_every_run() -> None:
    assert prompt_key(Prompt(text="Hi")) == "c5477e859d73a158"
    assert prompt_key(Prompt(text="Hi", fields={"row": 3})) == prompt_key(Prompt(text="Hi"))
    assert prompt_key(Prompt(text="Ho")) != prompt_key(Prompt(text="Hi"))
    chat = (Message(role="user", content="Hi"), Message(role="assistant", content="Hi"))
    assert prompt_key(Prompt(text=chat)) != prompt_key(Prompt(text=chat[:1]))
    told = (Message(role="system", content="Be brief."), *chat)
    assert prompt_key(Prompt(text=told)) != prompt_key(Prompt(text=chat)), "all messages count, not the last alone"


# --- success-bonus ---------------------------------------------------------------------------------------------------


def test_success_bonus_by_hand() -> None:
    rollout = make_rollout([2, 4, 8, 2])
    shaped, stats = build(SuccessBonus, threshold=1, bonus=0.5).shape(scores(1, 3, 0.9, -1), rollout)
    assert shaped.tolist() == [1.5, 3.5, pytest.approx(0.9), -1]
    assert stats == {"shaping/success": 0.5, "shaping/success_bonus": 0.25}


def test_success_bonus_pays_brevity_to_success_alone() -> None:
    rollout = make_rollout([2, 6, 8, 1, 12])
    shaped, stats = build(SuccessBonus, threshold=1, max_tokens=8).shape(scores(1, 1, 1, 0, 1), rollout)
    assert shaped.tolist() == [1.75, 1.25, 1, 0, 1], "beyond max_tokens there is nothing left to lose"
    assert stats["shaping/success_bonus"] == pytest.approx(0.2)


def test_success_bonus_never_lifts_a_failure_above_a_success() -> None:
    noise = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (50,), generator=noise).tolist()
    given = torch.randn(50, generator=noise)
    shaped, _ = build(SuccessBonus, threshold=0.3, bonus=5.0, max_tokens=8).shape(given, make_rollout(lengths))
    assert shaped[given >= 0.3].min() > shaped[given < 0.3].max()
    plain, _ = build(SuccessBonus, threshold=0.3).shape(given, make_rollout(lengths))
    assert torch.equal(plain.argsort(), given.argsort()), "without max_tokens the order stays"
