"""The supervised task of imitating responses: the language-model loss on response tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional import token_logprobs
from ..interfaces import Context, LossSum, StepStats, SupervisedTask
from .network import PolicyNetwork
from .text import Codec, pad_left, pad_right


@dataclass(frozen=True)
class Tokens:
    """One example as ids: the prompt, and the response with its end of text."""

    prompt: list[int]
    response: list[int]


class Imitation(SupervisedTask):
    """Cross-entropy of response tokens given the prompt, averaged over tokens."""

    def __init__(
        self,
        network: PolicyNetwork,
        codec: Codec,
        context: Context,
        train: Sequence[Tokens],
        held_out: Sequence[Tokens],
    ) -> None:
        self.module: PolicyNetwork = network
        self.train, self.held_out = train, held_out
        self._codec, self._context = codec, context

    def size(self, example: Tokens) -> tuple[int, int]:
        return len(example.prompt), len(example.response)

    def count(self, example: Tokens) -> float:
        return len(example.response)

    def loss(self, examples: Sequence[Tokens]) -> LossSum:
        logprobs, mask = self._logprobs(examples)
        return LossSum(-logprobs.sum(), float(mask.sum()), {})

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Tokens]) -> StepStats:
        """``loss`` in nats per token and ``perplexity``."""
        total, tokens = 0.0, 0
        for start in range(0, len(examples), 64):
            logprobs, mask = self._logprobs(examples[start : start + 64])
            total -= float(logprobs.sum())
            tokens += int(mask.sum())
        loss = total / max(tokens, 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def _logprobs(self, examples: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        device = next(self.module.parameters()).device
        prompt_ids, prompt_mask = pad_left([e.prompt for e in examples], self._codec.pad, device)
        ids, mask = pad_right([e.response for e in examples], self._codec.pad, device)
        with self._context.autocast():
            logits, _ = self.module.response_states(prompt_ids, prompt_mask, ids, mask, values=False)
        return token_logprobs(logits[:, :-1], ids).masked_fill(~mask, 0.0), mask
