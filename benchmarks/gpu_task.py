"""Sizes of gpu.py, and how its processes hand on what they find.

Every part is one or more jobs: a process that is given a JSON file, and writes what it has found so far into
`answer.json` after every measurement, so that one that is stopped still tells of its first ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import speed_task

SIZES: dict[str, dict[str, Any]] = {
    "large": {
        # Llama 3.2 1B
        "model": {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                  "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
                  "rope_theta": 500_000.0, "tie_word_embeddings": True},
        # 24 GB hold weights, reference, gradients and moments of 1B in bf16, 12.4 GB, and TRL's activations of 8 rows
        "step": {"samples": 64, "prompt_tokens": 128, "max_new_tokens": 256, "minibatch": 8, "steps": 3, "repeats": 2},
        "decoding": {"batches": [64, 8, 256], "prompt_tokens": 128, "max_new_tokens": 128, "repeats": 2,
                     "copied_bytes": 2**30},
        # Llama 3.1 8B
        "qlora": {
            "model": {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
                      "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
                      "rope_theta": 500_000.0, "tie_word_embeddings": False},
            "samples": 64, "prompt_tokens": 256, "max_new_tokens": 256, "minibatch": 16, "micro_batch_tokens": 2048,
            "forward_tokens": 8192, "steps": 2,
        },
    },
    "tiny": {
        "model": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
                  "rope_theta": 500_000.0, "tie_word_embeddings": True},
        "step": {"samples": 8, "prompt_tokens": 8, "max_new_tokens": 8, "minibatch": 4, "steps": 2, "repeats": 1},
        "decoding": {"batches": [4, 8], "prompt_tokens": 8, "max_new_tokens": 8, "repeats": 1, "copied_bytes": 2**20},
        "qlora": {
            "model": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                      "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
                      "rope_theta": 500_000.0, "tie_word_embeddings": False},
            "samples": 8, "prompt_tokens": 8, "max_new_tokens": 8, "minibatch": 4, "micro_batch_tokens": 32,
            "forward_tokens": 64, "steps": 2,
        },
    },
}  # fmt: skip
# seconds without which a job is not begun: what one takes on a slow card until its first number
NEEDS = {"begin": 20, "step": 45, "share": 40, "decoding": 40, "qlora": 120}
# how the time that is left is divided among the parts that are left
WEIGHTS = {"step": 5, "share": 1, "decoding": 2, "qlora": 3}
Answer = dict[str, Any]


def settings(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """RLOO as speed.py has it, 4 samples a prompt, for the sizes of `step`."""
    group = speed_task.settings("rloo", "fixed", 1)["samples_per_prompt"]
    return speed_task.settings(
        "rloo", "fixed", sizes["steps"], samples=sizes["steps"] * sizes["samples"], prompts=sizes["samples"] // group,
        max_new_tokens=sizes["max_new_tokens"], minibatch_size=sizes["minibatch"],
    )  # fmt: skip


def write_json(path: Path, found: Any) -> None:
    """Whole or not at all, whenever the process is stopped."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(found, indent=1) + "\n")
    aside.replace(path)


def keep(job: Mapping[str, Any], found: Answer) -> None:
    """What a job has found so far."""
    write_json(Path(job["out"], "answer.json"), found)


def wait_for(device: str) -> None:
    """Wait until the device has done all it was told."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def peak_gb(device: str) -> float:
    """The most that was in use at a time, in GB of 10^9 bytes: torch's own on a GPU, else of the process."""
    import torch
    from memory import peak

    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else peak() * 2**20 / 1e9


def main(doc: str, kinds: Mapping[str, Callable[[dict[str, Any]], None]]) -> None:
    """Do the job that --job names."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--job", type=Path, required=True)
    job = json.loads(parser.parse_args().job.read_text())
    if job["threads"]:
        import torch

        torch.set_num_threads(job["threads"])
    kinds[job["kind"]](job)
