from __future__ import annotations

import pytest
import torch
from rlhf_core.functional import discounted_returns
from rlhf_plugin_shaping.tokens import Discount, RepetitionPenalty, Spread, Whiten

from .toys import build, make_rollout, scores

# --- whiten ----------------------------------------------------------------------------------------------------------


def test_whiten_by_hand() -> None:
    rewards, rollout = torch.tensor([[1.0, 3.0], [5.0, 0.0]]), make_rollout([2, 1])  # mean 3, variance 8 / 2
    shaped, stats = build(Whiten).shape(rewards, rollout)
    torch.testing.assert_close(shaped, torch.tensor([[2.0, 3.0], [4.0, 0.0]]))
    assert stats == {"shaping/whiten_mean": 3, "shaping/whiten_std": 2}
    shaped, _ = build(Whiten, shift_mean=True).shape(rewards, rollout)
    torch.testing.assert_close(shaped, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    shaped, stats = build(Whiten, unbiased=False).shape(rewards, rollout)  # variance 8 / 3
    assert stats["shaping/whiten_std"] == pytest.approx(1.632993)
    assert shaped[1, 0] == pytest.approx(3 + 2 / 1.632993)
    shaped, _ = build(Whiten, eps=5).shape(rewards, rollout)  # variance 4
    assert shaped[1, 0] == pytest.approx(3 + 2 / 3)


def test_whiten_agrees_with_verl() -> None:
    """masked_whiten of verl/utils/torch_functional.py at b178a3cd, run on these inputs."""
    x = [[0.8, -0.5, 1.2, -1.1, 0, 0], [0.3, -1.4, 0.6, -0.2, 0.9, -0.7], [-2.0, 0.4, 0, 0, 0, 0]]
    expected = [
        [0.791172720022, -0.496640946556, 1.18742307897, -1.09101648498, 0, 0],
        [0.295859771338, -1.38820425419, 0.593047540549, -0.199453177345, 0.890235309759, -0.694766126029],
        [-1.98257979261, 0.394922361075, 0, 0, 0, 0],
    ]
    shaped, _ = build(Whiten).shape(torch.tensor(x, dtype=torch.float64), make_rollout([4, 6, 2]))
    # verl's mean has 1e-8 in its denominator
    torch.testing.assert_close(shaped, torch.tensor(expected, dtype=torch.float64), atol=1e-8, rtol=0)


def test_whiten_leaves_constant_rewards_and_a_single_token_alone() -> None:
    for rewards, rollout in ((torch.full((2, 2), 0.3), make_rollout([2, 2])), (scores(5)[:, None], make_rollout([1]))):
        torch.testing.assert_close(build(Whiten).shape(rewards, rollout)[0], rewards)


# --- discount --------------------------------------------------------------------------------------------------------


def test_discount_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0, 8.0], [2.0, 0.0, 0.0]])
    shaped, stats = build(Discount, gamma=0.5).shape(rewards, make_rollout([3, 1]))
    assert shaped.tolist() == [[0, 0.5, 2], [2, 0, 0]]
    assert stats == {"shaping/discount": 0.625}, "a quarter of what the first ends with, all of the second"


def test_discount_makes_the_return_that_of_a_discounting_optimizer_and_steps_over_holes() -> None:
    rollout = make_rollout([5, 2])
    mask = rollout.mask.clone()
    mask[0, 1:3] = False
    rewards = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)) * mask
    shaped, stats = build(Discount, gamma=0.9).shape(rewards, rollout.replace(mask=mask))
    expected = discounted_returns(rewards, mask, gamma=0.9)[:, 0]
    torch.testing.assert_close(shaped.sum(1), expected)
    assert stats["shaping/discount"] == pytest.approx((0.9**2 + 0.9) / 2), (
        "of the last tokens, the third and the second"
    )


