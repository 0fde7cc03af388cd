"""The Bradley-Terry reward model: P(a over b) = sigmoid(r(a) - r(b)).

Of a ranking every ordered pair is an example; ties say nothing to this model and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_core.interfaces import SupervisedTask
from rlhf_core.records import Comparison, Feedback
from rlhf_core.rewards.pairs import Pair, PairTask
from rlhf_core.rewards.text import TextReward

from .config import PreferenceRewardConfig


class PreferenceReward(TextReward[PreferenceRewardConfig]):
    """Scores a response in the unit of log-odds of being preferred."""

    def task(self, feedback: Iterable[Feedback]) -> SupervisedTask:
        train, held_out = self.split(feedback, (Comparison,), self._pairs)
        return PairTask(self, train, held_out, self.config.center_coef)

    def _pairs(self, record: Comparison) -> Iterable[Pair]:
        config = self.config
        # of a ranking nobody said how far apart each pair is
        margin = record.margin if config.use_margin and len(record.responses) == 2 else None
        confidence = 1 - config.label_smoothing if record.confidence is None else record.confidence
        for better, worse in record.pairs():
            yield Pair(
                self.encode(record.prompt, better),
                self.encode(record.prompt, worse),
                margin or 0.0,
                record.weight,
                confidence,
            )
