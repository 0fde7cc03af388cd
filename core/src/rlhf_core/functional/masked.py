"""Mean, variance and whitening under a mask, and the ways to reduce per-token terms to a loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ._tensors import check, choose, divide, like, sqrt, valid

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]

_ROUNDING = 1e-10  # of a mean square: the variance that sums over some hundred tokens in float32 may show by rounding


def masked_mean(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean over the valid entries: of all dimensions, or of `dim` (which is dropped).

    Args:
        x: any shape, any dtype. mask: same shape, nonzero is valid. dim: as in `torch.mean`.
    Returns:
        x's dtype, () or x's shape without `dim`; 0 where nothing is valid.
    Raises:
        ValueError: shapes differ.
    """
    check("masked_mean", x.shape, mask=mask)
    dims = tuple(range(x.dim())) if dim is None else dim
    return like(divide(valid(x, mask).sum(dims), mask.bool().sum(dims)), x)


def masked_var(x: Tensor, mask: Tensor, *, unbiased: bool = True) -> Tensor:
    """Variance over all valid entries.

    Args:
        x: any shape, any dtype. mask: same shape, nonzero is valid. unbiased: divide by n - 1 (Bessel) instead of n.
    Returns:
        (), x's dtype; 0 for fewer than two valid entries.
    Raises:
        ValueError: shapes differ.
    """
    check("masked_var", x.shape, mask=mask)
    return like(_variance(_centre(x, mask)[0], mask, unbiased), x)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """How well a critic foresees the returns: `1 - Var(returns - values) / Var(returns)` over all valid entries.

    1 for a perfect critic (up to a constant), 0 for one that says the same everywhere, negative for a worse one. Where
    the returns differ by no more than rounding, there is nothing to foresee: 0.

    Args:
        values, returns: same shape, any dtype. mask: same shape, nonzero is valid.
    Returns:
        a number, at most 1.
    Raises:
        ValueError: shapes differ.
    """
    check("explained_variance", values.shape, returns=returns, mask=mask)
    target = valid(returns, mask)
    spread, rest = masked_var(target, mask), masked_var(target - valid(values, mask), mask)
    if spread <= _ROUNDING * masked_mean(target.square(), mask):
        return 0.0
    return 1 - float(rest) / float(spread)


def masked_whiten(
    x: Tensor, mask: Tensor, *, shift_mean: bool = True, unbiased: bool = True, eps: float = 1e-8
) -> Tensor:
    """Scale the valid entries to variance 1, and shift them to mean 0 unless `shift_mean` is false.

    `(x - mean) / sqrt(var + eps)`, with eps under the root. Peers differ: TRL and verl take the unbiased variance and
    eps 1e-8 (the defaults here), OpenRLHF and MOSS (eps 1e-6) the biased one. Without `shift_mean` the mean is added
    back after the division, so it keeps its size.

    Args:
        x: any shape, any dtype. mask: same shape, nonzero is valid. unbiased: as in `masked_var`.
    Returns:
        x's shape and dtype, 0 at masked positions; with `shift_mean` a constant x whitens to 0.
    Raises:
        ValueError: shapes differ.
    Source:
        advantage normalisation, as studied by Andrychowicz et al. 2021 (arXiv:2006.05990).
    """
    check("masked_whiten", x.shape, mask=mask)
    deviations, mean = _centre(x, mask)
    white = divide(deviations, sqrt(_variance(deviations, mask, unbiased) + eps))
    return like(white if shift_mean else valid(white + mean, mask), x)


def aggregate(x: Tensor, mask: Tensor, mode: Aggregation, denominator: Tensor | float | None = None) -> Tensor:
    """Reduce per-token terms to one number; what `denominator` counts depends on the mode.

    - token-mean: sum of all terms / number of valid tokens (DAPO).
    - seq-mean-token-sum: sum of all terms / number of sequences with a valid token.
    - seq-mean-token-mean: sum of the per-sequence means / number of sequences with a valid token (GRPO).
    - seq-mean-token-sum-norm: sum of all terms / the padded width T, not divided by B (verl's form of Dr. GRPO). The
      width may differ between micro-batches, so pass a fixed one, or B * T_max as in the paper, as denominator.

    Args:
        x: (B, T), any dtype. mask: (B, T), nonzero is valid. denominator: number or (), what to divide by instead.
    Returns:
        (), x's dtype.
    Raises:
        ValueError: shapes differ; unknown mode.
    Source:
        Shao et al. 2024 (arXiv:2402.03300), equation 3; Yu et al. 2025 (arXiv:2503.14476), section 3.3;
        Liu et al. 2025 (arXiv:2503.20783), section 3.
    """
    check("aggregate", x.shape, mask=mask)
    choose("aggregate", "mode", mode, Aggregation)
    sums, tokens = valid(x, mask).sum(-1), mask.bool().sum(-1)  # (B,), (B,)
    if mode == "seq-mean-token-mean":
        sums = divide(sums, tokens)
    count: Tensor | float
    if denominator is not None:
        count = denominator
    elif mode == "token-mean":
        count = tokens.sum()
    elif mode == "seq-mean-token-sum-norm":
        count = x.shape[-1]
    else:
        count = (tokens > 0).sum()
    return like(divide(sums.sum(), count), x)


def _centre(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from the mean (0 at masked positions) and the mean, both widened.

    The mean is taken off twice: the second round removes what rounding left of the first. Without it, constant float32
    scores of about 100 would whiten to several hundredths instead of 0.
    """
    x = valid(x, mask)
    rough = masked_mean(x, mask)
    x = valid(x - rough, mask)
    rest = masked_mean(x, mask)
    return valid(x - rest, mask), rough + rest


def _variance(deviations: Tensor, mask: Tensor, unbiased: bool) -> Tensor:
    n = mask.bool().sum()
    return divide(deviations.square().sum(), n - int(unbiased))
