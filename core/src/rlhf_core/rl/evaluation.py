"""Measuring a policy on given prompts: per-sample values, means with standard errors, paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..interfaces import Metric, Needs, Sampling
from ..memory import lower, within_memory
from ..records import Prompt, Rollout
from .guards import part_of, shorten
from .sampler import Sampler


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured: `values` (N,) per metric, nan where one does not apply, and the rollout they are of."""

    values: Mapping[str, Tensor]
    rollout: Rollout

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean, standard error and count of every metric."""
        return {name: mean_and_error(values) for name, values in self.values.items()}


def mean_and_error(values: Tensor) -> dict[str, float]:
    """Mean, its standard error (unbiased standard deviation / sqrt(n)) and n, over what is not nan."""
    kept = values[~values.isnan()].double()
    n = len(kept)
    error = float(kept.std() / math.sqrt(n)) if n > 1 else math.nan
    return {"mean": float(kept.mean()) if n else math.nan, "error": error, "n": float(n)}


def evaluate(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    metrics: Mapping[str, Metric[Any]],
    sampling: Sampling,
    *,
    seed: int,
    reference: bool = False,
) -> Evaluation:
    """Sample one response per prompt and measure each.

    The same `seed` for policy and `reference` gives both the same random numbers, so that their difference, prompt by
    prompt, is not blurred by luck.
    """
    needs = Needs()
    for metric in metrics.values():
        needs = needs | metric.config.needs
    if reference:
        with sampler.policy.as_reference():
            rollout, _ = sampler.rollout(prompts, 1, sampling, needs, seed=seed)
    else:
        rollout, _ = sampler.rollout(prompts, 1, sampling, needs, seed=seed)
    with torch.no_grad():
        values = {name: _measured(metric, rollout) for name, metric in metrics.items()}
    return Evaluation(values, rollout)


def _measured(metric: Metric[Any], rollout: Rollout) -> Tensor:
    """(B,) what `metric` says, in main memory."""
    part = part_of(rollout)
    advice = (lower("limit", part.rows, "the evaluation's prompts"), shorten(part.response))
    with within_memory(metric.context, "evaluation", part, advice):
        return metric.measure(rollout).float().cpu()
