"""Drawing tokens: temperature, top-k, top-p, and inverse-transform sampling from given uniform numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..interfaces import Sampling


def restrict(logits: Tensor, sampling: Sampling) -> Tensor:
    """Set the logits outside top-k and top-p to minus infinity.

    Args:
        logits: (B, V) float32, already divided by the temperature.

    Returns:
        (B, V). Top-p keeps the likeliest tokens while the mass *before* them is under p (Holtzman et al., 2020), so at
        least one.
    """
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # (B, V)
        dropped = (before >= sampling.top_p).scatter(1, order, before >= sampling.top_p)
        logits = logits.masked_fill(dropped, -math.inf)
    return logits


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row by inverse transform, in two levels so that no long sum is formed.

    A single cumulative sum over a vocabulary of 100,000 loses the small probabilities to rounding; sums of blocks, then
    inside the block that was hit, do not.

    Args:
        probabilities: (B, V) float, non-negative, not necessarily normalised; a row must have some mass.
        uniforms: (B,) float64 in [0, 1).

    Returns:
        (B,) int64; a token of probability 0 is never drawn.
    """
    rows, vocabulary = probabilities.shape
    width = math.isqrt(vocabulary - 1) + 1
    blocks = -(-vocabulary // width)
    padded = torch.nn.functional.pad(probabilities, (0, blocks * width - vocabulary))
    table = padded.view(rows, blocks, width)
    sums = table.sum(-1).double()  # (B, blocks)
    block, rest = _hit(sums, uniforms.to(sums) * sums.sum(-1))
    inside, _ = _hit(table[torch.arange(rows, device=table.device), block].double(), rest)
    return block * width + inside


def _hit(weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry at which the running sum of `weights` (B, N) exceeds `targets` (B,), and what of the target
    remains inside that entry. Rounding may push a target past the end: then the last entry with weight is hit."""
    running = weights.cumsum(-1)
    index = torch.searchsorted(running, targets[:, None], right=True)[:, 0]
    places = torch.arange(weights.shape[1], device=weights.device)
    last = torch.where(weights > 0, places, 0).amax(-1)
    index = torch.minimum(index, last)
    rest = targets - (running.gather(1, index[:, None]) - weights.gather(1, index[:, None]))[:, 0]
    return index, rest.clamp(min=0)
