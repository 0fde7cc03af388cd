"""Agreement of annotators: the Wilson interval, Krippendorff's alpha, Dawid and Skene's model, and kappa from it.

Pure functions. J answers, each to one of I items by one of A annotators, are three arrays (J,); classes are 0 to K-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TINY = 1e-10  # the probability of an answer that an annotator never gave; crowd-kit takes the same


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval in which a probability lies, given `successes` of `n` (Wilson, 1927); (0, 1) if n is 0.

    Unlike p +- z sqrt(p (1 - p) / n) it stays inside [0, 1] and is honest for small n: 0 of 3 gives (0, 0.56).

    Raises:
        ValueError: not 0 <= successes <= n, or not 0 < confidence < 1.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson_interval: {successes} successes of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"wilson_interval: confidence {confidence}, expected one between 0 and 1")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, scale = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # at the ends the bound is exact, and rounding must not say otherwise
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def ordinal_alpha(items: Ints, values: Floats) -> float | None:
    """Krippendorff's alpha at the ordinal level; 1 is perfect, 0 what chance gives.

    Args:
        items: (J,) item of each answer. values: (J,) the answers; only their order counts.
    Returns:
        None where it is not defined: no item has two answers, or all answers that can be compared are the same.
    Source:
        Krippendorff (2011), Computing Krippendorff's Alpha-Reliability; computed by the library `krippendorff`.
    """
    import krippendorff

    if not len(items):
        return None
    index, position = np.unique(items, return_inverse=True)
    levels, code = np.unique(values, return_inverse=True)
    counts = np.bincount(position * len(levels) + code, minlength=len(index) * len(levels))
    counts = counts.reshape(len(index), len(levels))
    counts = counts[counts.sum(1) > 1]  # an answer that stands alone agrees with nothing
    if (counts.sum(0) > 0).sum() < 2:  # nothing is left, or everyone says the same: the library would raise or warn
        return None
    return float(krippendorff.alpha(value_counts=counts, value_domain=levels, level_of_measurement="ordinal"))


@dataclass(frozen=True, eq=False)
class DawidSkene:
    """A fitted model.

    posteriors: (I, K), P(true class of the item). confusion: (A, K, K), P(answer l of annotator a | true class k) at
    [a, k, l]. priors: (K,), how frequent the true classes are.
    """

    posteriors: Floats
    confusion: Floats
    priors: Floats

    def accuracies(self) -> Floats:
        """(A,): the probability that each annotator's answer is the true class."""
        rights: Floats = np.einsum("k,akk->a", self.priors, self.confusion)
        return rights

    def kappas(self) -> Floats:
        """(A,): agreement with the true class beyond chance, in [0, 1], where chance keeps the annotator's habits.

        Cohen's kappa with quadratic weights (Cohen, 1968), so that one step off on a scale is a smaller fault than
        four: ``1 - sum w P(k, l) / sum w P(k) P(l)`` with ``w = (k - l)^2``. Of two classes with equal errors it is
        ``2 accuracy - 1``. Whoever always answers the same, guesses, or is wrong more often than right has 0.
        """
        joint = self.priors[:, None] * self.confusion  # (A, K, K)
        classes = np.arange(len(self.priors))
        weights = (classes[:, None] - classes[None, :]) ** 2.0
        apart = (weights * joint).sum((1, 2))
        chance = np.einsum("kl,k,al->a", weights, self.priors, joint.sum(1))
        beyond: Floats = 1 - np.divide(apart, chance, out=np.ones_like(apart), where=chance > TINY)
        return beyond.clip(0, 1)


def dawid_skene(
    items: Ints,
    annotators: Ints,
    answers: Ints,
    classes: int,
    *,
    smoothing: float = 0.0,
    iterations: int = 1000,
    tolerance: float = 1e-9,
) -> DawidSkene:
    """True classes and annotators' errors at once, by expectation maximisation from the majority vote.

    Args:
        items, annotators, answers: (J,), counted from 0 without gaps; answers are below `classes`.
        smoothing: added to every cell of the confusion counts; 0 is maximum likelihood, as in crowd-kit.
        iterations: at most so many. tolerance: stop once no posterior changes by more.
    Raises:
        ValueError: the arrays have different lengths or are empty, or an answer is no class.
    Source:
        Dawid and Skene (1979), Applied Statistics 28(1).
    """
    if not len(items) == len(annotators) == len(answers) or not len(items):
        raise ValueError(f"dawid_skene: {len(items)} items, {len(annotators)} annotators and {len(answers)} answers")
    if answers.min() < 0 or answers.max() >= classes:
        raise ValueError(f"dawid_skene: answers from {answers.min()} to {answers.max()}, expected 0 to {classes - 1}")
    n_items, n_annotators = int(items.max()) + 1, int(annotators.max()) + 1
    cells = annotators * classes + answers  # (J,)
    votes = np.bincount(items * classes + answers, minlength=n_items * classes).reshape(n_items, classes)
    posteriors = votes / np.maximum(votes.sum(1, keepdims=True), 1)
    for _ in range(iterations):
        confusion = _counts(cells, posteriors[items], n_annotators * classes)  # (K, A * K)
        confusion = confusion.reshape(classes, n_annotators, classes).swapaxes(0, 1) + smoothing  # (A, K, K)
        total = confusion.sum(2, keepdims=True)
        confusion = np.divide(confusion, total, out=np.full_like(confusion, 1 / classes), where=total > 0)
        priors = posteriors.mean(0)
        seen = np.log(np.maximum(confusion, TINY)).swapaxes(1, 2).reshape(-1, classes)[cells]  # (J, K)
        joint = np.log(np.maximum(priors, TINY)) + _counts(items, seen, n_items).T  # (I, K)
        joint = np.exp(joint - joint.max(1, keepdims=True))
        previous, posteriors = posteriors, joint / joint.sum(1, keepdims=True)
        if np.abs(posteriors - previous).max() <= tolerance:
            break
    return DawidSkene(posteriors, confusion, priors)


def _counts(places: Ints, weights: Floats, size: int) -> Floats:
    """(K, size): for every column of `weights` (J, K) its sums by place."""
    return np.stack([np.bincount(places, column, minlength=size) for column in weights.T])


def rank_correlation(x: NDArray[Any], y: NDArray[Any]) -> float | None:
    """Spearman's rho of two arrays (N,), ties with their mean rank; None if either is constant."""
    a, b = (_ranks(v) - (len(v) - 1) / 2 for v in (x, y))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else None


def _ranks(values: NDArray[Any]) -> Floats:
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Floats = (ends - counts + ends - 1) / 2  # of the ranks that equal values share
    return means[position]
