"""Learning from pairs and ties by Davidson's model (1970)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rlhf_core.functional import davidson_loss
from rlhf_core.interfaces import LossSum, StepStats
from rlhf_core.rewards import Pair, PairTask
from torch import Tensor


@dataclass(frozen=True)
class TiedPair(Pair):
    """Two texts that people found equally good; which is called better means nothing."""


class TiesTask(PairTask):
    """The weighted mean over pairs and ties of Davidson's negative log-likelihood, plus the centring term."""

    def loss(self, examples: Sequence[Pair]) -> LossSum:
        better, worse = self._both(examples)
        margin, weight, confidence = self._columns(examples, better)
        tied = torch.tensor([isinstance(e, TiedPair) for e in examples], device=better.device)
        log_tie: Tensor = self.module.log_tie  # type: ignore[assignment]
        count = sum(e.weight for e in examples)
        loss = davidson_loss(better, worse, tied, log_tie, margin=margin, label_smoothing=1 - confidence, weight=weight)
        centre = (weight * (better + worse) ** 2).sum()
        # a tie is neither right nor wrong: half of it
        right = torch.where(tied, 0.5, (better > worse).to(weight.dtype))
        stats = {"accuracy": float((weight * right).sum()), "tie": count * float(log_tie.detach().exp())}
        return LossSum(count * loss + self.center_coef * centre, count, stats)

    def evaluate(self, examples: Sequence[Pair]) -> StepStats:
        """Metrics of the pairs that are no ties, and how many `ties` there are."""
        pairs = [e for e in examples if not isinstance(e, TiedPair)]
        ties = {"ties": float(len(examples) - len(pairs))}
        return {**super().evaluate(pairs), **ties} if pairs else ties
