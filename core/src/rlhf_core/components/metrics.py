"""Built-in metrics, one number per response."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..interfaces import Metric, RewardModel
from ..records import Rollout
from .config import KLMetricConfig, LengthMetricConfig, RewardMetricConfig, TruncatedMetricConfig
from .scoring import checked_scores


class RewardMetric(Metric[RewardMetricConfig]):
    """The score of a reward, before shaping; nan where it abstained."""

    def measure(self, rollout: Rollout) -> Tensor:
        if self.config.reward is None:
            if rollout.score is None:
                return torch.full((len(rollout),), torch.nan)
            score, abstained = rollout.score, rollout.abstained
        else:
            reward: RewardModel[Any] = self.context.component("reward", self.config.reward)
            scores = rollout.scores.get(self.config.reward) or checked_scores(reward, rollout.samples)
            score, abstained = scores.values, scores.abstained
        return score if abstained is None else score.masked_fill(abstained.to(score.device), torch.nan)


class KLMetric(Metric[KLMetricConfig]):
    """log(policy / reference) of the whole response, in nats: its mean estimates the divergence (k1, unbiased)."""

    higher_is_better = False

    def measure(self, rollout: Rollout) -> Tensor:
        if rollout.reference_logprobs is None:
            return torch.full((len(rollout),), torch.nan)
        return (rollout.logprobs - rollout.reference_logprobs).masked_fill(~rollout.attention, 0.0).sum(1)


class LengthMetric(Metric[LengthMetricConfig]):
    """Tokens per response, end of text included."""

    higher_is_better = None

    def measure(self, rollout: Rollout) -> Tensor:
        return rollout.lengths.float()


class TruncatedMetric(Metric[TruncatedMetricConfig]):
    """1 where the response hit its length limit, else 0."""

    higher_is_better = False

    def measure(self, rollout: Rollout) -> Tensor:
        return rollout.truncated.float()