# --- repetition-penalty ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ids", "n", "expected"), [
    ([1, 2, 1, 2, 1, 2], 2, [0, 0, 0, 1, 1, 1]),
    ([1, 2, 1, 2, 1, 2], 3, [0, 0, 0, 0, 1, 1]),
    ([7, 7, 7, 7], 2, [0, 0, 1, 1]),
    ([7, 7, 7, 7], 1, [0, 1, 1, 1]),
    ([1, 2, 3, 2, 1], 2, [0, 0, 0, 0, 0]),
    ([1, 1], 3, [0, 0]),
])  # fmt: skip
def test_repetition_by_hand(ids: list[int], n: int, expected: list[int]) -> None:
    rollout = make_rollout([len(ids)]).replace(response_ids=torch.tensor([ids]))
    shaped, stats = build(RepetitionPenalty, n=n, coef=0.5).shape(torch.ones(1, len(ids)), rollout)
    assert shaped.tolist() == [[1 - 0.5 * found for found in expected]]
    assert stats == {"shaping/repetition": pytest.approx(sum(expected) / len(expected))}


def test_repetition_is_of_the_policy_itself_within_one_response() -> None:
    ids = torch.tensor([[1, 2, 9, 1, 2, 0], [1, 2, 1, 2, 1, 2], [5, 1, 2, 0, 0, 0], [3, 1, 9, 2, 1, 2]])
    rollout = make_rollout([5, 6, 4, 6]).replace(response_ids=ids)  # in the third row padding would look like "0 0"
    mask = rollout.mask.clone()
    mask[0, 2] = False  # the policy says "1 2" before and after another speaker
    mask[1, :2] = False  # another speaker says "1 2" first
    mask[3, 2] = False  # "1", another speaker, "2": that was no "1 2"
    shaped, stats = build(RepetitionPenalty, n=2, coef=1).shape(torch.zeros(4, 6), rollout.replace(mask=mask))
    assert (-shaped).tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1], [0] * 6, [0] * 6]
    assert stats["shaping/repetition"] == pytest.approx(2 / 17), "of the tokens that the policy wrote"


# --- spread ----------------------------------------------------------------------------------------------------------


def test_spread_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 7.0], [0.0, 3.0, 0.0], [1.0, 0.0, 6.0]])
    rollout = make_rollout([3, 2, 3])
    shaped, stats = build(Spread, decay=0.5).shape(rewards, rollout)
    torch.testing.assert_close(shaped[:2], torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 0.0]]))
    assert stats["shaping/spread_last"] == pytest.approx((4 / 7 + 2 / 3 + 4 / 7) / 3)
    shaped, _ = build(Spread).shape(rewards, rollout)
    assert shaped[1:].tolist() == [[1.5, 1.5, 0], [3, 2, 2]], "the 1 that is paid for a span stays where it is"


def test_spread_steps_over_holes() -> None:
    mask = torch.tensor([[True, False, True, False, False]])
    rollout = make_rollout([5]).replace(mask=mask)
    shaped, stats = build(Spread, decay=0.5).shape(torch.tensor([[0.0, 0.0, 6.0, 0.0, 0.0]]), rollout)
    torch.testing.assert_close(shaped, torch.tensor([[2.0, 0.0, 4.0, 0.0, 0.0]]))
    assert stats["shaping/spread_last"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("decay", [1.0, 0.9, 0.01])
def test_spread_keeps_the_sum_of_every_response(decay: float) -> None:
    noise = torch.Generator().manual_seed(0)
    rollout = make_rollout([7, 300, 1, 64])
    mask = rollout.mask & (torch.rand(rollout.mask.shape, generator=noise) < 0.7)
    mask[:, 0] = True
    rewards = torch.randn(mask.shape, generator=noise) * mask
    shaped, _ = build(Spread, decay=decay).shape(rewards, rollout.replace(mask=mask))
    torch.testing.assert_close(shaped.sum(1), rewards.sum(1), rtol=1e-5, atol=1e-5)
    assert (shaped != rewards).any()
    small = build(Spread, decay=decay).shape(rewards.bfloat16(), rollout.replace(mask=mask))[0]
    wide = build(Spread, decay=decay).shape(rewards.bfloat16().float(), rollout.replace(mask=mask))[0]
    assert torch.equal(small, wide.bfloat16()), "in bfloat16 only the result is rounded"


def test_spread_leaves_less_of_the_score_to_later_tokens() -> None:
    """What the README says of optimizers that credit a token with what comes after it."""
    rollout = make_rollout([3])
    shaped, _ = build(Spread).shape(torch.tensor([[0.0, 0.0, 6.0]]), rollout)
    torch.testing.assert_close(discounted_returns(shaped, rollout.mask, gamma=1.0), torch.tensor([[6.0, 4.0, 2.0]]))
