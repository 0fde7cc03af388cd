"""A trunk with two heads: how good is the text, and what became of each of its tokens?"""

from __future__ import annotations

import torch
from rlhf_core.rewards.network import TextNetwork
from torch import Tensor, nn

DELETED, KEPT, INSERTED = range(3)


class EditNetwork(TextNetwork):
    """`TextNetwork` with three logits per token: that an editor deletes, keeps or has inserted it.

    A decoder's token sees the prompt and what stands before it, so its logits judge saying this word here, whatever
    follows.
    """

    def __init__(self, trunk: nn.Module, hidden_size: int, pooling: str, generator: torch.Generator) -> None:
        super().__init__(trunk, hidden_size, pooling, generator)
        self.token_head = nn.Linear(hidden_size, 3, dtype=self.head.weight.dtype)
        nn.init.zeros_(self.token_head.weight)  # no opinion before it is trained
        nn.init.zeros_(self.token_head.bias)

    def judge(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids, mask: (B, S), right-padded. Returns scores (B,) and token logits (B, S, 3), in float32 or better."""
        states = self.states(ids, mask)
        pooled = self.pooled(states, mask)
        with torch.autocast(states.device.type, enabled=False):
            scores: Tensor = self.head(pooled)[:, 0]
            logits: Tensor = self.token_head(states.to(pooled.dtype))
        return scores, logits


def credit(logits: Tensor) -> Tensor:
    """(..., 3) to (...): P(inserted) - P(deleted), from -1 to 1."""
    chances = logits.softmax(-1)
    return chances[..., INSERTED] - chances[..., DELETED]
