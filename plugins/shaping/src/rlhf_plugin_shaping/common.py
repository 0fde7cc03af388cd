"""What several shapers ask of a rollout. B samples, T response positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from rlhf_core.errors import RewardError, RunError
from rlhf_core.functional import masked_mean
from rlhf_core.interfaces import Context, State
from rlhf_core.records import Rollout
from torch import Tensor


def judged(rollout: Rollout) -> Tensor:
    """(B,) bool: True where the rewards had an opinion."""
    if rollout.abstained is None:
        return torch.ones_like(rollout.truncated)
    return ~rollout.abstained


def own_lengths(rollout: Rollout) -> Tensor:
    """(B,) int64: how many tokens the policy wrote, end of text included and other speakers left out."""
    return rollout.mask.sum(1)


def last_own(mask: Tensor) -> Tensor:
    """(B, T) bool: True on the last valid token of each row of `mask`, nowhere in an empty row."""
    remaining = mask.flip(1).cumsum(1).flip(1)  # valid tokens from here on
    return mask & (remaining == 1)


def mean_of(values: Tensor, which: Tensor) -> float:
    """The mean of `values` (B,) over the samples in `which`; 0 if there are none."""
    return float(masked_mean(values.float(), which))


def check_finite(scores: Sequence[float], context: Context) -> None:
    """Scores that are kept for later steps must not poison them.

    Raises:
        RewardError: a score is nan or infinite.
    """
    if not all(map(math.isfinite, scores)):
        raise RewardError(
            context.where,
            f"got a score that is not finite among {len(scores)}",
            "finite scores",
            "look at the rewards, and at the shapers before this one",
        )


def check_state(state: State, expected: State, context: Context) -> None:
    """A loaded state must have the entries of `expected`.

    Raises:
        RunError: it has others.
    """
    if state.keys() != expected.keys():
        raise RunError(
            context.where,
            f"got a state with {', '.join(state) or 'nothing'}",
            ", ".join(expected),
            "resume with the shapers that the run was started with",
        )
