"""Configuration of rewards that are networks over text; importing it does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..interfaces import ModelName, PolicyRef, Scheduled, SupervisedConfig, within
from ..policies.config import FreshModel, Lora, Quantization


class TextRewardConfig(SupervisedConfig):
    """Where the trunk comes from, how it reads a text, and what of it is trained. Give `model`, `policy`, `fresh` or
    `base`."""

    model: ModelName | None = Field(default=None, description="path or hub id of an encoder or decoder")
    policy: PolicyRef | None = Field(
        default=None, description="start from a copy of this policy's trunk, as it is when the reward is first used"
    )
    fresh: FreshModel | None = Field(default=None, description="make a new model instead of loading one")
    base: Literal["policy"] | None = Field(
        default=None,
        description="read with the frozen base of the pipeline's policy (which has `lora`), through an adapter and a "
        "head of its own: no second model in memory",
    )
    revision: str | None = Field(default=None, description="commit or tag on the hub")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model; off for a reason")
    lora: Lora | None = Field(
        default=None, description="train adapters instead of all weights; with `base` they are there unasked"
    )
    quantization: Quantization | None = Field(
        default=None, description="hold the frozen model in 4 bits; needs `lora`, and `model` or `fresh`"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute layers again in the backward pass: a third slower, far less memory"
    )
    pooling: Literal["last", "mean"] = Field(
        default="last", description="which hidden state is scored: of the last token (decoders), or the mean of all"
    )
    max_tokens: int = Field(
        default=512, ge=8, description="longest text; of a longer one the prompt's beginning is cut, then the response"
    )
    frozen_layers: int = Field(
        default=0, ge=0, description="the embeddings and this many of the lowest layers keep their weights; 0: none do"
    )
    learning_rate: Annotated[Scheduled, within(ge=0)] = Field(
        default=5e-5, description="learning rate of AdamW, or a schedule of it, counted in updates of the weights"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> TextRewardConfig:
        if sum(origin is not None for origin in (self.model, self.policy, self.fresh, self.base)) != 1:
            raise ValueError(
                "give one of `model` (path or hub id), `policy` (an id) and `fresh` (sizes, a tokenizer), or "
                "`base: policy`"
            )
        if self.quantization is not None and (self.lora is None or (self.model is None and self.fresh is None)):
            raise ValueError(
                "`quantization` holds a frozen `model` or `fresh` one in 4 bits: give one of them and `lora`. With "
                "`base: policy` the base is as the policy has it"
            )
        return self
