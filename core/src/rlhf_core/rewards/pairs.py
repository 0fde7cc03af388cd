"""Learning a score from pairs: P(a over b) = sigmoid(r(a) - r(b)).

Bradley and Terry (1952); for language models Stiennon et al. (2020), arXiv:2009.01325, with the margin of Llama 2
(Touvron et al., 2023, arXiv:2307.09288) and the centring of Eisenstein et al. (2023), arXiv:2312.09244.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functional import bradley_terry_loss, calibration_error
from ..interfaces import LossSum, StepStats, SupervisedTask
from ..training import by_tokens
from .text import TextReward


@dataclass(frozen=True)
class Pair:
    """A better and a worse text as ids.

    margin: asked between their scores. weight: how much the pair counts. confidence: probability that the order is
    right.
    """

    better: list[int]
    worse: list[int]
    margin: float = 0.0
    weight: float = 1.0
    confidence: float = 1.0


class PairTask(SupervisedTask):
    """The weighted mean over pairs of -log sigmoid(r_better - r_worse - margin), plus a centring term.

    Args:
        reward: whose scores are trained. train, held_out: pairs.
        center_coef: weight of (r_better + r_worse)^2, which keeps scores around 0.
    """

    def __init__(
        self, reward: TextReward[Any], train: Sequence[Pair], held_out: Sequence[Pair], center_coef: float = 0.0
    ) -> None:
        self.reward, self.center_coef = reward, center_coef
        self.module = reward.network
        self.train, self.held_out = train, held_out

    def size(self, example: Pair) -> int:
        return 2 * max(len(example.better), len(example.worse))

    def count(self, example: Pair) -> float:
        return example.weight

    def loss(self, examples: Sequence[Pair]) -> LossSum:
        better, worse = self._both(examples)
        margin, weight, confidence = self._columns(examples, better)
        count = sum(e.weight for e in examples)
        loss = bradley_terry_loss(better, worse, margin=margin, label_smoothing=1 - confidence, weight=weight)
        centre = (weight * (better + worse) ** 2).sum()
        correct = float((weight * (better > worse)).sum())
        return LossSum(count * loss + self.center_coef * centre, count, {"accuracy": correct})

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Pair]) -> StepStats:
        """`accuracy` (a tie counts half), `margin` (mean difference), `loss`, `ece` and the number of `pairs`."""
        differences = torch.zeros(len(examples))
        for rows in by_tokens([self.size(e) for e in examples], self.reward.config.micro_batch_tokens):
            better, worse = self._both([examples[row] for row in rows])
            differences[rows] = (better - worse).float().cpu()
        return pair_metrics(differences)

    def _columns(self, examples: Sequence[Pair], scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Margins, weights and confidences of the pairs, each (B,)."""
        dtype = torch.promote_types(scores.dtype, torch.float32)
        columns = zip(*((e.margin, e.weight, e.confidence) for e in examples), strict=True)
        margin, weight, confidence = (torch.tensor(column, dtype=dtype, device=scores.device) for column in columns)
        return margin, weight, confidence

    def _both(self, examples: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Scores of the better and of the worse texts, each (B,), in one forward pass."""
        scores = self.reward.scores([e.better for e in examples] + [e.worse for e in examples])
        return scores[: len(examples)], scores[len(examples) :]


def pair_metrics(differences: Tensor) -> StepStats:
    """What is reported of pairs, whatever model scored them.

    Args:
        differences: (N,) score of the better minus the worse response.
    """
    accuracy = (differences > 0).float() + 0.5 * (differences == 0).float()
    return {
        "accuracy": float(accuracy.mean()),
        "margin": float(differences.mean()),
        "loss": float(torch.nn.functional.softplus(-differences).mean()),
        "ece": calibration_error(differences),
        "pairs": float(len(differences)),
    }
