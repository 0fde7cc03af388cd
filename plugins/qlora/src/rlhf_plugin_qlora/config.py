"""Configuration of QLoRA; importing it does not import torch."""

from __future__ import annotations

from pydantic import Field, model_validator
from rlhf_core.policies import CausalLMConfig, Lora, Quantization


class QLoRAConfig(CausalLMConfig):
    """`causal-lm` with the settings of the paper: NF4, scales quantised too, adapters on all linear layers."""

    lora: Lora | None = Field(default_factory=Lora, description="the adapters that are trained")
    quantization: Quantization | None = Field(
        default_factory=Quantization, description="how the frozen base is held in 4 bits"
    )
    gradient_checkpointing: bool = Field(
        default=True, description="compute layers again in the backward pass: a third slower, far less memory"
    )

    @model_validator(mode="after")
    def _in_four_bits(self) -> QLoRAConfig:
        if self.quantization is None:
            raise ValueError("without `quantization` this is causal-lm with `lora`: `use: causal-lm`")
        return self
