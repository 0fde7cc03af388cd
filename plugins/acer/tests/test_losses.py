"""The functions: hand-computed numbers, and what must hold whatever the numbers are."""

from __future__ import annotations

import math

import pytest
import torch
from rlhf_plugin_acer.losses import correction_weights, retrace_targets, truncated_weights, trust_region_multiplier
from torch import Tensor

NAN = math.nan


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, *expected: list[float]) -> None:
    torch.testing.assert_close(found, rows(*expected))


# --- Retrace ---------------------------------------------------------------------------------------------------------


def test_retrace_by_hand() -> None:
    rewards, taken, values, ratio = rows([0, 1]), rows([9, 0.25]), rows([9, 0.2]), rows([9, 0.5])
    mask = torch.ones(1, 2)
    # 1; then 0 + 0.5 (0.5 (1 - 0.25) + 0.2): what the first token's own Q, V and ratio are does not matter
    close(retrace_targets(rewards, taken, values, ratio, mask, gamma=0.5), [0.2875, 1])
    # 1 + 0.5 x 3 = 2.5; then 0.5 (0.5 (2.5 - 0.25) + 0.2)
    cut = retrace_targets(rewards, taken, values, ratio, mask, gamma=0.5, bootstrap=torch.tensor([3.0]))
    close(cut, [0.6625, 2.5])


def test_traces_are_cut_at_1() -> None:
    given = rows([0, 1]), rows([0, 0.25]), rows([0, 0.2])
    for ratio in (1.0, 3.0, math.inf):
        found = retrace_targets(*given, rows([1, ratio]), torch.ones(1, 2), gamma=1.0)
        close(found, [0.95, 1])  # 1 - 0.25 + 0.2
    close(retrace_targets(*given, rows([1, 0]), torch.ones(1, 2), gamma=1.0), [0.2, 1])  # V alone


def test_on_policy_with_q_equal_to_v_it_is_the_return() -> None:
    values = rows([1, 2, 3, 4])
    found = retrace_targets(rows([3, 4, 5, 4]), values, values, torch.ones(1, 4), torch.ones(1, 4), gamma=0.9)
    close(found, [13.566, 11.74, 8.6, 4])  # 4; 5 + 0.9 x 4; 4 + 0.9 x 8.6; 3 + 0.9 x 11.74


def test_another_speakers_turn_is_stepped_over() -> None:
    found = retrace_targets(
        rows([0, NAN, NAN, 1, NAN]), rows([9, NAN, NAN, 0.25, NAN]), rows([9, NAN, NAN, 0.2, NAN]),
        rows([9, NAN, NAN, 0.5, NAN]), torch.tensor([[1, 0, 0, 1, 0]]), gamma=0.5,
    )  # fmt: skip
    close(found, [0.2875, 0, 0, 1, 0])


def test_exact_action_values_are_a_fixed_point() -> None:
    """Where each token's Q is its reward plus the V that follows, no sample of any behaviour pulls it away."""
    noise = torch.Generator().manual_seed(0)
    rewards, values, bootstrap = torch.randn(5, 7, generator=noise), torch.randn(5, 7, generator=noise), torch.ones(5)
    following = torch.cat([values[:, 1:], bootstrap[:, None]], 1)
    taken = rewards + 0.9 * following
    ratio = 20 * torch.rand(5, 7, generator=noise)
    found = retrace_targets(rewards, taken, values, ratio, torch.ones(5, 7), gamma=0.9, bootstrap=bootstrap)
    torch.testing.assert_close(found, taken)


def test_nothing_to_learn_from() -> None:
    empty = torch.zeros(3, 0)
    assert retrace_targets(empty, empty, empty, empty, empty, gamma=1.0).shape == (3, 0)
    junk = torch.full((2, 3), NAN)
    assert not retrace_targets(junk, junk, junk, junk, torch.zeros(2, 3), gamma=1.0).any()


# --- weights ---------------------------------------------------------------------------------------------------------


def test_truncated_weights_by_hand() -> None:
    found = truncated_weights(rows([0.5, 4, math.inf, NAN]), rows([2, -1, 3, NAN]), rows([1, 1, 1, 0]), truncation=3.0)
    close(found, [1, -3, 9, 0])


