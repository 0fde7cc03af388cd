"""Configuration of A2C; importing it does not import torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from rlhf_core.interfaces import Needs, Scheduled, within
from rlhf_core.rl import OnPolicyConfig


class A2CConfig(OnPolicyConfig):
    """Advantage actor-critic (Mnih et al., 2016)."""

    epochs: int = Field(default=1, ge=1, description="1: nothing is clipped, so samples are used once")
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount per token")
    n_steps: int | None = Field(
        default=None,
        ge=1,
        description="tokens of reward in an advantage, before the critic stands in; null: to the end",
    )
    lam: float = Field(
        default=1.0, ge=0, le=1, description="lambda of GAE within those tokens; 1: the n-step return, 0: one token"
    )
    value_coef: float = Field(
        default=0.5, gt=0, description="weight of the critic's loss, the mean squared error (without the half of `ppo`)"
    )
    entropy_coef: Annotated[Scheduled, within(ge=0)] = Field(default=0.0, description="weight of the entropy bonus")
    normalize_advantages: bool = Field(default=False, description="advantages of a step to mean 0 and variance 1")
    bootstrap_truncated: bool = Field(
        default=False, description="a response cut at the length limit is worth its last value, not 0, beyond the cut"
    )

    @property
    def needs(self) -> Needs:
        return Needs(values=True, bootstrap=self.bootstrap_truncated)

    @field_validator("epochs")
    @classmethod
    def _one_pass(cls, epochs: int) -> int:
        if epochs != 1:
            raise ValueError(
                f"got {epochs}, expected 1: an unclipped policy gradient holds for fresh samples only; for several "
                "passes use ppo"
            )
        return epochs
