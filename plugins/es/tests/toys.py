"""A tiny policy, what a stage would give the optimizer, and a landscape whose every height is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rlhf_core.components.config import FunctionRewardConfig
from rlhf_core.components.function import FunctionReward
from rlhf_core.interfaces import Config, Context, Needs, PromptSource, Sampling, TrainingData
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.records import Feedback, Prompt, Rollout, Sample
from rlhf_core.rl.config import SingleTurnConfig
from rlhf_core.rl.data import StageData
from rlhf_core.rl.environment import SingleTurn
from rlhf_core.rl.rewards import RewardMix
from rlhf_core.rl.sampler import Sampler
from rlhf_core.testing import tiny_context, tiny_policy
from rlhf_plugin_es.config import ESConfig
from rlhf_plugin_es.optimizer import ES
from torch import Tensor, nn


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


def make_policy(seed: int = 0, dtype: str = "float32", **config: Any) -> CausalLM:
    """GPT-2 of width 16 over 260 tokens."""
    return tiny_policy(tiny_context("policy", seed=seed, dtype=dtype), **config)


def make_es(policy: Any, total_steps: int = 1, seed: int = 0, **config: Any) -> ES:
    """ES bound to `policy`: a small population that leaps."""
    defaults = {"population": 4, "sigma": 0.1, "learning_rate": 0.1, "prompts_per_step": 4}
    es = ES(ESConfig(**{**defaults, **config}), Context("optimizer", "mine", seed))
    es.bind(policy, total_steps)
    return es


def stage_data(policy: CausalLM, reward: Callable[..., list[float | None]], prompts: Sequence[str],
               seed: int = 0, **sampling: Any) -> StageData:  # fmt: skip
    """What an optimize stage gives: samples of `policy` scored by a Python function, no shapers."""
    context = Context("run", "test", seed, functions={"f": reward})
    model = FunctionReward(FunctionRewardConfig(function="f"), context.named("reward", "f"))
    environment = SingleTurn(SingleTurnConfig(), context.named("environment", "single-turn"))
    sampler = Sampler(policy, environment, RewardMix({"f": model}, {"f": 1.0}), context)
    return StageData(sampler, Prompts(*prompts), [], [], Sampling(**{"max_new_tokens": 1, **sampling}), Needs())


def train(es: ES, data: Any, steps: int, start: int = 0) -> list[dict[str, float]]:
    """The stage's loop; the statistics of each step."""
    history = []
    for step in range(start, start + steps):
        data.begin(step)
        es.progress = (step, es.total_steps)
        history.append(es.step(data))
    return history


def weights(policy: Any) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: p.detach().clone() for name, p in policy.module.named_parameters()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the weights that are not the same bit for bit."""
    return {name for name in before if not torch.equal(before[name], after[name])}


class Point:
    """A "policy" that is nothing but its weights, for landscapes; as much of a policy as ES looks at."""

    def __init__(self, *parts: Tensor) -> None:
        self.module = nn.ParameterList(nn.Parameter(part.clone()) for part in parts)
        self.value_parameters: list[nn.Parameter] = []
        self.context = Context("policy", "point")
        self.changes = 0

    def prepare(self, needs: Needs) -> None:
        """It has no heads."""

    def weights_changed(self) -> None:
        self.changes += 1

    def vector(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.module])


class Landscape(TrainingData):
    """One sample per rollout, whose reward is a function of the policy's weights: the objective without noise."""

    sampling = Sampling()

    def __init__(self, policy: Any, height: Callable[[Tensor], Any]) -> None:
        self.policy, self.height, self.step = policy, height, 0
        self.seen: list[Tensor] = []

    def begin(self, step: int) -> None:
        self.step = step

    def prompts(self, count: int) -> list[Prompt]:
        return [Prompt(text="?")] * count

    def rollout(self, prompts: Any, **options: Any) -> Rollout:
        self.seen.append(self.policy.vector())
        reward = torch.as_tensor(self.height(self.seen[-1]), dtype=torch.float64).reshape(1, 1)
        live, one = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
        ids = torch.zeros(1, 1, dtype=torch.long)
        return Rollout(
            samples=(Sample(Prompt(text="?"), "!"),), prompt_ids=ids, prompt_mask=live, response_ids=ids, attention=live,
            mask=live & ~reward.isnan(), logprobs=reward * 0, truncated=~live[0], groups=one, sample_ids=one,
            rewards=reward.masked_fill(reward.isnan(), 0.0), score=reward[0],
        )  # fmt: skip

    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        raise NotImplementedError

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        raise NotImplementedError
