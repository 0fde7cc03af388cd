"""Configurations of the small built-in components; importing them does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..interfaces import Config, FeedbackRef, FunctionRef, Needs, RewardRef, SourceConfig


class PromptsConfig(SourceConfig):
    """Rows with a `prompt` column: text or chat messages."""


class FeedbackPromptsConfig(Config):
    """The prompts that a feedback source answers, each once."""

    feedback: FeedbackRef = Field(description="the feedback source")
    part: Literal["all", "train", "held-out"] = Field(
        default="all", description="all of them, those that sft and fit-reward train on, or those they keep out"
    )
    share: float = Field(default=0.1, gt=0, lt=1, description="the held-out share, as in sft and fit-reward")
    limit: int | None = Field(default=None, ge=1, description="use the first so many")


class DemonstrationsConfig(SourceConfig):
    """Rows with `prompt` and `completion` (or `response`), or `messages` whose last turn is the response."""


class FunctionRewardConfig(Config):
    """A Python function of the registry's `functions:` section."""

    function: FunctionRef = Field(description="its name in `functions:`")


class KLConfig(Config):
    """A penalty on every token for drifting from the reference."""

    coef: float = Field(
        default=0.05, ge=0, description="weight of the penalty; where `target` is set, the initial weight"
    )
    estimator: Literal["k1", "k2", "k3", "abs"] = Field(default="k1", description="of the divergence per token")
    target: float | None = Field(
        default=None,
        gt=0,
        description="nats per response that the weight is adapted to hold; without it the weight is fixed",
    )
    horizon: float = Field(default=10_000, gt=0, description="with `target`: samples over which the weight adapts")

    @property
    def needs(self) -> Needs:
        return Needs(reference=True)


class RewardMetricConfig(Config):
    """The score of a reward."""

    reward: RewardRef | None = Field(default=None, description="which one; by default the mix that was optimised")


class KLMetricConfig(Config):
    """Divergence from the reference."""

    @property
    def needs(self) -> Needs:
        return Needs(reference=True)


class LengthMetricConfig(Config):
    """Tokens per response."""


class TruncatedMetricConfig(Config):
    """Share of responses that hit the length limit."""
