"""Configuration; importing it does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from rlhf_core.interfaces import FeedbackRef, PolicyRef, Sampling
from rlhf_core.rewards import TextRewardConfig


class IRLRewardConfig(TextRewardConfig):
    """A reward from demonstrations alone, learnt once or while the policy learns. Give `model`, `policy` or `fresh`."""

    algorithm: Literal["one-shot", "airl", "maxent", "gail"] = Field(
        default="one-shot",
        description="one-shot: learnt in a fit-reward stage and then fixed; the others go on learning in `optimize`",
    )
    samples_from: PolicyRef | None = Field(
        default=None,
        description="the policy that demonstrations are told from in a fit-reward stage, as it is when that begins",
    )
    sampling: Sampling = Field(
        default_factory=Sampling, description="how its samples are drawn; as in the optimize stage"
    )
    samples_per_demonstration: int = Field(
        default=1, ge=1, description="its samples to the prompt of each demonstration"
    )
    demonstrations: FeedbackRef | None = Field(
        default=None, description="what airl, maxent and gail go on learning from in `optimize`"
    )
    updates_per_step: int = Field(default=2, ge=1, description="updates of the reward in each step of `optimize`")
    update_learning_rate: float | None = Field(
        default=None, gt=0, description="learning rate of these updates, which stays as it is; by default learning_rate"
    )
    replay: float = Field(
        default=0.5, ge=0, lt=1, description="share of samples of earlier steps in an update within `optimize`"
    )
    replay_size: int = Field(default=2048, ge=1, description="how many of the latest samples are kept for that")
    max_log_ratio: float = Field(
        default=20.0, gt=0, description="airl: the policy's log-probability over the reference's is held within this"
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="one-sided: a demonstration counts as one with 1 minus this probability; 0.1 is usual",
    )
    gradient_penalty: float = Field(
        default=0.0, ge=0, description="weight of R1: the reward's squared gradient at the demonstrations' embeddings"
    )
    standardise: bool = Field(
        default=True, description="scores have mean 0 and deviation 1 over the first samples it has seen"
    )
    null_check: bool = Field(
        default=False,
        description="fit a second network to tell the policy's samples from more of them, and report what it learns",
    )

    @model_validator(mode="after")
    def _can_learn(self) -> IRLRewardConfig:
        if self.algorithm == "one-shot":
            if self.samples_from is None:
                raise ValueError("one-shot needs `samples_from`: the policy whose samples demonstrations are told from")
            if self.demonstrations is not None:
                raise ValueError(
                    "one-shot learns from the feedback of its fit-reward stage; leave `demonstrations` out"
                )
        elif self.demonstrations is None:
            raise ValueError(f"no demonstrations: {self.algorithm} learns from them in `optimize`; name their source")
        if self.null_check and not self.held_out:
            raise ValueError("the null check looks at prompts kept out of training; set `held_out` above 0")
        return self
