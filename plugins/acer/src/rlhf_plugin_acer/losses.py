"""The mathematics of ACER as functions of tensors (Wang et al., 2017, arXiv:1611.01224).

B samples, T response tokens, C candidates: the tokens at a position for which behaviour and policy are both known.
A mask has the shape of what it masks; nonzero is valid. What lies at masked positions reaches neither values nor
gradients, and results are 0 there. Nothing is detached here: the caller says what is a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor


def retrace_targets(
    rewards: Tensor,
    taken: Tensor,
    values: Tensor,
    ratio: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """What the action value of each token is trained towards, from samples of any policy.

    `Q'_t = r_t + gamma (min(1, rho_next) (Q'_next - Q_next) + V_next)`, where next is the next valid token: a hole in
    the mask (another speaker's turn) is stepped over, at no extra gamma. After the last valid token the bracket is
    `bootstrap`. With rho = 1 everywhere and Q = V it is the discounted return.

    Args:
        rewards, taken, values, ratio: (B, T); Q of the token taken, V before it, and its ratio pi / mu.
        mask: (B, T), holes allowed. bootstrap: (B,), V after the last token; by default 0, the end.
    Returns:
        (B, T), 0 at masked positions.
    Raises:
        ValueError: shapes differ.
    Source:
        Wang et al. (2017), equation 5; Retrace (Munos et al., 2016, arXiv:1606.02647) with lambda 1.
    """
    _same("retrace_targets", rewards.shape, taken=taken, values=values, ratio=ratio, mask=mask)
    here = mask.bool()
    reward, q, v = _valid(rewards, here), _valid(taken, here), _valid(values, here)
    trace = _valid(ratio, here).clamp(max=1.0)
    beyond = reward.new_zeros(reward.shape[:1])  # (B,) the bracket: what follows the token is worth
    if bootstrap is not None:
        _same("retrace_targets", rewards.shape[:1], bootstrap=bootstrap)
        beyond = bootstrap.to(reward)
    columns: list[Tensor] = []
    for t in reversed(range(rewards.shape[1])):
        target = reward[:, t] + gamma * beyond
        columns.append(target)
        beyond = torch.where(here[:, t], trace[:, t] * (target - q[:, t]) + v[:, t], beyond)
    return _valid(torch.stack(columns[::-1], 1), here) if columns else reward


def truncated_weights(ratio: Tensor, advantages: Tensor, mask: Tensor, *, truncation: float) -> Tensor:
    """`min(c, rho) A`: how hard the token taken is pushed; bounded however unlikely it was for the behaviour.

    Args:
        ratio, advantages, mask: same shape; pi / mu of the token taken, and its target minus V. truncation: c.
    Returns:
        that shape.
    Raises:
        ValueError: shapes differ.
    Source:
        Wang et al. (2017), equation 7, first term.
    """
    _same("truncated_weights", ratio.shape, advantages=advantages, mask=mask)
    return _valid(ratio, mask).clamp(max=truncation) * _valid(advantages, mask)


def correction_weights(probs: Tensor, ratio: Tensor, advantages: Tensor, mask: Tensor, *, truncation: float) -> Tensor:
    """`max(0, 1 - c / rho_a) pi_a (Q_a - V)`: what truncation took away, given back through the action values.

    Not 0 only for tokens that the policy likes more than c times as much as the behaviour did. Added up over the whole
    vocabulary, it makes up for the truncation exactly where Q is exact; over some candidates, for these alone.

    Args:
        probs, ratio, advantages, mask: (B, T, C); pi, pi / mu and Q - V of the candidates; the mask is 0 for a
        candidate that is not to count, such as one that stands there twice. truncation: c.
    Returns:
        (B, T, C).
    Raises:
        ValueError: shapes differ.
    Source:
        Wang et al. (2017), equation 7, second term.
    """
    _same("correction_weights", probs.shape, ratio=ratio, advantages=advantages, mask=mask)
    lost = (1.0 - truncation / torch.where(mask.bool(), ratio, 1.0)).clamp(min=0.0)  # at rho 0 it is -inf, so 0
    return lost * _valid(probs, mask) * _valid(advantages, mask)


def trust_region_multiplier(k_dot_g: Tensor, k_dot_k: Tensor, mask: Tensor, *, delta: float) -> Tensor:
    """`m = max(0, (k . g - delta) / ||k||^2)`: how much of k is taken out of the gradient, `z* = g - m k`.

    z* is the vector nearest to g with `k . z* <= delta`, where k is the gradient of KL(average policy || policy): a
    step along g that raises the divergence too fast loses just what is too much. For k and g with respect to the
    logits, z* is the gradient of the objective minus m times that KL, with m a constant.

    Args:
        k_dot_g, k_dot_k, mask: same shape. delta: above 0.
    Returns:
        that shape, at least 0.
    Raises:
        ValueError: shapes differ.
    Source:
        Wang et al. (2017), equations 11 and 12.
    """
    _same("trust_region_multiplier", k_dot_g.shape, k_dot_k=k_dot_k, mask=mask)
    excess = (_valid(k_dot_g, mask) - delta).clamp(min=0.0)
    length = _valid(k_dot_k, mask)
    return torch.where(excess > 0, excess / length.masked_fill(length == 0, 1.0), 0.0)


def _same(function: str, shape: torch.Size, **tensors: Tensor) -> None:
    """Refuse tensors of another shape."""
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"{function}: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")


def _valid(x: Tensor, mask: Tensor) -> Tensor:
    """0 at masked positions; by selection, since 0 * nan is nan, in gradients too."""
    return torch.where(mask.bool(), x, 0.0)
