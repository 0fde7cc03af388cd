"""A policy over three tokens that can be enumerated, a tiny language model, and what a stage would give the optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rlhf_core.components.config import FunctionRewardConfig
from rlhf_core.components.function import FunctionReward
from rlhf_core.interfaces import Config, Context, Needs, Outputs, PromptSource, Sampling, TrainingData
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.records import Feedback, Prompt, Rollout, Sample
from rlhf_core.rl.config import SingleTurnConfig
from rlhf_core.rl.data import StageData
from rlhf_core.rl.environment import SingleTurn
from rlhf_core.rl.rewards import RewardMix
from rlhf_core.rl.sampler import Sampler
from rlhf_core.testing import tiny_context, tiny_policy
from rlhf_plugin_trpo.config import TRPOConfig
from rlhf_plugin_trpo.optimizer import TRPO
from torch import Tensor, nn

SEQUENCES = list(itertools.product(range(3), repeat=2))
"""All nine responses of the policy over three tokens."""


class NoConfig(Config):
    """Nothing to configure."""


class Prompts(PromptSource[NoConfig]):
    """Prompts from memory."""

    def __init__(self, *texts: str) -> None:
        super().__init__(NoConfig(), Context())
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Prompt:
        return Prompt(text=self.texts[index])


class Table(nn.Module):
    """Logits of three tokens in four states (the beginning, and after each first token), bilinear in 14 weights."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(5)
        self.states = nn.Parameter(torch.randn(4, 2, generator=noise, dtype=torch.float64).to(dtype))
        self.tokens = nn.Parameter(torch.randn(2, 3, generator=noise, dtype=torch.float64).to(dtype))
        self.values = nn.Parameter(torch.zeros(4, dtype=dtype))

    def log_policy(self) -> Tensor:
        """(4, 3)."""
        return (self.states @ self.tokens).log_softmax(-1)


class Enumerable:
    """As much of a policy as TRPO looks at, over three tokens and responses of two."""

    critic = "separate"

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.module = Table(dtype)
        self.context = Context("policy", "table")
        self.changes = 0
        self.gives = True

    @property
    def value_parameters(self) -> list[nn.Parameter]:
        return [self.module.values]

    @property
    def weights(self) -> list[nn.Parameter]:
        """Those of the policy."""
        return [self.module.states, self.module.tokens]

    def prepare(self, needs: Needs) -> None:
        """It has what it needs."""

    def weights_changed(self) -> None:
        self.changes += 1

    def states_of(self, ids: Tensor) -> Tensor:
        """(B, 2) which state each token is chosen in."""
        return torch.stack([torch.zeros_like(ids[:, 0]), ids[:, 0] + 1], 1)

    def forward(self, rollout: Rollout, needs: Needs) -> Outputs:
        states = self.states_of(rollout.response_ids)
        table = self.module.log_policy()[states]  # (B, 2, 3)
        return Outputs(
            logprobs=table.gather(-1, rollout.response_ids[..., None])[..., 0],
            values=self.module.values[states] if needs.values else None,
            distribution=table if needs.distribution and self.gives else None,
        )

    def rollout(self, counts: Sequence[int], rewards: Sequence[float]) -> Rollout:
        """`counts[i]` samples of sequence i, each paid `rewards[i]` at its end."""
        picked = [i for i, count in enumerate(counts) for _ in range(count)]
        ids = torch.tensor([SEQUENCES[i] for i in picked])
        rows, dtype = len(picked), self.module.states.dtype
        paid = torch.zeros(rows, 2, dtype=dtype)
        paid[:, 1] = torch.tensor([rewards[i] for i in picked], dtype=dtype)
        real, numbers = torch.ones(rows, 2, dtype=torch.bool), torch.arange(rows)
        rollout = Rollout(
            samples=(Sample(Prompt(text="?"), "!"),) * rows, prompt_ids=ids[:, :1] * 0, prompt_mask=real[:, :1],
            response_ids=ids, attention=real, mask=real, logprobs=torch.zeros(rows, 2), truncated=~real[:, 0],
            groups=numbers, sample_ids=numbers, rewards=paid, score=paid[:, 1],
        )  # fmt: skip
        with torch.no_grad():
            now = self.forward(rollout, Needs(values=True))
        return rollout.replace(logprobs=now.logprobs, values=now.values)


class Given(TrainingData):
    """Rollouts made beforehand: the same one in every step."""

    sampling = Sampling()

    def __init__(self, rollout: Rollout, step: int = 0) -> None:
        self.given, self.step = rollout, step

    def prompts(self, count: int) -> list[Prompt]:
        raise NotImplementedError

    def rollout(self, prompts: Any, **options: Any) -> Rollout:
        return self.given

    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        raise NotImplementedError

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        raise NotImplementedError


def make_trpo(policy: Any, total_steps: int = 1, seed: int = 0, **config: Any) -> TRPO:
    """TRPO bound to `policy`."""
    trpo = TRPO(TRPOConfig(**config), Context("optimizer", "mine", seed))
    trpo.bind(policy, total_steps)
    return trpo


def make_policy(seed: int = 0, dtype: str = "float32", **config: Any) -> CausalLM:
    """GPT-2 of width 16 over 260 tokens; its absolute positions notice padding."""
    return tiny_policy(tiny_context("policy", seed=seed, dtype=dtype), **{"critic": "separate", **config})


def stage_data(policy: CausalLM, trpo: Any, reward: Callable[..., list[float | None]], prompts: Sequence[str],
               seed: int = 0, **sampling: Any) -> StageData:  # fmt: skip
    """What an optimize stage gives: samples of `policy` scored by a Python function, no shapers."""
    context = Context("run", "test", seed, functions={"f": reward})
    model = FunctionReward(FunctionRewardConfig(function="f"), context.named("reward", "f"))
    environment = SingleTurn(SingleTurnConfig(), context.named("environment", "single-turn"))
    sampler = Sampler(policy, environment, RewardMix({"f": model}, {"f": 1.0}), context)
    return StageData(sampler, Prompts(*prompts), [], [], Sampling(**{"max_new_tokens": 1, **sampling}),
                     trpo.config.needs)  # fmt: skip


def train(trpo: Any, data: Any, steps: int, start: int = 0) -> list[dict[str, float]]:
    """The stage's loop; the statistics of each step."""
    history = []
    for step in range(start, start + steps):
        data.begin(step)
        trpo.progress = (step, trpo.total_steps)
        stats = trpo.step(data)
        history.append({**data.stats, **stats})
    return history


def weights(policy: Any) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: p.detach().clone() for name, p in policy.module.named_parameters()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the weights that are not the same bit for bit."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of the first."""
    difference = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    return (difference / sum(float(t.double().square().sum()) for t in a.values())) ** 0.5
