"""Options of the monitors. Light: imports no torch."""

from __future__ import annotations

from pydantic import Field
from rlhf_core.interfaces import Config, RewardRef


class MonitorConfig(Config):
    """What is common to monitors: they look at the mean of a window of steps, not at single ones."""

    window: int = Field(default=5, ge=1, description="steps (or looks) whose mean is judged")


class DriftConfig(MonitorConfig):
    """Monitors that compare the latest steps with the first."""

    warmup: int = Field(
        default=10, ge=2, description="first steps (or looks); their mean is what later ones differ from"
    )
    z: float = Field(
        default=4.0,
        ge=0,
        description="a change counts once it is this many standard errors, as the first steps vary among themselves",
    )


class KLBudgetConfig(MonitorConfig):
    """Divergence from the reference, in nats per response."""

    budget: float = Field(default=20.0, gt=0, description="most nats per response, as the statistic kl/sequence says")


class LengthDriftConfig(DriftConfig):
    """Mean length of the responses, in tokens."""

    factor: float = Field(default=1.5, gt=1, description="how many times longer or shorter than at first is too much")


class RepetitionDriftConfig(DriftConfig):
    """Share of a response's n-grams that it has said before, over words in any script."""

    n: int = Field(default=2, ge=1, description="words that are compared at a time")
    rise: float = Field(
        default=0.2, gt=0, le=1, description="by how much the share may rise over that of the first steps"
    )


class EntropyCollapseConfig(DriftConfig):
    """Entropy per token, in nats."""

    share: float = Field(default=0.3, gt=0, lt=1, description="what is left of the first steps' entropy at an alarm")


class AdvantageVarianceConfig(DriftConfig):
    """Variance of the scores about the mean of their prompt, or of their step where each prompt has one sample.

    That is what advantages are made of. Their own variance says nothing where they are whitened.
    """

    factor: float = Field(
        default=10.0, gt=1, description="how many times more or less variance than at first is too much"
    )


class GoldConfig(DriftConfig):
    """A reward that the policy is not trained on scores its samples now and then."""

    gold: RewardRef = Field(description="the reward to be held against the one in training; not to be trained on")
    every: int = Field(default=5, ge=1, description="it looks at the samples of every so many steps")
    warmup: int = Field(default=2, ge=2, description="first looks; their mean is what later ones differ from")
    window: int = Field(default=2, ge=1, description="looks whose mean is judged")


class DisagreementConfig(DriftConfig):
    """Rewards fitted with other seeds or other data, and the score in training, each on the scale of its first look."""

    rewards: list[RewardRef] = Field(
        min_length=1, description="rewards that are kept out of training; with the score they are the ensemble"
    )
    every: int = Field(default=5, ge=1, description="it looks at the samples of every so many steps")
    factor: float = Field(default=2.0, gt=1, description="how many times the deviation of the first looks is too much")
    warmup: int = Field(default=2, ge=2, description="first looks; their mean is what later ones differ from")
    window: int = Field(default=2, ge=1, description="looks whose mean is judged")
