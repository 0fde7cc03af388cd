"""The classical reward: a linear model of TF-IDF features, fitted in seconds without a network.

From comparisons by a ranking SVM (Joachims, 2002, "Optimizing search engines using clickthrough data"; Chapelle and
Keerthi, 2010, "Efficient algorithms for ranking with SVMs") whose scale is calibrated (Platt, 1999, "Probabilistic
outputs for support vector machines"); from ratings or sentiment by ridge regression (Hoerl and Kennard, 1970) or
support-vector regression (Drucker et al., 1997).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from rlhf_core.errors import ConfigError, DataError, RewardError
from rlhf_core.functional import rank_correlation
from rlhf_core.interfaces import Context, RewardModel, State, StepStats
from rlhf_core.records import Feedback, Sample, Scores
from rlhf_core.rewards import pair_metrics

from .config import LinearRewardConfig
from .estimators import Estimator, Floats, Line, RankingSVM, Regression, fit_line
from .examples import Examples, read
from .features import TextFeatures

READS = ("analyzer", "ngrams", "features", "cross")  # options that what was fitted depends on when it scores


class LinearReward(RewardModel[LinearRewardConfig]):
    """Scores are log-odds of being preferred (from pairs), shares of the scale (ratings), or from -1 to 1 (sentiment).

    They are not clipped: a response may be predicted beyond the end of a scale.
    """

    def __init__(self, config: LinearRewardConfig, context: Context) -> None:
        super().__init__(config, context)
        self.features = TextFeatures(config)
        self._line: Line | None = None  # None before it is fitted

    def fit(self, feedback: Iterable[Feedback]) -> StepStats:
        """Learn anew, and say how well the held-out records are predicted.

        Of pairs `accuracy` (a tie counts half), `margin`, `loss`, `ece` and `pairs`; else `spearman`, `mse` and
        `ratings`; nothing if nothing is held out.

        Raises:
            DataError: records of a kind or a mixture that cannot be learnt from, or too few.
            ConfigError: the estimator does not go with the records.
        """
        train, held_out, family = read(feedback, self.config.held_out, self.context.where)
        name = self._estimator(family)
        features = TextFeatures(self.config)
        try:
            matrix = features.learn(train.samples)
        except ValueError as error:
            raise DataError(self.context.where, f"no n-gram is in min_count = {self.config.min_count} of "
                            f"{len(train.samples)} responses", "responses with words in common",
                            "give more feedback, or a smaller min_count") from error  # fmt: skip
        weights = np.array(train.weights)
        if family == "pairs":
            better, worse = np.array(train.pairs).T
            differences, confidences = matrix[better] - matrix[worse], np.array(train.confidences)
            estimator: Estimator = RankingSVM(differences, weights, confidences)
        else:
            estimator = Regression(matrix, weights, np.array(train.targets), name, self.context.stream("svr") % 2**32)
        line = fit_line(estimator, train.prompts, self.config.C)
        if not line.converged:
            self.context.warn(f"{self.context.where}: the solver of {name} did not converge; lower C")
        self.features, self._line = features, line
        return self._evaluate(held_out)

    def _estimator(self, family: str) -> str:
        """The estimator to use on these records."""
        possible = ("ranking-svm",) if family == "pairs" else ("ridge", "svr")
        if self.config.estimator == "auto":
            return possible[0]
        if self.config.estimator not in possible:
            raise ConfigError(f"{self.context.where} estimator", f"{self.config.estimator!r}, but the feedback is "
                              f"{family}", " or ".join(possible), "leave it at auto")  # fmt: skip
        return self.config.estimator

    def _evaluate(self, examples: Examples) -> StepStats:
        if not examples.samples:
            return {}
        values = self._values(examples.samples)
        if examples.pairs:
            better, worse = np.array(examples.pairs).T
            return pair_metrics(torch.from_numpy(values[better] - values[worse]).float())
        targets = np.array(examples.targets)
        return {
            "spearman": rank_correlation(torch.from_numpy(values), torch.from_numpy(targets)),
            "mse": float(np.mean((values - targets) ** 2)),
            "ratings": float(len(targets)),
        }

    def _values(self, samples: Sequence[Sample]) -> Floats:
        if self._line is None:
            raise RewardError(self.context.where, "is asked for scores before it is fitted", "a fitted model",
                              "put a fit-reward stage before, or give `load:` what an earlier run fitted")  # fmt: skip
        return self._line(self.features.matrix(samples))

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Scores (B,).

        Raises:
            RewardError: nothing was fitted or loaded.
        """
        values = torch.from_numpy(self._values(samples))
        return Scores(values.to(device=self.context.device, dtype=torch.float32))

    def state_dict(self) -> State:
        """Vocabularies as lists, idf and weights as float64; empty before it is fitted."""
        if self._line is None:
            return {}
        return {
            "reads": self._reads(),
            "features": self.features.state_dict(),
            "weights": torch.from_numpy(self._line.weights.copy()),
            "intercept": self._line.intercept,
            "C": self._line.C,
        }

    def load_state_dict(self, state: State) -> None:
        features = TextFeatures(self.config)
        if not state:
            self.features, self._line = features, None
            return
        for name, now in self._reads().items():
            if state["reads"][name] != now:
                raise ConfigError(f"{self.context.where} checkpoint", f"was fitted with {name} = "
                                  f"{state['reads'][name]!r}", f"{name} = {now!r} as configured",
                                  "use the configuration that it was saved with")  # fmt: skip
        features.load_state_dict(state["features"])
        self.features = features
        self._line = Line(state["weights"].numpy().copy(), state["intercept"], state["C"])

    def _reads(self) -> State:
        """The options in `READS`, as JSON has them."""
        options = self.config.model_dump(mode="json")
        return {name: options[name] for name in READS}
