"""Credit inside a text: a second head that says what each token is worth, handed on as spans of characters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..policies.text import Codec
from ..records import Span
from .network import TextNetwork


class CreditNetwork(TextNetwork):
    """A text network with one more number per token. Before it has learnt, every credit is 0."""

    def __init__(
        self, trunk: nn.Module, hidden_size: int, pooling: str, generator: torch.Generator, outputs: int = 1
    ) -> None:
        super().__init__(trunk, hidden_size, pooling, generator, outputs)
        self.credit_head = nn.Linear(hidden_size, 1, dtype=self.head.weight.dtype)
        nn.init.zeros_(self.credit_head.weight)
        nn.init.zeros_(self.credit_head.bias)

    def both(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids, mask: (B, S), right-padded. Returns outputs (B, K), and the credit of every token (B, S), 0 in padding.

        In a decoder a token's credit follows from what comes before it; nothing after it is seen.
        """
        states = self.states(ids, mask)
        pooled = self.pooled(states, mask)
        with torch.autocast(pooled.device.type, enabled=False):
            credits = self.credit_head(states.to(pooled.dtype))[..., 0]
            return self.head(pooled), credits.masked_fill(~mask, 0.0)


def credit_spans(codec: Codec, response: str, ids: Sequence[int], credits: Sequence[float]) -> tuple[Span, ...]:
    """Credits of response tokens as spans: one per token that has characters of its own and a credit other than 0.

    Args:
        ids: of `response`, as `codec.encode_response` gave them. credits: one for each of them.
    """
    ranges = codec.token_ranges(response, ids)
    inside = [
        (max(start, 0), min(end, len(response)), credit) for (start, end), credit in zip(ranges, credits, strict=True)
    ]
    return tuple(Span(start, end, credit) for start, end, credit in inside if end > start and credit != 0)
