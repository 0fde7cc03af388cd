"""What ILQL minimises, token by token; masks and means are the caller's, except where a mask says what comes next."""

from __future__ import annotations

import torch
from rlhf_core.functional import token_logprobs
from torch import Tensor


@torch.no_grad()
def td_targets(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """What taking a token was worth, `r_t + gamma * V_next`, where next is the next valid token; after the last, 0.

    A hole in the mask (another speaker's turn) is stepped over, at no extra gamma.

    Args:
        rewards, values: (B, T), V before each token. mask: (B, T) bool, holes allowed; what stands outside is not read.
    Returns:
        (B, T), 0 outside the mask, without gradient.
    Raises:
        ValueError: shapes differ.
    Source:
        Snell et al. 2022 (arXiv:2206.11871), section 4: the first term of the loss of Q and V.
    """
    for name, tensor in (("values", values), ("mask", mask)):
        if tensor.shape != rewards.shape:
            raise ValueError(f"td_targets: {name} has shape {tuple(tensor.shape)}, expected {tuple(rewards.shape)}")
    targets = torch.zeros_like(values)
    after = values.new_zeros(len(values))  # (B,) V before the next valid token
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        targets[:, t] = torch.where(here, rewards[:, t] + gamma * after, 0.0)
        after = torch.where(here, values[:, t], after)
    return targets


def expectile_errors(differences: Tensor, *, tau: float) -> Tensor:
    """Asymmetric squares `|tau - 1(d < 0)| d^2`: their mean over q - v is least where v is the tau-expectile of q.

    tau 0.5 gives half the squares, and so the mean; towards 1 the expectile rises to the largest q.

    Args:
        differences: any shape, the action value of what was taken minus the value of the state. There is no mask.
    Returns:
        differences' shape.
    Source:
        Newey & Powell 1987 (Econometrica 55); Kostrikov et al. 2021 (arXiv:2110.06169), equation 5.
    """
    below = (differences < 0).to(differences.dtype)
    return (tau - below).abs() * differences.square()


def cql_errors(action_values: Tensor, ids: Tensor) -> Tensor:
    """How far the value of the token taken is below the soft maximum over all tokens, `logsumexp Q(s, .) - Q(s, a)`.

    It is the cross-entropy of softmax Q at the token taken: what the data never took has nothing else to hold it down.

    Args:
        action_values: (B, T, V). ids: (B, T) int64, each in [0, V), outside the mask too. There is no mask.
    Returns:
        (B, T), not negative.
    Raises:
        ValueError: the shapes of ids and of action_values without V differ.
    Source:
        Kumar et al. 2020 (arXiv:2006.04779), equation 4, with a uniform prior; Snell et al. 2022, section 4.
    """
    return -token_logprobs(action_values, ids)
