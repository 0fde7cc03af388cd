"""What each shaper says it changes of the optimum and what not, where every response can be written down.

Two optima are looked at. Of the score alone: the responses that earn most. Beside a KL penalty of weight c: the policy
in proportion to reference * exp(return / c), the one with the highest mean of return - c * KL.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from rlhf_core.functional import discounted_returns
from rlhf_core.interfaces import RewardShaper
from rlhf_plugin_shaping.lengths import LengthPenalty, MissingEOS, Overlong
from rlhf_plugin_shaping.potential import Potential
from rlhf_plugin_shaping.scores import Clip, PromptBaseline, Scale, SuccessBonus
from rlhf_plugin_shaping.tokens import Discount, RepetitionPenalty, Spread, Whiten
from torch import Tensor

from .toys import ALL, LONGEST, PROMPTS, RESPONSES, TOKENS, build, everything

ROLLOUT = everything()
LENGTHS = ROLLOUT.mask.sum(1)  # end of text included, as everywhere
FINISHED = ~ROLLOUT.truncated
NOISE = torch.Generator().manual_seed(7)
SCORES = torch.randn(len(ROLLOUT), generator=NOISE, dtype=torch.float64)
REFERENCE = torch.randn(len(PROMPTS), len(RESPONSES), generator=NOISE, dtype=torch.float64).log_softmax(1)
C = 0.4


def on_tokens(scores: Tensor) -> Tensor:
    """(B, T): the scores on the last tokens."""
    last = torch.arange(LONGEST) == LENGTHS[:, None] - 1
    return scores[:, None] * last


def returns(cls: type[RewardShaper[Any]], scores: Tensor = SCORES, **config: Any) -> Tensor:
    """(B,): what each response earns in all after shaping; its second batch, so that there is a history."""
    shaper = build(cls, **config)
    rewards = scores if cls.level == "sequence" else on_tokens(scores)
    for step in range(2):
        shaper.progress = (step, 2)
        shaped = shaper.shape(rewards, ROLLOUT)[0]
    return shaped if cls.level == "sequence" else shaped.sum(1)


def by_prompt(earned: Tensor) -> Tensor:
    return earned.view(len(PROMPTS), -1)


def best(earned: Tensor) -> list[set[str]]:
    """Of each prompt the responses that earn most."""
    return [
        {response for response, value in zip(RESPONSES, row, strict=True) if value > max(row) - 1e-9}
        for row in by_prompt(earned).tolist()
    ]


def beside_kl(earned: Tensor, c: float = C) -> Tensor:
    """(B,): how likely each response is under the best policy beside a KL penalty of weight c."""
    return (REFERENCE + by_prompt(earned) / c).softmax(1).view(-1)


def same(one: Tensor, two: Tensor) -> bool:
    return bool(torch.allclose(one, two, rtol=1e-5, atol=1e-7))


def same_among(which: Tensor, one: Tensor, two: Tensor) -> bool:
    """Whether two policies agree on how likely the responses in `which` are, compared with each other."""
    parts = [by_prompt(policy * which) for policy in (one, two)]
    return same(*(part / part.sum(1, keepdim=True).clamp(min=1e-300) for part in parts))


PLAIN = beside_kl(SCORES)


# --- nothing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "config"), [
    (PromptBaseline, {}),
    (PromptBaseline, {"decay": 0.5}),
    (Spread, {}),
    (Spread, {"decay": 0.5}),
    (Potential, {"reward": "hash", "every": 1}),
    (Potential, {"reward": "hash", "every": 2, "coef": 3.0}),
    (SuccessBonus, {"threshold": -100.0}),
    (Clip, {"low": -100, "high": 100}),
])  # fmt: skip
def test_both_optima_stay(cls: Any, config: dict[str, Any]) -> None:
    """A baseline per prompt, the sum of spread scores, a potential; and what does not reach any score."""
    earned = returns(cls, **config)
    assert best(earned) == best(SCORES)
    assert same(beside_kl(earned), PLAIN)


# --- the weight of the score -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
def test_scale_multiplies_the_weight_of_the_kl_penalty_by_the_deviation(center: bool) -> None:
    twice = [*SCORES.tolist(), *SCORES.tolist()]
    earned = returns(Scale, 5 * SCORES, center=center)
    assert best(earned) == best(SCORES)
    assert same(beside_kl(earned), beside_kl(5 * SCORES, C * 5 * statistics.stdev(twice)))
    assert not same(beside_kl(earned), beside_kl(5 * SCORES))


def test_clip_ties_what_is_beyond_a_bound_and_leaves_what_is_inside() -> None:
    bound = 0.5
    inside = SCORES.abs() <= bound
    earned = returns(Clip, low=-bound, high=bound)
    beyond = [{RESPONSES[i] for i, score in enumerate(row) if score >= bound} for row in by_prompt(SCORES).tolist()]
    assert best(earned) == beyond and all(len(responses) > 1 for responses in beyond)
    assert same_among(inside, beside_kl(earned), PLAIN)
    assert best(returns(Clip, low=-bound, high=100)) == best(SCORES)


def test_success_bonus_raises_success_and_keeps_all_orders_but_that_of_length_among_successes() -> None:
    success = SCORES >= 0.8
    earned = returns(SuccessBonus, threshold=0.8, bonus=0.5)
    assert best(earned) == best(SCORES)
    for group in (success, ~success):
        assert same_among(group, beside_kl(earned), PLAIN)
    assert float(beside_kl(earned)[success].sum()) > float(PLAIN[success].sum()) + 0.1
    right = success.double()  # every success scores 1, every failure 0
    brief = returns(SuccessBonus, right, threshold=1, bonus=0.5, max_tokens=4)
    for p in range(len(PROMPTS)):
        lengths = {RESPONSES[i]: int(LENGTHS[i]) for i in range(15) if by_prompt(success)[p, i]}
        assert best(brief)[p] == {response for response, n in lengths.items() if n == min(lengths.values())}
    assert same_among(~success, beside_kl(brief), beside_kl(right)), "failures are told nothing of length"
    for n in (1, 2, 3):
        assert same_among(success & (n == LENGTHS), beside_kl(brief), beside_kl(right))


# --- length ----------------------------------------------------------------------------------------------------------


def test_missing_eos_moves_to_finished_responses_and_says_nothing_of_them() -> None:
    for replace in (False, True):
        earned = beside_kl(returns(MissingEOS, penalty=2.0, replace=replace))
        assert same_among(FINISHED, earned, PLAIN)
    taken_off = returns(MissingEOS, penalty=2.0)
    assert same_among(~FINISHED, beside_kl(taken_off), PLAIN), "nor of those that are cut"
    assert float(beside_kl(taken_off)[FINISHED].sum()) > float(PLAIN[FINISHED].sum()) + 0.1
    for low in (0.0, -10.0):
        assert all("$" in response for each in best(returns(MissingEOS, SCORES + low, penalty=9)) for response in each)


def test_missing_eos_replace_moves_to_cut_responses_where_finished_ones_score_less() -> None:
    """What the option's description warns of: -penalty is then the best that can be had."""
    assert all("$" in r for each in best(returns(MissingEOS, penalty=1.0, replace=True)) for r in each)
    assert all("$" not in r for each in best(returns(MissingEOS, SCORES - 10, penalty=1.0, replace=True)) for r in each)


