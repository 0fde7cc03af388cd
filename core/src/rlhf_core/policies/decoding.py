"""The sampling loop: tokens are drawn one by one over the model's cache, and their log-probabilities kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..interfaces import Sampling
from ..randomness import uniforms
from .drawing import draw, restrict
from .network import PolicyNetwork
from .text import Codec


@dataclass(frozen=True, eq=False)
class Drawn:
    """Sampled responses: ids (B, T) right-padded, attention (B, T), logprobs (B, T) under the full softmax at the
    sampling temperature, behaviour (B, T) under what was drawn from (None if that is the same), truncated (B,)."""

    ids: Tensor
    attention: Tensor
    logprobs: Tensor
    behaviour: Tensor | None
    truncated: Tensor


@torch.no_grad()
def sample(
    network: PolicyNetwork,
    codec: Codec,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    sampling: Sampling,
    *,
    seed: int,
    sample_ids: Sequence[int],
) -> Drawn:
    """Draw one response per row of `prompt_ids` (B, P).

    The token at position t of row b is drawn with the uniform number (seed, sample_ids[b], t), whatever else is in the
    batch. Rows that are done leave the batch once half of it is done.
    """
    device = prompt_ids.device
    rows, longest = len(prompt_ids), sampling.max_new_tokens
    numbers = torch.from_numpy(
        uniforms(seed, np.asarray(sample_ids, dtype=np.int64), np.arange(longest, dtype=np.int64))
    ).to(device)  # (B, T) float64
    ids = torch.full((rows, longest), codec.pad, dtype=torch.long, device=device)
    logprobs = torch.zeros(rows, longest, device=device)
    behaviour = torch.zeros(rows, longest, device=device) if sampling.truncates else None
    attention = torch.zeros(rows, longest, dtype=torch.bool, device=device)
    done = torch.zeros(rows, dtype=torch.bool, device=device)

    live = torch.arange(rows, device=device)  # rows still in the batch, in order
    mask, step_ids, cache = prompt_mask, prompt_ids, None
    for t in range(longest):
        logits, cache = network.step(step_ids, mask, cache)  # (live, V)
        token, full, drawn = _next(logits, sampling, numbers[live, t], codec.eos, t)
        writing = live[~done[live]]
        ids[writing, t], logprobs[writing, t] = token[~done[live]], full[~done[live]]
        if behaviour is not None:
            behaviour[writing, t] = drawn[~done[live]]
        attention[writing, t] = True
        done[writing] = ids[writing, t] == codec.eos
        if sampling.stop:
            _mark_stopped(done, ids, writing, t, sampling.stop, codec)
        if done[live].all():
            break
        step_ids, mask = token[:, None], torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        if 2 * int(done[live].sum()) >= len(live) and hasattr(cache, "batch_select_indices"):
            kept = (~done[live]).nonzero()[:, 0]
            cache.batch_select_indices(kept)
            live, step_ids, mask = live[kept], step_ids[kept], mask[kept]
    width = int(attention.sum(1).max())
    return Drawn(
        ids[:, :width],
        attention[:, :width],
        logprobs[:, :width],
        None if behaviour is None else behaviour[:, :width],
        ~done,
    )


def _next(logits: Tensor, sampling: Sampling, numbers: Tensor, eos: int, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """(token, log-probability under the full softmax, log-probability under what was drawn from), each (B,)."""
    scaled = logits / (sampling.heat or 1.0)  # (B, V); greedy decoding is scored at temperature 1
    allowed = scaled
    if t < sampling.min_new_tokens:
        allowed = scaled.clone()
        allowed[:, eos] = -math.inf
    if sampling.heat == 0:
        token = allowed.argmax(-1)
        behaviour = torch.zeros_like(numbers, dtype=torch.float32)
    else:
        restricted = restrict(allowed, sampling)
        probabilities = restricted.softmax(-1)
        token = draw(probabilities, numbers)
        behaviour = probabilities.gather(1, token[:, None])[:, 0].log()
    chosen = scaled.gather(1, token[:, None])[:, 0]
    return token, chosen - scaled.logsumexp(-1), behaviour


def _mark_stopped(done: Tensor, ids: Tensor, writing: Tensor, t: int, stop: Sequence[str], codec: Codec) -> None:
    """Mark the rows whose text now ends in a stop string; only the tail that can hold one is decoded."""
    tail = max(4 * len(text) for text in stop) + 4  # a character is at most four byte-level tokens
    for row in writing.tolist():
        text = codec.decode(ids[row, max(0, t + 1 - tail) : t + 1].tolist())
        if any(s in text for s in stop):
            done[row] = True


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop string in it."""
    found = [place for place in (text.find(s) for s in stop) if place >= 0]
    return text[: min(found)] if found else text
