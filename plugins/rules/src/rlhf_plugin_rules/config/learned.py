"""Options of the rewards that are small classifiers trained by gradient."""

from __future__ import annotations

from pydantic import Field
from rlhf_core.rewards import TextRewardConfig


class SentimentRewardConfig(TextRewardConfig):
    """P(positive) - P(negative) of a classifier trained on `Sentiment` records. Give `model`, `policy` or `fresh`."""


class CoherenceRewardConfig(TextRewardConfig):
    """Probability that the sentences of a response stand in their order. Give `model`, `policy` or `fresh`."""

    shuffles: int = Field(default=1, ge=1, description="shuffled versions of each original to learn from")