@pytest.mark.parametrize(("cls", "config", "free"), [
    (LengthPenalty, {"coef": 0.3}, 0),
    (LengthPenalty, {"coef": 0.3, "free_tokens": 2}, 2),
    (Overlong, {"max_tokens": 3, "buffer": 1}, 2),
    (Overlong, {"max_tokens": 3, "buffer": 2, "coef": 2.0}, 1),
])  # fmt: skip
def test_penalties_on_length_move_to_shorter_and_leave_the_rest(cls: Any, config: dict[str, Any], free: int) -> None:
    shaped = beside_kl(returns(cls, **config))
    assert same_among(free >= LENGTHS, shaped, PLAIN), "as short as that is left alone"
    for n in (1, 2, 3):
        assert same_among(n == LENGTHS, shaped, PLAIN), "and so is what is equally long"
    means = [by_prompt(policy * LENGTHS).sum(1) for policy in (shaped, PLAIN)]
    assert bool((means[0] < means[1] - 0.05).all())
    tied = best(returns(cls, torch.zeros_like(SCORES), **config))
    assert tied == [{r for r in RESPONSES if len(r) <= max(free, 1)}] * 2


@pytest.mark.parametrize("shift_mean", [False, True])
def test_whiten_divides_the_score_and_pays_or_charges_every_token_the_same(shift_mean: bool) -> None:
    earned = returns(Whiten, SCORES + 1, shift_mean=shift_mean)
    tokens = on_tokens(SCORES + 1)[ROLLOUT.mask].tolist()
    mean, std = statistics.mean(tokens), statistics.stdev(tokens)
    per_token = -mean / std if shift_mean else mean * (1 - 1 / std)
    torch.testing.assert_close(earned, (SCORES + 1) / std + per_token * LENGTHS, rtol=1e-6, atol=1e-6)
    assert abs(per_token) > 0.05
    for n in (1, 2, 3):
        assert same_among(n == LENGTHS, beside_kl(earned), beside_kl(SCORES + 1, C * std))


