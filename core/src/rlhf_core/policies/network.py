"""The network of a policy: trunk, language-model head, a critic on one of three trunks, and action-value heads."""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .base import Base, Speaker, checkpoint_layers, headless


class PolicyNetwork(Speaker):
    """A language model with an optional value head; a subclass says what it reads and how it decodes.

    With ``critic="shared"`` the head reads the hidden states that the language-model head reads, so that values cost
    one matrix product; with "adapter" those of the same base under the critic's adapter; with "separate" those of a
    trunk of its own, a copy of the policy's at the time it is made.

    Args:
        model: a transformers language model. base: the one that `model` is, if its layers carry adapters.
        role: the name of the policy's adapter in `base`.
        checkpointing: whether trunks made here keep only their layers' inputs for the backward pass.
    """

    def __init__(
        self,
        model: Any,
        critic: str,
        base: Base | None = None,
        role: str = "",
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(base)
        self.lm: nn.Module = model if base is None else base.lm
        self.critic, self.role, self.critic_role = critic, role, ""
        self.checkpointing = checkpointing
        self.value_head: nn.Linear | None = None
        self.value_trunk: nn.Module | None = None
        self.action_values = nn.ModuleList()
        self.steering = 0.0
        self._accepts = set(inspect.signature(self.model.forward).parameters)

    @property
    def roles(self) -> tuple[str, ...]:
        return self.role, self.critic_role

    @property
    def model(self) -> Any:
        """The transformers model, inside peft's wrapper if there is one."""
        lm: Any = self.lm
        return lm.get_base_model() if hasattr(lm, "get_base_model") else lm

    @cached_property
    def trunk(self) -> Any:
        """The transformers model without its heads."""
        return headless(self.model)

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
            self.action_values.append(self._head(self.model.get_output_embeddings().weight.shape[0]))

    def _head(self, outputs: int) -> nn.Linear:
        """A linear map from hidden states to `outputs` numbers, all zeros."""
        model = self.model
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
        """A trainable copy of the trunk as it is now, without heads and with the policy's adapter merged."""
        if self.base is None:
            trunk: Any = copy.deepcopy(self.trunk)
        else:
            trunk = headless(self.base.whole(self.role))
            if self.checkpointing:
                checkpoint_layers(trunk, None)
        return trunk.requires_grad_(True)  # type: ignore[no-any-return]

    def policy_weights(self) -> dict[str, nn.Parameter]:
        """The trainable parameters of the language model itself, without those of the critic."""
        if self.base is not None:
            return self.base.weights(self.role)
        return {name: p for name, p in self.lm.named_parameters() if p.requires_grad}

    def value_parameters(self) -> list[nn.Parameter]:
        """Parameters that only values depend on."""
        parts = [part for part in (self.value_head, self.value_trunk, self.action_values) if part is not None]
        own = [p for part in parts for p in part.parameters() if p.requires_grad]
        if self.base is not None and self.critic == "adapter":
            own.extend(self.base.weights(self.critic_role).values())
        return own

    def trainable(self) -> dict[str, nn.Parameter]:
        """All trainable parameters by names that do not depend on what else shares the base."""
        names = {id(p): f"lm.{name}" for name, p in self.policy_weights().items()}
        if self.base is not None and self.critic == "adapter":
            names.update({id(p): f"critic.{name}" for name, p in self.base.weights(self.critic_role).items()})
        return {names.get(id(p), name): p for name, p in self.named_parameters() if p.requires_grad}

    @abstractmethod
    def step(self, ids: Tensor, attention: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """One step of decoding: logits (B, V) float32 after the last of `ids`, and the cache.

        Args:
            ids: (B, N) new tokens: first the prompt, then one by one. attention: (B, S) over all tokens so far.
            cache: of the tokens before `ids`; None at first.
        """

    @abstractmethod
    def inputs(
        self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, attention: Tensor
    ) -> dict[str, Tensor]:
        """What the model reads, as arguments of its `forward`, such that the last T + 1 hidden states are those before
        each response token and the one after the last. Shapes as in `response_states`."""

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
        keep = response_ids.shape[1] + 1
        inputs = self.inputs(prompt_ids, prompt_mask, response_ids, attention)
        # before the policy's pass, so that backward has done with the policy's graph when it comes to the critic's
        critic = self._critic_states(inputs, keep) if values else None
        with self.speaking(self.role), self._hidden_states() as caught:
            logits = self._call(inputs, keep=keep, use_cache=False).logits[:, -keep:]
        states = caught[0][:, -keep:]
        if steer and self.steering:
            logits = self.steered(logits, states)
        return logits, self._values(states if critic is None else critic) if values else None, states

    def _critic_states(self, inputs: dict[str, Tensor], keep: int) -> Tensor | None:
        """(B, T + 1, D) hidden states of a critic that has its own; None where it reads the policy's.

        Over a shared base its graph is not kept but made again in the backward pass: the policy's and the critic's
        would be as large as two models'.
        """
        trunk = self.trunk if self.critic == "adapter" else self.value_trunk
        if trunk is None:
            return None
        known = inspect.signature(trunk.forward).parameters
        arguments = {name: value for name, value in inputs.items() if name in known}

        def run() -> Tensor:
            with self.speaking(self.critic_role) if self.critic == "adapter" else nullcontext():
                states: Tensor = trunk(**arguments, use_cache=False).last_hidden_state
            return states[:, -keep:]

        if self.critic == "separate" or self.checkpointing or not torch.is_grad_enabled():
            return run()
        again: Tensor = checkpoint(run, use_reentrant=False)
        return again

    def _values(self, states: Tensor) -> Tensor:
        """(B, T + 1) values from the hidden states (B, T + 1, D) that the critic reads."""
        head = self.value_head
        if head is None:
            raise RuntimeError("values asked of a policy without a value head: call prepare() first")
        with torch.autocast(states.device.type, enabled=False):
            found: Tensor = head(states.to(head.weight.dtype))[..., 0]
        return found

    def _call(self, inputs: dict[str, Tensor], *, keep: int, **options: Any) -> Any:
        """The language model's output, whose logits are formed for the last `keep` positions where it can do so."""
        if "logits_to_keep" in self._accepts:
            options["logits_to_keep"] = keep
        known = {k: v for k, v in inputs.items() if k in self._accepts}
        return self.lm(**known, **options)

    @contextmanager
    def _hidden_states(self) -> Iterator[list[Tensor]]:
        """Catch what the language-model head reads: the last hidden states of just the positions that are kept."""
        caught: list[Tensor] = []
        head = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            yield caught
        finally:
            handle.remove()


class CausalNetwork(PolicyNetwork):
    """A decoder-only model: it reads prompt and response as one text."""

    def step(self, ids: Tensor, attention: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        inputs = {"input_ids": ids, "attention_mask": attention.long(), "position_ids": positions(attention)}
        inputs["position_ids"] = inputs["position_ids"][:, -ids.shape[1] :]
        with self.speaking(self.role), self._hidden_states() as caught:
            output = self._call(inputs, keep=1, past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1].float()
        if self.steering:
            logits = self.steered(logits, caught[0][:, -1])
        return logits, output.past_key_values

    def inputs(
        self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, attention: Tensor
    ) -> dict[str, Tensor]:
        mask = torch.cat([prompt_mask, attention], 1)
        return {
            "input_ids": torch.cat([prompt_ids, response_ids], 1),
            "attention_mask": mask.long(),
            "position_ids": positions(mask),
        }


def positions(mask: Tensor) -> Tensor:
    """Positions that count real tokens only, so that left padding changes nothing (absolute embeddings notice)."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
