"""A reward learnt from ratings: regression, ordinal regression, or pairs of one prompt's responses.

Every rating is first put on [0, 1] by its own scale and normalised per annotator (`normalise.Normaliser`). Regression
learns that number by squared error. Ordinal is CORAL (Cao, Mirjalili and Raschka, 2020, arXiv:1901.07884): one number
per text and one threshold between every two steps of the scale; the score is the expected step. It departs from the
paper where a corrected rating lies between two steps: there the question of that step is answered by the fraction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from rlhf_core.errors import DataError
from rlhf_core.interfaces import SupervisedTask
from rlhf_core.policies import at_last_character
from rlhf_core.records import Feedback, Rating, Sample, Scores
from rlhf_core.rewards import CreditNetwork, CreditReward, Pair, PairTask, credit_spans
from torch import Tensor, nn

from .config import RatingRewardConfig
from .normalise import Normaliser
from .task import Rated, RatingTask

WHOLE = "rating"  # what the one output is called where there are no aspects


class RatingNetwork(CreditNetwork):
    """K numbers per text, a credit per token, and for CORAL (K, levels - 1) thresholds."""

    def __init__(self, *args: Any, levels: int, **options: Any) -> None:
        super().__init__(*args, **options)
        start = torch.linspace(1.0, -1.0, levels - 1, dtype=self.head.weight.dtype)  # P(above) falls from step to step
        self.thresholds = nn.Parameter(start.repeat(self.head.out_features, 1))

    def expected(self, outputs: Tensor) -> Tensor:
        """outputs (B, K). Returns (B, K): the expected step of the scale, from 1 to levels."""
        return 1 + torch.sigmoid(outputs[..., None] + self.thresholds).sum(-1)


class RatingReward(CreditReward[RatingRewardConfig]):
    """Scores a response: in deviations of a rating, in steps of the scale (ordinal), or in log-odds (pairs)."""

    network: RatingNetwork

    def make_network(self, trunk: nn.Module, hidden_size: int) -> RatingNetwork:
        c = self.config
        options: dict[str, Any] = {"outputs": len(self.names), "levels": c.levels}
        return RatingNetwork(trunk, hidden_size, c.pooling, self.generator(), **options)

    @property
    def names(self) -> list[str]:
        """What the K outputs are called: the aspects, or one rating."""
        return list(self.config.aspects) or [WHOLE]

    def readings(self, outputs: Tensor) -> Tensor:
        """What (B, K) outputs say of each aspect, in the unit of the score."""
        return self.network.expected(outputs) if self.config.loss == "ordinal" else outputs

    def combined(self, readings: Tensor) -> Tensor:
        """(B,) scores from (B, K) readings."""
        weights = readings.new_tensor(list(self.config.aspects.values()) or [1.0])
        return readings @ (weights / weights.sum())

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> Scores:
        if self.config.span_coef:
            return self._score_with_credit(samples)
        texts = [self.encode(sample.prompt, sample.response) for sample in samples]
        return self._scores(self.predict(texts))

    def _scores(self, outputs: Tensor, **more: Any) -> Scores:
        readings = self.readings(outputs).float()
        parts = {name: readings[:, k] for k, name in enumerate(self.names)} if self.config.aspects else {}
        return Scores(self.combined(readings), parts=parts, **more)

    def _score_with_credit(self, samples: Sequence[Sample]) -> Scores:
        parts = [self.encode_parts(sample.prompt, sample.response) for sample in samples]
        outputs, credits = self.predict_both([[*question, *answer] for question, answer in parts])
        spans = []
        for sample, (question, answer), own in zip(samples, parts, credits, strict=True):
            ranges = self.codec.token_ranges(sample.prompt, sample.response, answer)
            share = own[len(question) :, 0] / len(answer)
            spans.append(credit_spans(sample.response, ranges, share.tolist()))
        return self._scores(outputs, spans=tuple(spans))

    # --- learning ----------------------------------------------------------------------------------------------------

    def task(self, feedback: Iterable[Feedback]) -> SupervisedTask:
        train, held_out = self.split(feedback, (Rating,), lambda record: [record])
        if self.config.loss == "pairs":
            normaliser = self._normaliser(train, WHOLE)
            sides = [list(self._pairs(records, normaliser)) for records in (train, held_out)]
            if train and not sides[0]:
                raise DataError(self.context.where, f"{len(train)} ratings without two of one prompt that differ",
                                f"ratings of one prompt at least min_gap ({self.config.min_gap:g}) apart",
                                "rate several responses to each prompt, or take loss: regression")  # fmt: skip
            return PairTask(self, sides[0], sides[1], self.config.center_coef)
        normalisers = {name: self._normaliser(train, name) for name in self.names}
        return RatingTask(self, *([self._rated(record, normalisers) for record in side] for side in (train, held_out)))

    def _normaliser(self, records: Sequence[Rating], name: str) -> Normaliser:
        given = [(record.annotator, unit) for record in records if (unit := _unit(record, name)) is not None]
        if records and not given:
            raise DataError(self.context.where, f"{len(records)} ratings without the aspect {name!r}",
                            "at least one with it", "take it out of `aspects`, or rate it")  # fmt: skip
        return Normaliser.of(given, self.config.shrinkage, per_annotator=self.config.normalise)

    def _rated(self, record: Rating, normalisers: dict[str, Normaliser]) -> Rated:
        targets: list[float | None] = []
        for name, normaliser in normalisers.items():
            unit = _unit(record, name)
            if unit is not None and self.config.loss == "ordinal":
                corrected = min(max(normaliser.corrected(record.annotator, unit), 0.0), 1.0)
                targets.append(corrected * (self.config.levels - 1))
            else:
                targets.append(None if unit is None else normaliser.z(record.annotator, unit))
        question, answer = self.encode_parts(record.prompt, record.response)
        credits: list[float | None] = []
        if self.config.span_coef and record.spans:
            low, high = record.scale  # the middle of the scale is worth nothing, its ends 1 and -1
            spans = [(s.start, s.end, 2 * (s.score - low) / (high - low) - 1) for s in record.spans]
            found = at_last_character(self.codec.token_ranges(record.prompt, record.response, answer), spans)
            credits = [*[None] * len(question), *found]
        return Rated([*question, *answer], tuple(targets), tuple(credits), record.weight)

    def _pairs(self, records: Iterable[Rating], normaliser: Normaliser) -> Iterator[Pair]:
        """Every two different responses to one prompt whose corrected ratings are far enough apart."""
        groups: dict[Any, list[Rating]] = defaultdict(list)
        for record in records:
            groups[(record.prompt.render(), record.scale)].append(record)
        for (_, (low, high)), group in groups.items():
            for a, b in combinations(group, 2):
                z = [normaliser.z(r.annotator, (r.score - low) / (high - low)) for r in (a, b)]
                better, worse = (a, b) if z[0] > z[1] else (b, a)
                gap = abs(z[0] - z[1])
                if a.response != b.response and gap * normaliser.deviation * (high - low) >= self.config.min_gap:
                    yield Pair(self.encode(better.prompt, better.response), self.encode(worse.prompt, worse.response),
                               self.config.margin * gap, min(a.weight, b.weight))  # fmt: skip


def _unit(record: Rating, name: str) -> float | None:
    """A rating, whole or of an aspect, put on [0, 1] by its scale; None if it is not there."""
    value = record.score if name == WHOLE else record.aspects.get(name)
    low, high = record.scale
    return None if value is None else (value - low) / (high - low)
