"""The dry run's estimate of memory beside what the run then takes, on models of different size.

    python benchmarks/dry_run.py [--models NAME ...] [--device cpu] [--out FILE.json]
    python benchmarks/dry_run.py --read FILE.json          # print the table of an earlier run again

Each model is a llama with random weights in float32. Its pipeline is sft and then PPO (full fine-tuning, a shared
critic, a reward of the same size, prompts and responses of 32 tokens), or PPO on LoRA adapters. Dry run and run
are processes of their own on two threads; the run takes a few steps of each stage.

On a CPU the peak is that of the resident memory of the whole process, Python and libraries included, as the system
counts it; on a GPU it is what torch's allocator says was held at most. The estimate is the largest of the stages'.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory import MB, make_tokenizer, peak, prompts

HERE = Path(__file__).resolve()
WORDS, STEPS = 32, 2  # of a prompt and of a response; of each stage


def sizes(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "num_key_value_heads": width // 64, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip


# name -> sizes, policy, prompts of a step, samples of an update
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], int, int]] = {
    "1m": (sizes(128, 2, 2048), {}, 64, 32),
    "8m": (sizes(256, 6, 4096), {}, 64, 32),
    "34m": (sizes(512, 8, 8192), {}, 16, 8),
    "34m, lora": (sizes(512, 8, 8192), {"lora": {}}, 16, 8),
    "110m": (sizes(768, 12, 16384), {}, 8, 4),
}


def make(folder: Path, model: Mapping[str, Any]) -> None:
    """A model with its tokenizer, prompts and demonstrations."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**model)).save_pretrained(folder / "model")
    make_tokenizer(model["vocab_size"], model["max_position_embeddings"]).save_pretrained(folder / "model")
    draw, texts = random.Random(0), prompts(400, WORDS, model["vocab_size"])
    answers = [" ".join(text.split()[: draw.randrange(WORDS // 2, WORDS)]) for text in texts]
    rows = [{"prompt": prompt, "completion": f" {answer}"} for prompt, answer in zip(texts, answers, strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def registry(folder: Path, name: str, device: str) -> dict[str, Any]:
    _, policy, asked, batch = MODELS[name]
    model = str(folder / "model")
    return {
        "schema_version": 1,
        "components": {
            "policy": {"model": {"use": "causal-lm", "config": {"model": model, **policy}}},
            "feedback": {"rows": {"use": "demonstrations", "config": {"path": str(folder / "rows.jsonl")}}},
            "prompts": {"rows": {"use": "feedback", "config": {"feedback": "rows"}}},
            "reward": {"judge": {"use": "preference", "config": {"base": "policy"} if policy else {"model": model}}},
            "optimizer": {"ppo": {"use": "ppo", "config": {
                "prompts_per_step": asked, "minibatch_size": batch, "learning_rate": 1e-6}}},
            "shaper": {"kl": {"use": "kl", "config": {"coef": 0.05}}},
        },
        "pipelines": {"try": {
            "policy": "model", "device": device, "precision": "fp32",
            "stages": [
                {"sft": {"feedback": ["rows"], "batch_size": batch, "max_examples": 2 * STEPS * batch, "held_out": 0.1,
                         "learning_rate": 1e-6}},
                {"optimize": {"optimizer": "ppo", "prompts": "rows", "rewards": {"judge": 1.0}, "shapers": ["kl"],
                              "steps": STEPS, "sampling": {"max_new_tokens": WORDS}}},
            ],
        }},
    }  # fmt: skip


def work(folder: Path, what: str, device: str) -> dict[str, Any]:
    """One process: make the model, the dry run, or the run."""
    import rlhf_core
    import torch

    torch.set_num_threads(2)
    begun = time.perf_counter()
    project = rlhf_core.load(folder / "registry.yaml", trust_functions=True)
    result = project.run("try", dry_run=what == "dry", **({} if what == "dry" else {"out": folder / "run"}))
    seconds = time.perf_counter() - begun
    if what == "dry":
        stages = result.summary["dry_run"]["stages"]
        took = {id: stage["step_seconds"] for id, stage in stages.items()}
        return {"peak": max(stage["peak"] for stage in stages.values()) / MB, "seconds": seconds, "steps": took,
                "stages": stages}  # fmt: skip
    steps = result.summary["steps"]
    took = {id: all_steps / steps[id] for id, all_steps in result.summary["seconds"].items()}
    top = torch.cuda.max_memory_allocated() / MB if device == "cuda" else peak()
    return {"peak": top, "seconds": seconds, "steps": took}


def run(name: str, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rlhf-dry-run-") as scratch:
        folder = Path(scratch)
        (folder / "registry.yaml").write_text(json.dumps(registry(folder, name, device)))
        found: dict[str, Any] = {"model": name, "device": device}
        for what in ("make", "dry", "run"):
            job = {"folder": scratch, "what": what, "name": name, "device": device}
            environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
            subprocess.run([sys.executable, HERE, "--job", json.dumps(job)], check=True, env=environment)
            found[what] = json.loads((folder / "answer.json").read_text())
        return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: memory in MB, seconds of a step of PPO."""
    lines = ["| model | device | estimate | peak | off by | a step, estimated | measured | dry run took |",
             "|---" * 8 + "|"]  # fmt: skip
    for one in found:
        dry, real = one["dry"], one["run"]
        lines.append(
            f"| {one['model']} | {one['device']} | {dry['peak']:,.0f} | {real['peak']:,.0f} | "
            f"{dry['peak'] / real['peak'] - 1:+.0%} | {dry['steps']['optimize']:.1f} s | "
            f"{real['steps']['optimize']:.1f} s | {dry['seconds']:.0f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="write every run to this JSON file")
    parser.add_argument("--read", type=Path, help="print the table of such a file; nothing is run")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # what this script asks of itself
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job)
        folder = Path(job["folder"])
        if job["what"] == "make":
            make(folder, MODELS[job["name"]][0])
            answer: Mapping[str, Any] = {}
        else:
            answer = work(folder, job["what"], job["device"])
        (folder / "answer.json").write_text(json.dumps(answer))
        return
    found = json.loads(options.read.read_text()) if options.read else [run(n, options.device) for n in options.models]
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    print(table(found))


if __name__ == "__main__":
    main()
