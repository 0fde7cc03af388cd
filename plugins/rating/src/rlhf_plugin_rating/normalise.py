"""Ratings made comparable: what is an annotator's own is taken out, the more surely the more they have rated."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

AGREED = 1e-9  # a deviation below this is that of a crowd in full agreement


@dataclass(frozen=True)
class Normaliser:
    """z = (rating - mean - bias_j) / deviation_j for a rating by annotator j.

    bias_j = n / (n + kappa) * (mean_j - mean), and the variance is pulled to that of all ratings in the same way, so an
    annotator with one record is all but taken as they are, and one who always says the same gives z near 0.

    Attributes:
        mean, deviation: of all ratings. annotators: (bias, deviation) of each; others have (0, deviation).
    """

    mean: float
    deviation: float
    annotators: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, ratings: Iterable[tuple[str | None, float]], shrinkage: float, *, per_annotator: bool) -> Normaliser:
        """Measure (annotator, rating) pairs; ratings without an annotator count for the crowd only."""
        all_ratings: list[float] = []
        by: dict[str, list[float]] = defaultdict(list)
        for annotator, rating in ratings:
            all_ratings.append(rating)
            if annotator is not None and per_annotator:
                by[annotator].append(rating)
        mean, variance = _moments(all_ratings)
        annotators = {}
        for annotator, own in by.items():
            own_mean, own_variance = _moments(own)
            share = len(own) / (len(own) + shrinkage)
            spread = math.sqrt(share * own_variance + (1 - share) * variance)
            annotators[annotator] = share * (own_mean - mean), spread
        return cls(mean, math.sqrt(variance), annotators)

    def z(self, annotator: str | None, rating: float) -> float:
        """The rating in deviations from what is usual; 0 where everybody always says the same."""
        bias, deviation = self.annotators.get(annotator or "", (0.0, self.deviation))
        return (rating - self.mean - bias) / deviation if deviation > AGREED else 0.0

    def corrected(self, annotator: str | None, rating: float) -> float:
        """The rating that a usual annotator would have given, on the scale of the ratings."""
        return self.mean + self.deviation * self.z(annotator, rating)


def _moments(values: list[float]) -> tuple[float, float]:
    """Mean and variance (by n) of some numbers; zeros of none."""
    if not values:
        return 0.0, 0.0
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / len(values)
