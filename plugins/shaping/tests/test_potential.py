"""Potential-based shaping: the optimum stays, on a problem small enough to write down every response."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from rlhf_core.errors import ConfigError, RewardError
from rlhf_core.functional import discounted_returns
from rlhf_core.interfaces import Needs
from rlhf_core.records import Prompt, Rollout, Sample
from rlhf_plugin_shaping.config import PotentialConfig
from rlhf_plugin_shaping.potential import Potential
from torch import Tensor

from .toys import LONGEST, PROMPTS, RESPONSES, STATES, TOKENS, Function, build, everything, hashed, make_rollout


def problem(**config: Any) -> tuple[Rollout, Tensor, Tensor]:
    """All responses with random rewards, on the last token and a little on the others; as they are, and shaped."""
    rollout = everything()
    rewards = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # what is paid on the way may depend on what has been said so far, and on nothing later
    for row, column in rollout.mask.nonzero().tolist():
        so_far = tuple(rollout.response_ids[row, : column + 1].tolist())
        if column + 1 < int(rollout.mask[row].sum()):
            rewards[row, column] = random.Random(str(so_far)).gauss(0, 0.3)
    rewards = rewards * rollout.mask
    shaped, _ = build(Potential, reward="hash", **config).shape(rewards, rollout)
    return rollout, rewards, shaped


def expected_return(policy: dict[str, list[float]], returns: Tensor) -> Tensor:
    """(prompts,): the mean of the responses' `returns` (prompts * responses,), each as likely as `policy` makes it."""
    chances = []
    for response in RESPONSES:
        chance = 1.0
        for k, token in enumerate(response):
            chance *= policy[response[:k]][TOKENS.index(token)]
        chances.append(chance)
    assert sum(chances) == pytest.approx(1)
    return returns.view(len(PROMPTS), -1) @ torch.tensor(chances, dtype=torch.float64)


def first(returns: Tensor) -> Tensor:
    return returns[:, 0]


def start(coef: float = 1.0) -> Tensor:
    """(prompts,): Phi of the empty response."""
    return coef * torch.tensor([hashed(Sample(Prompt(text=prompt), "")) for prompt in PROMPTS], dtype=torch.float64)


variants = pytest.mark.parametrize("every", [1, 2, 3])
discounts = pytest.mark.parametrize("gamma", [1.0, 0.9])


@variants
@discounts
def test_the_expected_return_of_every_policy_moves_by_the_same(every: int, gamma: float) -> None:
    """Random policies, and all 2187 deterministic ones: by -Phi(s_0) of each prompt; the best ones stay the best."""
    rollout, rewards, shaped = problem(every=every, gamma=gamma, coef=2.0)
    assert int(rollout.truncated.sum()) == 16, "half of the responses are cut"
    plain, moved = (first(discounted_returns(r, rollout.mask, gamma=gamma)) for r in (rewards, shaped))
    assert float((shaped - rewards).abs().max()) > 1, "something is shaped"
    draw = random.Random(0)
    for _ in range(20):
        weights = {state: [draw.random() for _ in TOKENS] for state in STATES}
        policy = {state: [w / sum(ws) for w in ws] for state, ws in weights.items()}
        difference = expected_return(policy, moved) - expected_return(policy, plain)
        torch.testing.assert_close(difference, -start(2.0), rtol=0, atol=1e-5)
    values = {}
    for choices in itertools.product(TOKENS, repeat=len(STATES)):
        act, response = dict(zip(STATES, choices, strict=True)), ""
        while len(response) < LONGEST and not response.endswith("$"):
            response += act[response]
        values[choices] = response
    assert len(values) == 2187
    for p, prompt in enumerate(PROMPTS):
        rows = {response: p * len(RESPONSES) + i for i, response in enumerate(RESPONSES)}
        before = {choices: float(plain[rows[response]]) for choices, response in values.items()}
        after = {choices: float(moved[rows[response]]) for choices, response in values.items()}
        best = max(before.values())
        assert {c for c, v in before.items() if v == best} == {c for c, v in after.items() if v == max(after.values())}
        assert {round(after[c] - before[c] + float(start(2.0)[p]), 5) for c in values} == {0.0}, prompt


