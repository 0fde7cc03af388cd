"""AI feedback: the responses of another source, compared by a language model (Lee et al., 2023, arXiv:2309.00267)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice
from typing import Any

from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context, FeedbackSource
from rlhf_core.records import Comparison, Feedback

from .config import JudgeFeedbackConfig
from .judge import ORDER_DECIDES, Judge


class JudgedPairs(FeedbackSource[JudgeFeedbackConfig]):
    """One `Comparison` per pair of responses, with the judge's order; the model is its annotator.

    The order that the source gives is not read, nor its margin, confidence and weight. Both orders agreeing is
    confidence 1. Pairs without a verdict and records of other kinds are counted in `skipped`.

    Raises:
        DataError: there is no pair with a verdict. RewardError: see `Client.ask`.
    """

    def __init__(self, config: JudgeFeedbackConfig, context: Context) -> None:
        super().__init__(config, context)
        self._judge = Judge(config, context)
        self._feedback: FeedbackSource[Any] = context.component("feedback", config.feedback)

    def __iter__(self) -> Iterator[Feedback]:
        self.skipped = found = 0
        reasons: list[str] = []
        pairs = self._pairs(reasons)
        while chunk := list(islice(pairs, 4 * self.config.concurrency)):  # a stream still, with enough to ask at once
            verdicts = self._judge.compare([(record.prompt, a, b) for record, a, b in chunk])
            for (record, a, b), verdict in zip(chunk, verdicts, strict=True):
                if verdict.value is None or (not verdict.agreed and self.config.on_disagreement == "drop"):
                    reasons.append(verdict.reason or ORDER_DECIDES)
                else:
                    found += 1
                    yield self._record(record, (a, b), verdict.value, verdict.agreed)
        self.skipped = len(reasons)
        self._judge.warn(reasons, found + len(reasons), "skipped")
        if not found:
            raise DataError(
                self.context.where,
                f"no pair with a verdict in feedback {self.config.feedback!r} ({self.skipped} skipped)",
                "at least one",
                "see the warning for the reasons; name a source of comparisons, or try another `model`",
            )

    def _pairs(self, reasons: list[str]) -> Iterator[tuple[Comparison, str, str]]:
        """Every two responses of every comparison, in the source's order of telling; `reasons` takes what is none."""
        for record in self._feedback:
            if not isinstance(record, Comparison):
                reasons.append(f"feedback of kind {record.kind!r}")
                continue
            for a, b in combinations(record.responses, 2):
                yield record, a, b

    def _record(self, record: Comparison, responses: tuple[str, str], chance: float, agreed: bool) -> Comparison:
        """The pair as the judge sees it: a tie where it says so, or where it cannot tell."""
        ranks = (0, 0) if chance == 0.5 or not agreed else (0, 1) if chance > 0.5 else (1, 0)
        return Comparison(
            prompt=record.prompt,
            responses=responses,
            ranks=ranks,
            annotator=self.config.model,
            source=record.source,
            confidence=1.0 if agreed else None,
        )
