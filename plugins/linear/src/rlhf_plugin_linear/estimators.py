"""The linear models: ranking SVM with a calibrated scale, ridge, and linear support-vector regression.

Each minimises ``|w|^2 / 2 + C * (weighted sum of losses)``. N examples, F columns.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC, LinearSVR

from .features import Matrix

Floats: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.int64]

PASSES = 20_000  # of a solver; far more than are needed unless C is huge
FOLDS = 5
CHOICES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of C, where none is given


@dataclass(frozen=True, eq=False)
class Line:
    """A linear function: weights (F,) and an intercept, fitted with `C`; `converged`: the solver came to an end."""

    weights: Floats
    intercept: float
    C: float
    converged: bool = True

    def __call__(self, matrix: Matrix) -> Floats:
        """(N,) values of a matrix (N, F); each from its own row alone."""
        return np.asarray(matrix @ self.weights + self.intercept, dtype=np.float64)


class Estimator(ABC):
    """How to find the weights for some examples, and what is to be made of the outputs ``x . w``.

    Args:
        matrix: (N, F). weights: (N,), positive; how much the examples count.
    """

    def __init__(self, matrix: Matrix, weights: Floats) -> None:
        self.matrix, self.weights = matrix, weights

    @abstractmethod
    def solve(self, rows: Rows, C: float) -> tuple[Floats, bool]:
        """Weights (F,) fitted on some of the examples, and whether the solver came to an end."""

    @abstractmethod
    def scale(self, outputs: Floats) -> tuple[float, float, float]:
        """(loss, factor, offset): ``offset + factor * outputs`` predicts best, with this mean loss; outputs: (N,)."""


class RankingSVM(Estimator):
    """Higher outputs for the better response of each pair: Joachims (2002), with Chapelle and Keerthi's squared hinge.

    The loss of a pair with difference d of features is what is to be expected of ``max(0, 1 - w . d)^2`` if its order
    is right with probability c: ``c * max(0, 1 - w . d)^2 + (1 - c) * max(0, 1 + w . d)^2``, least at w . d = 2c - 1.
    So a confidence below 1/2 turns a pair round, and one of 1/2 says that both are alike.

    Args:
        matrix: (N, F), features of the better minus those of the worse response. confidences: (N,), c above, 0 to 1.
    """

    def __init__(self, matrix: Matrix, weights: Floats, confidences: Floats) -> None:
        super().__init__(matrix, weights)
        self.confidences = confidences

    def solve(self, rows: Rows, C: float) -> tuple[Floats, bool]:
        shares = np.concatenate([self.weights[rows] * c for c in (self.confidences[rows], 1 - self.confidences[rows])])
        there = np.flatnonzero(shares)
        order = np.where(there < len(rows), 1, -1)
        labels = np.where(np.arange(len(there)) % 2, -1, 1)  # a classifier wants two; without intercept any will do
        signed = self.matrix[rows[there % len(rows)]]
        signed.data *= np.repeat(order * labels, np.diff(signed.indptr))
        model = LinearSVC(C=C, loss="squared_hinge", dual=False, fit_intercept=False, max_iter=PASSES)
        return _fit(model, signed, labels, shares[there])

    def scale(self, outputs: Floats) -> tuple[float, float, float]:
        """The factor a is the one at which sigmoid(a * output) is the probability that the order is right.

        By maximum likelihood with the targets of Platt (1999); his offset is 0 here, as no order is special. The factor
        is always positive.
        """
        size = float(np.sqrt(np.mean(outputs**2)))
        if size == 0:  # no pair had anything in common with others: nothing is known of the scale
            return float(np.log(2)), 1.0, 0.0
        total = self.weights.sum()
        right = (self.confidences * total + 1) / (total + 2)  # not quite 1, so that a is finite where all is right

        def loss(log_factor: float) -> float:
            z = np.exp(log_factor) * outputs / size
            losses = right * np.logaddexp(0, -z) + (1 - right) * np.logaddexp(0, z)
            return float(np.average(losses, weights=self.weights))

        found = minimize_scalar(loss, bounds=(np.log(0.01), np.log(100)), method="bounded")
        return float(found.fun), float(np.exp(found.x)) / size, 0.0


class Regression(Estimator):
    """Outputs near a number: "ridge" with half the squared error as loss, "svr" with the absolute error.

    Args:
        targets: (N,). seed: of the order in which "svr" visits its examples.
    """

    def __init__(self, matrix: Matrix, weights: Floats, targets: Floats, name: str, seed: int) -> None:
        super().__init__(matrix, weights)
        self.targets, self.name, self.seed = targets, name, seed

    def solve(self, rows: Rows, C: float) -> tuple[Floats, bool]:
        targets, weights = self.targets[rows], self.weights[rows]
        if self.name == "ridge":
            model: Any = Ridge(alpha=1 / C, solver="sparse_cg", tol=1e-8)
        else:
            targets = targets - np.average(targets, weights=weights)  # it would shrink the intercept as well
            model = LinearSVR(C=C, random_state=self.seed, max_iter=PASSES)
        return _fit(model, self.matrix[rows], targets, weights)

    def scale(self, outputs: Floats) -> tuple[float, float, float]:
        """The line by least squares: strong regularisation makes outputs small, which need not be the right size."""
        mean, centre = (float(np.average(numbers, weights=self.weights)) for numbers in (outputs, self.targets))
        around = outputs - mean
        spread = float(self.weights @ around**2)
        factor = float(self.weights @ (around * (self.targets - centre))) / spread if spread > 0 else 1.0
        factor = min(max(factor, 0.01), 100.0)
        errors = np.abs(centre + factor * around - self.targets) ** (2 if self.name == "ridge" else 1)
        return float(np.average(errors, weights=self.weights)), factor, centre - factor * mean


def _fit(model: Any, matrix: Matrix, targets: Any, weights: Floats) -> tuple[Floats, bool]:
    with warnings.catch_warnings(record=True) as caught:  # the reward warns, in words that say what to do
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(matrix, targets, sample_weight=weights)
    late = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return np.asarray(model.coef_, dtype=np.float64).reshape(-1), not late


def fit_line(estimator: Estimator, groups: Sequence[int], C: float | None) -> Line:
    """The line with the given C, or the best of `CHOICES`, and with the scale that `estimator` finds.

    Both are judged on outputs for each fifth of the groups by weights fitted on the others: on their own training data
    weights look too good. Fewer than five groups are too few for that; then C is 1 and the training data judge.

    Args:
        groups: for each of the N examples the number of its prompt, in order of appearance.
    """
    fold = np.asarray(groups) % FOLDS
    everything = np.arange(len(fold))

    def judged(C: float) -> tuple[float, float, float]:
        outputs = np.zeros(len(fold))
        for k in range(FOLDS):
            rest = np.flatnonzero(fold != k)
            w, _ = estimator.solve(rest, C * len(fold) / len(rest))  # so that fewer examples are not shrunk more
            outputs[fold == k] = estimator.matrix[fold == k] @ w
        return estimator.scale(outputs)

    if len(set(groups)) < FOLDS:
        best = C or 1.0
        w, converged = estimator.solve(everything, best)
        _, factor, offset = estimator.scale(estimator.matrix @ w)
    else:
        found = {choice: judged(choice) for choice in ((C,) if C else CHOICES)}
        best = min(found, key=lambda choice: found[choice][0])
        w, converged = estimator.solve(everything, best)
        _, factor, offset = found[best]
    return Line(w * factor, offset, best, converged)
