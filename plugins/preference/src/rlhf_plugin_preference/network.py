"""A trunk of transformers with a scalar head."""

from __future__ import annotations

import copy
from typing import Any

import torch
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Context
from rlhf_core.policies.loading import (
    complete_tokenizer,
    context_length,
    fresh_model_config,
    fresh_tokenizer,
    load_pair,
)
from torch import Tensor, nn

from .config import PreferenceRewardConfig


class ScalarModel(nn.Module):
    """One number per text: a linear head on the last token's hidden state, or on the mean over tokens."""

    def __init__(self, trunk: nn.Module, hidden_size: int, pooling: str, generator: torch.Generator) -> None:
        super().__init__()
        self.trunk, self.pooling = trunk, pooling
        dtype = next(trunk.parameters()).dtype
        self.head = nn.Linear(hidden_size, 1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        nn.init.normal_(self.head.weight, std=1 / (hidden_size + 1) ** 0.5, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: (B, S), right-padded. Returns (B,) scores in float32 or better."""
        hidden: Tensor = self.trunk(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (B, S, H)
        wide = self.head.weight.dtype  # bfloat16 could neither sum a long text nor tell close scores apart
        if self.pooling == "last":
            pooled = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1].to(wide)
        else:
            pooled = hidden.to(wide).masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)
        with torch.autocast(pooled.device.type, enabled=False):
            scores: Tensor = self.head(pooled)[:, 0]
        return scores


def build(config: PreferenceRewardConfig, context: Context) -> tuple[ScalarModel, Any, int]:
    """The model, its tokenizer and the most tokens it takes."""
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.stream("init"))
        if config.fresh is not None:
            tokenizer = fresh_tokenizer(config.fresh.tokenizer, context)
            sizes = fresh_model_config(config.fresh, tokenizer, context)
            try:
                trunk = AutoModel.from_config(sizes).to(context.torch_dtype)
            except ValueError as error:  # such as a width that is not a multiple of the heads
                raise ConfigError(f"{context.where} fresh", f"{config.fresh.architecture!r} with {config.fresh.sizes}: "
                                  f"{error}", "sizes that fit together") from error  # fmt: skip
        elif config.policy is not None:
            # the usual start: language learnt in sft is not learnt again (Ouyang et al., 2022, section 3.5)
            policy = context.component("policy", config.policy)
            if not hasattr(policy, "trunk_copy"):
                raise ConfigError(context.where, f"policy {config.policy!r} has no trunk to start from",
                                  "a policy such as causal-lm", "give `model` or `fresh` instead")  # fmt: skip
            trunk, tokenizer = policy.trunk_copy(), copy.deepcopy(policy.tokenizer)
        else:
            trunk, tokenizer = load_pair(AutoModel, config, context)
        generator = torch.Generator().manual_seed(context.stream("head"))
        if trunk.config.is_encoder_decoder:
            raise ConfigError(context.where, f"{trunk.config.model_type!r} is an encoder-decoder",
                              "an encoder or a decoder", "choose a model such as bert or llama")  # fmt: skip
        complete_tokenizer(tokenizer, context)
        trunk.config.use_cache = False  # nothing is generated here
        model = ScalarModel(trunk, trunk.config.get_text_config().hidden_size, config.pooling, generator)
    # some models have positions that no token may take (roberta: 514 for 512 tokens); their tokenizers know
    limits = (config.max_tokens, context_length(trunk) or config.max_tokens, tokenizer.model_max_length)
    return model.to(context.device).eval(), tokenizer, min(limits)
