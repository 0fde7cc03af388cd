"""Crowds whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from rlhf_core.interfaces import Config, Context, FeedbackSource
from rlhf_core.records import Comparison, Feedback, Rating

START = datetime(2025, 3, 3, 9, tzinfo=UTC)


class NoConfig(Config):
    """Nothing to configure."""


class Memory(FeedbackSource[NoConfig]):
    """Records from memory, counting how often they are read."""

    def __init__(self, records: Sequence[Feedback]) -> None:
        super().__init__(NoConfig(), Context())
        self.records, self.readings = list(records), 0

    def __iter__(self) -> Iterator[Feedback]:
        self.readings += 1
        return iter(self.records)


def compared(
    item: int,
    better: int,
    annotator: str | None = "ann",
    *,
    swap: bool = False,
    seconds: float | None = None,
    **more: Any,
) -> Comparison:
    """Response `better` (0 or 1) of item number `item` is preferred; `swap` shows response 1 first."""
    responses, ranks = (f"yes {item}", f"no {item}"), (better, 1 - better)
    if swap:
        responses, ranks = responses[::-1], ranks[::-1]
    time = None if seconds is None else START + timedelta(seconds=seconds)
    return Comparison(
        prompt=f"Question number {item}?", responses=responses, ranks=ranks, annotator=annotator, time=time, **more
    )


def rated(item: int, score: float, annotator: str | None = "ann", **more: Any) -> Rating:
    """A rating from 1 to 5 of response number `item`."""
    more = {"prompt": f"Question number {item}?", "response": f"answer {item}", "scale": (1, 5), **more}
    return Rating(score=score, annotator=annotator, **more)


def crowd(accuracies: Mapping[str, float], items: int = 200, seed: int = 0, gap: float = 30.0) -> list[Comparison]:
    """Everyone compares every item; response 0 is truly the better one, found with the annotator's probability.

    The order in which responses are shown is random, and so are the seconds between answers, around `gap`.
    """
    rng = Random(seed)
    records = []
    for name, accuracy in accuracies.items():
        seconds = 0.0
        for item in range(items):
            seconds += gap * rng.uniform(0.5, 1.5)
            better = 0 if rng.random() < accuracy else 1
            records.append(compared(item, better, name, swap=rng.random() < 0.5, seconds=seconds))
    return records


def truth(items: int) -> list[Comparison]:
    """Gold questions about the first `items` items."""
    return [compared(item, 0, None) for item in range(items)]


def context(*sources: Sequence[Feedback] | Memory, **changes: Any) -> Context:
    """A context in which feedback "a", "b", ... are these records."""
    by_name = {
        chr(ord("a") + i): source if isinstance(source, Memory) else Memory(source) for i, source in enumerate(sources)
    }
    return Context(**{"kind": "feedback", "id": "clean", "resolve": lambda kind, id: by_name[id], **changes})
