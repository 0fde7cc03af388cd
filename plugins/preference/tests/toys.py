"""Comparisons whose truth is known, tiny models, and files of rows."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rlhf_core.interfaces import Context
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import CausalLMConfig
from rlhf_core.records import Comparison, Feedback, Sample
from rlhf_plugin_preference.config import PreferenceRewardConfig, PreferencesConfig
from rlhf_plugin_preference.reward import PreferenceReward
from rlhf_plugin_preference.source import Preferences
from torch import Tensor

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 64},
    "bert": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "max_position_embeddings": 64},
}  # fmt: skip
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "no", "dog", "in", "this", "old", "town"]


def comparisons(count: int = 240, seed: int = 0, **more: Any) -> list[Comparison]:
    """Of two responses the one that says please more often is preferred; nothing else matters."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        low = rng.randint(0, 2)
        counts = low, rng.randint(low + 1, 3)
        responses = []
        for pleases in counts:
            words = rng.choices(WORDS, k=rng.randint(4, 8)) + ["please"] * pleases
            rng.shuffle(words)
            responses.append(" " + " ".join(words))
        prompt = f"Ask {number}:"
        made.append(Comparison(prompt=prompt, responses=tuple(responses), ranks=(1, 0), **more))
    return made


def make_context(records: Sequence[Feedback] = (), policy: Any = None, seed: int = 0, **changes: Any) -> Context:
    """A context in which the only feedback is that of `comparisons` and the only policy is `policy`."""
    source = list(records) or comparisons(40)
    return Context("reward", "mine", seed, resolve=lambda kind, id: policy if kind == "policy" else source, **changes)


def fresh(architecture: str = "llama") -> dict[str, Any]:
    return {
        "architecture": architecture,
        "sizes": SIZES[architecture],
        "tokenizer": {"text": ["texts"], "vocab_size": 320},
    }


def make_reward(context: Context | None = None, **config: Any) -> PreferenceReward:
    """By default a new llama of width 32."""
    if not {"model", "policy", "fresh"} & config.keys():
        config["fresh"] = fresh()
    defaults = {"learning_rate": 3e-3, "epochs": 2, "batch_size": 16}
    return PreferenceReward(PreferenceRewardConfig(**{**defaults, **config}), context or make_context())


def make_policy() -> CausalLM:
    return CausalLM(CausalLMConfig.model_validate({"fresh": fresh()}), make_context().named("policy", "lm"))


def nudge(module: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def samples(records: Sequence[Comparison]) -> list[Sample]:
    """Every response with its prompt, the worse one first."""
    return [Sample(record.prompt, response) for record in records for response in record.responses]


def scores(reward: PreferenceReward, records: Sequence[Comparison]) -> Tensor:
    return reward.score(samples(records)).values


def write(path: Path, *rows: Any) -> Path:
    """A JSONL file, or a compressed one if its name says so; rows that are strings are written as they are."""
    text = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def source(path: Path | str, **config: Any) -> Preferences:
    """A feedback source over a file; `dataset` in the config replaces the file."""
    origin = {} if "dataset" in config else {"path": str(path)}
    return Preferences(PreferencesConfig(**origin, **config), Context("feedback", "people"))
