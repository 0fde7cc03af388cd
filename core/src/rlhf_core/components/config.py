"""Configurations of the small built-in components; importing them does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..interfaces import (
    Config,
    FeedbackRef,
    FunctionRef,
    Needs,
    RewardRef,
    Schedule,
    Scheduled,
    SourceConfig,
    within,
)


class PromptsConfig(SourceConfig):
    """Rows with a `prompt` (text or chat messages) or `messages`, and if need be the `system` message of each."""


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


class RecordsConfig(SourceConfig):
    """Records as the framework itself writes them: a `kind`, and the columns of that kind and no others."""

    @model_validator(mode="after")
    def _no_fields(self) -> RecordsConfig:
        if self.fields is not None:
            raise ValueError("records keep their fields inside `prompt`; leave out `fields`")
        return self


class FunctionRewardConfig(Config):
    """A Python function of the registry's `functions:` section."""

    function: FunctionRef = Field(description="its name in `functions:`")


class Scale(Config):
    """A value v counts as (v - mean) / std."""

    mean: float = Field(default=0.0, description="the value that counts as 0")
    std: float = Field(default=1.0, gt=0, description="the distance that counts as 1")


class MixConfig(Config):
    """Several rewards as one: values are scaled, weighted and combined."""

    rewards: dict[RewardRef, float] = Field(min_length=1, description="the components and their weights")
    combine: Literal["sum", "product", "minimum", "gate"] = Field(
        default="sum",
        description="weighted sum; product of values to the power of their weights; least weighted value; or the "
        "weighted sum, which `gate` overrides",
    )
    scale: dict[RewardRef, Scale] = Field(
        default_factory=dict,
        description="mean and deviation of components on scales of their own; a fit-reward stage measures the others",
    )
    gate: RewardRef | None = Field(
        default=None, description="with combine: gate, the reward that decides; it pays only if `rewards` has it too"
    )
    threshold: float | None = Field(
        default=None, description="with combine: gate, a response whose gate value (unscaled) is less is overridden"
    )
    below: float | None = Field(
        default=None, description="with combine: gate, the score of such a response; by default its scaled gate value"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> MixConfig:
        gated = (self.gate is not None, self.threshold is not None)
        if self.combine == "gate" and not all(gated):
            raise ValueError("combine: gate needs `gate` (a reward) and `threshold`")
        if self.combine != "gate" and (any(gated) or self.below is not None):
            raise ValueError("`gate`, `threshold` and `below` go with combine: gate")
        if self.combine == "product" and self.scale:
            raise ValueError("combine: product takes values as they are; leave out `scale`")
        if self.combine == "product" and min(self.rewards.values()) < 0:
            raise ValueError("combine: product needs weights of 0 or more")
        if strangers := self.scale.keys() - self.components:
            raise ValueError(f"`scale` names {', '.join(sorted(strangers))}, which is not among the rewards")
        return self

    @property
    def components(self) -> tuple[str, ...]:
        """The ids of all rewards that are asked, the gate last."""
        return tuple(dict.fromkeys([*self.rewards, *([self.gate] if self.gate else [])]))


class KLConfig(Config):
    """A penalty on every token for drifting from the reference.

    Moves the optimum from the best score to the best of score - coef * KL(policy || reference), with `target` to the
    best score at so many nats. Keeps the order of scores: of two responses that the reference finds equally likely the
    better one stays the likelier one. All of that holds for k1 alone.
    """

    coef: Annotated[Scheduled, within(ge=0)] = Field(
        default=0.05, description="weight of the penalty; where `target` is set, the initial weight"
    )
    estimator: Literal["k1", "k2", "k3", "abs"] = Field(
        default="k1",
        description="of the divergence per token; all but k1 also charge tokens that are less likely than under the "
        "reference, and so push them further down",
    )
    target: float | None = Field(
        default=None,
        gt=0,
        description="nats per response that the weight is adapted to hold; without it the weight is fixed",
    )
    horizon: float = Field(default=10_000, gt=0, description="with `target`: samples over which the weight adapts")

    @model_validator(mode="after")
    def _one_rule(self) -> KLConfig:
        if self.target is not None and isinstance(self.coef, Schedule):
            raise ValueError("got both a schedule of coef and a target that adapts it, expected one of them")
        return self

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
