"""The network of a policy: trunk, language-model head, a critic on one of three trunks, and action-value heads."""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..functional import token_entropy, token_logprobs
from ..functional._tensors import wide
from ..training.sharding import Shards
from .base import Base, Speaker, checkpoint_layers, copy_into, headless

if TYPE_CHECKING:
    from accelerate import Accelerator

LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}  # formed at a time; their float32 takes 32 and 256 MiB


class States(NamedTuple):
    """What a network computes at the T + 1 positions that matter for a response: those before each of its tokens, and
    the one after the last.

    states: (B, T + 1, D), what the heads read. values: (B, T + 1) float32, where index t is V before token t (and index
    L, for a row of L tokens, V after its last). logits: (B, T + 1, V), of a model that does more than its output layer.
    """

    states: Tensor
    values: Tensor | None
    logits: Tensor | None


class Scored(NamedTuple):
    """Of each token of a response, (B, T) or (B, T, K), in float32 or wider, 0 in padding."""

    logprobs: Tensor
    entropy: Tensor | None
    top_logprobs: Tensor | None
    top_ids: Tensor | None


class PolicyNetwork(Speaker):
    """A language model with an optional value head; a subclass says what it reads and how it decodes.

    With ``critic="shared"`` the head reads the hidden states that the language-model head reads, so that values cost
    one matrix product; with "adapter" those of the same base under the critic's adapter; with "separate" those of a
    trunk of its own, a copy of the policy's at the time it is made.

    Args:
        model: a transformers language model. base: the one that `model` is, if its layers carry adapters.
        role: the name of the policy's adapter in `base`.
        checkpointing: whether trunks made here keep only their layers' inputs for the backward pass.
        compiled: whether trunks are compiled for scoring and updates; decoding is not.
    """

    def __init__(
        self,
        model: Any,
        critic: str,
        base: Base | None = None,
        role: str = "",
        *,
        checkpointing: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(base)
        self.lm: nn.Module = model if base is None else base.lm
        self.critic, self.role, self.critic_role = critic, role, ""
        self.checkpointing, self.compiled = checkpointing, compiled
        self._forms: dict[nn.Module, Any] = {}  # of trunks, compiled
        self.value_head: nn.Linear | None = None
        self.value_trunk: nn.Module | None = None
        self.action_values = nn.ModuleList()
        self.steering = 0.0
        self.shards: Shards | None = None
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
        logits = wide(logits)
        with torch.autocast(hidden.device.type, enabled=False):
            weight: Any = self.action_values[0].weight
            values = torch.stack([head(hidden.to(weight.dtype)) for head in self.action_values])
        return logits + self.steering * values.amin(0).to(logits)

    def trunk_copy(self) -> nn.Module:
        """A trainable copy of the trunk as it is now, without heads and with the policy's adapter merged."""
        if self.shards is not None:
            self.shards.gather()
            with torch.random.fork_rng(devices=[]):
                model = type(self.model)(copy.deepcopy(self.model.config)).to(self.model.get_input_embeddings().weight)
            trunk: Any = headless(model)
            copy_into(dict(trunk.named_parameters()), dict(self.trunk.named_parameters()), "copy of the policy")
            if self.checkpointing:
                checkpoint_layers(trunk, None)
        elif self.base is None:
            trunk = copy.deepcopy(self.trunk)
        else:
            trunk = headless(self.base.whole(self.role))
            if self.checkpointing:
                checkpoint_layers(trunk, None)
        return trunk.requires_grad_(True)  # type: ignore[no-any-return]

    def share_out(self, layers: Sequence[nn.Module], accelerator: Accelerator) -> None:
        """From now on this process keeps its part of `layers` only; every process does it at the same time."""
        self._saved = frozenset(self.model.state_dict())
        self.shards = Shards(self.trunk, layers, accelerator)

    def weights(self) -> dict[str, Tensor]:
        """The language model's parameters and buffers as files hold them, where they are shared out and gathered."""
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        return {name: tensor.detach() for name, tensor in tensors if name in self._saved}

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
    def step(self, ids: Tensor, attention: Tensor, cache: Any = None) -> tuple[Tensor, Tensor, Any]:
        """One step of decoding: logits (B, V) float32 after the last of `ids`, the states (B, D) that the heads read
        there, and the cache. Nothing is steered.

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
        values: bool = False,
    ) -> States:
        """The hidden states at the T + 1 positions that matter for a response, and values.

        Args:
            prompt_ids, prompt_mask: (B, P), left-padded. response_ids, attention: (B, T), right-padded.
        """
        keep = response_ids.shape[1] + 1
        if self.shards is not None:  # whole while nothing is learnt
            self.shards.split() if torch.is_grad_enabled() else self.shards.gather()
        inputs = self.inputs(prompt_ids, prompt_mask, response_ids, attention)
        # before the policy's pass, so that backward has done with the policy's graph when it comes to the critic's
        critic = self._critic_states(inputs, keep) if values else None
        whole: Tensor | None = None
        with self.speaking(self.role):
            if self.plain_head:
                states = self._run(self.trunk, inputs)[:, -keep:]
            else:
                with self._hidden_states() as caught:
                    whole = self._call(inputs, keep=keep, use_cache=False).logits[:, -keep:]
                states = caught[0][:, -keep:]
        return States(states, self.values(states if critic is None else critic) if values else None, whole)

    def response_values(
        self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, attention: Tensor
    ) -> Tensor:
        """The values (B, T + 1) of `response_states` alone: a critic of its own lets the policy rest."""
        inputs = self.inputs(prompt_ids, prompt_mask, response_ids, attention)
        states = self._critic_states(inputs, response_ids.shape[1] + 1)
        if states is None:
            found = self.response_states(prompt_ids, prompt_mask, response_ids, attention, values=True).values
            assert found is not None
            return found
        return self.values(states)

    @cached_property
    def plain_head(self) -> bool:
        """Whether logits are what the output layer makes of the trunk's states, with nothing before or behind it such
        as a scale or a cap: the model itself is asked, with two tokens and an output layer that says what we know."""
        head = self.model.get_output_embeddings()
        device = next(self.parameters()).device
        ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        some = torch.ones(1, 1, dtype=torch.bool, device=device)
        inputs = self.inputs(ids, some, ids, some)
        said = torch.linspace(-100, 100, 2 * head.weight.shape[0], device=device, dtype=head.weight.dtype)
        said = said.view(1, 2, -1)
        training = self.training
        self.eval()  # dropout would answer for the model, and take random numbers from who asked
        handle = head.register_forward_hook(lambda *_: said)
        try:
            with torch.no_grad(), self.speaking(self.role), torch.autocast(device.type, enabled=False):
                with self._hidden_states() as read:
                    logits = self._call(inputs, keep=2, use_cache=False).logits
                states = self._run(self.trunk, inputs)
        finally:
            handle.remove()
            self.train(training)
        return torch.equal(logits, said) and torch.allclose(read[0], states, rtol=1e-3, atol=1e-5)

    def _run(self, trunk: Any, inputs: dict[str, Tensor]) -> Tensor:
        """The states (B, S, D) of a trunk."""
        known = inspect.signature(trunk.forward).parameters
        arguments = {name: value for name, value in inputs.items() if name in known}
        if self.compiled and trunk not in self._forms:
            self._forms[trunk] = torch.compile(trunk, dynamic=True)
        states: Tensor = self._forms.get(trunk, trunk)(**arguments, use_cache=False).last_hidden_state
        return states

    def scores(
        self,
        found: States,
        ids: Tensor,
        attention: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        top_k: int = 0,
        steer: bool = True,
    ) -> Scored:
        """What the distributions say of the tokens of a response. Logits are formed for real tokens only, and so many
        at a time that they take a fixed amount of memory whatever the vocabulary; parts are formed again in backward.

        Args:
            found: of `response_states`. ids, attention: (B, T). steer: whether logits are those that are drawn from, or
                the language model's own.
        """
        places = attention.flatten().nonzero()[:, 0]  # (N,)
        shape, wanted = ids.shape, ids.flatten()[places]
        states = found.states[:, :-1].flatten(0, 1).index_select(0, places)  # (N, D)
        whole = None if found.logits is None else found.logits[:, :-1].flatten(0, 1).index_select(0, places)

        def part(begin: int, end: int, states: Tensor) -> tuple[Tensor, ...]:
            logits = self._logits(states, None if whole is None else whole[begin:end], steer=steer)
            if temperature != 1.0:
                logits = logits / temperature
            answers = [token_logprobs(logits, wanted[begin:end])]
            if entropy:
                answers.append(token_entropy(logits))
            if top_k:
                top = logits.log_softmax(-1).topk(top_k, dim=-1)
                answers += [top.values, top.indices]
            return tuple(answers)

        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        size = max(1, LOGITS.get(states.device.type, LOGITS["cuda"]) // vocabulary)
        parts = []
        for begin in range(0, max(len(places), 1), size):
            cut = states[begin : begin + size]
            if size < len(places) and torch.is_grad_enabled():
                parts.append(checkpoint(part, begin, begin + size, cut, use_reentrant=False))
            else:
                parts.append(part(begin, begin + size, cut))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]

        def spread(column: Tensor) -> Tensor:
            """(B, T, ...), 0 in padding."""
            table = column.new_zeros(shape.numel(), *column.shape[1:])
            return table.index_copy(0, places, column).view(*shape, *column.shape[1:])

        spreads = iter([spread(column) for column in columns])
        return Scored(
            next(spreads),
            next(spreads) if entropy else None,
            *((next(spreads), next(spreads)) if top_k else (None, None)),
        )

    def distribution(self, found: States, temperature: float = 1.0) -> Tensor:
        """log-probabilities (B, T, V) of the whole vocabulary, as large as they are."""
        whole = None if found.logits is None else found.logits[:, :-1]
        return (self._logits(found.states[:, :-1], whole, steer=True) / temperature).log_softmax(-1)

    def _logits(self, states: Tensor, whole: Tensor | None, *, steer: bool) -> Tensor:
        """Logits (..., V) in float32 or wider over the states (..., D); `whole`: what the model itself made of them."""
        if whole is None:
            with self.speaking(self.role):
                whole = self.model.get_output_embeddings()(states)
        # in full precision first: a quotient in bf16 would be rounded before the softmax sees it
        logits = wide(whole)
        return self.steered(logits, states) if steer and self.steering else logits

    def _critic_states(self, inputs: dict[str, Tensor], keep: int) -> Tensor | None:
        """(B, T + 1, D) hidden states of a critic that has its own; None where it reads the policy's.

        Over a shared base its graph is not kept but made again in the backward pass: the policy's and the critic's
        would be as large as two models'.
        """
        trunk = self.trunk if self.critic == "adapter" else self.value_trunk
        if trunk is None:
            return None

        def run() -> Tensor:
            with self.speaking(self.critic_role) if self.critic == "adapter" else nullcontext():
                return self._run(trunk, inputs)[:, -keep:]

        if self.critic == "separate" or self.checkpointing or not torch.is_grad_enabled():
            return run()
        again: Tensor = checkpoint(run, use_reentrant=False)
        return again

    def values(self, states: Tensor) -> Tensor:
        """Values (...) from the hidden states (..., D) that the critic reads."""
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

    def step(self, ids: Tensor, attention: Tensor, cache: Any = None) -> tuple[Tensor, Tensor, Any]:
        inputs = {"input_ids": ids, "attention_mask": attention.long(), "position_ids": positions(attention)}
        inputs["position_ids"] = inputs["position_ids"][:, -ids.shape[1] :]
        with self.speaking(self.role), self._hidden_states() as caught:
            output = self._call(inputs, keep=1, past_key_values=cache, use_cache=True)
        return wide(output.logits[:, -1]), caught[0][:, -1], output.past_key_values

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
