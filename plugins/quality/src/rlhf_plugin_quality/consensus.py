"""Judging annotators by each other: Krippendorff's alpha with one left out, and reliability from latent-truth models.

What is compared are the judgements of a `Ledger`: one answer per annotator and item, the first where there are several.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rlhf_core.errors import ConfigError

from .agreement import Ints, dawid_skene, ordinal_alpha
from .findings import Agreement

Columns = dict[str, NDArray[Any]]
MOST_ITEMS = 20_000
"""Alpha is taken over at most so many shared items, drawn by their hash: its error is then far below 0.01."""
MOST_LEVELS = 20
MOST_CLASSES = 5
"""Scales with more values are cut into so many equal parts, for alpha and for latent-truth models."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of one measure: item (a hash), annotator and value, each (J,)."""

    measure: tuple[Any, ...]
    item: NDArray[np.uint64]
    annotator: Ints
    value: NDArray[Any]

    def without(self, annotator: int) -> Answers:
        return self.where(self.annotator != annotator)

    def where(self, mask: NDArray[Any]) -> Answers:
        return Answers(self.measure, self.item[mask], self.annotator[mask], self.value[mask])

    def shared(self) -> Answers:
        """Only those to items that two or more people answered."""
        _, position, counts = np.unique(self.item, return_inverse=True, return_counts=True)
        return self.where(counts[position] > 1)

    def codes(self, most: int) -> tuple[Ints, int]:
        """(J,) values as classes in order from 0, and how many there are."""
        levels, codes = np.unique(self.value, return_inverse=True)
        if len(levels) <= most:
            return codes.astype(np.int64), len(levels)
        return np.minimum((self.value * most).astype(np.int64), most - 1), most  # ratings lie between 0 and 1

    def alpha(self) -> float | None:
        return ordinal_alpha(self.item.astype(np.int64), self.codes(MOST_LEVELS)[0].astype(float))


def gather(
    judgements: Columns, annotator: NDArray[Any], alive: NDArray[Any], measures: list[tuple[Any, ...]]
) -> list[Answers]:
    """The answers to shared items of the records that are alive, by measure; annotator and alive are (N,)."""
    record = judgements["record"]
    index = np.flatnonzero(alive[record] & (annotator[record] >= 0))
    who, item = annotator[record[index]].astype(np.int64), judgements["item"][index]
    order = np.lexsort((index, item, who))
    index, who, item = index[order], who[order], item[order]
    first = np.append(True, (item[1:] != item[:-1]) | (who[1:] != who[:-1])) if len(item) else np.zeros(0, dtype=bool)
    index, who, item = index[first], who[first], item[first]
    measure, value = judgements["measure"][index], judgements["value"][index]
    found = [Answers(name, item, who, value).where(measure == i).shared() for i, name in enumerate(measures)]
    return [answers for answers in found if len(answers.item)]


def agreements(gathered: list[Answers]) -> tuple[Agreement, ...]:
    """Alpha of each measure."""
    return tuple(
        Agreement(" ".join(map(_plain, a.measure)), len(np.unique(a.item)), len(a.item), sample(a).alpha())
        for a in gathered
    )


def _plain(part: Any) -> str:
    return f"{part:g}" if isinstance(part, float) else str(part)


def sample(answers: Answers) -> Answers:
    """At most `MOST_ITEMS` items, always the same ones."""
    items = np.unique(answers.item)
    return answers if len(items) <= MOST_ITEMS else answers.where(answers.item <= items[MOST_ITEMS - 1])


def alpha_gains(gathered: list[Answers], candidates: Collection[int], least: int) -> dict[int, float]:
    """By annotator how much higher alpha is without them, a mean over measures by their number of answers.

    Left out: annotators with fewer than `least` answers that can be compared, and where alpha is not defined.
    """
    gains: dict[int, list[tuple[float, int]]] = {}
    for answers in map(sample, gathered):
        alpha = answers.alpha()
        if alpha is None:
            continue
        numbers, counts = np.unique(answers.annotator, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if number in candidates and count >= least:
                others = answers.without(number).alpha()
                if others is not None:
                    gains.setdefault(number, []).append((others - alpha, count))
    return {number: sum(g * n for g, n in found) / sum(n for _, n in found) for number, found in gains.items()}


@dataclass(frozen=True)
class Reliability:
    """Of one annotator, means over measures. accuracy: None if the model does not say. value: in [0, 1]."""

    accuracy: float | None
    value: float
    answers: int


def reliabilities(gathered: list[Answers], model: str, least: int) -> dict[int, Reliability]:
    """By annotator how reliable they are; those with fewer than `least` answers to shared items are left out."""
    found: dict[int, list[Reliability]] = {}
    for answers in gathered:
        codes, classes = answers.codes(MOST_CLASSES)
        if classes < 2:
            continue  # everyone said the same: that tells nobody from anybody
        numbers, annotator = np.unique(answers.annotator, return_inverse=True)
        _, item = np.unique(answers.item, return_inverse=True)
        if model == "mace":
            accuracy, value = [None] * len(numbers), _mace(item, annotator, codes)
        else:
            # one pseudo-answer per true class, spread evenly, so that no cell rests on nothing
            fitted = dawid_skene(item, annotator, codes, classes, smoothing=1 / classes, iterations=200, tolerance=1e-6)
            accuracy, value = fitted.accuracies().tolist(), fitted.kappas().tolist()
        counts = np.bincount(annotator).tolist()
        for number, right, kappa, count in zip(numbers.tolist(), accuracy, value, counts, strict=True):
            found.setdefault(number, []).append(Reliability(right, kappa, count))
    merged = {number: _mean(parts) for number, parts in found.items()}
    return {number: one for number, one in merged.items() if one.answers >= least}


def _mean(parts: list[Reliability]) -> Reliability:
    total = sum(part.answers for part in parts)
    right = [(part.accuracy, part.answers) for part in parts if part.accuracy is not None]
    return Reliability(
        sum(a * n for a, n in right) / total if right else None,
        sum(part.value * part.answers for part in parts) / total,
        total,
    )


def need_crowd_kit(where: str) -> None:
    """Raises `ConfigError` if the library behind ``reliability: mace`` is not there."""
    if find_spec("crowdkit") is None:
        raise ConfigError(
            where,
            "reliability: mace needs the library crowd-kit, which is not installed",
            fix="pip install 'rlhf-plugin-quality[crowd]', or set reliability: dawid-skene",
        )


def _mace(item: Ints, annotator: Ints, codes: Ints) -> list[float]:
    """The competence of each annotator: P(no guess), by crowd-kit's MACE (Hovy et al., 2013)."""
    import pandas  # type: ignore[import-untyped,unused-ignore]
    from crowdkit.aggregation.classification import MACE  # type: ignore[import-not-found,unused-ignore]

    order = np.lexsort((item, annotator))
    item, annotator, codes = item[order], annotator[order], codes[order]
    # crowd-kit numbers people and labels as they come, and sums by sorted name: let both be the same
    _, first, position = np.unique(codes, return_index=True, return_inverse=True)
    labels = np.argsort(np.argsort(first))[position]
    fitted = MACE().fit(pandas.DataFrame({"task": item, "worker": annotator, "label": labels}))
    competence: list[float] = fitted.spamming_[:, 1].tolist()
    return competence
