"""Hand-computed numbers and properties of the tensor functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_core import functional
from rlhf_core.functional import (
    aggregate,
    bradley_terry_loss,
    calibration_error,
    coral_loss,
    davidson_loss,
    discounted_returns,
    explained_variance,
    gae,
    group_advantages,
    kl_estimate,
    masked_mean,
    masked_var,
    masked_whiten,
    plackett_luce_loss,
    ppo_policy_loss,
    ppo_value_loss,
    rank_correlation,
    token_entropy,
    token_logprobs,
    weighted_likelihood_loss,
)
from torch import Tensor

AGGREGATIONS: tuple[functional.Aggregation, ...] = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)
KINDS: tuple[functional.KLKind, ...] = ("k1", "k2", "k3", "abs")
BASELINES: tuple[functional.Baseline, ...] = ("mean", "leave-one-out")
SCALES: tuple[functional.Scale, ...] = ("none", "std", "batch-std")


def f64(*rows: Any) -> Tensor:
    return torch.tensor(rows[0] if len(rows) == 1 else rows, dtype=torch.float64)


def close(got: Tensor, expected: Any, tolerance: float = 1e-10) -> None:
    expected = torch.as_tensor(expected, dtype=got.dtype)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def ragged(seed: int, rows: int = 5, width: int = 7, holes: bool = True) -> tuple[torch.Generator, Tensor]:
    """A seeded generator and a mask with ragged ends, holes, and a last row without a valid token."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=rng)
    if holes:
        mask &= torch.rand(rows, width, generator=rng) > 0.2
    mask[-1] = False
    return rng, mask


def noise(rng: torch.Generator, mask: Tensor) -> Tensor:
    return torch.randn(mask.shape, generator=rng, dtype=torch.float64)


seeds = st.integers(0, 10_000)
quick = settings(max_examples=30, deadline=None)


# What every masked function promises, called the same way: f(mask, x, y, z) -> tensors to look at.

untyped: Any = functional  # for arguments that mypy would refuse, and for unpacking
PPO: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
MASKED: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]] = {
    "masked_mean": lambda m, x, y, z: (masked_mean(x, m),),
    "masked_mean-dim": lambda m, x, y, z: (masked_mean(x, m, dim=1),),
    "masked_var": lambda m, x, y, z: (masked_var(x, m),),
    "masked_whiten": lambda m, x, y, z: (masked_whiten(x, m),),
    "masked_whiten-unshifted": lambda m, x, y, z: (masked_whiten(x, m, shift_mean=False, unbiased=False),),
    "discounted_returns": lambda m, x, y, z: (discounted_returns(x, m, gamma=0.9),),
    "gae": lambda m, x, y, z: gae(x, y, m, gamma=0.9, lam=0.8),
    "gae-bootstrap": lambda m, x, y, z: gae(x, y, m, gamma=0.9, lam=0.8, bootstrap=torch.ones(len(x), dtype=x.dtype)),
    "ppo_value_loss": lambda m, x, y, z: with_stats(ppo_value_loss(x, y, z, m, clip=0.2)),
    "ppo_value_loss-unclipped": lambda m, x, y, z: with_stats(ppo_value_loss(x, y, z, m)),
    "plackett_luce_loss": lambda m, x, y, z: (plackett_luce_loss(x, m),),
}
for _mode in AGGREGATIONS:
    MASKED[f"aggregate-{_mode}"] = lambda m, x, y, z, mode=_mode: (aggregate(x, m, mode),)  # type: ignore[misc]
    MASKED[f"ppo_policy_loss-{_mode}"] = lambda m, x, y, z, mode=_mode: with_stats(  # type: ignore[misc]
        ppo_policy_loss(x, y, z, m, aggregation=mode, **PPO)
    )


def with_stats(result: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, ...]:
    loss, stats = result
    assert all(s.dim() == 0 and not s.requires_grad for s in stats.values())
    return loss, *stats.values()


