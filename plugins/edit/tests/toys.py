"""Edits whose truth is known, tiny models, and files of rows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rlhf_core.interfaces import Context
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import CausalLMConfig
from rlhf_core.records import Edit, Feedback, Prompt, Sample
from rlhf_plugin_edit.config import EditRewardConfig, EditsConfig
from rlhf_plugin_edit.reward import EditReward
from rlhf_plugin_edit.source import Edits
from torch import Tensor

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "no", "dog", "in", "this", "old", "town"]
RUDE, POLITE = ["daft", "lazy"], ["please", "thanks"]
ROOMS = ["kitchen", "garden"]


# --- a known truth ---------------------------------------------------------------------------------------------------


def draft(rng: random.Random) -> list[str]:
    """A response: some words, among them rude and polite ones, and a room that may be the wrong one."""
    words = rng.choices(WORDS, k=rng.randint(4, 7))
    words += rng.choices(RUDE, k=rng.choice([0, 0, 1, 2])) + rng.choices(POLITE, k=rng.choice([0, 1]))
    rng.shuffle(words)
    return [*words, "in", "the", rng.choice(ROOMS)]


def repair(rng: random.Random, words: list[str], room: str) -> list[str]:
    """What an editor makes of it; one in ten looks at nothing, and every fault may be missed."""
    missed = 1.0 if rng.random() < 0.1 else 0.1
    words = [word for word in words if word not in RUDE or rng.random() < missed]
    if words[-1] != room and rng.random() >= missed:
        words[-1] = room
    if not set(words) & set(POLITE) and rng.random() >= missed:
        words.insert(rng.randrange(len(words) - 3), rng.choice(POLITE))
    return words


def text(words: Sequence[str]) -> str:
    return "".join(f" {word}" for word in words)


def truth(sample: Sample) -> float:
    """What the editors go by: no rude words, a polite one, the room that was asked for."""
    words = sample.response.split()
    asked = str(sample.prompt.text).split()[1]
    return float((asked in words) + any(w in POLITE for w in words) - sum(w in RUDE for w in words))


def edits(count: int = 240, seed: int = 0, **more: Any) -> list[Edit]:
    rng = random.Random(seed)
    made: list[Edit] = []
    while len(made) < count:
        room, words = rng.choice(ROOMS), draft(rng)
        original, edited = text(words), text(repair(rng, words, room))
        if original != edited:
            made.append(Edit(prompt=f"Ask {room} {len(made)}:", original=original, edited=edited, **more))
    return made


def fresh_samples(count: int = 150, seed: int = 99) -> list[Sample]:
    """Drafts that no editor has seen."""
    rng = random.Random(seed)
    return [Sample(Prompt(text=f"Ask {rng.choice(ROOMS)} {1000 + i}:"), text(draft(rng))) for i in range(count)]


# --- models and files ------------------------------------------------------------------------------------------------

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


def fresh() -> dict[str, Any]:
    return {"architecture": "llama", "sizes": LLAMA, "tokenizer": {"text": ["texts"], "vocab_size": 340}}


def make_context(records: Sequence[Feedback] = (), policy: Any = None, seed: int = 0, **changes: Any) -> Context:
    """A context in which the only feedback is that of `edits` and the only policy is `policy`."""
    source = list(records) or edits(60)
    return Context("reward", "mine", seed, resolve=lambda kind, id: policy if kind == "policy" else source, **changes)


def make_reward(context: Context | None = None, **config: Any) -> EditReward:
    """By default a new llama of width 32."""
    if not {"model", "policy", "fresh"} & config.keys():
        config["fresh"] = fresh()
    defaults = {"learning_rate": 3e-3, "epochs": 4, "batch_size": 16}
    return EditReward(EditRewardConfig(**{**defaults, **config}), context or make_context())


def make_policy(context: Context | None = None) -> CausalLM:
    context = (context or make_context()).named("policy", "lm")
    return CausalLM(CausalLMConfig.model_validate({"fresh": fresh()}), context)


def nudge(module: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def values(reward: EditReward, samples: Sequence[Sample]) -> Tensor:
    return reward.score(samples).values


def write(path: Path, *rows: Any) -> Path:
    """A JSONL file; rows that are strings are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def source(path: Path, **config: Any) -> Edits:
    return Edits(EditsConfig(path=str(path), **config), Context("feedback", "people"))
