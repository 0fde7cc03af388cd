"""The supervised task of imitating responses: the language-model loss on response tokens, weighted token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional import weighted_likelihood_loss
from ..interfaces import Context, LossSum, StepStats, SupervisedTask
from ..records import Demonstration
from ..training.batching import by_tokens
from .network import PolicyNetwork
from .text import Codec, at_last_character, pad_left, pad_right

EVALUATION_TOKENS = 8192
"""Most tokens in a forward pass over held-out examples."""


@dataclass(frozen=True)
class Tokens:
    """One example as ids: the prompt, and the response with its end of text.

    weight: of the whole example. factors: one number per response token, below 0 for tokens to be avoided; None: all 1.
    """

    prompt: list[int]
    response: list[int]
    weight: float = 1.0
    factors: list[float] | None = None


def encode_demonstration(record: Demonstration, codec: Codec, longest: int | None) -> Tokens:
    """Ids of a demonstration, its response cut after `longest` tokens, with the weights of its spans.

    A token belongs to the span that holds its last character; the end of text belongs to none.
    """
    ids = codec.encode_response(record.prompt, record.response)[:longest]
    factors = None
    if record.spans:
        spans = [(span.start, span.end, span.weight) for span in record.spans]
        found = at_last_character(codec.token_ranges(record.prompt, record.response, ids), spans)
        factors = [1.0 if weight is None else weight for weight in found]
    return Tokens(codec.encode_prompt(record.prompt, len(ids)), ids, record.weight, factors)


class Imitation(SupervisedTask):
    """Cross-entropy of response tokens given the prompt, averaged over tokens, each as much as its example weighs.

    Tokens with a factor below 0 are avoided instead (`weighted_likelihood_loss`).
    """

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
        return len(example.response) * example.weight

    def loss(self, examples: Sequence[Tokens]) -> LossSum:
        logprobs, mask = self._logprobs(examples)
        weights = torch.zeros_like(logprobs)
        for row, example in enumerate(examples):
            size = len(example.response)
            weights[row, :size] = example.weight * weights.new_tensor(example.factors or [1.0] * size)
        total = weighted_likelihood_loss(logprobs, weights, mask, denominator=1.0)
        return LossSum(total, sum(self.count(example) for example in examples), {})

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Tokens]) -> StepStats:
        """``loss`` in nats per token and ``perplexity``, of what is to be imitated."""
        total, tokens = 0.0, 0
        for rows in by_tokens([self.size(example) for example in examples], EVALUATION_TOKENS):
            part = [examples[row] for row in rows]
            logprobs, mask = self._logprobs(part)
            for row, example in enumerate(part):
                mask[row, [t for t, factor in enumerate(example.factors or []) if factor <= 0]] = False
            total -= float(logprobs[mask].sum())
            tokens += int(mask.sum())
        loss = total / max(tokens, 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def _logprobs(self, examples: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        device = next(self.module.parameters()).device
        prompt_ids, prompt_mask = pad_left([e.prompt for e in examples], self._codec.pad, device)
        ids, mask = pad_right([e.response for e in examples], self._codec.pad, device)
        with self._context.autocast():
            found = self.module.response_states(prompt_ids, prompt_mask, ids, mask)
            return self.module.scores(found, ids, mask, steer=False).logprobs, mask
