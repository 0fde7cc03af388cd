"""Small pipelines with a `trl` stage: a policy of width 32, prompts, records, and rewards whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rlhf_core
import torch
from rlhf_core.api import Project, RunResult
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.records import Comparison, Demonstration, Feedback, Rating
from rlhf_core.runs import checkpoint
from rlhf_core.runs.display import Display

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2},
}  # fmt: skip
PROMPTS = ["Ask:", "Please say:", "Tell me now:", "What?", "Once upon a time", "Hm."]
REWARDS = '''
def vowels(prompts, completions, **columns):
    return [sum(c in "aeiou" for c in text) / 4 for text in completions]

def ascii(prompts, completions, **columns):
    """1 if all of it is printable ASCII, as about a third of random bytes are."""
    return [float(text.isascii() and text.isprintable() and text != "") for text in completions]

def shy(prompts, completions, topic, **columns):
    return [None if t == "secret" else float(len(text)) for t, text in zip(topic, completions)]
'''
LEARNS: dict[str, dict[str, Any]] = {
    "rloo": {"prompts": "asks", "rewards": {"vowels": 1.0}},
    "grpo": {"prompts": "asks", "rewards": {"vowels": 1.0}},
    "dpo": {"feedback": ["pairs"]},
    "kto": {"feedback": ["ratings"]},
    "sft": {"feedback": ["told"]},
}


def records() -> dict[str, list[Feedback]]:
    """Feedback by id: a response that says yes is better than one that says no."""
    asks = [f"{prompt} {number}" for number in range(4) for prompt in PROMPTS]
    return {
        "told": [Demonstration(prompt=ask, response=" yes, of course.") for ask in asks],
        "pairs": [Comparison(prompt=ask, responses=(" no, never.", " yes, sir."), ranks=(1, 0)) for ask in asks],
        "ratings": [
            Rating(prompt=ask, response=" yes, sir." if i % 2 else " no, never.", score=5 if i % 2 else 1, scale=(1, 5))
            for i, ask in enumerate(asks)
        ],
        "ties": [Comparison(prompt=ask, responses=(" no.", " yes."), ranks=(0, 0)) for ask in asks],
    }


def project(
    folder: Path,
    *stages: dict[str, Any],
    policy: dict[str, Any] | None = None,
    feedback: dict[str, list[Feedback]] | None = None,
    architecture: str = "llama",
    **settings: Any,
) -> Project:
    """A registry in `folder` whose pipeline "toy" has these stages."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARDS)
    kept = {**records(), **(feedback or {})}
    for name, rows in kept.items():
        lines = "".join(row.model_dump_json() + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    asks = [{"prompt": prompt, "topic": "secret" if i == 1 else "open"} for i, prompt in enumerate(PROMPTS)]
    (folder / "asks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asks))
    fresh = {
        "architecture": architecture,
        "sizes": SIZES[architecture],
        "tokenizer": {"text": ["told"], "vocab_size": 260},
    }
    functions = ("vowels", "ascii", "shy")
    registry = {
        "schema_version": 1,
        "functions": {name: f"rewards.py:{name}" for name in functions},
        "components": {
            "policy": {"lm": {"use": "causal-lm", "config": {"fresh": fresh, **(policy or {})}}},
            "prompts": {"asks": {"use": "jsonl", "config": {"path": "asks.jsonl"}}},
            "feedback": {name: {"use": "records", "config": {"path": f"{name}.jsonl"}} for name in kept},
            "reward": {name: {"use": "function", "config": {"function": name}} for name in functions},
        },
        "pipelines": {"toy": {"policy": "lm", "stages": list(stages), **settings}},
    }
    (folder / "registry.yaml").write_text(json.dumps(registry), encoding="utf-8")
    return rlhf_core.load(folder / "registry.yaml", trust_functions=True)


def trl(trainer: str, **options: Any) -> dict[str, Any]:
    """A `trl` stage of three steps; `arguments` are added to those that keep it small."""
    arguments = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, **options.pop("arguments", {})}
    options.setdefault("sampling", {"max_new_tokens": 6})
    if trainer in ("rloo", "grpo"):
        arguments.setdefault("num_generations", 2)
    return {"trl": {"trainer": trainer, "steps": 3, **LEARNS[trainer], **options, "arguments": arguments}}


def evaluation(*metrics: str) -> dict[str, Any]:
    return {"evaluate": {"prompts": "asks", "metrics": list(metrics or ("reward", "kl", "length")), "samples": 2}}


def run(made: Project, out: Path, **options: Any) -> RunResult:
    return made.run("toy", out=out, display=Display(quiet=True), **options)


def metrics(done: RunResult, stage: str = "trl") -> list[dict[str, Any]]:
    """What the stage logged, step by step."""
    rows = [json.loads(line) for line in (done.directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def exported(done: RunResult) -> dict[str, torch.Tensor]:
    """The weights that a final `export` stage wrote."""
    from safetensors.torch import load_file

    return load_file(done.directory / "export" / "model.safetensors")


def policy_of(made: Project, done: RunResult | None = None) -> CausalLM:
    """The policy as it is before the run, or as the run's last checkpoint has it."""
    policy: CausalLM = made.build("policy", "lm")
    if done is not None:
        policy.load_state_dict(checkpoint.load(sorted((done.directory / "checkpoints").iterdir())[-1])["policy"])
    return policy