@variants
@discounts
def test_from_every_state_all_that_can_follow_moves_by_the_same(every: int, gamma: float) -> None:
    """So the best next token stays the best, wherever the policy finds itself, and advantages stay what they are."""
    rollout, rewards, shaped = problem(every=every, gamma=gamma)
    returns = [discounted_returns(r, rollout.mask, gamma=gamma) for r in (rewards, shaped)]
    moves: dict[tuple[str, str], set[float]] = {}
    for row, column in rollout.mask.nonzero().tolist():
        sample = rollout.samples[row]
        state = str(sample.prompt.text), sample.response[:column]
        moves.setdefault(state, set()).add(round(float(returns[1][row, column] - returns[0][row, column]), 5))
    assert len(moves) == 2 * len(STATES)
    for (prompt, text), found in moves.items():
        scored = text[: len(text) // every * every]  # the last text that was scored on the way
        assert found == {round(-hashed(Sample(Prompt(text=prompt), scored)), 5)}


def test_what_a_token_is_paid_does_not_depend_on_what_comes_later() -> None:
    rollout, rewards, shaped = problem(every=2, gamma=0.9)
    paid: dict[tuple[Any, ...], set[float]] = {}
    for row, column in rollout.mask.nonzero().tolist():
        ended = column + 1 == int(rollout.mask[row].sum())
        key = (rollout.samples[row].prompt.text, ended, *rollout.response_ids[row, : column + 1].tolist())
        paid.setdefault(key, set()).add(round(float(shaped[row, column] - rewards[row, column]), 5))
    assert all(len(found) == 1 for found in paid.values())


def test_with_another_discount_than_the_optimizers_the_optimum_does_move() -> None:
    """Why `gamma` must be the optimizer's."""
    rollout, rewards, shaped = problem(every=1, gamma=0.5)
    plain, moved = (first(discounted_returns(r, rollout.mask, gamma=1.0))[:15] for r in (rewards, shaped))
    assert float((moved - plain).std()) > 0.1


# --- by hand ---------------------------------------------------------------------------------------------------------


def length(sample: Sample) -> float:
    return float(len(sample.response))


def added(model: Function, rollout: Rollout, **config: Any) -> Any:
    """What is added to rewards of 0, and the statistics."""
    shaper = build(Potential, model, reward="toy", **config)
    return shaper.shape(torch.zeros(rollout.mask.shape), rollout)


def test_potential_by_hand() -> None:
    """Phi is the length: 0, 1, 2, 3 before the tokens, and 0 at the end."""
    rollout = make_rollout([4, 2])
    paid, stats = added(Function(length), rollout, every=1)
    assert paid.tolist() == [[1, 1, 1, -3], [1, -1, 0, 0]]
    assert stats == {
        "shaping/potential_start": 0,
        "shaping/potential_change": pytest.approx(8 / 6),
        "shaping/potential_texts": 6,
    }
    assert added(Function(length), rollout, every=1, coef=0.5)[0].tolist() == [[0.5, 0.5, 0.5, -1.5], [0.5, -0.5, 0, 0]]
    assert added(Function(length), rollout, every=1, gamma=0.5)[0].tolist() == [[0.5, 0, -0.5, -3], [0.5, -1, 0, 0]]
    assert added(Function(length), rollout, every=2)[0].tolist() == [[0, 2, 0, -2], [0, 0, 0, 0]]
    assert added(Function(length), rollout, every=2)[1]["shaping/potential_texts"] == 3


def test_the_complete_response_is_worth_0_even_if_it_is_cut() -> None:
    for truncated in ([], [0]):
        paid, _ = added(Function(lambda sample: 5.0), make_rollout([3], truncated), every=1)
        assert paid.tolist() == [[0, 0, -5]]


def test_samples_of_a_prompt_share_what_they_have_in_common() -> None:
    model = Function(length)
    rollout = make_rollout([3, 3, 2, 3], abstained=[3]).replace(groups=torch.tensor([0, 0, 1, 2]))
    added(model, rollout, every=1)
    assert model.asked == ["", "a", "ab", "", "a"], (
        "once for two samples, then for another prompt; not for the abstained"
    )


def test_holes_are_stepped_over_and_what_others_said_is_part_of_the_text() -> None:
    rollout = make_rollout([5])
    mask = torch.tensor([[True, True, False, False, True]])
    paid, _ = added(Function(length), rollout.replace(mask=mask), every=1)
    assert paid.tolist() == [[1, 3, 0, 0, -4]], "Phi is 0, 1 and 4 before the own tokens"
    short = torch.tensor([[True, True, False, True, True]])
    paid, _ = added(Function(length), rollout.replace(mask=short), every=2)
    assert paid.tolist() == [[0, 3, 0, 0, -3]], "the second own token after the first is the one behind the hole"
    opened = mask.roll(1, 1) & torch.tensor([[False, True, True, True, True]])
    paid, _ = added(Function(length), rollout.replace(mask=opened), every=1)
    assert paid.tolist() == [[0, 1, -2, 0, 0]], "another speaker began: Phi is 1 and 2"


def test_tokens_that_complete_no_character_are_the_same_text() -> None:
    model = Function(length)
    rollout = make_rollout([4]).replace(
        samples=(Sample(Prompt(text="Hi"), "好!"),), token_ends=torch.tensor([[0, 0, 1, 2]])
    )
    assert added(model, rollout, every=1)[0].tolist() == [[0, 0, 1, -1]]
    assert model.asked == ["", "好"]


def test_where_the_reward_model_has_no_opinion_the_last_score_stands() -> None:
    model = Function(lambda sample: {"": None, "a": 2.0, "ab": None, "abc": 5.0}[sample.response])
    assert added(model, make_rollout([4]), every=1)[0].tolist() == [[2, 0, 3, -5]]


def test_potential_needs_to_know_where_tokens_end() -> None:
    assert PotentialConfig(reward="toy").needs == Needs(token_ends=True)
    with pytest.raises(ConfigError) as error:
        added(Function(length), make_rollout([2]).replace(token_ends=None))
    assert str(error.value) == (
        "shaper 'mine': a rollout without token_ends; expected all that `config.needs` asks for; "
        "pass it to the data that rolls out"
    )


def test_a_potential_that_is_not_finite_names_the_reward() -> None:
    with pytest.raises(RewardError, match=r"reward 'toy': score nan for sample 1: 'Hi' -> 'a'"):
        added(Function(lambda sample: float("nan") if sample.response else 0.0), make_rollout([2]), every=1)
