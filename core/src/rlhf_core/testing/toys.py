"""Small components that behave: what the checks, and an author's own tests, put around the one they test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError
from ..interfaces import Component, Config, Context, FeedbackSource, Needs, Policy, PromptSource, RewardModel, Sampling
from ..records import Feedback, Prompt, Sample, Scores
from .records import TEXTS, example_feedback, example_prompts

if TYPE_CHECKING:
    from ..policies.causal_lm import CausalLM
    from ..rl.data import StageData


class NoOptions(Config):
    """Nothing to set."""


class ToyFeedback(FeedbackSource[NoOptions]):
    """`example_feedback`."""

    def __iter__(self) -> Iterator[Feedback]:
        return iter(example_feedback())


class ToyPrompts(PromptSource[NoOptions]):
    """`example_prompts` that are text."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> Prompt:
        return example_prompts()[: len(TEXTS)][index]


class ToyReward(RewardModel[NoOptions]):
    """A number between 0 and 1 that differs between texts: a hash."""

    def score(self, samples: Sequence[Sample]) -> Scores:
        hashes = [hashlib.sha256(sample.response.encode()).hexdigest()[:4] for sample in samples]
        return Scores(torch.tensor([int(digits, 16) / 16**4 for digits in hashes]))


class Indifferent(RewardModel[NoOptions]):
    """A reward that has no opinion on anything."""

    def score(self, samples: Sequence[Sample]) -> Scores:
        return Scores(torch.zeros(len(samples)), abstained=torch.ones(len(samples), dtype=torch.bool))


def _lengths(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(str(completion))) for completion in completions]


def tiny_context(kind: str = "component", id: str = "tiny", **changes: Any) -> Context:
    """A context that answers every reference: any id names a toy of its kind.

    There are toys of the kinds feedback (`example_feedback`), prompts, reward (a hash of the response), policy
    (`tiny_policy`) and environment, and one function, "length". `changes` are further arguments of `Context`.
    """
    shared: dict[tuple[str, str], Component[Any]] = {}
    makers: dict[str, Callable[[Context], Component[Any]]] = {
        "feedback": lambda context: ToyFeedback(NoOptions(), context),
        "prompts": lambda context: ToyPrompts(NoOptions(), context),
        "reward": lambda context: ToyReward(NoOptions(), context),
        "policy": tiny_policy,
        "environment": _single_turn,
    }

    def resolve(kind: str, id: str) -> Component[Any]:
        if kind not in makers:
            raise ConfigError(
                f"{kind} {id!r}",
                "tiny_context has no toy of this kind",
                f"one of {', '.join(makers)}",
                "give tiny_context(resolve=...) a function (kind, id) -> component",
            )
        if (kind, id) not in shared:
            shared[kind, id] = makers[kind](context.named(kind, id))
        return shared[kind, id]

    context = Context(**{"kind": kind, "id": id, "resolve": resolve, "functions": {"length": _lengths}, **changes})
    return context


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
