"""Configuration shared by on-policy optimizers; importing it does not import torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from ..interfaces import Config, OptimizerSettings


class OnPolicyConfig(OptimizerSettings):
    """How much is sampled per step and how it is cut into updates."""

    prompts_per_step: int = Field(default=32, ge=1, description="prompts sampled per step, over all processes")
    samples_per_prompt: int = Field(
        default=1, ge=1, description="responses to each prompt; more than one for group baselines"
    )
    epochs: int = Field(default=1, ge=1, description="passes over each step's samples")
    minibatch_size: int = Field(default=32, ge=1, description="samples per update of the weights, over all processes")
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="most tokens, padding included, in one forward and backward"
    )
    target_kl: float | None = Field(
        default=None,
        gt=0,
        description="end a step's updates once the policy has moved this far from where it sampled (k3)",
    )

    @model_validator(mode="after")
    def _samples_suffice(self) -> OnPolicyConfig:
        if self.samples_per_prompt < (least := self.needs.samples_per_prompt):
            raise ValueError(
                f"samples_per_prompt is {self.samples_per_prompt}, and its baseline compares at least {least} samples "
                f"of one prompt; set samples_per_prompt: {max(4, least)}"
            )
        samples = self.prompts_per_step * self.samples_per_prompt
        if self.minibatch_size > samples:
            raise ValueError(
                f"minibatch_size ({self.minibatch_size}) exceeds the samples of a step ({samples} = "
                "prompts_per_step x samples_per_prompt); lower it, or sample more"
            )
        return self


class SingleTurnConfig(Config):
    """One response per prompt."""
