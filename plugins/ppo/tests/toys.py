"""A tiny policy, rollouts that are made up or sampled, and stand-ins for what a stage would give the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rlhf_core.components.config import FunctionRewardConfig
from rlhf_core.components.function import FunctionReward
from rlhf_core.interfaces import Config, Context, FeedbackSource, Needs, PromptSource, Sampling, TrainingData
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import CausalLMConfig, FreshModel, FreshTokenizer
from rlhf_core.records import Demonstration, Feedback, Prompt, Rollout, Sample
from rlhf_core.rl.config import SingleTurnConfig
from rlhf_core.rl.data import StageData
from rlhf_core.rl.environment import SingleTurn
from rlhf_core.rl.rewards import RewardMix
from rlhf_core.rl.sampler import Sampler
from rlhf_plugin_ppo.config import PPOConfig
from rlhf_plugin_ppo.optimizer import PPO
from torch import Tensor

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}  # fmt: skip


class NoConfig(Config):
    """Nothing to configure."""


class Texts(FeedbackSource[NoConfig]):
    """What the tokenizer is trained on."""

    def __iter__(self) -> Iterator[Feedback]:
        yield Demonstration(prompt="say a:", response=" a stitch in time saves nine.")


class Prompts(PromptSource[NoConfig]):
    """Prompts from memory."""

    def __init__(self, *texts: str) -> None:
        super().__init__(NoConfig(), Context())
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Prompt:
        return Prompt(text=self.texts[index])


def make_policy(architecture: str = "llama", critic: str = "shared", seed: int = 0, dtype: str = "float32") -> CausalLM:
    """A model of width 32 over 260 tokens: the bytes, end of text, padding, two merges."""
    context = Context("policy", "toy", seed, dtype=dtype, resolve=lambda kind, id: Texts(NoConfig(), Context()))
    tokenizer = FreshTokenizer(text=["texts"], vocab_size=260)
    fresh = FreshModel(architecture=architecture, sizes=SIZES[architecture], tokenizer=tokenizer)
    return CausalLM(CausalLMConfig.model_validate({"fresh": fresh, "critic": critic}), context)


def make_ppo(policy: Any, total_steps: int = 1, seed: int = 0, **config: Any) -> PPO:
    """PPO bound to `policy`. By default one update per step from all of its samples, unclipped gradients."""
    defaults = {"epochs": 1, "prompts_per_step": 64, "minibatch_size": 64, "max_grad_norm": 1e9, "value_coef": 0.5}
    ppo = PPO(PPOConfig(**{**defaults, **config}), Context("optimizer", "mine", seed))
    ppo.bind(policy, total_steps)
    return ppo


def nudge(policy: CausalLM, scale: float = 0.1, seed: int = 0) -> None:
    """Move all weights, value head included, so that nothing is 0 or uniform any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))


def made_up(rewards: Sequence[Sequence[float]], values: Sequence[Sequence[float]], mask: Sequence[Sequence[int]], *,
            bootstrap: Sequence[float] | None = None, truncated: Sequence[bool] | None = None) -> Rollout:  # fmt: skip
    """A rollout of which only rewards, values and mask mean anything."""
    valid = torch.tensor(mask) != 0
    rows = len(valid)
    ids = torch.zeros(valid.shape, dtype=torch.long)
    numbers = torch.arange(rows)
    return Rollout(
        samples=(Sample(Prompt(text="?"), "!"),) * rows, prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] == 0,
        response_ids=ids, attention=ids == 0, mask=valid, logprobs=torch.zeros(valid.shape),
        truncated=torch.tensor(truncated or [False] * rows), groups=numbers, sample_ids=numbers,
        rewards=torch.tensor(rewards), values=torch.tensor(values),
        bootstrap=None if bootstrap is None else torch.tensor(bootstrap),
    )  # fmt: skip


def sampled(policy: CausalLM, count: int = 12, seed: int = 0) -> Rollout:
    """Ragged samples with random rewards on every token, and old values and log-probabilities as of now."""
    policy.prepare(Needs(values=True))
    texts = ["a", "say a:", "a somewhat longer prompt, say b:"]
    prompts = [Prompt(text=texts[i % 3]) for i in range(count)]
    rollout = policy.generate(prompts, Sampling(max_new_tokens=9), seed=seed)
    lengths = torch.arange(count) % 9 + 1  # from 1 to 9 tokens, whatever was drawn
    attention = torch.arange(rollout.mask.shape[1])[None] < torch.minimum(lengths, rollout.lengths)[:, None]
    rollout = rollout.replace(attention=attention, mask=attention)
    with torch.no_grad():
        now = policy.forward(rollout, Needs(values=True))
    noise = torch.randn(attention.shape, generator=torch.Generator().manual_seed(seed), dtype=now.logprobs.dtype)
    return rollout.replace(logprobs=now.logprobs, values=now.values, rewards=noise * attention)


class Given(TrainingData):
    """Rollouts made beforehand: the same one in every step."""

    def __init__(self, rollout: Rollout, step: int = 0) -> None:
        self.given, self.step = rollout, step

    @property
    def sampling(self) -> Sampling:
        return Sampling()

    def prompts(self, count: int) -> list[Prompt]:
        raise NotImplementedError

    def rollout(self, prompts: Any, **options: Any) -> Rollout:
        return self.given

    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        raise NotImplementedError

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        raise NotImplementedError


def stage_data(policy: CausalLM, ppo: PPO, reward: Callable[..., list[float | None]], prompts: Sequence[str],
               max_new_tokens: int = 1, seed: int = 0) -> StageData:  # fmt: skip
    """What an optimize stage gives: samples of `policy` scored by a Python function, no shapers."""
    context = Context("run", "test", seed, functions={"f": reward})
    model = FunctionReward(FunctionRewardConfig(function="f"), context.named("reward", "f"))
    environment = SingleTurn(SingleTurnConfig(), context.named("environment", "single-turn"))
    sampler = Sampler(policy, environment, RewardMix({"f": model}, {"f": 1.0}), context)
    sampling = Sampling(max_new_tokens=max_new_tokens)
    return StageData(sampler, Prompts(*prompts), [], [], sampling, ppo.config.needs)


def train(ppo: PPO, data: StageData, steps: int, start: int = 0) -> list[dict[str, float]]:
    """The stage's loop; the statistics of each step."""
    history = []
    for step in range(start, start + steps):
        data.begin(step)
        stats = ppo.step(data)
        history.append({**data.stats, **stats})
    return history


def gradients(policy: CausalLM, ppo: PPO, rollout: Rollout) -> dict[str, Tensor]:
    """The gradients that the first update of a step would take; the weights stay."""
    found: dict[str, Tensor] = {}

    class Recorder:
        taken = 0

        def step(self, frozen: Any = ()) -> dict[str, float]:
            for name, p in policy.module.named_parameters():
                found[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
                p.grad = None
            return {"grad_norm": 0.0}

    kept, ppo.gradient = ppo.gradient, Recorder()  # type: ignore[assignment]
    try:
        ppo.step(Given(rollout))
    finally:
        ppo.gradient = kept
    return found


def weights(policy: CausalLM) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: p.detach().clone() for name, p in policy.module.named_parameters()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of the first."""
    difference = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    return (difference / sum(float(t.double().square().sum()) for t in a.values())) ** 0.5
