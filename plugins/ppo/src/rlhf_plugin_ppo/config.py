"""Configuration of PPO; importing it does not import torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from rlhf_core.interfaces import Needs, RewardRef, Scheduled, within
from rlhf_core.rl import OnPolicyConfig


class PPOConfig(OnPolicyConfig):
    """Proximal policy optimisation (Schulman et al., 2017)."""

    epochs: int = Field(default=2, ge=1, description="passes over each step's samples")
    minibatch_size: int = Field(default=16, ge=1, description="samples per update of the weights, over all processes")
    clip: Annotated[Scheduled, within(gt=0, lt=1)] = Field(
        default=0.2, description="the ratio of new to old probability is clipped to 1 +- this"
    )
    clip_high: Annotated[Scheduled, within(gt=0)] | None = Field(
        default=None, description="upper clip, if it differs from `clip`"
    )
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
    value_learning_rate: Annotated[Scheduled, within(ge=0)] | None = Field(
        default=None, description="learning rate of what the critic alone depends on; by default `learning_rate`"
    )
    critic_from: RewardRef | None = Field(
        default=None, description="a fitted reward whose network the critic begins as; it needs critic: separate"
    )
    value_warmup: int = Field(default=0, ge=0, description="first steps in which the critic alone learns")
    policy_coef: float = Field(
        default=1.0, ge=0, description="weight of the policy loss: the alpha of `supervised + alpha x reward`"
    )
    entropy_coef: Annotated[Scheduled, within(ge=0)] = Field(default=0.0, description="weight of the entropy bonus")
    ptx_coef: Annotated[Scheduled, within(ge=0)] = Field(
        default=0.0, description="weight of the language-model loss on the demonstrations among the stage's `feedback`"
    )
    ptx_batch_size: int = Field(default=8, ge=1, description="demonstrations per update, over all processes")
    whiten_advantages: bool = Field(default=True, description="advantages of a step to mean 0 and variance 1")
    advantage_clip: float | None = Field(
        default=None, gt=0, description="advantages, whitened or not, are held within +- this"
    )
    bootstrap_truncated: bool = Field(
        default=False, description="a response cut at the length limit is worth its last value, not 0, beyond the cut"
    )

    @property
    def needs(self) -> Needs:
        return Needs(values=True, bootstrap=self.bootstrap_truncated)
