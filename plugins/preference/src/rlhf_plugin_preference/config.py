"""Configurations; importing them does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from rlhf_core.interfaces import ModelName, PolicyRef, SourceConfig, SupervisedConfig
from rlhf_core.policies.config import FreshModel


class PreferencesConfig(SourceConfig):
    """Comparisons of responses.

    Rows have `chosen` and `rejected`, each text or messages, with or without a `prompt`; or `responses` and `ranks`.
    """


class PreferenceRewardConfig(SupervisedConfig):
    """A reward model trained on comparisons (Bradley and Terry, 1952). Give `model`, `policy` or `fresh`."""

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
    learning_rate: float = Field(default=5e-5, gt=0, description="peak learning rate of AdamW")
    use_margin: bool = Field(default=True, description="ask for the margin that a comparison carries, where it does")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of comparisons assumed to be the wrong way round"
    )
    center_coef: float = Field(
        default=0.01, ge=0, description="weight of (r_chosen + r_rejected)^2, which keeps scores around 0"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> PreferenceRewardConfig:
        if sum(origin is not None for origin in (self.model, self.policy, self.fresh)) != 1:
            raise ValueError("give one of `model` (path or hub id), `policy` (an id) and `fresh` (sizes, a tokenizer)")
        return self
