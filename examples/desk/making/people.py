"""The five simulated people who give feedback, each careful or careless in a way of their own.

ada and ben are careful, chloe and dan usual, eve is careless: in every kind of feedback.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random


@dataclass(frozen=True)
class Person:
    """How one of them judges.

    tau: of comparisons, rankings and edits, the scale of the noise on gold (Bradley-Terry, Plackett-Luce).
    bias, spread, noise: of ratings from 1 to 5, which are 3 + bias + spread * (4 gold - 2) + noise * normal.
    feeling: of sentiment, the standard deviation of the noise on tone.
    looks: of edits, how many of the three elements they look at, bad ones first. left: share of edits left undone.
    confused: of keywords, the share of words named in the wrong list. chatter: how often a word is named in a list that
    says nothing of quality.
    """

    tau: float
    bias: float
    spread: float
    noise: float
    feeling: float
    looks: int
    left: float
    confused: float
    chatter: float


PEOPLE = {
    "ada": Person(0.05, 0.0, 1.0, 0.3, feeling=0.10, looks=3, left=0.02, confused=0.0, chatter=0.1),
    "ben": Person(0.08, -0.7, 1.0, 0.4, feeling=0.15, looks=3, left=0.02, confused=0.0, chatter=0.1),
    "chloe": Person(0.10, 0.6, 0.8, 0.5, feeling=0.20, looks=3, left=0.04, confused=0.02, chatter=0.2),
    "dan": Person(0.15, 0.2, 1.2, 0.6, feeling=0.30, looks=2, left=0.06, confused=0.04, chatter=0.3),
    "eve": Person(0.40, 0.5, 0.5, 1.2, feeling=0.80, looks=1, left=0.15, confused=0.1, chatter=0.6),
}
AGENTS = ("fay", "gus", "hal")  # who wrote the demonstrations, one as the other
START = datetime(2025, 3, 3, 9, tzinfo=UTC)


def times(rng: Random) -> Iterator[str]:
    """When one judgement after the other was given."""
    time = START
    while True:
        time += timedelta(seconds=rng.randint(20, 240))
        yield time.isoformat()
