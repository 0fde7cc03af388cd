"""Configuration of the built-in policy; importing it does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..interfaces import Config, EngineRef, FeedbackRef, ModelName


class FreshTokenizer(Config):
    """A byte-level BPE tokenizer trained on the texts of feedback sources."""

    text: list[FeedbackRef] = Field(min_length=1, description="feedback sources whose prompts and responses it sees")
    vocab_size: int = Field(
        default=1024, ge=260, description="entries, the 256 bytes and two special tokens among them"
    )


class FreshModel(Config):
    """A model with random weights, for trying things out and for tests."""

    architecture: str = Field(default="llama", description="a transformers model type: llama, gpt2, qwen3, ...")
    sizes: dict[str, int | float | bool | str | None] = Field(
        default_factory=dict, description="arguments of its transformers config, such as hidden_size"
    )
    tokenizer: FreshTokenizer = Field(description="how its tokenizer is made")


class Lora(Config):
    """Low-rank adapters (Hu et al., 2021, arXiv:2106.09685) by peft; the base stays frozen."""

    r: int = Field(default=16, ge=1, description="rank")
    alpha: float = Field(default=32.0, gt=0, description="scale: the update is alpha / r * B A")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in front of A, in supervised stages only")
    target_modules: Literal["all-linear"] | list[str] = Field(
        default="all-linear", description="names of the layers that get an adapter, or all linear ones but the output"
    )
    start: ModelName | None = Field(
        default=None, description="a folder or hub id of adapters in peft's format to start from, of the same shape"
    )


class Quantization(Config):
    """A frozen base in 4 bits (Dettmers et al., 2023, arXiv:2305.14314), by bitsandbytes."""

    type: Literal["nf4", "fp4"] = Field(
        default="nf4", description="the 16 levels: quantiles of a normal distribution (nf4), or 4-bit floats"
    )
    double: bool = Field(default=True, description="quantise the scales of the blocks too, .4 bits per weight less")
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of products and of layers that stay whole; auto: bfloat16 on a GPU that has it"
    )


class LMConfig(Config):
    """A language model of transformers and what of it is trained. Give `model` or `fresh`."""

    model: ModelName | None = Field(default=None, description="path or hub id of a model and its tokenizer")
    fresh: FreshModel | None = Field(default=None, description="make a new model instead of loading one")
    revision: str | None = Field(default=None, description="commit or tag on the hub")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model; off for a reason")
    lora: Lora | None = Field(default=None, description="train adapters instead of all weights")
    quantization: Quantization | None = Field(default=None, description="hold the frozen base in 4 bits; needs `lora`")
    frozen_layers: int = Field(
        default=0, ge=0, description="the embeddings and this many of the lowest layers are not trained; 0: all are"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute layers again in the backward pass: a third slower, far less memory"
    )
    sharded: bool = Field(
        default=False,
        description="of several processes each keeps a part of the layers' weights, gradients and moments (FSDP2)",
    )
    critic: Literal["shared", "adapter", "separate"] = Field(
        default="shared",
        description="where values come from: a head on the policy's trunk, on an adapter of its own over the same "
        "base (with `lora`), or on a trunk of its own (a copy, trained whole)",
    )
    engine: EngineRef | None = Field(
        default=None, description="what draws responses: refill, as by default, compaction, continuous, vllm, ..."
    )
    compile: bool = Field(
        default=False,
        description="compile scoring and updates with torch.compile; the first step then takes long, and a CPU needs a "
        "C++ compiler",
    )
    max_prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        description="longer prompts lose their beginning; without it a prompt beyond the context is an error",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> LMConfig:
        if (self.model is None) == (self.fresh is None):
            raise ValueError("give either `model` (a path or hub id) or `fresh` (sizes and a tokenizer)")
        if self.quantization is not None and self.lora is None:
            raise ValueError("4-bit weights cannot be trained: give `lora` beside `quantization`")
        if self.sharded and self.lora is not None:
            raise ValueError(
                "`sharded` is for full fine-tuning: adapters are too small to be shared out; give it or `lora`"
            )
        if self.critic == "adapter" and self.lora is None:
            raise ValueError(
                "`critic: adapter` shares the policy's base, which full fine-tuning changes: give `lora`, or take "
                "`critic: shared` or `separate`"
            )
        return self


class CausalLMConfig(LMConfig):
    """A decoder-only language model of transformers. Give `model` or `fresh`."""


class Seq2SeqLMConfig(LMConfig):
    """An encoder-decoder language model of transformers. Give `model` or `fresh`."""

    frozen_layers: int = Field(
        default=0,
        ge=0,
        description="the embeddings and this many of the lowest layers of the encoder and of the decoder are not "
        "trained; 0: all are",
    )


class DecodingConfig(Config):
    """What the built-in engines have in common."""

    cuda_graphs: bool = Field(
        default=True, description="on a GPU, replay a step of decoding as a whole, for models of the family of Llama"
    )


class CompactionConfig(DecodingConfig):
    """All prompts are decoded at once; rows that are done leave the batch."""


class RefillConfig(DecodingConfig):
    """A number of slots: the place of a response that is done goes to the next prompt, or leaves the batch."""

    slots: int = Field(
        default=256, ge=1, description="most responses decoded at a time; their cache is what takes memory"
    )


class ContinuousConfig(Config):
    """transformers' continuous batching: a paged cache whose places go to the next prompt as they come free."""

    slots: int = Field(
        default=256, ge=1, description="most responses drawn at a time; their cache is what takes memory"
    )
