"""A policy that speaks from a list, demonstrations whose truth is known, and a tiny reward over both."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from rlhf_core.interfaces import Context
from rlhf_core.records import Demonstration, Feedback, Prompt, Rollout, Sample
from rlhf_plugin_irl.config import IRLRewardConfig
from rlhf_plugin_irl.reward import IRLReward

WORDS = ["the", "cat", "sat", "on", "mat", "saw", "no", "dog", "old", "town"]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}  # fmt: skip


@cache
def experiment() -> ModuleType:
    """benchmarks/irl_toy.py: a world that can be enumerated."""
    path = Path(__file__).parents[3] / "benchmarks" / "irl_toy.py"
    spec = importlib.util.spec_from_file_location("irl_toy", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sentence(rng: random.Random, *extra: str) -> str:
    words = [*rng.choices(WORDS, k=4), *extra]
    rng.shuffle(words)
    return " " + " ".join(words)


def demonstrations(count: int = 60, seed: int = 0, **more: Any) -> list[Demonstration]:
    """The expert says please; nothing else is different."""
    rng = random.Random(seed)
    return [Demonstration(prompt=f"Ask {number}:", response=sentence(rng, "please"), **more) for number in range(count)]


class Speaker:
    """A policy that never says please, and what it and its reference make of a text."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Any, *, seed: int, sample_ids: Sequence[int]) -> Any:
        self.asked += [prompt.render() for prompt in prompts]
        texts = [sentence(random.Random(seed + number), "now") for number in sample_ids]
        return rollout(*(Sample(p, text) for p, text in zip(prompts, texts, strict=True)))


def score_logprobs(samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """A policy that has moved towards saying please, by one nat."""
    policy = torch.tensor([-3.0 + sample.response.count("please") for sample in samples])
    return policy, torch.full((len(samples),), -3.0)


def rollout(*samples: Sample) -> Rollout:
    """All of a rollout that a reward that reads texts looks at."""
    return SimpleNamespace(samples=samples)  # type: ignore[return-value]


def fresh_samples(count: int = 16, seed: int = 0) -> list[Sample]:
    rng = random.Random(1000 + seed)
    return [Sample(Prompt(text=f"Ask {number}:"), sentence(rng, "now")) for number in range(count)]


def make_context(records: Sequence[Feedback] = (), policy: Any = None, seed: int = 0, **changes: Any) -> Context:
    """A context in which all feedback is `records` (for the tokenizer, `demonstrations`)."""
    speaker = policy or Speaker()
    spoken = [Demonstration(prompt=s.prompt, response=s.response) for s in fresh_samples(40)]
    sources = {"texts": [*demonstrations(40), *spoken], "experts": records}

    def resolve(kind: str, id: str) -> Any:
        return speaker if kind == "policy" else sources[id]

    return Context("reward", "mine", seed, resolve=resolve, **changes)


def make_config(**config: Any) -> IRLRewardConfig:
    """One-shot by default; the other algorithms get their demonstrations."""
    online = config.get("algorithm", "one-shot") != "one-shot"
    settings = {
        "fresh": {"architecture": "llama", "sizes": SIZES, "tokenizer": {"text": ["texts"], "vocab_size": 340}},
        "samples_from": "lm", "pooling": "mean", "learning_rate": 1e-2, "batch_size": 16, "held_out": 0.2,
        **({"demonstrations": "experts"} if online else {}), **config,
    }  # fmt: skip
    return IRLRewardConfig.model_validate(settings)


def make_reward(context: Context | None = None, **config: Any) -> IRLReward:
    return IRLReward(make_config(**config), context or make_context(demonstrations()))


def scores(reward: IRLReward, samples: Sequence[Sample]) -> torch.Tensor:
    return reward.score(samples).values


def polite_and_not(count: int = 60, seed: int = 9) -> tuple[list[Sample], list[Sample]]:
    """Fresh texts, with please and without, for prompts never seen."""
    rng = random.Random(seed)
    polite = [Sample(Prompt(text=f"Say {n}:"), sentence(rng, "please")) for n in range(count)]
    return polite, [Sample(Prompt(text=f"Say {n}:"), sentence(rng, "now")) for n in range(count)]
