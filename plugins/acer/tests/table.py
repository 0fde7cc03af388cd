"""A policy over three tokens that is a table, so that everything about it can be added up over all sequences."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rlhf_core.interfaces import Config, Context, Needs, Outputs, Policy, Sampling, SupervisedTask
from rlhf_core.records import Demonstration, Prompt, Rollout, Sample
from rlhf_plugin_acer.config import ACERConfig
from rlhf_plugin_acer.optimizer import ACER
from torch import Tensor, nn

V = 3
STEPS = 2
STATES = 1 + V + V * V  # nothing yet; after one token; after two


class NoConfig(Config):
    """Nothing to configure."""


class Table(Policy[NoConfig]):
    """One row of logits and one of action values per state; a state is the tokens so far. float64."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(NoConfig(), Context("policy", "table"))
        self.network = nn.Module()
        self.network.logits = nn.Parameter(logits.clone())  # (STATES, V)
        self.network.q = nn.Linear(STATES, V, dtype=torch.float64)
        nn.init.zeros_(self.network.q.weight)
        nn.init.zeros_(self.network.q.bias)

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def heads(self) -> Sequence[nn.Module]:
        return [self.network.q]  # type: ignore[list-item]

    @property
    def value_parameters(self) -> list[nn.Parameter]:
        return list(self.heads[0].parameters())

    @torch.no_grad()
    def set_q(self, q: Tensor) -> None:
        """q: (STATES, V)"""
        self.network.q.weight.copy_(q.T)  # type: ignore[union-attr, operator]

    def forward(self, rollout: Rollout, needs: Needs) -> Outputs:
        states = states_of(rollout.response_ids)
        distribution = self.network.logits[states].log_softmax(-1)  # type: ignore[index]
        logprobs = distribution.gather(-1, rollout.response_ids[..., None])[..., 0]
        entropy = -(distribution.exp() * distribution).sum(-1)
        hidden = torch.eye(STATES, dtype=torch.float64)[states]
        return Outputs(logprobs, entropy=entropy if needs.entropy else None, distribution=distribution, hidden=hidden)

    def prepare(self, needs: Needs) -> None: ...
    def set_reference(self, source: str) -> None: ...
    def save_reference(self, directory: Path) -> None: ...
    def as_reference(self) -> Any:
        return nullcontext()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, **options: Any) -> Rollout:
        raise NotImplementedError

    def encode(self, samples: Sequence[Sample], *, temperature: float = 1.0) -> Rollout:
        raise NotImplementedError

    def token_ends(self, response_ids: Sequence[int]) -> list[int]:
        raise NotImplementedError

    def demonstrations(self, records: Iterable[Demonstration], *, held_out: float) -> SupervisedTask:
        raise NotImplementedError

    def export(self, directory: Path) -> None:
        raise NotImplementedError


def states_of(ids: Tensor) -> Tensor:
    """(B, T) numbers of the states before each token, T at most 3."""
    first = torch.zeros_like(ids[:, 0])
    after_one = 1 + ids[:, 0]
    columns = [first, after_one]
    if ids.shape[1] > 2:
        columns.append(1 + V + V * ids[:, 0] + ids[:, 1])
    return torch.stack(columns[: ids.shape[1]], 1)


def table(seed: int, scale: float = 1.0) -> Tensor:
    """(STATES, V) random numbers."""
    noise = torch.Generator().manual_seed(seed)
    return scale * torch.randn(STATES, V, generator=noise, dtype=torch.float64)


def every_sequence(mu: Tensor, rewards: Tensor, steps: int = STEPS, top_k: int = V) -> Rollout:
    """All V ** steps responses, as if behaviour `mu` had drawn each once; `mu`, `rewards`: (STATES, V), mu in logits."""
    ids = torch.tensor(list(itertools.product(range(V), repeat=steps)))
    count, states, logmu = len(ids), states_of(ids), mu.log_softmax(-1)
    top = logmu[states].topk(top_k, -1)
    everything, numbers = torch.ones_like(ids).bool(), torch.arange(count)
    return Rollout(
        samples=(Sample(Prompt(text="?"), "!"),) * count, prompt_ids=ids[:, :1], prompt_mask=everything[:, :1],
        response_ids=ids, attention=everything, mask=everything, logprobs=logmu[states, ids],
        truncated=torch.zeros(count).bool(), groups=numbers, sample_ids=numbers, rewards=rewards[states, ids],
        top_ids=top.indices, top_logprobs=top.values,
    )  # fmt: skip


def exact_q(logits: Tensor, rewards: Tensor, steps: int = STEPS, gamma: float = 1.0) -> Tensor:
    """(STATES, V) action values of the policy with these logits, from the last step backwards."""
    pi, q = logits.softmax(-1), rewards.clone()
    if steps == 2:
        q[0] = rewards[0] + gamma * (pi[1 : 1 + V] * q[1 : 1 + V]).sum(-1)
    return q


def make(policy: Policy[Any], **config: Any) -> ACER:
    """ACER bound to `policy`, without a trust region unless asked."""
    defaults = {"prompts_per_step": 1, "top_k": 1, "trust_region": None}
    acer = ACER(ACERConfig(**{**defaults, **config}), Context("optimizer", "mine"))
    acer.bind(policy, 1)
    return acer


def gradient(acer: ACER, rollout: Rollout, row: int) -> Tensor:
    """(STATES, V) of the loss of one sample by the logits, times its tokens."""
    part = rollout.select([row])
    acer.loss(part, 1.0)[0].backward()  # type: ignore[no-untyped-call]
    logits = acer.policy.module.logits
    assert isinstance(logits, nn.Parameter) and logits.grad is not None
    found = logits.grad.clone()
    acer.gradient.clear()
    return found
