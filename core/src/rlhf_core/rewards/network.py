"""A trunk of transformers with a linear head: numbers out of a text."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..interfaces import Context
from ..policies.loading import complete_tokenizer, context_length, fresh_model_config, fresh_tokenizer, load_pair
from .config import TextRewardConfig


class TextNetwork(nn.Module):
    """K numbers per text: a linear head on the last token's hidden state, or on the mean over tokens.

    Args:
        trunk: a transformers model without a head. hidden_size: H, of its last hidden state.
        pooling: "last" or "mean". generator: draws the head's weights. outputs: K.
    """

    def __init__(
        self, trunk: nn.Module, hidden_size: int, pooling: str, generator: torch.Generator, outputs: int = 1
    ) -> None:
        super().__init__()
        self.trunk, self.pooling = trunk, pooling
        dtype = next(trunk.parameters()).dtype
        self.head = nn.Linear(hidden_size, outputs, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        nn.init.normal_(self.head.weight, std=1 / (hidden_size + 1) ** 0.5, generator=generator)
        nn.init.zeros_(self.head.bias)

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: (B, S), right-padded. Returns the trunk's last hidden states (B, S, H)."""
        states: Tensor = self.trunk(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states

    def pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """One hidden state per text: (B, S, H) to (B, H), in float32 or better."""
        wide = self.head.weight.dtype  # bfloat16 could neither sum a long text nor tell close scores apart
        if self.pooling == "last":
            return states[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1].to(wide)
        return states.to(wide).masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: (B, S), right-padded. Returns (B, K) in float32 or better."""
        pooled = self.pooled(self.states(ids, mask), mask)
        with torch.autocast(pooled.device.type, enabled=False):
            outputs: Tensor = self.head(pooled)
        return outputs


def load_trunk(config: TextRewardConfig, context: Context) -> tuple[Any, Any]:
    """The trunk that `config` asks for, trainable but for its frozen layers, and its tokenizer.

    Raises:
        ConfigError: there is no such model, the policy has no trunk, or the model is an encoder-decoder.
    """
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.stream("init"))
        if config.fresh is not None:
            tokenizer = fresh_tokenizer(config.fresh.tokenizer, context)
            sizes = fresh_model_config(config.fresh, tokenizer, context)
            try:
                trunk = AutoModel.from_config(sizes).to(context.torch_dtype)
            except ValueError as error:  # such as a width that is not a multiple of the heads
                raise ConfigError(
                    f"{context.where} fresh",
                    f"{config.fresh.architecture!r} with {config.fresh.sizes}: {error}",
                    "sizes that fit together",
                ) from error
        elif config.policy is not None:
            # the usual start: language learnt in sft is not learnt again (Ouyang et al., 2022, section 3.5)
            policy = context.component("policy", config.policy)
            if not hasattr(policy, "trunk_copy"):
                raise ConfigError(
                    context.where,
                    f"policy {config.policy!r} has no trunk to start from",
                    "a policy such as causal-lm",
                    "give `model` or `fresh` instead",
                )
            trunk, tokenizer = policy.trunk_copy(), copy.deepcopy(policy.tokenizer)
        else:
            trunk, tokenizer = load_pair(AutoModel, config, context)
    if trunk.config.is_encoder_decoder:
        raise ConfigError(
            context.where,
            f"{trunk.config.model_type!r} is an encoder-decoder",
            "an encoder or a decoder",
            "choose a model such as bert or llama",
        )
    complete_tokenizer(tokenizer, context)
    trunk.config.use_cache = False  # nothing is generated here
    _freeze(trunk, config.frozen_layers, context)
    return trunk, tokenizer


def longest_text(trunk: Any, tokenizer: Any, max_tokens: int) -> int:
    """The most tokens of a text: what is asked for, or less where model or tokenizer take less."""
    # some models have positions that no token may take (roberta: 514 for 512 tokens); their tokenizers know
    return min(max_tokens, context_length(trunk) or max_tokens, int(tokenizer.model_max_length))


def _freeze(trunk: Any, count: int, context: Context) -> None:
    """Take the embeddings and the `count` lowest layers out of training."""
    if not count:
        return
    size = trunk.config.get_text_config().num_hidden_layers
    stacks = [m for m in trunk.modules() if isinstance(m, nn.ModuleList) and len(m) == size]
    if not stacks or count > size:
        raise ConfigError(
            f"{context.where} frozen_layers",
            f"{count} of the {size} layers of {trunk.config.model_type!r}",
            f"at most {size if stacks else 0}",
            "lower frozen_layers",
        )
    upper = {id(p) for layer in stacks[0][count:] for p in layer.parameters()}
    below = {id(p) for layer in stacks[0][:count] for p in layer.parameters()}
    embeddings = {id(p) for m in trunk.modules() if isinstance(m, nn.Embedding) for p in m.parameters()} - upper
    for parameter in trunk.parameters():
        if id(parameter) in below | embeddings:
            parameter.requires_grad_(False)
