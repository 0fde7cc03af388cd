"""The network of a causal language model policy: trunk, language-model head, values from one trunk or two, and
action-value heads."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class PolicyNetwork(nn.Module):
    """`lm` with an optional value head.

    With ``critic="shared"`` the head reads the hidden states that `lm`'s own head reads, so that values cost one matrix
    product; with "separate" it has a trunk of its own, a copy of the policy's at the time it is made.
    """

    def __init__(self, lm: nn.Module, critic: str) -> None:
        super().__init__()
        self.lm = lm
        self.critic = critic
        self.value_head: nn.Linear | None = None
        self.value_trunk: nn.Module | None = None
        self.action_values = nn.ModuleList()
        self.steering = 0.0
        accepted = inspect.signature(self._inner().forward).parameters
        self._keeps = "logits_to_keep" in accepted
        self._positions = "position_ids" in accepted

    def _inner(self) -> Any:
        """The transformers model, inside peft's wrapper if there is one."""
        lm: Any = self.lm
        return lm.get_base_model() if hasattr(lm, "get_base_model") else lm

    def add_value_head(self) -> None:
        """Make the value head (and trunk), all zeros: before it has learnt, V = 0 everywhere."""
        if self.value_head is not None:
            return
        self.value_head = self._head(1)
        if self.critic == "separate":
            self.value_trunk = self.trunk_copy()

    def add_action_values(self, count: int) -> None:
        """Make action-value heads until there are `count`, all zeros: before they have learnt, Q = 0 everywhere."""
        while len(self.action_values) < count:
            self.action_values.append(self._head(self._inner().get_output_embeddings().weight.shape[0]))

    def _head(self, outputs: int) -> nn.Linear:
        """A linear map from hidden states to `outputs` numbers, all zeros."""
        model = self._inner()
        weight = model.get_input_embeddings().weight
        # float32 even over a bf16 trunk: values are regression targets, not probabilities
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        width = model.get_output_embeddings().weight.shape[-1]
        head = nn.Linear(width, outputs, device=weight.device, dtype=dtype)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def steered(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """``logits + steering * min over heads of Q`` (..., V), in float32 or wider; `hidden` (..., D) under them."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        with torch.autocast(hidden.device.type, enabled=False):
            weight: Any = self.action_values[0].weight
            values = torch.stack([head(hidden.to(weight.dtype)) for head in self.action_values])
        return logits + self.steering * values.amin(0).to(logits)

    def trunk_copy(self) -> nn.Module:
        """A trainable copy of the trunk as it is now, without heads and with adapters merged."""
        merged: Any = copy.deepcopy(self.lm)
        merged = merged.merge_and_unload() if hasattr(merged, "merge_and_unload") else merged
        trunk: nn.Module = merged.base_model
        return trunk.requires_grad_(True)

    def value_parameters(self) -> list[nn.Parameter]:
        """Parameters that only values depend on."""
        parts = [part for part in (self.value_head, self.value_trunk, self.action_values) if part is not None]
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    def step(self, ids: Tensor, attention: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """One step of decoding: logits (B, V) float32 after the last of `ids`, and the cache.

        Args:
            ids: (B, N) new tokens. attention: (B, S) over all tokens so far. cache: of the tokens before `ids`.
        """
        positions = _positions(attention)[:, -ids.shape[1] :]
        with self._hidden_states() as caught:
            output = self._call(ids, attention, positions, keep=1, past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1].float()
        if self.steering:
            logits = self.steered(logits, caught[0][:, -1])
        return logits, output.past_key_values

    def response_states(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        attention: Tensor,
        *,
        values: bool,
        steer: bool = True,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logits, values and hidden states at the T + 1 positions that matter for a response.

        Args:
            prompt_ids, prompt_mask: (B, P), left-padded. response_ids, attention: (B, T), right-padded. steer: whether
            logits are those that are drawn from, or the language model's own.

        Returns:
            logits (B, T + 1, V), where index t is the distribution of response token t; values (B, T + 1) in float32,
            where index t is V before token t (and index L, for a row of L tokens, V after its last); hidden (B, T + 1,
            D), what the heads read at the same places. Logits are formed for these positions only.
        """
        ids = torch.cat([prompt_ids, response_ids], 1)
        mask = torch.cat([prompt_mask, attention], 1)
        keep = response_ids.shape[1] + 1
        with self._hidden_states() as caught:
            logits = self._call(ids, mask, _positions(mask), keep=keep, use_cache=False).logits[:, -keep:]
        states = caught[0][:, -keep:]
        if steer and self.steering:
            logits = self.steered(logits, states)
        if not values:
            return logits, None, states
        if self.value_head is None:
            raise RuntimeError("values asked of a policy without a value head: call prepare() first")
        if self.value_trunk is not None:
            options = {"position_ids": _positions(mask)} if self._positions else {}
            output = self.value_trunk(input_ids=ids, attention_mask=mask.long(), use_cache=False, **options)
            hidden = output.last_hidden_state[:, -keep:]
        else:
            hidden = states
        head = self.value_head
        with torch.autocast(hidden.device.type, enabled=False):
            return logits, head(hidden.to(head.weight.dtype))[..., 0], states

    def _call(self, ids: Tensor, mask: Tensor, positions: Tensor, *, keep: int, **options: Any) -> Any:
        if self._keeps:
            options["logits_to_keep"] = keep
        if self._positions:
            options["position_ids"] = positions
        return self.lm(input_ids=ids, attention_mask=mask.long(), **options)

    @contextmanager
    def _hidden_states(self) -> Iterator[list[Tensor]]:
        """Catch what the language-model head reads: the last hidden states of just the positions that are kept."""
        caught: list[Tensor] = []
        head = self._inner().get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            yield caught
        finally:
            handle.remove()


def _positions(mask: Tensor) -> Tensor:
    """Positions that count real tokens only, so that left padding changes nothing (absolute embeddings notice)."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
