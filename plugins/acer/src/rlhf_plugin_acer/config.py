"""Configuration of ACER; importing it does not import torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from rlhf_core.interfaces import Needs, OptimizerSettings, Scheduled, within


class ACERConfig(OptimizerSettings):
    """Actor-critic with experience replay (Wang et al., 2017)."""

    prompts_per_step: int = Field(default=32, ge=1, description="prompts sampled per step, over all processes")
    samples_per_prompt: int = Field(default=1, ge=1, description="responses to each prompt")
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="most tokens, padding included, in one forward and backward"
    )
    replay_ratio: int = Field(
        default=4, ge=0, description="updates from the replay buffer after each update from fresh samples"
    )
    replay_size: int | None = Field(
        default=None, ge=1, description="samples drawn for an update from the buffer; by default as many as are fresh"
    )
    capacity: int = Field(default=1024, ge=1, description="samples that the buffer keeps; the oldest go first")
    top_k: int = Field(
        default=16, ge=1,
        description="likeliest tokens of the behaviour that are kept for the bias correction; all of them: no bias",
    )  # fmt: skip
    truncation: float = Field(
        default=10.0, gt=0, description="bound c on the ratio of policy to behaviour in a token's weight"
    )
    trust_region: float | None = Field(
        default=0.1, gt=0,
        description="bound delta on how fast a token's gradient may leave the average policy; null: no bound",
    )  # fmt: skip
    average_decay: float = Field(
        default=0.99, ge=0, lt=1, description="share of the average policy that stays at each update"
    )
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount per token")
    q_coef: float = Field(
        default=1.0, gt=0,
        description="weight of the loss of the action values; its gradient moves the policy's trunk too",
    )  # fmt: skip
    entropy_coef: Annotated[Scheduled, within(ge=0)] = Field(default=0.0, description="weight of the entropy bonus")
    bootstrap_truncated: bool = Field(
        default=False,
        description="a response cut at the length limit is worth V, not 0, beyond the cut; takes room for a token more",
    )

    @property
    def needs(self) -> Needs:
        return Needs(top_k=self.top_k, heads=1)

    @property
    def samples_per_step(self) -> int:
        """Fresh samples of a step."""
        return self.prompts_per_step * self.samples_per_prompt

    @model_validator(mode="after")
    def _buffer_has_room(self) -> ACERConfig:
        if self.capacity < self.samples_per_step:
            raise ValueError(
                f"capacity ({self.capacity}) has no room for the samples of a step ({self.samples_per_step} = "
                "prompts_per_step x samples_per_prompt); raise it, or sample less"
            )
        if self.replay_size is not None and self.replay_size > self.capacity:
            raise ValueError(
                f"replay_size ({self.replay_size}) exceeds capacity ({self.capacity}); lower it, or keep more"
            )
        return self
