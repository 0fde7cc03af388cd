"""A policy that is a table, whose values can be worked out exactly, and stand-ins for what a stage would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rlhf_core.interfaces import Config, Context, Needs, Outputs, Policy, Sampling, TrainingData
from rlhf_core.records import Feedback, Prompt, Rating, Rollout, Sample
from rlhf_plugin_ilql.config import ILQLConfig
from rlhf_plugin_ilql.optimizer import ILQL
from torch import Tensor, nn

END = "."


class NoConfig(Config):
    """Nothing to configure."""


class Network(nn.Module):
    """A vector per state, and what is read off it: logits, V, and as many Q as asked for."""

    def __init__(self, states: int, tokens: int, width: int | None) -> None:
        super().__init__()
        self.trunk = nn.Embedding(states, width or states, dtype=torch.float64)
        size = self.trunk.embedding_dim
        nn.init.eye_(self.trunk.weight)
        self.trunk.requires_grad_(width is not None)  # one-hot: every head is a table
        self.lm = nn.Linear(size, tokens, dtype=torch.float64)
        self.value = nn.Linear(size, 1, dtype=torch.float64)
        self.action_values = nn.ModuleList()
        for head in (self.lm, self.value):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)


class TablePolicy(Policy[NoConfig]):
    """A language model whose tokens are single letters and whose state is a function of the letters so far.

    states: all that ``state_of`` may give. width: of the vector per state, which is trained along; None: one-hot vectors, so that every state is on its own.
    """

    critic = "shared"

    def __init__(
        self, letters: str, states: Sequence[str], state_of: Callable[[str], str], width: int | None = None
    ) -> None:
        super().__init__(NoConfig(), Context("policy", "table", dtype="float64"))
        self.tokens, self.state_of = letters + END, state_of
        self.states = {state: i for i, state in enumerate(states)}
        self.network = Network(len(self.states), len(self.tokens), width)

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def heads(self) -> Sequence[nn.Module]:
        return list(self.network.action_values)

    @property
    def value_parameters(self) -> list[nn.Parameter]:
        return [*self.network.value.parameters(), *self.network.action_values.parameters()]

    def prepare(self, needs: Needs) -> None:
        while len(self.network.action_values) < needs.heads:
            head = nn.Linear(self.network.trunk.embedding_dim, len(self.tokens), dtype=torch.float64)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self.network.action_values.append(head)

    def encode(self, samples: Sequence[Sample], *, temperature: float = 1.0) -> Rollout:
        rows = [[self.tokens.index(letter) for letter in sample.response + END] for sample in samples]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
        numbers = torch.arange(len(rows))
        return Rollout(
            samples=tuple(samples), prompt_ids=ids[:, :1], prompt_mask=mask[:, :1], response_ids=ids, attention=mask,
            mask=mask, logprobs=torch.zeros(ids.shape), truncated=numbers < 0, groups=numbers, sample_ids=numbers,
        )  # fmt: skip

    def forward(self, rollout: Rollout, needs: Needs) -> Outputs:
        states = torch.zeros_like(rollout.response_ids)
        for i, sample in enumerate(rollout.samples):
            for t in range(len(sample.response) + 1):
                states[i, t] = self.states[self.state_of(sample.response[:t])]
        hidden = self.network.trunk(states)  # (B, T, D)
        logits = self.network.lm(hidden)
        if self.steering:
            logits = logits + self.steering * torch.stack([head(hidden) for head in self.heads]).amin(0)
        logprobs = logits.log_softmax(-1).gather(-1, rollout.response_ids[..., None])[..., 0]
        return Outputs(logprobs, values=self.network.value(hidden)[..., 0], hidden=hidden)

    # --- what is learnt, as tables; no gradients ---

    @torch.no_grad()
    def q(self, state: str, token: str) -> float:
        hidden = self.network.trunk(torch.tensor(self.states[state]))
        return float(torch.stack([head(hidden) for head in self.heads]).amin(0)[self.tokens.index(token)])

    @torch.no_grad()
    def v(self, state: str) -> float:
        return float(self.network.value(self.network.trunk(torch.tensor(self.states[state]))))

    @torch.no_grad()
    def chances(self, state: str, steering: float) -> dict[str, float]:
        """Probability of each token, steered so much."""
        hidden = self.network.trunk(torch.tensor(self.states[state]))
        q = torch.stack([head(hidden) for head in self.heads]).amin(0)
        shares = (self.network.lm(hidden) + steering * q).softmax(-1).tolist()
        return dict(zip(self.tokens, shares, strict=True))

    # --- what a table does without ---

    def set_reference(self, source: str) -> None:
        raise NotImplementedError

    def save_reference(self, directory: Path) -> None:
        raise NotImplementedError

    def as_reference(self) -> Any:
        raise NotImplementedError

    def generate(self, prompts: Any, sampling: Sampling, *, seed: int, sample_ids: Any = None) -> Rollout:
        raise NotImplementedError

    def token_ends(self, response_ids: Sequence[int]) -> list[int]:
        raise NotImplementedError

    def demonstrations(self, records: Any, *, held_out: float) -> Any:
        raise NotImplementedError

    def export(self, directory: Path) -> None:
        raise NotImplementedError


def mean_return(
    policy: TablePolicy, reward: Callable[[str], float], steering: float, gamma: float, longest: int = 20
) -> float:
    """The exact expected discounted return, where `reward` depends on the state alone; beyond `longest` letters it is 0."""
    worth = dict.fromkeys(policy.states, 0.0)  # with no letter left to write
    for _ in range(longest):
        worth = {
            state: sum(
                chance * (reward(state) if token == END else gamma * worth[policy.state_of(state + token)])
                for token, chance in policy.chances(state, steering).items()
            )
            for state in policy.states
        }
    return worth[""]


class Records(TrainingData):
    """Feedback from memory, and nothing else."""

    def __init__(self, records: Iterable[Feedback]) -> None:
        self.records, self.step = list(records), 0

    def begin(self, step: int) -> None:
        self.step = step

    @property
    def sampling(self) -> Sampling:
        raise NotImplementedError

    def prompts(self, count: int) -> list[Prompt]:
        raise NotImplementedError

    def rollout(self, prompts: Any, **options: Any) -> Rollout:
        raise NotImplementedError

    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        raise NotImplementedError

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        return (record for record in self.records if kind in (None, record.kind))


def rated(response: str, reward: float, weight: float = 1.0, prompt: str = "p:") -> Rating:
    return Rating(prompt=prompt, response=response, score=reward, scale=(0, 1), weight=weight)


def make_ilql(policy: Any, total_steps: int = 1, seed: int = 0, **config: Any) -> ILQL:
    """ILQL bound to `policy`, by default with gradients that are not clipped."""
    context = Context("optimizer", "mine", seed, dtype=policy.context.dtype, warn=config.pop("warn", lambda _: None))
    ilql = ILQL(ILQLConfig(**{"max_grad_norm": 1e9, **config}), context)
    ilql.bind(policy, total_steps)
    return ilql


def train(ilql: ILQL, data: Any, steps: int, start: int = 0) -> list[dict[str, float]]:
    """The stage's loop; the statistics of each step."""
    history = []
    for step in range(start, start + steps):
        data.begin(step)
        history.append(dict(ilql.step(data)))
    return history


def nudge(*modules: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Move all trainable weights, so that nothing is 0 or equal any more; slow copies too."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in modules:
            for p in module.parameters():
                p.add_(scale * torch.randn(p.shape, generator=noise, dtype=torch.float64).to(p))


def gradients(ilql: ILQL, records: Iterable[Feedback]) -> dict[str, Tensor]:
    """The gradients that the next step would take; the weights and slow copies stay."""
    module, found = ilql.policy.module, {}

    class Recorder:
        def step(self, frozen: Any = ()) -> dict[str, float]:
            for name, p in module.named_parameters():
                found[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
                p.grad = None
            return {"grad_norm": 0.0}

    kept, ilql.gradient = ilql.gradient, Recorder()  # type: ignore[assignment]
    slow = {name: tensor.clone() for name, tensor in ilql.targets.state_dict().items()}
    try:
        ilql.step(Records(records))
    finally:
        ilql.gradient = kept
        ilql.targets.load_state_dict(slow)
    return found


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm of the first."""
    difference = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    return math.sqrt(difference / sum(float(t.double().square().sum()) for t in a.values()))
