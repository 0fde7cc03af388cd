"""A trunk of transformers with a linear head: numbers out of a text."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..interfaces import Context
from ..policies.base import Base, Speaker, checkpoint_layers, freeze_layers, headless, shared_base
from ..policies.config import Lora
from ..policies.loading import complete_tokenizer, context_length, load_pair
from .config import TextRewardConfig

FEATURES = "FEATURE_EXTRACTION"
"""peft's name for what a reward does with a model."""


class TextNetwork(Speaker):
    """K numbers per text: a linear head on the last token's hidden state, or on the mean over tokens.

    Over a base that others share (`base` and `role` are set) its parameters are its own adapter and the head.

    Args:
        trunk: a transformers model without a head. hidden_size: H, of its last hidden state.
        pooling: "last" or "mean". generator: draws the head's weights. outputs: K.
    """

    def __init__(
        self, trunk: nn.Module, hidden_size: int, pooling: str, generator: torch.Generator, outputs: int = 1
    ) -> None:
        super().__init__(None)
        self.trunk, self.pooling, self.role = trunk, pooling, ""
        dtype = next(p.dtype for p in trunk.parameters() if p.is_floating_point())
        self.head = nn.Linear(hidden_size, outputs, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        nn.init.normal_(self.head.weight, std=1 / (hidden_size + 1) ** 0.5, generator=generator)
        nn.init.zeros_(self.head.bias)

    @property
    def roles(self) -> tuple[str, ...]:
        return (self.role,)

    def whole_trunk(self) -> nn.Module:
        """The trunk as it stands alone: itself, or over a shared base a copy with the reward's adapter merged."""
        return self.trunk if self.base is None else headless(self.base.whole(self.role))

    def own(self) -> dict[str, Tensor]:
        """What is its own by name: everything, or what is not of the shared base."""
        whole: dict[str, Tensor] = self.state_dict()
        if self.base is None:
            return whole
        rest = {name: t for name, t in whole.items() if not name.startswith("trunk.")}
        return {**rest, **{f"trunk.{name}": p.detach() for name, p in self.base.weights(self.role).items()}}

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: (B, S), right-padded. Returns the trunk's last hidden states (B, S, H)."""
        options = {} if self.base is None else {"use_cache": False}  # its own trunk knows that nothing is generated
        with self.speaking(self.role):
            output = self.trunk(input_ids=ids, attention_mask=mask.long(), **options)
        states: Tensor = output.last_hidden_state
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


@dataclass(frozen=True)
class Trunk:
    """A transformers model without a head, its tokenizer, and the base and role if it is one of several."""

    model: Any
    tokenizer: Any
    base: Base | None = None
    role: str = ""


def load_trunk(config: TextRewardConfig, context: Context) -> Trunk:
    """The trunk that `config` asks for, with what is not trained frozen.

    Raises:
        ConfigError: there is no such model, the policy has no trunk or base, or the model is an encoder-decoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.stream("init"))
        base = _base(config, context)
        if base is None:
            model, tokenizer = _own_model(config, context)
        else:
            model, tokenizer = base.model, base.tokenizer
    if model.config.is_encoder_decoder:
        raise ConfigError(
            context.where,
            f"{model.config.model_type!r} is an encoder-decoder",
            "an encoder or a decoder",
            "choose a model such as bert or llama",
        )
    complete_tokenizer(tokenizer, context)
    if base is None:
        model.config.use_cache = False  # nothing is generated here
        freeze_layers(model, config.frozen_layers, context)
        if config.gradient_checkpointing:
            checkpoint_layers(model, None)
        return Trunk(model, tokenizer)
    lora = config.lora or Lora()
    role = base.add(re.sub(r"\W", "_", context.id), lora, context, task=FEATURES, frozen_layers=config.frozen_layers)
    if config.gradient_checkpointing:
        base.checkpoint_layers()
    return Trunk(headless(model), tokenizer, base, role)


def _own_model(config: TextRewardConfig, context: Context) -> tuple[Any, Any]:
    """A model that no policy holds, and its tokenizer."""
    from transformers import AutoModel

    if config.policy is None:
        return load_pair(AutoModel, config, context)
    # the usual start: language learnt in sft is not learnt again (Ouyang et al., 2022, section 3.5)
    policy = context.component("policy", config.policy)
    if not hasattr(policy, "trunk_copy"):
        raise ConfigError(
            context.where,
            f"policy {config.policy!r} has no trunk to start from",
            "a policy such as causal-lm",
            "give `model` or `fresh` instead",
        )
    return policy.trunk_copy(), copy.deepcopy(policy.tokenizer)


def _base(config: TextRewardConfig, context: Context) -> Base | None:
    """The frozen base under the reward's adapter; None if all weights are its own.

    Raises:
        ConfigError: the policy has none, or there is no pipeline whose policy could be meant.
    """
    if config.base is not None:
        if context.policy is None:
            raise ConfigError(
                f"{context.where} base",
                "`base: policy` outside a pipeline",
                "a pipeline, whose policy it is",
                'give the policy\'s id, Context(policy="..."), or `model` instead',
            )
        base = getattr(context.component("policy", context.policy), "base", None)
        if not isinstance(base, Base):
            raise ConfigError(
                f"{context.where} base",
                f"policy {context.policy!r} is fully fine-tuned: its weights change under everyone who shares them",
                "a policy with a frozen base",
                f"give policy {context.policy!r} `lora` (or use qlora), or let this reward start from a copy with "
                f"`policy: {context.policy}`",
            )
        return base
    if config.lora is None:
        return None
    if config.policy is not None:
        return Base(*_own_model(config, context))  # a copy is nobody else's
    return shared_base(config, context, FEATURES, partial(_own_model, config, context))


def longest_text(trunk: Any, tokenizer: Any, max_tokens: int) -> int:
    """The most tokens of a text: what is asked for, or less where model or tokenizer take less."""
    # some models have positions that no token may take (roberta: 514 for 512 tokens); their tokenizers know
    return min(max_tokens, context_length(trunk) or max_tokens, int(tokenizer.model_max_length))
