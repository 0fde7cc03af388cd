"""Small components that behave: what the checks, and an author's own tests, put around the one they test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..interfaces import (
    Component,
    Config,
    Context,
    FeedbackSource,
    Monitor,
    Needs,
    Observation,
    Outputs,
    Policy,
    PromptSource,
    RewardModel,
    RewardShaper,
    Sampling,
    State,
    StepStats,
)
from ..records import Feedback, Prompt, Rollout, Sample, Scores
from ..rl import Batch, OnPolicyConfig, OnPolicyOptimizer
from .records import TEXTS, example_feedback, example_prompts

if TYPE_CHECKING:
    from ..policies.causal_lm import CausalLM
    from ..rl.data import StageData


class NoOptions(Config):
    """Nothing to set."""


class ToyFeedback(FeedbackSource[NoOptions]):
    """`example_feedback`; named like a kind ("demonstration", "comparison", ...), the records of that kind alone."""

    def __iter__(self) -> Iterator[Feedback]:
        records = example_feedback()
        return iter([record for record in records if record.kind == self.context.id] or records)


class ToyPrompts(PromptSource[NoOptions]):
    """`example_prompts` that are text."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> Prompt:
        return example_prompts()[: len(TEXTS)][index]


class ToyReward(RewardModel[NoOptions]):
    """A number between 0 and 1 that differs between texts: a hash; another one once it was fitted."""

    fitted_on = ""

    def fit(self, feedback: Iterable[Feedback]) -> StepStats:
        ids = [record.id for record in feedback]
        self.fitted_on = " ".join(ids)
        return {"records": len(ids)}

    def score(self, samples: Sequence[Sample]) -> Scores:
        texts = [self.fitted_on + sample.response for sample in samples]
        hashes = [hashlib.sha256(text.encode()).hexdigest()[:4] for text in texts]
        return Scores(torch.tensor([int(digits, 16) / 16**4 for digits in hashes]))

    def state_dict(self) -> State:
        return {"fitted_on": self.fitted_on}

    def load_state_dict(self, state: State) -> None:
        self.fitted_on = state["fitted_on"]


class Indifferent(RewardModel[NoOptions]):
    """A reward that has no opinion on anything."""

    def score(self, samples: Sequence[Sample]) -> Scores:
        return Scores(torch.zeros(len(samples)), abstained=torch.ones(len(samples), dtype=torch.bool))


class ToyShaper(RewardShaper[NoOptions]):
    """Scores less their running mean, which is its state."""

    level = "sequence"
    mean = 0.0

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        judged = torch.ones_like(rollout.truncated) if rollout.abstained is None else ~rollout.abstained  # (B,)
        if bool(judged.any()):
            self.mean = (self.mean + float(rewards[judged].mean())) / 2
        return (rewards - self.mean).masked_fill(~judged, 0.0), {"toy/mean": self.mean}

    def state_dict(self) -> State:
        return {"mean": self.mean}

    def load_state_dict(self, state: State) -> None:
        self.mean = state["mean"]


class ToyMonitor(Monitor[NoOptions]):
    """Never raises an alarm."""

    def look(self, seen: Observation) -> str | None:
        return None


class ToyOptimizer(OnPolicyOptimizer[OnPolicyConfig]):
    """REINFORCE without a baseline."""

    def prepare(self, rollout: Rollout) -> Mapping[str, Tensor]:
        assert rollout.rewards is not None
        return {"returns": rollout.rewards.sum(1)}  # (B,)

    def loss(self, batch: Batch, new: Outputs) -> tuple[Tensor, Mapping[str, Any]]:
        logprobs = torch.where(batch.mask, new.logprobs, 0.0).sum(1)  # (B,)
        return -batch.sample_mean(batch.returns * logprobs), {}


def _lengths(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(str(completion))) for completion in completions]


