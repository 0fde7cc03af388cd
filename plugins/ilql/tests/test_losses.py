"""The terms of the loss, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from rlhf_plugin_ilql.losses import cql_errors, expectile_errors, td_targets

NAN = math.nan


def close(found: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), atol=1e-6, rtol=1e-6)


def test_a_token_is_worth_its_reward_and_the_discounted_value_of_what_follows() -> None:
    rewards, values = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[9.0, 0.6, 0.8]])
    found = td_targets(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5)
    close(found, [[0.3, 0.5 + 0.4, 1.0]])  # nothing follows the last token


def test_the_source_literatures_example_is_its_one_step_form() -> None:
    """Rewards [3, 4, 5, 4], discount 0.9: if V are the returns 13.566, 11.74, 8.6, 4, the targets are those again."""
    values = torch.tensor([[13.566, 11.74, 8.6, 4.0]])
    found = td_targets(torch.tensor([[3.0, 4, 5, 4]]), values, torch.ones(1, 4, dtype=torch.bool), gamma=0.9)
    close(found, values.tolist())


def test_another_speakers_turn_and_padding_are_stepped_over_whatever_stands_there() -> None:
    mask = torch.tensor([[True, False, False, True, False], [True, True, False, False, False]])
    rewards = torch.tensor([[1.0, NAN, NAN, 2, NAN], [0, 3, NAN, NAN, NAN]])
    values = torch.tensor([[5.0, NAN, NAN, 4, NAN], [7, 6, NAN, NAN, NAN]])
    close(td_targets(rewards, values, mask, gamma=0.5), [[3.0, 0, 0, 2, 0], [3, 3, 0, 0, 0]])


def test_targets_pass_no_gradient() -> None:
    values = torch.ones(1, 2, requires_grad=True)
    assert not td_targets(torch.ones(1, 2), values, torch.ones(1, 2, dtype=torch.bool), gamma=1.0).requires_grad


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"td_targets: values has shape \(1, 3\), expected \(1, 2\)"):
        td_targets(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1, 2, dtype=torch.bool), gamma=1.0)


def test_what_lies_above_weighs_tau_and_what_lies_below_the_rest() -> None:
    close(expectile_errors(torch.tensor([2.0, -2.0, 0.0]), tau=0.9), [3.6, 0.4, 0.0])


@pytest.mark.parametrize(("tau", "expected"), [(0.5, 0.5), (0.75, 0.75), (0.9, 0.9), (0.999, 0.999)])
def test_of_0_and_1_the_expectile_is_tau(tau: float, expected: float) -> None:
    """tau (1 - v) = (1 - tau) v: the gradient is 0 there, and not beside it."""
    for offset in (-0.01, 0.0, 0.01):
        v = torch.tensor(expected + offset, dtype=torch.float64, requires_grad=True)
        expectile_errors(torch.tensor([0.0, 1.0], dtype=torch.float64) - v, tau=tau).sum().backward()
        assert v.grad is not None
        assert (abs(float(v.grad)) < 1e-12) == (offset == 0)
        assert float(v.grad) * offset >= 0


def test_the_conservative_term_by_hand() -> None:
    q = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0]]])
    close(cql_errors(q, torch.tensor([[1, 0]])), [[math.log(4 / 3), math.log(2)]])
    close(cql_errors(q + 5, torch.tensor([[1, 0]])), [[math.log(4 / 3), math.log(2)]])  # differences alone matter


def test_the_conservative_term_pushes_down_what_was_not_taken_most_where_it_is_highest() -> None:
    q = torch.tensor([[[0.0, 1.0, 2.0]]], requires_grad=True)
    cql_errors(q, torch.tensor([[0]])).sum().backward()
    assert q.grad is not None
    gradient = q.grad[0, 0].tolist()
    assert sum(gradient) == pytest.approx(0, abs=1e-6)
    assert gradient[0] < 0 < gradient[1] < gradient[2]
