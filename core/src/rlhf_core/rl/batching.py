"""Putting rollouts of several processes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..records import Rollout, Scores
from ..records.rollout import PROMPT_COLUMNS
from ..training import Size

if TYPE_CHECKING:
    from accelerate import Accelerator


def rollout_sizes(rollout: Rollout) -> list[Size]:
    """(prompt, response) tokens of each row."""
    prompts, responses = rollout.prompt_mask.sum(1).tolist(), rollout.attention.sum(1).tolist()
    return list(zip(prompts, responses, strict=True))


def gathered(rollout: Rollout, accelerator: Accelerator | None) -> Rollout:
    """The rollouts of all processes as one, in order of rank; everyone gets the same."""
    if accelerator is None or accelerator.num_processes == 1:
        return rollout
    from accelerate.utils import gather_object

    device = rollout.mask.device
    return joined(gather_object([rollout.to("cpu")])).to(device)


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """Rollouts one below the other, padded to a common width: prompts on the left, responses on the right."""
    first = rollouts[0]
    changes: dict[str, Tensor] = {}
    tables = [r.tensors() for r in rollouts]
    for name in tables[0]:
        parts = [table[name] for table in tables]
        if parts[0].dim() > 1:
            width = max(part.shape[1] for part in parts)
            parts = [_widen(part, width, left=name in PROMPT_COLUMNS) for part in parts]
        changes[name] = torch.cat(parts)
    scores = {name: _joined_scores([r.scores[name] for r in rollouts]) for name in first.scores}
    samples = tuple(sample for r in rollouts for sample in r.samples)
    return first.replace(samples=samples, scores=scores, **changes)


def _widen(tensor: Tensor, width: int, *, left: bool) -> Tensor:
    missing = width - tensor.shape[1]
    pad = (0, 0) * (tensor.dim() - 2) + ((missing, 0) if left else (0, missing))
    return torch.nn.functional.pad(tensor, pad)


def _joined_scores(scores: Sequence[Scores]) -> Scores:
    first = scores[0]
    return Scores(
        values=torch.cat([s.values for s in scores]),
        spans=None if first.spans is None else tuple(span for s in scores for span in s.spans or ()),
        abstained=None
        if first.abstained is None
        else torch.cat([s.abstained for s in scores if s.abstained is not None]),
        parts={name: torch.cat([s.parts[name] for s in scores]) for name in first.parts},
    )
