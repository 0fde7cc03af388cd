"""Small tasks with a known optimum, and training an optimizer on one: does it learn, and from how many samples?

A tiny fresh policy over 260 tokens (the bytes and little else) starts nearly uniform, so that the tasks begin at about
.05 and .03 of a best possible 1.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from string import ascii_lowercase
from typing import Any

import torch

from ..interfaces import Context, Needs, PolicyOptimizer, RewardModel, Sampling
from ..randomness import seed_everything
from ..records import Feedback, Prompt, Rating, Rollout, Sample, Scores
from ..rl.data import StageData
from ..rl.evaluation import mean_and_error
from ..rl.rewards import RewardMix
from ..rl.sampler import Sampler
from .toys import NoOptions, tiny_context, tiny_policy

OFFLINE = 4096
"""How many texts of random letters, with their rewards, an offline optimizer is given as feedback."""


@dataclass(frozen=True)
class Task:
    """What responses are worth: `score` maps the text of one to a number of at most `optimum`."""

    name: str
    prompts: tuple[str, ...]
    max_new_tokens: int
    score: Callable[[str], float]
    optimum: float = 1.0


def _first_token(response: str) -> float:
    first = response[:1]
    return 1.0 if first and first in "aeiou" else 0.5 if first.isascii() and first.islower() else 0.0


def _exact(target: str, response: str) -> float:
    """The mean over positions of 1 for the right letter, 1/2 for one of the three on either side of it in the alphabet,
    1/4 for another lower-case letter, and 0 for all else."""

    def mark(wanted: str, got: str) -> float:
        if not (got.isascii() and got.islower()):
            return 0.0
        return 1.0 if got == wanted else 0.5 if abs(ord(got) - ord(wanted)) <= 3 else 0.25

    return sum(map(mark, target, response)) / len(target)


FIRST_TOKEN = Task("first-token", ("say:",), 1, _first_token)
"""A bandit over the first token: 1 for a vowel, 1/2 for another lower-case letter, 0 for all else."""
EXACT_STRING = Task("exact-string", ("say:",), 2, partial(_exact, "ok"))
"""An exact string of two letters, with credit for letters that are near."""


class _Worth(RewardModel[NoOptions]):
    def __init__(self, task: Task, context: Context) -> None:
        super().__init__(NoOptions(), context)
        self.worth = task.score

    def score(self, samples: Sequence[Sample]) -> Scores:
        return Scores(torch.tensor([self.worth(sample.response) for sample in samples]))


class _Prompts:
    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Prompt:
        return Prompt(text=self.texts[index])


class _Data(StageData):
    """Counts samples, and may have rated texts as feedback."""

    seen = 0
    offline: Sequence[Feedback] = ()

    def rollout(self, *arguments: Any, **options: Any) -> Rollout:
        rollout = super().rollout(*arguments, **options)
        self.seen += len(rollout)
        return rollout

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        return (record for record in self.offline if kind in (None, record.kind))


@dataclass(frozen=True)
class Learning:
    """How it went.

    Attributes:
        curve: (samples seen, mean reward of fresh samples) before training and along it. samples: seen in all; of an
            offline optimizer, the size of its data. reached: samples at which 90 % of the optimum was first measured,
            None if never. reward, error: mean of 400 fresh samples at the end, and its standard error. kl: to the
            untrained policy, nats per response. seconds: of training, evaluation not counted.
    """

    curve: tuple[tuple[int, float], ...]
    samples: int
    reached: int | None
    reward: float
    error: float
    kl: float
    seconds: float


def learn(
    task: Task,
    optimizer: type[PolicyOptimizer[Any]],
    config: Mapping[str, Any],
    *,
    steps: int,
    seed: int = 0,
    every: int = 5,
    policy: Mapping[str, Any] | None = None,
    shapers: Sequence[Any] = (),
) -> Learning:
    """Train a tiny fresh policy on `task` with `optimizer`, and measure it every so many steps.

    Args:
        config: of the optimizer. steps: of it. policy: further fields of CausalLMConfig, by default a separate critic.
        shapers: between the score and the optimizer.
    """
    context = tiny_context("policy", seed=seed)
    learner = tiny_policy(context, **{"critic": "separate", **learner_model(), **(policy or {})})
    learner.set_reference("stage-start")
    built = optimizer(optimizer.Config.model_validate(dict(config)), context.named("optimizer", "learner"))
    worth = _Worth(task, context.named("reward", "task"))
    environment = context.component("environment", "single-turn")
    sampler = Sampler(learner, environment, RewardMix({"task": worth}, {"task": 1.0}), context)
    sampling = Sampling(max_new_tokens=task.max_new_tokens)
    needs = built.config.needs
    for shaper in shapers:
        needs = needs | shaper.config.needs
    data = _Data(sampler, _Prompts(task.prompts), [], shapers, sampling, needs, steps)  # type: ignore[arg-type]
    offline = built.traits.learns_from == "offline"
    if offline:
        data.offline = _offline(task, seed)
    built.bind(learner, steps)

    curve, seconds = [(0, _measure(sampler, task, 200)[0])], 0.0
    for step in range(steps):
        seed_everything(step)
        data.begin(step)
        built.progress = (step, steps)
        begun = time.perf_counter()
        built.step(data)
        seconds += time.perf_counter() - begun
        if (step + 1) % every == 0 or step + 1 == steps:
            curve.append((len(data.offline) if offline else data.seen, _measure(sampler, task, 200)[0]))
    reward, error, kl = _measure(sampler, task, 400, seed=1)
    reached = next((samples for samples, mean in curve if mean >= 0.9 * task.optimum), None)
    return Learning(tuple(curve), curve[-1][0], reached, reward, error, kl, seconds)


def learner_model() -> dict[str, Any]:
    """The config of a `causal-lm` that starts nearly uniform: a llama of two layers of width 32."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    return {"fresh": {"architecture": "llama", "sizes": sizes, "tokenizer": {"text": ["texts"], "vocab_size": 260}}}


def _measure(sampler: Sampler, task: Task, count: int, seed: int = 0) -> tuple[float, float, float]:
    """Mean reward of fresh samples, its standard error, and the divergence from the reference."""
    prompts = [Prompt(text=task.prompts[i % len(task.prompts)]) for i in range(count)]
    sampling = Sampling(max_new_tokens=task.max_new_tokens)
    rollout, _ = sampler.rollout(prompts, 1, sampling, Needs(reference=True), seed=10_000 + seed)
    assert rollout.score is not None and rollout.reference_logprobs is not None
    found = mean_and_error(rollout.score)
    logprobs = rollout.logprobs if rollout.behaviour_logprobs is None else rollout.behaviour_logprobs
    return found["mean"], found["error"], float((logprobs - rollout.reference_logprobs).sum()) / count


def _offline(task: Task, seed: int) -> list[Feedback]:
    """Random letters, rated by the task."""
    chance = random.Random(f"offline {seed}")
    found: list[Feedback] = []
    for i in range(OFFLINE):
        text = "".join(chance.choices(ascii_lowercase, k=task.max_new_tokens))
        prompt = Prompt(text=task.prompts[i % len(task.prompts)])
        found.append(Rating(prompt=prompt, response=text, score=task.score(text), scale=(0.0, 1.0)))
    return found
