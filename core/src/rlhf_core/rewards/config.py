"""Configuration of rewards that are networks over text; importing it does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..interfaces import ModelName, PolicyRef, Scheduled, SupervisedConfig, within
from ..policies.config import FreshModel


class TextRewardConfig(SupervisedConfig):
    """Where the trunk comes from and how it reads a text. Give `model`, `policy` or `fresh`."""

    model: ModelName | None = Field(default=None, description="path or hub id of an encoder or decoder")
    policy: PolicyRef | None = Field(
        default=None, description="start from a copy of this policy's trunk, as it is when the reward is first used"
    )
    fresh: FreshModel | None = Field(default=None, description="make a new model instead of loading one")
    revision: str | None = Field(default=None, description="commit or tag on the hub")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model; off for a reason")
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
        if sum(origin is not None for origin in (self.model, self.policy, self.fresh)) != 1:
            raise ValueError("give one of `model` (path or hub id), `policy` (an id) and `fresh` (sizes, a tokenizer)")
        return self
