"""Configuration of the built-in policy; importing it does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..interfaces import Config, FeedbackRef, ModelName


class FreshTokenizer(Config):
    """A byte-level BPE tokenizer trained on the texts of feedback sources."""

    text: list[FeedbackRef] = Field(min_length=1, description="feedback sources whose prompts and responses it sees")
    vocab_size: int = Field(
        default=1024, ge=260, description="entries, the 256 bytes and two special tokens among them"
    )


class FreshModel(Config):
    """A model with random weights, for trying things out and for tests."""

    architecture: str = Field(default="llama", description="a transformers model type: llama, gpt2, qwen3, ...")
    sizes: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="arguments of its transformers config, such as hidden_size"
    )
    tokenizer: FreshTokenizer = Field(description="how its tokenizer is made")


class Lora(Config):
    """Low-rank adapters (Hu et al., 2021) by peft; the base stays frozen."""

    r: int = Field(default=16, ge=1, description="rank")
    alpha: float = Field(default=32.0, gt=0, description="scale: the update is alpha / r * B A")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in front of A, in supervised stages only")
    target_modules: str | list[str] = Field(default="all-linear", description="names of the layers that get an adapter")


class CausalLMConfig(Config):
    """A decoder-only language model of transformers. Give `model` or `fresh`."""

    model: ModelName | None = Field(default=None, description="path or hub id of a model and its tokenizer")
    fresh: FreshModel | None = Field(default=None, description="make a new model instead of loading one")
    revision: str | None = Field(default=None, description="commit or tag on the hub")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model; off for a reason")
    lora: Lora | None = Field(default=None, description="train adapters instead of all weights")
    critic: Literal["shared", "separate"] = Field(
        default="shared",
        description="where values come from: a head on the policy's trunk, or a trunk of its own (a copy)",
    )
    max_prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        description="longer prompts lose their beginning; without it a prompt beyond the context is an error",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> CausalLMConfig:
        if (self.model is None) == (self.fresh is None):
            raise ValueError("give either `model` (a path or hub id) or `fresh` (sizes and a tokenizer)")
        return self
