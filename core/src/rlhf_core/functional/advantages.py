"""From rewards to what the policy is pushed by: returns, GAE, and comparison within a group."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._tensors import check, choose, divide, like, sqrt, valid, wide
from .masked import masked_var

Baseline = Literal["mean", "leave-one-out"]
Scale = Literal["none", "std", "batch-std"]


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Discounted reward to go, `G_t = r_t + gamma * G_next`, where next is the next valid token.

    A hole in the mask is stepped over: it neither stops the credit of later tokens nor costs a factor gamma.

    Args:
        rewards: (B, T), any dtype. mask: (B, T), nonzero is valid, holes allowed.
    Returns:
        (B, T), rewards' dtype, 0 at masked positions.
    Raises:
        ValueError: shapes differ.
    Source:
        Sutton & Barto 2018, equation 3.9.
    """
    check("discounted_returns", rewards.shape, mask=mask)
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]  # without values, delta_t is r_t


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns (advantage + value) that the critic is trained on.

    `delta_t = r_t + gamma * V_next - V_t`, `A_t = delta_t + gamma * lam * A_next`, where next is the next valid token:
    a hole in the mask (another speaker's turn) is stepped over, at no extra gamma.

    Args:
        rewards, values: (B, T), any dtype. mask: (B, T), nonzero is valid, holes allowed.
        bootstrap: (B,), value of the state after the last valid token, for truncated responses; default 0, the end.
    Returns:
        advantages and returns, both (B, T), rewards' dtype, 0 at masked positions. Advantages are not whitened.
    Raises:
        ValueError: shapes differ.
    Source:
        Schulman et al. 2016 (arXiv:1506.02438), equation 16.
    """
    check("gae", rewards.shape, values=values, mask=mask)
    reward, value, here = valid(rewards, mask), valid(values, mask), mask.bool()  # (B, T) each
    next_value = reward.new_zeros(reward.shape[:-1])  # (B,) of the next valid token
    if bootstrap is not None:
        check("gae", rewards.shape[:-1], bootstrap=bootstrap)
        next_value = wide(bootstrap)
    carry = torch.zeros_like(next_value)  # (B,) advantage of the next valid token
    columns: list[Tensor] = []
    for t in reversed(range(rewards.shape[-1])):
        delta = reward[..., t] + gamma * next_value - value[..., t]
        carry = torch.where(here[..., t], delta + gamma * lam * carry, carry)
        next_value = torch.where(here[..., t], value[..., t], next_value)
        columns.append(carry)
    advantages = valid(torch.stack(columns[::-1], dim=-1), mask) if columns else torch.zeros_like(reward)
    return like(advantages, rewards), like(advantages + value, rewards)


def group_advantages(scores: Tensor, groups: Tensor, *, baseline: Baseline, scale: Scale, eps: float) -> Tensor:
    """Scores relative to the other samples of the same group (as a rule, of the same prompt).

    baseline: "mean" of the group (GRPO), or "leave-one-out", the mean of the others (RLOO).
    scale: "none" (Dr. GRPO, RLOO); "std", divide by the group's standard deviation + eps; "batch-std", by that of all
    scores + eps. Both unbiased. Peers' eps: 1e-4 (TRL), 1e-6 (verl), 1e-9 (OpenRLHF).

    A sample alone in its group has nothing to be compared with and gets 0 (verl would keep its raw score); so does each
    sample of a constant group, exactly. A nan score means "not scored": it gets 0 and counts nowhere (as in TRL).

    Args:
        scores: (B,), any dtype. groups: (B,), integer labels in any order. There is no mask.
    Returns:
        (B,), scores' dtype; each group sums to 0.
    Raises:
        ValueError: shapes differ; unknown baseline or scale.
    Source:
        Shao et al. 2024 (arXiv:2402.03300), section 4.1.2; Ahmadian et al. 2024 (arXiv:2402.14740) for leave-one-out;
        Liu et al. 2025 (arXiv:2503.20783), section 3, for no scale.
    """
    check("group_advantages", scores.shape, groups=groups)
    choose("group_advantages", "baseline", baseline, Baseline)
    choose("group_advantages", "scale", scale, Scale)
    index: Tensor = torch.unique(groups, return_inverse=True)[1]  # (B,) number of each sample's group, below B

    def over_group(x: Tensor) -> Tensor:  # (B,) each sample sees the sum over its group
        return torch.zeros_like(x).index_add(0, index, x)[index]

    scored, raw = ~scores.isnan(), wide(scores)
    infinite = torch.full_like(raw, torch.inf)
    lowest = infinite.scatter_reduce(0, index, torch.where(scored, raw.detach(), torch.inf), "amin")[index]
    x = valid(raw - lowest, scored)  # measured from its lowest score, a constant group is 0 without rounding
    n = over_group(scored.to(x.dtype))
    x = valid(x - divide(over_group(x), n), scored)  # deviations from the group's mean
    advantages = x if baseline == "mean" else x * divide(n, n - 1)  # r_i - mean of others = (r_i - mean) * n / (n - 1)
    if scale == "std":
        advantages = divide(advantages, sqrt(divide(over_group(x.square()), n - 1)) + eps)
    elif scale == "batch-std":
        advantages = divide(advantages, sqrt(masked_var(raw, scored)) + eps)
    return like(advantages, scores)
