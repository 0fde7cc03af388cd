"""The preference reward: Bradley-Terry on pairs, Davidson where ties count, Plackett-Luce on whole rankings.

P(a over b) = sigmoid(r(a) - r(b)) (Bradley and Terry, 1952). With `ties: davidson` a tie of two responses has a
probability of its own (Davidson, 1970), with `rankings: plackett-luce` a ranking is a row of choices, each of the best
of what is left (Plackett, 1975; Luce, 1959). With `pairs` a ranking of K is all its ordered pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import torch
from rlhf_core.interfaces import SupervisedTask
from rlhf_core.records import Comparison, Feedback
from rlhf_core.rewards import Pair, PairTask, TextNetwork, TextReward
from torch import nn

from .config import PreferenceRewardConfig
from .rankings import Ranking, RankingTask
from .ties import TiedPair, TiesTask


class TiesNetwork(TextNetwork):
    """A text network that also knows how often people cannot tell: `log_tie`, the logarithm of Davidson's nu."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.log_tie = nn.Parameter(torch.zeros((), dtype=self.head.weight.dtype))


class PreferenceReward(TextReward[PreferenceRewardConfig]):
    """Scores a response in the unit of log-odds of being preferred."""

    def make_network(self, trunk: nn.Module, hidden_size: int) -> TextNetwork:
        cls = TiesNetwork if self.config.ties == "davidson" else TextNetwork
        return cls(trunk, hidden_size, self.config.pooling, self.generator())

    def task(self, feedback: Iterable[Feedback]) -> SupervisedTask:
        c = self.config
        if c.rankings == "plackett-luce":
            return RankingTask(self, *self.split(feedback, (Comparison,), self._ranking), c.center_coef)
        if c.ties == "davidson":
            return TiesTask(self, *self.split(feedback, (Comparison,), self._pairs_and_ties), c.center_coef)
        return PairTask(self, *self.split(feedback, (Comparison,), self._pairs), c.center_coef)

    def _pairs(self, record: Comparison) -> Iterator[Pair]:
        """Every ordered pair; of a ranking nobody said how far apart each pair is."""
        for better, worse in record.pairs():
            better_ids, worse_ids = self.encode(record.prompt, better), self.encode(record.prompt, worse)
            yield Pair(better_ids, worse_ids, self._margin(record), record.weight, self._confidence(record))

    def _pairs_and_ties(self, record: Comparison) -> Iterator[Pair]:
        yield from self._pairs(record)
        if record.ties_judged:
            for (rank, a), (other, b) in combinations(zip(record.ranks, record.responses, strict=True), 2):
                if rank == other:
                    yield TiedPair(self.encode(record.prompt, a), self.encode(record.prompt, b), weight=record.weight)

    def _ranking(self, record: Comparison) -> Iterator[Ranking]:
        if len(set(record.ranks)) > 1 or record.ties_judged:  # otherwise nobody said anything
            ids = tuple(self.encode(record.prompt, response) for response in record.responses)
            yield Ranking(ids, record.ranks, record.ties_judged, record.weight)

    def _margin(self, record: Comparison) -> float:
        return record.margin or 0.0 if self.config.use_margin and len(record.responses) == 2 else 0.0

    def _confidence(self, record: Comparison) -> float:
        return 1 - self.config.label_smoothing if record.confidence is None else record.confidence
