"""Pure tensor functions of RLHF: masked statistics, returns and advantages, losses, log-probabilities.

What holds for all of them, so that each docstring can be short:

- **Shapes.** B samples (one row each), T response tokens, V vocabulary entries. "Same shape" is meant strictly: nothing
  is broadcast, and a mismatch raises `ValueError` with both shapes.
- **Masks** have the shape of what they mask, in bool or any numeric dtype; nonzero means valid. Whatever lies at masked
  positions, nan and inf included, reaches neither values nor gradients, and results at masked positions are 0.
- **Precision.** float16 and bfloat16 are computed in float32 and handed back in the dtype of the first tensor; integers
  come back as float32, float64 stays float64. Statistics, log-probabilities and entropies are never narrowed.
- **Nothing to average.** An empty mask, a sample alone in its group, a constant: the result is 0 with gradient 0.
- **denominator** replaces the count of this call by the count of the whole optimizer step, across micro-batches and
  ranks; then the results of the micro-batches add up to the result of the full batch.
"""

from __future__ import annotations

from .advantages import Baseline, Scale, discounted_returns, gae, group_advantages
from .logprobs import KLKind, kl_estimate, token_entropy, token_logprobs
from .losses import (
    bradley_terry_loss,
    calibration_error,
    coral_loss,
    davidson_loss,
    plackett_luce_loss,
    ppo_policy_loss,
    ppo_value_loss,
    rank_correlation,
    weighted_likelihood_loss,
)
from .masked import Aggregation, aggregate, explained_variance, masked_mean, masked_var, masked_whiten

__all__ = [
    "Aggregation",
    "Baseline",
    "KLKind",
    "Scale",
    "aggregate",
    "bradley_terry_loss",
    "calibration_error",
    "coral_loss",
    "davidson_loss",
    "discounted_returns",
    "explained_variance",
    "gae",
    "group_advantages",
    "kl_estimate",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "plackett_luce_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "rank_correlation",
    "token_entropy",
    "token_logprobs",
    "weighted_likelihood_loss",
]
