"""Credit inside a text: a second head that says what each token is worth, handed on as spans of characters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..policies.text import pad_right
from ..records import Span
from ..training import by_tokens
from .config import TextRewardConfig
from .network import TextNetwork
from .text import TextReward

C = TypeVar("C", bound=TextRewardConfig)


class CreditNetwork(TextNetwork):
    """A text network with `credits` more numbers per token. Before it has learnt, all of them are 0."""

    def __init__(
        self,
        trunk: nn.Module,
        hidden_size: int,
        pooling: str,
        generator: torch.Generator,
        outputs: int = 1,
        credits: int = 1,
    ) -> None:
        super().__init__(trunk, hidden_size, pooling, generator, outputs)
        self.credit_head = nn.Linear(hidden_size, credits, dtype=self.head.weight.dtype)
        nn.init.zeros_(self.credit_head.weight)
        nn.init.zeros_(self.credit_head.bias)

    def both(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids, mask: (B, S), right-padded. Returns outputs (B, K) and the credits of every token (B, S, C).

        In a decoder a token's credit follows from what comes before it; nothing after it is seen. Both are float32 or
        better; what stands in padding means nothing.
        """
        states = self.states(ids, mask)
        pooled = self.pooled(states, mask)
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled), self.credit_head(states.to(pooled.dtype))


class CreditReward(TextReward[C]):
    """A text reward whose network is a `CreditNetwork`."""

    network: CreditNetwork

    def both(self, texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Outputs (B, K) and credits (B, S, C) of encoded texts, with gradient if gradients are on."""
        ids, mask = pad_right(texts, self.codec.pad, self.context.device)
        with self.context.autocast():
            return self.network.both(ids, mask)

    @torch.no_grad()
    def predict_both(self, texts: Sequence[list[int]]) -> tuple[Tensor, list[Tensor]]:
        """Outputs (N, K) of any number of encoded texts, and of each text the credits of its tokens (S, C).

        Without dropout or gradient, within the token budget, as `predict`.
        """
        self.network.eval()
        outputs = torch.zeros(len(texts), self.network.head.out_features, device=self.context.device)
        credits: list[Tensor] = [outputs] * len(texts)
        for rows in by_tokens([len(text) for text in texts], self.config.micro_batch_tokens):
            found, of_tokens = self.both([texts[row] for row in rows])
            outputs[rows] = found.to(outputs)
            for row, own in zip(rows, of_tokens, strict=True):
                credits[row] = own[: len(texts[row])]
        return outputs, credits


def credit_spans(response: str, ranges: Sequence[tuple[int, int]], credits: Sequence[float]) -> tuple[Span, ...]:
    """Credits of response tokens as spans; tokens that share a character share a span, and what is 0 has none.

    Args:
        ranges: of the tokens, as `Codec.token_ranges` gives them. credits: one for each of them.
    """
    whole: dict[tuple[int, int], float] = defaultdict(float)
    for (start, end), credit in zip(ranges, credits, strict=True):
        whole[max(start, 0), min(end, len(response))] += credit
    return tuple(Span(start, end, credit) for (start, end), credit in whole.items() if end > start and credit != 0)
