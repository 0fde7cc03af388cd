"""What the supervised loop trains for ratings: squared error or CORAL, and the credit of rated spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from rlhf_core.functional import coral_loss, rank_correlation
from rlhf_core.interfaces import LossSum, StepStats, SupervisedTask
from torch import Tensor

if TYPE_CHECKING:
    from .reward import RatingReward


@dataclass(frozen=True)
class Rated:
    """A text as ids with its ratings: one target per output, None where it was not rated.

    targets: normalised ratings, or with CORAL steps above the lowest. credits: one per id, -1 to 1, None where no span
    was rated; empty if none was. weight: how much it counts.
    """

    ids: list[int]
    targets: tuple[float | None, ...]
    credits: tuple[float | None, ...]
    weight: float


class RatingTask(SupervisedTask):
    """The weighted mean over ratings of their loss, each the mean over its aspects, plus that of rated tokens."""

    def __init__(self, reward: RatingReward, train: Sequence[Rated], held_out: Sequence[Rated]) -> None:
        self.reward, self.config = reward, reward.config
        self.module = reward.network
        self.train, self.held_out = train, held_out

    def size(self, example: Rated) -> int:
        return len(example.ids)

    def count(self, example: Rated) -> float:
        return example.weight

    def loss(self, examples: Sequence[Rated]) -> LossSum:
        outputs, credits = self.reward.both([e.ids for e in examples])
        targets, rated = _table([e.targets for e in examples], outputs)
        weight = torch.tensor([e.weight for e in examples], dtype=outputs.dtype, device=outputs.device)
        share = weight[:, None] * rated / rated.sum(1, keepdim=True).clamp(min=1)  # (B, K)
        total = (share * self._errors(outputs, targets)).sum()
        stats: dict[str, float] = {}
        if self.config.span_coef:
            wanted, there = _table([e.credits for e in examples], credits[..., 0])  # (B, S)
            errors = (credits[..., 0] - wanted).square() * there
            spans = (weight * errors.sum(1) / there.sum(1).clamp(min=1)).sum()
            total = total + self.config.span_coef * spans
            stats["span_loss"] = float(spans.detach())
        return LossSum(total, sum(e.weight for e in examples), stats)

    def _errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B, K): squared errors, or the CORAL loss of every output."""
        if self.config.loss == "regression":
            return (outputs - targets).square()
        logits = outputs[..., None] + self.reward.network.thresholds  # (B, K, levels - 1)
        below = torch.arange(logits.shape[-1], dtype=targets.dtype, device=targets.device)
        above = (targets[..., None] - below).clamp(0, 1)  # above the step: yes, no, or in part
        rows = zip(logits.flatten(0, 1), above.flatten(0, 1), strict=True)
        return torch.stack([coral_loss(x[None], y[None]) for x, y in rows]).view_as(outputs)

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Rated]) -> StepStats:
        """`spearman` of scores and ratings, and of each aspect; `mse` in the targets' unit; how many `ratings`."""
        readings = self.reward.readings(self.reward.predict([e.ids for e in examples])).double().cpu()
        targets, rated = _table([e.targets for e in examples], readings)
        if self.config.loss == "ordinal":
            targets = targets + 1
        whole = rated.all(1)
        stats = {
            "spearman": rank_correlation(self.reward.combined(readings[whole]), self.reward.combined(targets[whole])),
            "mse": float(F.mse_loss(readings[rated], targets[rated])),
            "ratings": float(len(examples)),
        }
        if self.config.aspects:
            for k, name in enumerate(self.reward.names):
                there = rated[:, k]
                stats[f"spearman/{name}"] = rank_correlation(readings[there, k], targets[there, k])
        return stats


def _table(rows: Sequence[Sequence[float | None]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Ragged rows as (values, there), each of `like`'s first two dimensions; 0 and False where there is nothing."""
    values, there = torch.zeros_like(like), torch.zeros_like(like, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if value is not None:
                values[i, j], there[i, j] = value, True
    return values, there
