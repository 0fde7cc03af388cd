"""What the first pass remembers: a few numbers per record in arrays, and no text.

About 70 bytes a record, of which detecting duplicates takes 8 (a hash), and 20 more per judgement.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from datetime import UTC
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rlhf_core.records import Feedback, Rating

from . import reading
from .config import Thresholds

MOST_CELLS = 10_000
"""Combinations of coverage fields that are told apart; the rest is counted as one."""
SAMPLE = 5_000
"""Distinct prompts whose bigrams are counted."""
MISSING = "(more values than are counted)"

RECORDS = {
    "id": "Q",  # as in FeedbackRecord.id
    "key": "Q",  # equal for duplicates
    "annotator": "i",  # -1: nobody
    "time": "d",  # seconds, nan: unknown
    "answer": "Q",  # hash, 0: unknown
    "best": "b",  # place of the best response, or one of reading.UNKNOWN, TIE, NOT_COMPARED
    "options": "H",  # responses of a comparison
    "sure": "B",  # whether `best` is the place it was shown at
    "longer": "b",  # reading.longer_won
    "problem": "B",  # index of reading.PROBLEMS
    "group": "H",  # which source
    "length": "f",  # characters of a rated response, nan: not a rating
    "score": "f",  # from 0 to 1, nan: not a rating
    "prompt": "Q",
    "plain": "Q",  # prompt without case, punctuation and space
    "cell": "i",  # which combination of coverage fields
}
JUDGEMENTS = {"item": "Q", "record": "I", "measure": "H", "value": "f"}


class Ledger:
    """Columns by name: numpy arrays once all records are `add`-ed, `records` (N,) and `judgements` (J,)."""

    def __init__(self, config: Thresholds) -> None:
        self.config = config
        self._records: dict[str, array[Any]] = {name: array(code) for name, code in RECORDS.items()}
        self._judgements: dict[str, array[Any]] = {name: array(code) for name, code in JUDGEMENTS.items()}
        self._annotators: dict[str, int] = {}
        self._measures: dict[tuple[Any, ...], int] = {}
        self._cells: dict[tuple[str, ...], int] = {}
        self._sampled: set[int] = set()
        self._bigrams: set[int] = set()
        self._bigram_count = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, record: Feedback, group: int = 0) -> None:
        """Remember `record` of source number `group`."""
        place = reading.place(record, self.config.position_field)
        text = reading.words(record.prompt)
        prompt = reading.digest(reading.prompt_text(record.prompt))
        time = record.time
        if time is not None and time.tzinfo is None:
            time = time.replace(tzinfo=UTC)  # or the machine's time zone would decide
        length, score = float("nan"), float("nan")
        for judgement in reading.judgements(record):
            measure = self._measures.setdefault(judgement.measure, len(self._measures))
            _append(self._judgements, (judgement.item, self._count, measure, judgement.value))
            if isinstance(record, Rating):
                length, score = float(len(record.response)), judgement.value
        row = {
            "id": int(record.id, 16),
            "key": reading.duplicate_key(record),
            "annotator": self._annotator(record.annotator),
            "time": float("nan") if time is None else time.timestamp(),
            "answer": reading.answer(record),
            "best": place.best,
            "options": place.options,
            "sure": place.sure,
            "longer": reading.longer_won(record),
            "problem": reading.problem(record),
            "group": group,
            "length": length,
            "score": score,
            "prompt": prompt,
            "plain": reading.digest(text),
            "cell": self._cell(reading.field_values(record.prompt, self.config.coverage)),
        }
        _append(self._records, row.values())
        self._count += 1
        if len(self._sampled) < SAMPLE and prompt not in self._sampled:
            self._sampled.add(prompt)
            pairs = list(pairwise(text))
            self._bigrams.update(map(hash, pairs))
            self._bigram_count += len(pairs)

    def _annotator(self, name: str | None) -> int:
        return -1 if name is None else self._annotators.setdefault(name, len(self._annotators))

    def _cell(self, values: tuple[str, ...]) -> int:
        if values not in self._cells and len(self._cells) >= MOST_CELLS:
            values = (MISSING,) * len(values)
        return self._cells.setdefault(values, len(self._cells))

    @property
    def annotators(self) -> list[str]:
        """Names by number."""
        return list(self._annotators)

    @property
    def measures(self) -> list[tuple[Any, ...]]:
        """What kinds of judgements there are, by number."""
        return list(self._measures)

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """Combinations of coverage fields, by number."""
        return list(self._cells)

    @property
    def distinct_bigrams(self) -> float | None:
        """Share of word pairs of the sampled prompts that occur once, the others counted once; None without any."""
        return len(self._bigrams) / self._bigram_count if self._bigram_count else None

    @property
    def records(self) -> dict[str, NDArray[Any]]:
        return {name: np.frombuffer(column, dtype=column.typecode) for name, column in self._records.items()}

    @property
    def judgements(self) -> dict[str, NDArray[Any]]:
        return {name: np.frombuffer(column, dtype=column.typecode) for name, column in self._judgements.items()}


def _append(columns: dict[str, array[Any]], values: Iterable[Any]) -> None:
    for column, value in zip(columns.values(), values, strict=True):
        column.append(value)