def test_correction_weights_by_hand() -> None:
    ratio = rows([4, 2, 1, 0, math.inf, NAN])[None]
    probs, advantages = rows([0.5, 0.4, 0.3, 0.2, 0.1, NAN])[None], rows([3, 3, 3, 3, -3, NAN])[None]
    found = correction_weights(probs, ratio, advantages, rows([1, 1, 1, 1, 1, 0])[None], truncation=2.0)
    close(found[0], [0.75, 0, 0, 0, -0.3, 0])  # (1 - 2/4) x 0.5 x 3; at or below c nothing; all of pi where mu is 0


def test_truncation_and_correction_add_up_to_the_whole_ratio() -> None:
    """mu min(c, rho) + pi max(0, 1 - c / rho) = pi for every token and every c: nothing is lost in expectation."""
    noise = torch.Generator().manual_seed(0)
    pi, mu = (torch.rand(1, 1, 50, generator=noise, dtype=torch.float64).pow(4) for _ in range(2))
    one = torch.ones_like(pi)
    for c in (0.3, 1.0, 10.0):
        kept = mu * truncated_weights(pi / mu, one, one, truncation=c)
        torch.testing.assert_close(kept + correction_weights(pi, pi / mu, one, one, truncation=c), pi)


# --- the trust region ------------------------------------------------------------------------------------------------


def test_multiplier_by_hand() -> None:
    found = trust_region_multiplier(
        rows([3, 0.5, -2, 0, 2, NAN]), rows([4, 4, 4, 0, 0.5, NAN]), rows([1, 1, 1, 1, 1, 0]), delta=1.0
    )
    close(found, [0.5, 0, 0, 0, 2, 0])  # (3 - 1) / 4; within delta; away from it; k = 0; (2 - 1) / 0.5


def test_the_adjusted_gradient_is_the_nearest_within_the_region() -> None:
    noise = torch.Generator().manual_seed(0)
    g, k = (torch.randn(200, 6, generator=noise, dtype=torch.float64) for _ in range(2))
    multiplier = trust_region_multiplier((k * g).sum(-1), k.square().sum(-1), torch.ones(200), delta=0.3)
    z = g - multiplier[:, None] * k
    assert 20 < int((multiplier > 0).sum()) < 180
    assert bool(((k * z).sum(-1) <= 0.3 + 1e-12).all())
    for _ in range(20):  # whatever else lies within the region is further from g
        other = z + 0.3 * torch.randn(200, 6, generator=noise, dtype=torch.float64)
        inside = (k * other).sum(-1) <= 0.3
        assert bool(((other - g).norm(dim=-1) >= (z - g).norm(dim=-1))[inside].all())


# --- junk and shapes -------------------------------------------------------------------------------------------------


def test_neither_junk_nor_a_policy_at_its_average_reaches_a_gradient() -> None:
    """Nan at a masked position, and k = 0, are where a quotient or a product would carry nan backwards."""
    mask = torch.tensor([[1, 0, 1]])

    def leaf(*values: float) -> Tensor:
        return rows([*values]).requires_grad_()

    x, y, z, ratio = leaf(1, NAN, 2), leaf(3, NAN, -1), leaf(0.5, NAN, 0), leaf(4, NAN, 0.5)
    for found in (
        retrace_targets(x, y, z, ratio, mask, gamma=0.9),
        truncated_weights(ratio, x, mask, truncation=3.0),
        correction_weights(x[None], ratio[None], y[None], mask[None], truncation=2.0),
        trust_region_multiplier(x, z, mask, delta=0.5),  # at the last place k . g is beyond delta and k is 0
        trust_region_multiplier(z, leaf(2, NAN, 0), mask, delta=0.1),
    ):
        gradients = torch.autograd.grad(found.sum(), [x, y, z, ratio], materialize_grads=True)
        assert all(bool(g.isfinite().all()) for g in gradients)
        assert not any(bool(g[0, 1]) for g in gradients)


def test_shapes_must_agree() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"retrace_targets: ratio has shape \(2, 4\), expected \(2, 3\)"):
        retrace_targets(x, x, x, y, x, gamma=1.0)
    with pytest.raises(ValueError, match=r"retrace_targets: bootstrap has shape \(3,\), expected \(2,\)"):
        retrace_targets(x, x, x, x, x, gamma=1.0, bootstrap=torch.zeros(3))
    with pytest.raises(ValueError, match="truncated_weights: mask has shape"):
        truncated_weights(x, x, y, truncation=1.0)
    with pytest.raises(ValueError, match="correction_weights: advantages has shape"):
        correction_weights(x, x, y, x, truncation=1.0)
    with pytest.raises(ValueError, match="trust_region_multiplier: k_dot_k has shape"):
        trust_region_multiplier(x, y, x, delta=1.0)