def run(name: str, mask: Tensor, *inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of a sum of their squares to the inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = MASKED[name](mask, *leaves)
    torch.stack([(o.square() + o).sum() for o in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    return [o.detach() for o in outputs], [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_junk_at_masked_positions_reaches_neither_values_nor_gradients(name: str, junk: float) -> None:
    rng, mask = ragged(3)
    inputs = [noise(rng, mask) for _ in range(3)]
    clean = run(name, mask, *(x.masked_fill(~mask, 0.0) for x in inputs))
    dirty = run(name, mask, *(x.masked_fill(~mask, junk) for x in inputs))
    for a, b in zip(clean[0] + clean[1], dirty[0] + dirty[1], strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
    for gradient in dirty[1]:
        assert not gradient[~mask].any()
    for output in dirty[0]:
        if output.shape == mask.shape:
            assert not output[~mask].any()


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_without_a_valid_entry_gives_zeros_and_zero_gradients(name: str) -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    outputs, gradients = run(name, mask, *(torch.full((3, 4), math.nan, dtype=torch.float64) for _ in range(3)))
    assert not any(t.any() for t in outputs + gradients)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.bfloat16, torch.float64])
def test_the_mask_may_have_any_numeric_dtype(name: str, dtype: torch.dtype) -> None:
    rng, mask = ragged(4)
    inputs = [noise(rng, mask) for _ in range(3)]
    for a, b in zip(MASKED[name](mask, *inputs), MASKED[name](mask.to(dtype), *inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_first_tensor_comes_back_and_half_precision_is_summed_in_float32(
    name: str, dtype: torch.dtype
) -> None:
    rng, mask = ragged(5)
    inputs = [noise(rng, mask).to(dtype) for _ in range(3)]
    exact = MASKED[name](mask, *(x.double() for x in inputs))
    outputs = MASKED[name](mask, *inputs)
    first = len(outputs) if name.startswith("gae") else 1  # after the loss come statistics, which are never narrowed
    assert all(o.dtype == dtype for o in outputs[:first])
    assert all(o.dtype == torch.promote_types(dtype, torch.float32) for o in outputs[first:])
    for got, want in zip(outputs, exact, strict=True):
        rounding = max(torch.finfo(got.dtype).eps, 1e-5 if dtype != torch.float64 else 0)
        torch.testing.assert_close(got.double(), want, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", MASKED)
def test_gradients_are_right(name: str) -> None:
    rng, mask = ragged(6, rows=3, width=4)
    inputs = [noise(rng, mask).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *xs: MASKED[name](mask, *xs)[0], inputs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: masked_mean(a, b), "masked_mean: mask has shape (2, 4), expected (2, 3)"),
        (lambda a, b: masked_var(a, b), "masked_var: mask has shape (2, 4), expected (2, 3)"),
        (lambda a, b: masked_whiten(a, b), "masked_whiten: mask has shape (2, 4), expected (2, 3)"),
        (lambda a, b: explained_variance(a, b, a), "explained_variance: returns has shape (2, 4), expected (2, 3)"),
        (lambda a, b: aggregate(a, b, "token-mean"), "aggregate: mask has shape (2, 4), expected (2, 3)"),
        (lambda a, b: discounted_returns(a, b, gamma=1), "discounted_returns: mask has shape (2, 4), expected (2, 3)"),
        (lambda a, b: gae(a, b, a, gamma=1, lam=1), "gae: values has shape (2, 4), expected (2, 3)"),
        (lambda a, b: gae(a, a, a, gamma=1, lam=1, bootstrap=b), "gae: bootstrap has shape (2, 4), expected (2,)"),
        (lambda a, b: kl_estimate(a, b, kind="k1"), "kl_estimate: ref_logprobs has shape (2, 4), expected (2, 3)"),
        (lambda a, b: ppo_policy_loss(a, a, b, a, **PPO), "ppo_policy_loss: advantages has shape (2, 4), expected"),
        (lambda a, b: ppo_value_loss(a, a, a, b), "ppo_value_loss: mask has shape (2, 4), expected (2, 3)"),
        (lambda a, b: bradley_terry_loss(a, b), "bradley_terry_loss: rejected has shape (2, 4), expected (2, 3)"),
        (lambda a, b: bradley_terry_loss(a, a, margin=b), "bradley_terry_loss: margin has shape (2, 4), expected"),
        (lambda a, b: plackett_luce_loss(a, b), "plackett_luce_loss: mask has shape (2, 4), expected (2, 3)"),
        (lambda a, b: coral_loss(a, b), "coral_loss: levels has shape (2, 4), expected (2, 3)"),
        (lambda a, b: token_logprobs(a, b), "token_logprobs: ids has shape (2, 4), expected (2,)"),
        (
            lambda a, b: group_advantages(a[0], b[0], baseline="mean", scale="none", eps=0),
            "group_advantages: groups has shape (4,), expected (3,)",
        ),
        (
            lambda a, b: untyped.kl_estimate(a, a, kind="k4"),
            "kl_estimate: kind is 'k4', expected one of k1, k2, k3, abs",
        ),
        (
            lambda a, b: untyped.aggregate(a, a, "mean"),
            "aggregate: mode is 'mean', expected one of token-mean, seq-mean-token-sum, seq-mean-token-mean, ",
        ),
        (
            lambda a, b: untyped.ppo_policy_loss(a, a, a, a, aggregation="sum", **PPO),
            "ppo_policy_loss: aggregation is 'sum', expected one of token-mean, ",
        ),
        (
            lambda a, b: untyped.group_advantages(a[0], a[0], baseline="max", scale="none", eps=0),
            "group_advantages: baseline is 'max', expected one of mean, leave-one-out",
        ),
        (
            lambda a, b: untyped.group_advantages(a[0], a[0], baseline="mean", scale="group", eps=0),
            "group_advantages: scale is 'group', expected one of none, std, batch-std",
        ),
        (
            lambda a, b: ppo_policy_loss(a, a, a, a, **PPO | {"dual_clip": 1.0}),
            "ppo_policy_loss: dual_clip is 1.0, expected a number above 1",
        ),
        (
            lambda a, b: bradley_terry_loss(a, a, label_smoothing=1.5),
            "bradley_terry_loss: label_smoothing is 1.5, expected a number from 0 to 1",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_words(call: Callable[[Tensor, Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call(torch.zeros(2, 3), torch.zeros(2, 4))


# Masked statistics


def test_masked_mean_of_all_of_rows_and_of_columns() -> None:
    x, mask = f64([1, 2, 9], [5, 9, 9]), f64([1, 1, 0], [1, 0, 0])
    close(masked_mean(x, mask), 8 / 3)
    close(masked_mean(x, mask, dim=1), [1.5, 5])
    close(masked_mean(x, mask, dim=0), [3, 2, 0])  # the last column holds nothing valid
    close(masked_mean(x, mask, dim=(0, 1)), 8 / 3)


def test_masked_mean_of_truth_values_is_a_fraction() -> None:
    fraction = masked_mean(torch.tensor([True, False, True, True]), torch.tensor([1, 1, 1, 0]))
    assert fraction.dtype == torch.float32
    close(fraction, 2 / 3, 1e-6)


def test_a_float16_mean_neither_overflows_nor_loses_count() -> None:
    x = torch.full((300, 300), 3.0, dtype=torch.float16)  # sums to 270,000, beyond float16
    assert masked_mean(x, torch.ones_like(x)).item() == 3.0


def test_masked_var_by_hand() -> None:
    x, mask = f64([1, 3, 100], [5, 100, 100]), f64([1, 1, 0], [1, 0, 0])
    close(masked_var(x, mask), 4)
    close(masked_var(x, mask, unbiased=False), 8 / 3)


def test_a_single_value_has_variance_zero_and_whitens_to_zero() -> None:
    x, mask = f64([[7.0, 1.0]]), f64([[1, 0]])
    close(masked_var(x, mask), 0)
    close(masked_whiten(x, mask), [[0, 0]])
    close(masked_whiten(x, mask, shift_mean=False), [[7, 0]])


@quick
@given(seeds, st.booleans(), st.floats(-50, 50), st.floats(0.1, 50))
def test_whitened_values_have_mean_0_and_variance_1(seed: int, unbiased: bool, shift: float, scale: float) -> None:
    rng, mask = ragged(seed)
    mask[0, :3] = True
    white = masked_whiten(noise(rng, mask) * scale + shift, mask, unbiased=unbiased)
    close(masked_mean(white, mask), 0)
    close(masked_var(white, mask, unbiased=unbiased), 1, 1e-4)  # eps is noticed where the values hardly differ


@quick
@given(seeds)
def test_whitening_without_shift_keeps_the_mean(seed: int) -> None:
    rng, mask = ragged(seed)
    x = noise(rng, mask) + 3
    close(masked_mean(masked_whiten(x, mask, shift_mean=False), mask), masked_mean(x, mask))


@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_a_constant_whitens_to_zero_with_finite_gradients(eps: float) -> None:
    x = torch.full((4, 25), 0.5, requires_grad=True)
    white = masked_whiten(x, torch.ones_like(x), eps=eps)
    white.square().sum().backward()  # type: ignore[no-untyped-call]
    assert not white.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_rounding_of_the_mean_is_not_blown_up_by_whitening() -> None:
    x = torch.full((7, 11), 100.3)
    assert masked_whiten(x, torch.ones_like(x)).abs().max() < 1e-6


@pytest.mark.parametrize(("values", "expected"), [
    ([1, 3, 5], 1), ([11, 13, 15], 1), ([2, 2, 2], 0), ([5, 3, 1], -3), ([1, 3, 3], 2 / 3),
])  # fmt: skip
def test_explained_variance_by_hand(values: list[float], expected: float) -> None:
    """Returns 1, 3, 5 have variance 4; what is masked counts in neither."""
    returns, mask = f64([[1, 3], [math.inf, 5]]), torch.tensor([[1, 1], [0, 1]])
    given = f64([values[:2], [math.nan, values[2]]])
    assert explained_variance(given, returns, mask) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 300.0])
def test_returns_that_differ_by_rounding_alone_leave_nothing_to_explain(scale: float) -> None:
    """Advantage + value of a constant return: in float32 it is not constant to the last bit."""
    values = scale * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(20, 50)
    returns = (scale - values) + values
    assert scale < 1 or len(returns.unique()) > 1
    assert explained_variance(values, returns, mask) == 0


def test_small_rewards_can_be_foreseen_too() -> None:
    returns = 1e-7 * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    assert explained_variance(returns, returns, torch.ones(20, 50)) == 1


# Returns and advantages


def test_discounted_returns_worked_example() -> None:
    close(discounted_returns(f64([[3, 4, 5, 4]]), torch.ones(1, 4), gamma=0.9), [[13.566, 11.74, 8.6, 4]])


def test_advantages_of_the_worked_example() -> None:
    """The second token's is 11.74 less its value 9.5 at lambda 1, and 4 + 0.9 x 6 - 9.5, the TD error, at lambda 0."""
    rewards, values, ones = f64([[3, 4, 5, 4]]), f64([[10, 9.5, 6, 4.5]]), torch.ones(1, 4)
    advantages, returns = gae(rewards, values, ones, gamma=0.9, lam=1.0)
    close(advantages, [[3.566, 2.24, 2.6, -0.5]])
    close(returns, [[13.566, 11.74, 8.6, 4]])
    advantages, returns = gae(rewards, values, ones, gamma=0.9, lam=0.0)
    close(advantages, [[1.55, -0.1, 3.05, -0.5]])
    close(returns, [[11.55, 9.4, 9.05, 4]])


def test_returns_step_over_a_hole_without_an_extra_gamma() -> None:
    rewards, mask = f64([[3, 4, 99, 5, 99, 4, 99]]), torch.tensor([[1, 1, 0, 1, 0, 1, 0]])
    close(discounted_returns(rewards, mask, gamma=0.9), [[13.566, 11.74, 0, 8.6, 0, 4, 0]])


def test_gae_by_hand() -> None:
    # deltas: 1 + .5 * 2 - 1 = 1,  0 + .5 * 4 - 2 = 0,  2 - 4 = -2;  gamma * lam = .25
    advantages, returns = gae(f64([[1, 0, 2]]), f64([[1, 2, 4]]), torch.ones(1, 3), gamma=0.5, lam=0.5)
    close(advantages, [[0.875, -0.5, -2]])
    close(returns, [[1.875, 1.5, 2]])


def test_bootstrap_is_the_value_after_the_last_valid_token_of_each_row() -> None:
    rewards, values = f64([1, 0, 2], [1, 9, 9]), f64([1, 2, 4], [3, 9, 9])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5, bootstrap=f64([8, 6]))
    # first row: the last delta is 2 + .5 * 8 - 4 = 2; second row: 1 + .5 * 6 - 3 = 1
    close(advantages, [[1.125, 0.5, 2], [1, 0, 0]])
    close(returns, [[2.125, 2.5, 6], [4, 0, 0]])


@quick
@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_a_hole_gives_what_the_sequence_without_it_gives(seed: int, gamma: float, lam: float) -> None:
    rng, mask = ragged(seed)
    rewards, values, bootstrap = noise(rng, mask), noise(rng, mask), noise(rng, mask)[:, 0]
    whole = gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap=bootstrap)
    for i, keep in enumerate(mask):
        packed = gae(
            rewards[i : i + 1, keep],
            values[i : i + 1, keep],
            torch.ones(1, int(keep.sum())),
            gamma=gamma,
            lam=lam,
            bootstrap=bootstrap[i : i + 1],
        )
        for got, want in zip(whole, packed, strict=True):
            close(got[i : i + 1, keep], want)


@quick
@given(seeds, st.floats(0, 1))
def test_gae_with_lambda_1_is_return_minus_value_and_with_0_one_step(seed: int, gamma: float) -> None:
    rng, mask = ragged(seed)
    rewards, values = noise(rng, mask), noise(rng, mask)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=1)
    close(returns, discounted_returns(rewards, mask, gamma=gamma))
    close(advantages[mask], (returns - values)[mask])
    for got, r, v, keep in zip(gae(rewards, values, mask, gamma=gamma, lam=0)[0], rewards, values, mask, strict=True):
        steps = list(zip(r[keep].tolist(), v[keep].tolist(), [*v[keep].tolist()[1:], 0.0], strict=False))
        close(got[keep], [now + gamma * later - value for now, value, later in steps])


def test_width_zero_gives_width_zero() -> None:
    empty = torch.zeros(2, 0)
    assert [t.shape for t in gae(empty, empty, empty, gamma=1, lam=1)] == [(2, 0), (2, 0)]


def test_group_advantages_by_hand() -> None:
    scores, groups = f64([1, 10, 3, 30, 5, 7]), torch.tensor([4, -1, 4, -1, 4, 9])  # three, two, one of a kind
    mean = group_advantages(scores, groups, baseline="mean", scale="none", eps=0)
    close(mean, [-2, -10, 0, 10, 2, 0])
    others = group_advantages(scores, groups, baseline="leave-one-out", scale="none", eps=0)
    close(others, [-3, -20, 0, 20, 3, 0])
    std = group_advantages(scores, groups, baseline="mean", scale="std", eps=0)  # stds are 2 and sqrt(200)
    close(std, [-1, -math.sqrt(0.5), 0, math.sqrt(0.5), 1, 0])
    close(group_advantages(scores, groups, baseline="mean", scale="std", eps=2)[0], -0.5)


def test_batch_std_is_the_spread_of_all_scores() -> None:
    scores, groups = f64([0, 4, 10, 14]), torch.tensor([0, 0, 1, 1])  # deviations from 7: squares add up to 116
    advantages = group_advantages(scores, groups, baseline="mean", scale="batch-std", eps=0)
    close(advantages, f64([-2, 2, -2, 2]) / math.sqrt(116 / 3))
    padded = group_advantages(scores, groups, baseline="mean", scale="batch-std", eps=2)
    close(padded, f64([-2, 2, -2, 2]) / (math.sqrt(116 / 3) + 2))


@quick
@given(seeds, st.sampled_from(BASELINES), st.sampled_from(SCALES), st.floats(-100, 100))
def test_group_advantages_sum_to_zero_and_ignore_order_and_shift(
    seed: int, baseline: functional.Baseline, scale: functional.Scale, shift: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(12, generator=rng, dtype=torch.float64)
    groups = torch.randint(-3, 3, (12,), generator=rng)
    advantages = group_advantages(scores, groups, baseline=baseline, scale=scale, eps=1e-6)
    for group in groups.unique():  # type: ignore[no-untyped-call]
        close(advantages[groups == group].sum(), 0)
    order = torch.randperm(12, generator=rng)
    shuffled = group_advantages(scores[order] + shift, groups[order], baseline=baseline, scale=scale, eps=1e-6)
    close(shuffled, advantages[order], 1e-8)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_constant_groups_and_singletons_get_exactly_zero_with_finite_gradients(
    baseline: functional.Baseline, scale: functional.Scale, eps: float
) -> None:
    scores = torch.tensor([0.1] * 7 + [100.3], requires_grad=True)
    advantages = group_advantages(scores, torch.tensor([0] * 7 + [1]), baseline=baseline, scale=scale, eps=eps)
    (advantages + advantages.square()).sum().backward()  # type: ignore[no-untyped-call]
    assert not advantages.any()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_a_sample_that_was_not_scored_gets_zero_and_counts_nowhere() -> None:
    scores, groups = f64([1, math.nan, 3, math.nan, 5, math.nan]), torch.tensor([0, 0, 0, 1, 1, 2])
    close(group_advantages(scores, groups, baseline="mean", scale="none", eps=0), [-1, 0, 1, 0, 0, 0])


def test_whole_scores_are_welcome() -> None:
    advantages = group_advantages(torch.tensor([1, 0]), torch.zeros(2), baseline="mean", scale="none", eps=0)
    assert advantages.tolist() == [0.5, -0.5]


# KL estimates


def test_kl_estimates_by_hand() -> None:
    new, ref = f64([math.log(2), 0, -1]), f64([0, math.log(2), -1])
    close(kl_estimate(new, ref, kind="k1"), [math.log(2), -math.log(2), 0])
    close(kl_estimate(new, ref, kind="abs"), [math.log(2), math.log(2), 0])
    close(kl_estimate(new, ref, kind="k2"), [0.5 * math.log(2) ** 2, 0.5 * math.log(2) ** 2, 0])
    close(kl_estimate(new, ref, kind="k3"), [math.log(2) - 0.5, 1 - math.log(2), 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_k3_is_never_negative_and_never_infinite(dtype: torch.dtype) -> None:
    near = torch.logspace(-8, 4, 2000)
    d = torch.cat([-near, torch.zeros(1), near]).to(dtype).requires_grad_()
    k3 = kl_estimate(d, torch.zeros_like(d), kind="k3")
    k3.sum().backward()  # type: ignore[no-untyped-call]
    assert d.grad is not None
    assert (k3 >= 0).all()
    assert k3.isfinite().all()
    assert d.grad.isfinite().all()
    assert k3.dtype == dtype


def test_k1_and_k3_are_unbiased() -> None:
    policy, reference = torch.softmax(f64([0.3, -1, 2, 0]), 0), torch.softmax(f64([1, 0, 0.5, -0.5]), 0)
    divergence = torch.nn.functional.kl_div(reference.log(), policy, reduction="sum")
    for kind in ("k1", "k3"):
        close((policy * kl_estimate(policy.log(), reference.log(), kind=kind)).sum(), divergence)


# Reduction and micro-batches


def test_aggregation_by_hand() -> None:
    x, mask = f64([1, 2, 3, 9], [4, 9, 9, 9], [9, 9, 9, 9]), f64([1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0])
    close(aggregate(x, mask, "token-mean"), 10 / 4)
    close(aggregate(x, mask, "seq-mean-token-sum"), (6 + 4) / 2)  # the empty row is no sequence
    close(aggregate(x, mask, "seq-mean-token-mean"), (2 + 4) / 2)
    close(aggregate(x, mask, "seq-mean-token-sum-norm"), 10 / 4)
    close(aggregate(x, mask, "token-mean", 20), 0.5)
    close(aggregate(x, mask, "seq-mean-token-mean", torch.tensor(3)), 2)


def counted(mode: str, mask: Tensor) -> float:
    tokens, sequences = int(mask.sum()), int(mask.any(1).sum())
    return {"token-mean": tokens, "seq-mean-token-sum-norm": mask.shape[1]}.get(mode, sequences)


@quick
@given(seeds, st.sampled_from(AGGREGATIONS), st.integers(1, 6))
def test_micro_batches_add_up_to_the_full_batch(seed: int, mode: functional.Aggregation, size: int) -> None:
    rng, mask = ragged(seed, rows=6)
    mask[0, 0] = True
    x = noise(rng, mask)
    parts = [aggregate(a, m, mode, counted(mode, mask)) for a, m in zip(x.split(size), mask.split(size), strict=True)]  # type: ignore[no-untyped-call]
    close(torch.stack(parts).sum(), aggregate(x, mask, mode))


@quick
@given(seeds, st.sampled_from(AGGREGATIONS), st.integers(1, 6))
def test_policy_loss_statistics_and_gradients_add_up_over_micro_batches(
    seed: int, mode: functional.Aggregation, size: int
) -> None:
    rng, mask = ragged(seed, rows=6)
    mask[0, 0] = True
    new, old, advantages = noise(rng, mask).requires_grad_(), noise(rng, mask), noise(rng, mask)
    total = counted(mode, mask)
    full, stats = ppo_policy_loss(new, old, advantages, mask, aggregation=mode, denominator=total, **PPO)
    close(full, ppo_policy_loss(new, old, advantages, mask, aggregation=mode, **PPO)[0])
    (gradient,) = torch.autograd.grad(full, new)

    parts = [
        untyped.ppo_policy_loss(
            *(t[i : i + size] for t in (new, old, advantages, mask)), aggregation=mode, denominator=total, **PPO
        )
        for i in range(0, 6, size)
    ]
    summed = torch.stack([loss for loss, _ in parts]).sum()
    close(summed, full)
    close(torch.autograd.grad(summed, new)[0], gradient)
    for name, value in stats.items():
        close(torch.stack([s[name] for _, s in parts]).sum(), value)
    if mode != "seq-mean-token-sum-norm":
        assert 0 <= stats["clip_fraction"] <= 1


@quick
@given(seeds, st.integers(1, 6))
def test_value_loss_adds_up_over_micro_batches(seed: int, size: int) -> None:
    rng, mask = ragged(seed, rows=6)
    inputs = [noise(rng, mask) for _ in range(3)]
    full, stats = untyped.ppo_value_loss(*inputs, mask, clip=0.2)
    parts = [
        untyped.ppo_value_loss(*(t[i : i + size] for t in (*inputs, mask)), clip=0.2, denominator=mask.sum())
        for i in range(0, 6, size)
    ]
    close(torch.stack([loss for loss, _ in parts]).sum(), full)
    close(torch.stack([s["value_clip_fraction"] for _, s in parts]).sum(), stats["value_clip_fraction"])


# PPO


def test_policy_loss_by_hand() -> None:
    ratio = f64([[1.5, 1.5, 0.5, 0.5, 1.0, 4.0]])
    advantages = f64([[1, -1, 1, -1, 2, -1]])
    ones = torch.ones_like(ratio)
    new = ratio.log().requires_grad_()
    # per token: clipped to 1.2, full, full, clipped to 0.8, unclipped, full
    loss, stats = ppo_policy_loss(new, torch.zeros_like(ratio), advantages, ones, clip_low=0.2, clip_high=0.2)
    close(loss, (-1.2 + 1.5 - 0.5 + 0.8 - 2 + 4) / 6)
    close(stats["clip_fraction"], 2 / 6)
    close(stats["dual_clip_fraction"], 0)
    close(stats["ratio_mean"], 9 / 6)
    close(stats["approx_kl"], -math.log(1.5 * 1.5 * 0.5 * 0.5 * 4) / 6)
    close(torch.autograd.grad(loss, new)[0], [[0, 1.5 / 6, -0.5 / 6, 0, -2 / 6, 4 / 6]])

    loss, stats = ppo_policy_loss(
        new, torch.zeros_like(ratio), advantages, ones, clip_low=0.2, clip_high=0.6, dual_clip=3.0
    )  # now the first is within bounds, and the last costs 3 instead of 4
    close(loss, (-1.5 + 1.5 - 0.5 + 0.8 - 2 + 3) / 6)
    close(stats["clip_fraction"], 1 / 6)
    close(stats["dual_clip_fraction"], 1 / 6)
    close(torch.autograd.grad(loss, new)[0], [[-1.5 / 6, 1.5 / 6, -0.5 / 6, 0, -2 / 6, 0]])


@quick
@given(seeds)
def test_at_ratio_one_the_gradient_is_the_policy_gradient(seed: int) -> None:
    rng, mask = ragged(seed)
    mask[0, 0] = True
    new, advantages = noise(rng, mask).requires_grad_(), noise(rng, mask)
    loss, stats = ppo_policy_loss(new, new.detach(), advantages, mask, **PPO)
    close(torch.autograd.grad(loss, new)[0], torch.where(mask, -advantages / mask.sum(), 0))
    close(stats["clip_fraction"], 0)
    close(stats["ratio_mean"], 1)
    close(stats["approx_kl"], 0)


def test_fractions_stay_fractions_where_losses_are_summed_over_a_response() -> None:
    """Three clipped tokens of one response: the loss is -1.2 three times, the clipped fraction 1 and not 3."""
    ratio, ones = f64([[1.5, 2.0, 2.5]]), torch.ones(1, 3)
    loss, stats = ppo_policy_loss(
        ratio.log(), torch.zeros_like(ratio), ones, ones, clip_low=0.2, clip_high=0.2,
        aggregation="seq-mean-token-sum", denominator=1,
    )  # fmt: skip
    close(loss, -3.6)
    close(stats["clip_fraction"], 1)
    close(stats["ratio_mean"], 2)


def test_a_huge_ratio_stays_finite() -> None:
    new = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss, stats = ppo_policy_loss(new, -new.detach(), -torch.ones(1, 2), torch.ones(1, 2), clip_low=0.2, clip_high=0.2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert new.grad is not None
    assert all(t.isfinite().all() for t in (loss, new.grad, *stats.values()))


def test_value_loss_by_hand() -> None:
    values, old, returns = f64([[1.0, 1.0, 0.0]]), f64([[0.0, 0.9, 0.0]]), f64([[2.0, 1.5, 3.0]])
    new = values.requires_grad_()
    loss, stats = ppo_value_loss(new, old, returns, torch.ones(1, 3), clip=0.5)
    # errors 1, .25, 9; with the first value held at .5 its error is 2.25, the worse one
    close(loss, 0.5 * (2.25 + 0.25 + 9) / 3)
    close(stats["value_clip_fraction"], 1 / 3)
    close(torch.autograd.grad(loss, new)[0], [[0, -0.5 / 3, -3 / 3]])
    below, stats = ppo_value_loss(-new, -old, -returns, torch.ones(1, 3), clip=0.5)  # as far the other way
    close(below, loss.detach())
    away, _ = ppo_value_loss(f64([[1.0]]), f64([[0.0]]), f64([[-1.0]]), torch.ones(1, 1), clip=0.5)
    close(away, 0.5 * 4)  # held at .5 its error would be 2.25, the better one
    close(stats["value_clip_fraction"], 1 / 3)
    loss, stats = ppo_value_loss(new, old, returns, torch.ones(1, 3))
    close(loss, 0.5 * (1 + 0.25 + 9) / 3)
    close(stats["value_clip_fraction"], 0)


# Preferences, rankings, ratings

scores8 = st.lists(st.floats(-30, 30), min_size=8, max_size=8).map(f64)


def test_bradley_terry_by_hand() -> None:
    close(bradley_terry_loss(f64([0.0]), f64([0.0])), math.log(2))
    close(bradley_terry_loss(f64([math.log(3)]), f64([0.0])), math.log(4 / 3))  # chosen wins with probability 3/4
    close(bradley_terry_loss(f64([math.log(3)]), f64([0.0]), margin=math.log(3)), math.log(2))
    close(bradley_terry_loss(f64([math.log(3)]), f64([0.0]), label_smoothing=1.0), math.log(4))


def test_weights_and_smoothing_of_single_preferences() -> None:
    chosen, rejected = f64([math.log(3), math.log(3)]), f64([0.0, 0.0])
    smoothed = bradley_terry_loss(chosen, rejected, label_smoothing=f64([0.0, 1.0]))
    close(smoothed, (math.log(4 / 3) + math.log(4)) / 2)
    close(
        bradley_terry_loss(chosen, rejected, label_smoothing=f64([0.0, 1.0]), weight=f64([1.0, 0.0])), math.log(4 / 3)
    )
    close(bradley_terry_loss(chosen, rejected, label_smoothing=f64([0.0, 1.0]), weight=f64([3.0, 1.0])),
          (3 * math.log(4 / 3) + math.log(4)) / 4)  # fmt: skip
    assert float(bradley_terry_loss(chosen, rejected, weight=f64([0.0, 0.0]))) == 0


def test_weighted_likelihood_by_hand() -> None:
    logprobs = f64([[math.log(0.5), math.log(0.8), math.log(0.1)]])
    mask = torch.tensor([[1, 1, 0]])
    loss = weighted_likelihood_loss(logprobs, f64([[2.0, -1.0, 5.0]]), mask)
    close(loss, (2 * math.log(2) - math.log(0.2)) / 2)  # 2 x -log .5, then -log(1 - .8)
    close(weighted_likelihood_loss(logprobs, f64([[1.0, 1.0, 1.0]]), mask), -(math.log(0.5) + math.log(0.8)) / 2)
    certain = torch.zeros(1, 2, requires_grad=True)
    weighted_likelihood_loss(certain, torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2)).backward()
    assert certain.grad is not None and bool(certain.grad.isfinite().all())


def test_avoiding_a_token_lowers_it_and_imitating_raises_it() -> None:
    for weight, sign in ((1.0, -1), (-1.0, 1)):
        logprobs = torch.tensor([[-0.7]], requires_grad=True)
        weighted_likelihood_loss(logprobs, torch.tensor([[weight]]), torch.ones(1, 1)).backward()
        assert logprobs.grad is not None and float(logprobs.grad) * sign > 0
    close(bradley_terry_loss(f64([1.0, 2.0]), f64([0.0, 0.0]), margin=f64([1.0, 2.0])), math.log(2))
    close(bradley_terry_loss(f64([0, 0], [0, 0]), f64([0, 0], [0, 0])), math.log(2))
    assert bradley_terry_loss(torch.zeros(0), torch.zeros(0)) == 0


@given(scores8, scores8, st.floats(0, 1))
def test_bradley_terry_is_symmetric(a: Tensor, b: Tensor, smoothing: float) -> None:
    close(bradley_terry_loss(a, b, label_smoothing=smoothing), bradley_terry_loss(b, a, label_smoothing=1 - smoothing))
    close(bradley_terry_loss(a + 5, b + 5), bradley_terry_loss(a, b))
    close(bradley_terry_loss(a, b, label_smoothing=0.5), bradley_terry_loss(b, a, label_smoothing=0.5))


@given(scores8, scores8)
def test_rankings_of_two_are_bradley_terry(a: Tensor, b: Tensor) -> None:
    pairs = torch.stack([a, b], dim=1)
    close(plackett_luce_loss(pairs, torch.ones_like(pairs)), bradley_terry_loss(a, b))


def test_plackett_luce_by_hand() -> None:
    # Equal scores make all K! orders equally likely. Weights 4, 2, 1: P = 4/7 * 2/3.
    scores = f64([0, 0, 0, 0], [math.log(4), math.log(2), 0, 50])
    close(plackett_luce_loss(scores[:1], torch.ones(1, 4)), math.log(24))
    close(plackett_luce_loss(scores[1:], f64([[1, 1, 1, 0]])), math.log(21 / 8))
    ragged_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    close(plackett_luce_loss(scores, ragged_mask), (math.log(24) + math.log(21 / 8)) / 2)
    close(
        plackett_luce_loss(scores[:, [0, 3, 1, 2]], ragged_mask[:, [0, 3, 1, 2]]), (math.log(24) + math.log(21 / 8)) / 2
    )
    close(
        plackett_luce_loss(torch.cat([scores, scores]), torch.cat([ragged_mask, 0 * ragged_mask])), (math.log(63)) / 2
    )


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_the_probabilities_of_all_orders_add_up_to_one(scores: list[float]) -> None:
    orders = f64(
        [[scores[i] for i in order] for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))]
    )
    losses = torch.stack([plackett_luce_loss(order[None], torch.ones(1, 3)) for order in orders])
    close((-losses).exp().sum(), 1)


def test_coral_by_hand() -> None:
    levels = torch.tensor([[True, False], [True, True]])
    close(coral_loss(torch.zeros(2, 2, dtype=torch.float64), levels), 2 * math.log(2))
    close(coral_loss(f64([math.log(3), -math.log(3)], [math.log(3), math.log(3)]), levels), 2 * math.log(4 / 3))
    assert coral_loss(torch.full((2, 2), 200.0), ~levels).item() == 300  # one and two thresholds wrong by 200
    assert coral_loss(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


# Log-probabilities and entropy


def test_logprobs_and_entropy_by_hand() -> None:
    logits = f64([[[math.log(1), math.log(2), math.log(5)], [7, 7, 7]]])
    close(token_logprobs(logits, torch.tensor([[2, 0]])), [[math.log(5 / 8), -math.log(3)]])
    close(token_entropy(logits)[0, 1], math.log(3))
    close(token_logprobs(logits[0, 0], torch.tensor(1)), math.log(1 / 4))


@given(st.integers(1, 2000), st.floats(-1e4, 1e4))
def test_uniform_entropy_is_log_of_the_vocabulary(size: int, level: float) -> None:
    close(token_entropy(torch.full((1, 1, size), level)), [[math.log(size)]], 1e-5)
    close(token_entropy(torch.full((size,), level, dtype=torch.float64)), math.log(size))


@quick
@given(seeds, st.floats(-100, 100))
def test_probabilities_add_up_to_one_whatever_the_offset(seed: int, offset: float) -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
    per_token = torch.stack([token_logprobs(logits + offset, torch.full((2, 3), i)) for i in range(5)], dim=-1)
    close(per_token.exp().sum(-1), torch.ones(2, 3))
    close(-(per_token.exp() * per_token).sum(-1), token_entropy(logits))


def test_banned_tokens_have_probability_zero_and_finite_gradients_elsewhere() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf], [300.0, 0.0, -300.0]], requires_grad=True)
    entropy = token_entropy(logits)
    entropy.sum().backward()  # type: ignore[no-untyped-call]
    close(entropy.detach(), [math.log(2), 0], 1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert token_logprobs(logits, torch.tensor([2, 0])).tolist() == [-math.inf, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_stay_within_the_clip_are_never_counted_as_clipped(dtype: torch.dtype) -> None:
    """Nor by the last bit that V_old + (V - V_old) may differ from V."""
    generator = torch.Generator().manual_seed(0)
    old, move, target = (torch.rand(50, 40, generator=generator, dtype=dtype) * 2 - 1 for _ in range(3))
    old = 1e-3 * old  # as of a critic that has hardly learnt
    _, stats = ppo_value_loss(0.15 * move, old, target, torch.ones(50, 40), clip=0.2)
    assert stats["value_clip_fraction"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_only_rounded_once(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 5, 1000, generator=rng) * 3).to(dtype)
    ids = torch.randint(0, 1000, (3, 5), generator=rng)
    assert token_logprobs(logits, ids).dtype == token_entropy(logits).dtype == torch.float32
    close(token_logprobs(logits, ids), token_logprobs(logits.float(), ids), 1e-6)
    close(token_entropy(logits), token_entropy(logits.double()).float(), 1e-5)
    assert (
        token_logprobs(logits, ids) - token_logprobs(logits, ids).to(dtype)
    ).abs().max() > 1e-4  # what it would cost


def test_slicing_changes_neither_values_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, 6, generator=rng).requires_grad_()
    ids = torch.randint(0, 6, (5, 4), generator=rng, dtype=torch.int32)

    def both() -> list[Tensor]:
        out = token_logprobs(logits, ids), token_entropy(logits)
        return [*out, *torch.autograd.grad(out[0].sum() + out[1].square().sum(), logits)]

    whole = both()
    monkeypatch.setattr("rlhf_core.functional.logprobs._SLICE", 50)  # two rows at a time
    for a, b in zip(whole, both(), strict=True):
        assert torch.equal(a, b)


def test_logprobs_allow_second_derivatives() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    ids = torch.tensor([[0, 1, 2], [3, 3, 0]])
    assert torch.autograd.gradgradcheck(lambda x: token_logprobs(x, ids), logits)  # for natural gradients


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("odds", "expected"), [
    ([3, 3, 3, 1 / 3], 0),  # sure to 75 %, right in 3 of 4
    ([9, 1 / 9, 1.5, 1.5], 0.4),  # 90 % sure, right in 1 of 2: 0.4; 60 % sure, right in 2 of 2: 0.4
    ([9, 9, 9, 1.5], 0.175),  # 0.1 for three of them, 0.4 for one
    ([1, 1, 1, 1], 0),  # a coin, and says so
    ([1e30], 0),
    ([1e-30], 1),
])  # fmt: skip
def test_calibration_error_by_hand(odds: list[float], expected: float) -> None:
    """`odds` at which the better response of each pair was expected to win."""
    assert calibration_error(torch.tensor(odds).log()) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_of_true_probabilities_is_0_and_of_overconfidence_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    size = 4 * torch.rand(200_000, generator=generator)
    right = torch.rand(200_000, generator=generator) < torch.sigmoid(size)
    differences = torch.where(right, size, -size)
    assert calibration_error(differences) < 0.005
    assert calibration_error(3 * differences) > 0.08
    assert calibration_error(differences / 3) > 0.08


def test_calibration_error_of_nothing() -> None:
    assert calibration_error(torch.zeros(0)) == 0


# --- ties and partial rankings ---------------------------------------------------------------------------------------


def test_davidson_by_hand() -> None:
    """Scores log 3 and 0, nu = 2: win 3, lose 1, tie 2 sqrt 3, out of 4 + 2 sqrt 3."""
    high, low, total = f64([math.log(3)]), f64([0.0]), 4 + 2 * math.sqrt(3)
    no, yes, nu = torch.tensor([False]), torch.tensor([True]), f64(math.log(2))
    close(davidson_loss(high, low, no, nu), -math.log(3 / total))
    close(davidson_loss(low, high, no, nu), -math.log(1 / total))
    close(davidson_loss(high, low, yes, nu), -math.log(2 * math.sqrt(3) / total))
    close(davidson_loss(low, high, yes, nu), -math.log(2 * math.sqrt(3) / total))
    close(
        davidson_loss(high, low, no, nu, label_smoothing=0.25), -0.75 * math.log(3 / total) - 0.25 * math.log(1 / total)
    )
    close(davidson_loss(f64([math.log(9)]), low, no, nu, margin=f64([math.log(3)])), -math.log(3 / total))
    close(davidson_loss(high, low, yes, nu, margin=5.0), -math.log(2 * math.sqrt(3) / total))


def test_davidson_without_ties_is_bradley_terry_and_far_apart_is_finite() -> None:
    chosen, rejected = f64([0.3, -2.0, 5.0]), f64([0.1, 1.0, -4.0])
    no = torch.zeros(3, dtype=torch.bool)
    options: dict[str, Any] = {
        "margin": f64([0.0, 0.5, 1.0]),
        "label_smoothing": f64([0.1, 0.0, 0.3]),
        "weight": f64([1.0, 2.0, 0.5]),
    }
    close(
        davidson_loss(chosen, rejected, no, f64(-80.0), **options),
        float(bradley_terry_loss(chosen, rejected, **options)),
    )
    far = davidson_loss(torch.tensor([-3000.0]), torch.tensor([3000.0]), torch.tensor([True]), torch.tensor(0.0))
    assert float(far) == 3000


def test_davidson_recovers_how_often_people_cannot_tell() -> None:
    """Of equals half are tied: nu / (2 + nu) = 1/2, so nu = 2."""
    log_tie = torch.zeros((), dtype=torch.float64, requires_grad=True)
    scores, tied = torch.zeros(10, dtype=torch.float64), torch.arange(10) < 5
    search = torch.optim.LBFGS([log_tie], max_iter=50)

    def closure() -> Tensor:
        search.zero_grad()
        loss = davidson_loss(scores, scores, tied, log_tie)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    assert float(log_tie.detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_rankings_given_by_ranks_in_any_order() -> None:
    scores, mask = f64([[2.0, 0.5, -1.0]]), torch.ones(1, 3)
    shuffled = plackett_luce_loss(scores[:, [2, 0, 1]], mask, ranks=torch.tensor([[2, 0, 1]]))
    close(shuffled, float(plackett_luce_loss(scores, mask)))


def test_the_best_of_k_has_one_term_and_judged_ties_pull_together() -> None:
    """Scores log 6, log 2, log 1: the first of three is chosen with probability 6/9."""
    scores, mask = f64([[6.0, 2.0, 1.0]]).log(), torch.ones(1, 3)
    ranks, no = torch.tensor([[0, 1, 1]]), torch.tensor([False])
    close(plackett_luce_loss(scores, mask, ranks=ranks, ties_judged=no), -math.log(6 / 9))
    close(plackett_luce_loss(scores, mask, ranks=ranks), -math.log(6 / 9) - math.log(2 / 3) - math.log(1 / 3))
    tied = torch.zeros(1, 2, dtype=torch.float64)
    tied[0, 0] = 1.0
    tied.requires_grad_()
    plackett_luce_loss(tied, torch.ones(1, 2), ranks=torch.zeros(1, 2, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    assert tied.grad is not None and tied.grad[0, 0] > 0 > tied.grad[0, 1]


def test_weights_of_rankings() -> None:
    scores, mask = f64([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([[1, 1], [1, 1], [0, 0]])
    weighted = plackett_luce_loss(scores, mask, weight=f64([3.0, 1.0, 9.0]))
    close(weighted, (3 * math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 4)


@pytest.mark.parametrize(("a", "b", "rho"), [
    ([1, 2, 3], [10, 30, 20], 0.5),
    ([1, 5, 9], [-1, -2, -8], -1),
    ([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),  # ranks 1.5, 1.5, 3
    ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / math.sqrt(4.5 * 5)),
    ([1, 1], [1, 2], 0),
    ([1], [2], 0),
    ([], [], 0),
])  # fmt: skip
def test_rank_correlation_by_hand(a: list[float], b: list[float], rho: float) -> None:
    assert rank_correlation(torch.tensor(a, dtype=torch.float32), torch.tensor(b)) == pytest.approx(rho)