@pytest.mark.parametrize(("score", "length"), [(1.0, 1), (-1.0, 3)])
def test_discount_moves_to_short_where_scores_are_positive_and_long_where_negative(score: float, length: int) -> None:
    tied = best(returns(Discount, torch.full_like(SCORES, score), gamma=0.8))
    assert tied == [{r for r in RESPONSES if len(r) == length}] * 2
    earned = returns(Discount, gamma=0.8)
    torch.testing.assert_close(earned, SCORES * 0.8 ** (LENGTHS - 1))
    for n in (1, 2, 3):
        assert same_among(n == LENGTHS, beside_kl(earned), beside_kl(SCORES, C / 0.8 ** (n - 1)))


def test_repetition_penalty_moves_to_responses_that_repeat_none_and_leaves_those_alone() -> None:
    fresh = torch.tensor([len(set(response)) == len(response) for response in RESPONSES] * 2)
    earned = beside_kl(returns(RepetitionPenalty, n=1, coef=0.5))
    assert same_among(fresh, earned, PLAIN)
    assert float(earned[fresh].sum()) > float(PLAIN[fresh].sum()) + 0.1
    tied = best(returns(RepetitionPenalty, torch.zeros_like(SCORES), n=1, coef=0.5))
    assert tied == [{"$", "a$", "b$", "ab$", "ba$"}] * 2


# --- credit by token -------------------------------------------------------------------------------------------------


def push_to_end(rewards: Tensor, state: str) -> float:
    """The exact policy gradient in the logit of end of text at `state`, under the uniform policy, to one prompt.

    The mean over all responses of: the slope of its log-probability there, times what comes from that token on.
    """
    to_come = discounted_returns(rewards, ROLLOUT.mask, gamma=1.0)
    return sum(
        len(TOKENS) ** -len(response)
        * (float(response[len(state)] == "$") - 1 / len(TOKENS))
        * float(to_come[row, len(state)])
        for row, response in enumerate(RESPONSES)
        if response.startswith(state) and len(response) > len(state)
    )


def test_spread_favours_going_on_where_scores_are_positive_and_ending_where_they_are_negative() -> None:
    """All responses score alike, so nothing is to be learnt, and nothing is from the score on the last token."""
    for score in (1.0, -1.0):
        rewards = on_tokens(torch.full_like(SCORES, score))
        spread, _ = build(Spread).shape(rewards, ROLLOUT)
        at_end, _ = build(Spread, decay=0.05).shape(rewards, ROLLOUT)
        for state in ("a", "b"):
            assert push_to_end(rewards, state) == pytest.approx(0, abs=1e-12)
            # 1/3 of responses come here and 1/3 of those end: 1/9 * (1/2 - (1/3 * 1/2 + 2/3 * 2/3))
            assert push_to_end(spread, state) == pytest.approx(-score / 81), "down if scores are positive"
            assert abs(push_to_end(at_end, state)) < abs(push_to_end(spread, state)) / 3, "a small decay makes it small"


# --- the words -------------------------------------------------------------------------------------------------------


def test_every_description_speaks_of_the_optimum() -> None:
    """`rlhf describe` prints the docstring of the config."""
    for cls, _ in ALL:
        assert "optimum" in (cls.Config.__doc__ or "").replace("\n", " "), cls
