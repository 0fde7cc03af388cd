"""Judging annotators by what they gave: speed, constancy, gold questions. Columns are those of a `Ledger`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rlhf_core.records import Feedback

from . import reading
from .config import Thresholds
from .findings import Share

Columns = dict[str, NDArray[Any]]
UNLIKELY = 1e-3
"""A constant stretch counts against an annotator only if the habits of the crowd give it more rarely than this."""


def by_annotator(annotator: NDArray[Any], alive: NDArray[Any], order: NDArray[Any]) -> Iterator[tuple[int, Any]]:
    """(number, indices of the records left, sorted by `order` and then as they came) of each annotator."""
    index = np.flatnonzero(alive & (annotator >= 0))
    index = index[np.lexsort((index, order[index], annotator[index]))]
    numbers, starts = np.unique(annotator[index], return_index=True)
    yield from zip(numbers.tolist(), np.split(index, starts[1:]), strict=False)  # of nothing `split` makes one part


def median_gap(times: NDArray[Any]) -> float | None:
    """Median seconds between one record and the next, in order of time; None for fewer than two with a time."""
    known = np.sort(times[~np.isnan(times)])
    return float(np.median(np.diff(known))) if len(known) > 1 else None


@dataclass(frozen=True)
class Habit:
    """How constant one annotator is: the commonest answer's `share` of `known` ones, the longest `run` of one answer.

    explained_share, explained_run: whether the crowd's habits give the like with a probability above `UNLIKELY`.
    """

    known: int
    share: float
    run: int
    explained_share: bool
    explained_run: bool


def shown_answers(columns: Columns) -> NDArray[Any]:
    """(N,) answers as such, 0 where unknown; of a comparison the place of the best, if it is known."""
    best, known = columns["best"], place_known(columns)
    tie = np.uint64(reading.digest("tie"))
    shown = np.where(best == reading.TIE, tie, (best.astype(np.int64) + 1).astype(np.uint64))
    return np.where(best == reading.NOT_COMPARED, columns["answer"], np.where(known, shown, np.uint64(0)))


def place_known(columns: Columns) -> NDArray[Any]:
    """(N,) whether the place of the best response, or that all are as good, is known.

    A source in which the best response is not always written first keeps the order in which they were shown.
    """
    best, group, sure = columns["best"], columns["group"], columns["sure"] > 0
    keeps_order = np.isin(group, np.unique(group[(best > 0) & ~sure]))
    known: NDArray[Any] = sure | ((best >= 0) & keeps_order)
    return known


class Crowd:
    """How often everybody gave each answer, 0 (unknown) left out."""

    def __init__(self, answers: NDArray[Any]) -> None:
        self._values, self._counts = np.unique(answers[answers != 0], return_counts=True)
        self._total = int(self._counts.sum())

    def rate_of_others(self, answer: int, own: int, own_total: int) -> float:
        """The share of `answer` among all but one annotator, who gave it `own` times of `own_total`; 0 if alone."""
        place = int(np.searchsorted(self._values, np.uint64(answer)))
        return (int(self._counts[place]) - own) / (self._total - own_total) if self._total > own_total else 0.0


def habit(answers: NDArray[Any], crowd: Crowd) -> Habit | None:
    """How constant the answers of one annotator (in order, 0: unknown) are; None if none is known."""
    answers = answers[answers != 0]
    n = len(answers)
    if not n:
        return None
    values, counts = np.unique(answers, return_counts=True)
    ends = np.flatnonzero(np.append(answers[1:] != answers[:-1], True))
    runs = np.diff(np.append(-1, ends))
    most, longest = int(counts.argmax()), int(runs.argmax())
    often, run, repeated = int(counts[most]), int(runs[longest]), answers[ends[longest]]
    total = int(counts[values == repeated][0])
    # a habit of one's own shows in the rest, where the rest is the larger part
    own = (total - run) / (n - run) if n > 2 * run else 0.0
    usual = max(own, crowd.rate_of_others(int(repeated), total, n))
    explained_share = _tail(often, n, crowd.rate_of_others(int(values[most]), often, n)) > UNLIKELY
    return Habit(n, often / n, run, explained_share, n * usual**run > UNLIKELY)  # at least the expected number of runs


def _tail(k: int, n: int, p: float) -> float:
    """Chernoff's bound on the probability of k or more of n at rate p."""
    if p <= 0 or p >= 1 or k <= n * p:
        return float(p > 0)
    share = k / n
    rest = (1 - share) * log((1 - share) / (1 - p)) if share < 1 else 0.0
    return exp(-n * (share * log(share / p) + rest))


class Gold:
    """Known answers by item."""

    def __init__(self, records: Iterable[Feedback], tolerance: float) -> None:
        known = {j.item: j.value for record in records for j in reading.judgements(record)}
        self._items = np.array(sorted(known), dtype=np.uint64)
        self._values = np.array([known[item] for item in sorted(known)])
        self._tolerance = tolerance

    def __len__(self) -> int:
        return len(self._items)

    def right(self, judgements: Columns, measures: Sequence[tuple[Any, ...]], n: int) -> NDArray[Any]:
        """(N,) of each record 1 if right, 0 if wrong, -1 if not on a gold question.

        A comparison is right if every pair that gold orders is ordered so.
        """
        right = np.full(n, -1, dtype=np.int8)
        if not len(self):
            return right
        place = np.minimum(np.searchsorted(self._items, judgements["item"]), len(self) - 1)
        asked = self._items[place] == judgements["item"]
        away = np.abs(self._values[place] - judgements["value"])
        allowed = np.array([self._tolerance if measure[0] == "rating" else 0.0 for measure in measures]) + 1e-6
        good = away <= allowed[judgements["measure"]]
        right[judgements["record"][asked]] = 1
        right[judgements["record"][asked & ~good]] = 0
        return right


def gold_failed(share: Share, config: Thresholds) -> bool:
    """Whether gold questions speak against an annotator."""
    low, high = share.interval
    return share.of >= config.gold_min and (low if config.gold_bound == "lower" else high) < config.gold_accuracy