class Toys:
    """What `tiny_context` resolves references with: any id names the toy of its kind, always the same one.

    An object, not a closure, so that a context can be sent to another process.
    """

    def __init__(self) -> None:
        self.shared: dict[tuple[str, str], Component[Any]] = {}
        self.context = Context()  # of whoever asks; `tiny_context` sets it

    def __call__(self, kind: str, id: str) -> Component[Any]:
        makers: dict[str, Callable[[Context], Component[Any]]] = {
            "feedback": lambda context: ToyFeedback(NoOptions(), context),
            "prompts": lambda context: ToyPrompts(NoOptions(), context),
            "reward": lambda context: ToyReward(NoOptions(), context),
            "shaper": lambda context: ToyShaper(NoOptions(), context),
            "optimizer": _optimizer,
            "policy": tiny_policy,
            "engine": _engine,
            "environment": _single_turn,
            "metric": _length,
            "monitor": lambda context: ToyMonitor(NoOptions(), context),
        }
        if kind not in makers:
            raise ConfigError(
                f"{kind} {id!r}",
                "tiny_context has no toy of this kind",
                f"one of {', '.join(makers)}",
                "give tiny_context(resolve=...) a function (kind, id) -> component",
            )
        if (kind, id) not in self.shared:
            self.shared[kind, id] = makers[kind](self.context.named(kind, id))
        return self.shared[kind, id]


def tiny_context(kind: str = "component", id: str = "tiny", **changes: Any) -> Context:
    """A context that answers every reference: any id names a toy of its kind.

    There are toys of every kind that a config can name: feedback (`example_feedback`, or what its id says, such as
    "comparison"), prompts, reward (a hash of the response), shaper, optimizer (REINFORCE), policy (`tiny_policy`),
    engine, environment, metric (the length) and monitor (silent); and one function, "length". `changes` are further
    arguments of `Context`.
    """
    toys = Toys()
    toys.context = Context(**{"kind": kind, "id": id, "resolve": toys, "functions": {"length": _lengths}, **changes})
    return toys.context


def _optimizer(context: Context) -> Component[Any]:
    return ToyOptimizer(OnPolicyConfig(prompts_per_step=2, minibatch_size=2, learning_rate=1e-2), context)


def _engine(context: Context) -> Component[Any]:
    from ..policies.config import RefillConfig
    from ..policies.decoding import Refill

    return Refill(RefillConfig(), context)


def _length(context: Context) -> Component[Any]:
    from ..components.config import LengthMetricConfig
    from ..components.metrics import LengthMetric

    return LengthMetric(LengthMetricConfig(), context)


def _single_turn(context: Context) -> Component[Any]:
    from ..rl.config import SingleTurnConfig
    from ..rl.environment import SingleTurn

    return SingleTurn(SingleTurnConfig(), context)


def tiny_model() -> dict[str, Any]:
    """The config of a `causal-lm` for tests: two layers of width 16 over 260 tokens (the bytes and little else).

    GPT-2, since its absolute positions notice left padding, with weights large enough that no output is uniform.
    """
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.2}
    tokenizer = {"text": ["texts"], "vocab_size": 260}
    return {"fresh": {"architecture": "gpt2", "sizes": sizes, "tokenizer": tokenizer}}


def tiny_policy(context: Context | None = None, **config: Any) -> CausalLM:
    """A `causal-lm` with `tiny_model`; equal contexts and configs give equal weights.

    `context` comes from `tiny_context`, for example ``tiny_context(dtype="float64")``; `config` are further fields of
    CausalLMConfig, such as ``critic="separate"`` or ``lora={"r": 2}``.
    """
    from ..policies.causal_lm import CausalLM
    from ..policies.config import CausalLMConfig

    context = context or tiny_context("policy")
    return CausalLM(CausalLMConfig.model_validate({**tiny_model(), **config}), context)


def example_data(
    policy: Policy[Any], needs: Needs | None = None, *, reward: RewardModel[Any] | None = None, max_new_tokens: int = 6
) -> StageData:
    """What an optimizer is given as `data`: samples of `policy` scored by `reward` (by default a hash of the text).

    `needs` are those of the optimizer's config. Call ``data.begin(i)`` before step i.
    """
    from ..rl.data import StageData
    from ..rl.rewards import RewardMix
    from ..rl.sampler import Sampler

    context = tiny_context("stage", "optimize")
    mix = RewardMix({"toy": reward or ToyReward(NoOptions(), context.named("reward", "toy"))}, {"toy": 1.0})
    sampler = Sampler(policy, context.component("environment", "single-turn"), mix, context)
    return StageData(
        sampler,
        context.component("prompts", "toy"),
        [context.component("feedback", "toy")],
        [],
        Sampling(max_new_tokens=max_new_tokens),
        needs or Needs(),
    )
