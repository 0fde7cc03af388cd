"""Configuration of PPO; importing it does not import torch."""

from __future__ import annotations

from pydantic import Field, model_validator
from rlhf_core.interfaces import Needs
from rlhf_core.rl.config import OnPolicyConfig


class PPOConfig(OnPolicyConfig):
    """Proximal policy optimisation (Schulman et al., 2017)."""

    epochs: int = Field(default=2, ge=1, description="passes over each step's samples")
    minibatch_size: int = Field(default=16, ge=1, description="samples per update of the weights, over all processes")
    clip: float = Field(default=0.2, gt=0, description="the ratio of new to old probability is clipped to 1 +- this")
    clip_high: float | None = Field(default=None, gt=0, description="upper clip, if it differs from `clip`")
    dual_clip: float | None = Field(
        default=None, gt=1, description="bound on the loss where the advantage is negative (Ye et al., 2020); usual: 3"
    )
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount per token")
    lam: float | None = Field(
        default=None, ge=0, le=1,
        description="lambda of GAE; by default 1 with a shared critic and 0.95 with one of its own",
    )  # fmt: skip
    value_coef: float = Field(
        default=0.1, gt=0,
        description="weight of the value loss; on a shared trunk its gradient moves the policy too, so it is small",
    )  # fmt: skip
    value_clip: float | None = Field(
        default=0.2, gt=0, description="values are clipped to old +- this in their loss; null: not clipped"
    )
    value_warmup: int = Field(default=0, ge=0, description="first steps in which the critic alone learns")
    entropy_coef: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    whiten_advantages: bool = Field(default=True, description="advantages of a step to mean 0 and variance 1")
    bootstrap_truncated: bool = Field(
        default=False, description="a response cut at the length limit is worth its last value, not 0, beyond the cut"
    )

    @property
    def needs(self) -> Needs:
        return Needs(values=True, bootstrap=self.bootstrap_truncated)

    @model_validator(mode="after")
    def _clips_in_order(self) -> PPOConfig:
        if self.clip >= 1:
            raise ValueError(f"clip must be below 1, got {self.clip}: a ratio cannot fall below 0")
        return self
