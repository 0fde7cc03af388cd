"""Configurations of the built-in stages; importing them does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..interfaces import (
    Config,
    EnvironmentRef,
    FeedbackRef,
    MetricRef,
    OptimizerRef,
    PromptsRef,
    RelativePath,
    RewardRef,
    Sampling,
    ShaperRef,
    StageConfig,
    SupervisedConfig,
)


class SFTConfig(StageConfig, SupervisedConfig):
    """Imitate demonstrations. Of comparisons the best response is taken, of edits the edited one."""

    feedback: list[FeedbackRef] = Field(min_length=1, description="feedback sources")
    max_examples: int | None = Field(default=None, ge=1, description="use at most this many")


class FitRewardConfig(StageConfig):
    """Fit a reward model; its own config says how."""

    reward: RewardRef = Field(description="the reward to fit")
    feedback: list[FeedbackRef] = Field(min_length=1, description="feedback sources it learns from")
    baseline: RewardRef | None = Field(
        default=None, description="a simple reward fitted on the same records, to report this one against: linear"
    )

    @model_validator(mode="after")
    def _another(self) -> FitRewardConfig:
        if self.baseline == self.reward:
            raise ValueError(f"{self.reward!r} cannot be its own baseline; name another reward, such as linear")
        return self


class EvaluationConfig(Config):
    """What is measured during a stage."""

    prompts: PromptsRef = Field(description="prompts kept out of training")
    metrics: list[MetricRef] = Field(default=["reward", "kl", "length"], description="what is measured")
    limit: int = Field(default=64, ge=1, description="use the first so many prompts")


class OptimizeConfig(StageConfig):
    """Improve the policy against rewards."""

    optimizer: OptimizerRef = Field(description="the algorithm")
    steps: int = Field(ge=1, description="optimizer steps")
    prompts: PromptsRef | None = Field(default=None, description="what responses are sampled for")
    feedback: list[FeedbackRef] = Field(default_factory=list, description="offline records, for those that use them")
    rewards: dict[RewardRef, float] = Field(default_factory=dict, description="rewards and their weights")
    shapers: list[ShaperRef] = Field(default_factory=list, description="applied in this order, sequence level first")
    sampling: Sampling = Field(default_factory=lambda: Sampling(), description="how responses are drawn")
    environment: EnvironmentRef = Field(default="single-turn", description="what turns prompts into rollouts")
    reference: str = Field(
        default="stage-start",
        description="stage-start: the policy as this stage found it; base: before any training; or a path",
    )
    old_logprobs: Literal["recorded", "rescored"] = Field(
        default="recorded",
        description="the policy's log-probabilities of what it drew: as recorded while decoding, or evaluated again, "
        "as they always are where an engine records none",
    )
    forward_tokens: int = Field(default=32_768, ge=1, description="most tokens in a forward pass without gradients")
    evaluation: EvaluationConfig | None = Field(default=None, description="what `evaluate_every` measures")

    @model_validator(mode="after")
    def _evaluation_is_said(self) -> OptimizeConfig:
        if self.evaluate_every and self.evaluation is None:
            raise ValueError("`evaluate_every` needs `evaluation: {prompts: ..., metrics: [...]}`")
        if not self.prompts and not self.feedback:
            raise ValueError("give `prompts` to sample for, `feedback` to learn from offline, or both")
        taken = sorted({"score", "score_std", "shaped"} & self.rewards.keys())
        if taken:
            raise ValueError(
                f"a reward called {taken[0]!r} would be logged over the statistic reward/{taken[0]}; give it another id"
            )
        if self.prompts and not self.rewards:
            raise ValueError("sampled responses need `rewards`, such as {helpful: 1.0}")
        return self


class EvaluateConfig(StageConfig):
    """Measure the policy, beside the reference of the last optimize stage where there is one."""

    prompts: PromptsRef = Field(description="prompts kept out of training")
    metrics: list[MetricRef] = Field(default=["reward", "kl", "length"], description="what is measured")
    rewards: dict[RewardRef, float] | None = Field(
        default=None, description="the mix that the metric `reward` shows; by default that of the last optimize stage"
    )
    sampling: Sampling | None = Field(default=None, description="by default that of the last optimize stage")
    environment: EnvironmentRef = Field(default="single-turn", description="what turns prompts into rollouts")
    samples: int = Field(
        default=8, ge=0, description="how many samples go into the report, before and after side by side"
    )
    forward_tokens: int = Field(default=32_768, ge=1, description="most tokens in a forward pass")


class ExportConfig(StageConfig):
    """Write the policy as a plain Hugging Face model folder, with a model card."""

    path: RelativePath | None = Field(default=None, description="where; by default `export` in the run directory")
    weights: Literal["merged", "adapters"] = Field(
        default="merged",
        description="the whole model, adapters merged into it and 4-bit weights made whole; or the adapters alone, in "
        "peft's format, to be put on the base they were trained on",
    )
