"""Learning from whole rankings, full or partial, by the Plackett-Luce model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rlhf_core.functional import plackett_luce_loss
from rlhf_core.interfaces import LossSum, StepStats, SupervisedTask
from rlhf_core.rewards import TextReward, pair_metrics
from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """Texts as ids with their ranks, 0 best; `ties_judged` as in `Comparison`."""

    texts: tuple[list[int], ...]
    ranks: tuple[int, ...]
    ties_judged: bool
    weight: float


class RankingTask(SupervisedTask):
    """The weighted mean over rankings of `plackett_luce_loss`, plus a centring term on their mean score."""

    def __init__(
        self, reward: TextReward[Any], train: Sequence[Ranking], held_out: Sequence[Ranking], center_coef: float
    ) -> None:
        self.reward, self.center_coef = reward, center_coef
        self.module = reward.network
        self.train, self.held_out = train, held_out

    def size(self, example: Ranking) -> int:
        return len(example.texts) * max(map(len, example.texts))

    def count(self, example: Ranking) -> float:
        return example.weight

    def loss(self, examples: Sequence[Ranking]) -> LossSum:
        scores, mask, ranks = self._table(examples)
        judged = torch.tensor([e.ties_judged for e in examples], device=scores.device)
        weight = torch.tensor([e.weight for e in examples], dtype=scores.dtype, device=scores.device)
        count = sum(e.weight for e in examples)
        loss = plackett_luce_loss(scores, mask, ranks=ranks, ties_judged=judged, weight=weight)
        centre = (
            weight * (scores.sum(1) / mask.sum(1) * 2) ** 2
        ).sum()  # of two responses: (r_a + r_b)^2, as for pairs
        best = scores.masked_fill(~mask, -torch.inf).argmax(1, keepdim=True)
        top = (weight * (ranks.gather(1, best)[:, 0] == ranks.masked_fill(~mask, 1 << 30).amin(1))).sum()
        return LossSum(count * loss + self.center_coef * centre, count, {"top1": float(top)})

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Ranking]) -> StepStats:
        """What is reported of `pairs`, over all ordered ones; `top1`, how often the best has the highest score."""
        texts = [text for e in examples for text in e.texts]
        scores = self.reward.predict(texts)[:, 0].float().cpu()
        leads: list[Tensor] = []
        top, start = 0, 0
        for e in examples:
            own = scores[start : start + len(e.texts)]
            start += len(e.texts)
            top += e.ranks[int(own.argmax())] == min(e.ranks)
            leads += [own[i] - own[j] for i, r in enumerate(e.ranks) for j, s in enumerate(e.ranks) if r < s]
        pairs = pair_metrics(torch.stack(leads)) if leads else {}
        return {**pairs, "top1": top / len(examples), "rankings": float(len(examples))}

    def _table(self, examples: Sequence[Ranking]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, mask and ranks, each (B, K)."""
        flat = self.reward.scores([text for e in examples for text in e.texts])
        places = [(b, k) for b, e in enumerate(examples) for k in range(len(e.texts))]
        rows, columns = (torch.tensor(side, device=flat.device) for side in zip(*places, strict=True))
        shape = len(examples), max(len(e.texts) for e in examples)
        scores = flat.new_zeros(shape).index_put((rows, columns), flat)
        mask = torch.zeros(shape, dtype=torch.bool, device=flat.device).index_put(
            (rows, columns), flat.new_ones(()) > 0
        )
        ranks = torch.tensor([rank for e in examples for rank in e.ranks], device=flat.device)
        return scores, mask, torch.zeros(shape, dtype=torch.long, device=flat.device).index_put((rows, columns), ranks)
