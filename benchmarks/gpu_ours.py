"""Our side of gpu.py: what is done in a process of its own, with rlhf-core.

python benchmarks/gpu_ours.py --job JOB.json          # gpu.py writes the job, and starts this
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gpu_task as task
import speed_ours
import speed_task
from memory import IDS, make_tokenizer, prompts

Job = dict[str, Any]
# what draws: name, class in rlhf_core.policies, its options
ENGINES: list[tuple[str, str, dict[str, Any]]] = [
    ("refill", "Refill", {}),
    ("refill, no CUDA graphs", "Refill", {"cuda_graphs": False}),
    ("continuous", "Continuous", {}),
]


def begin(job: Job) -> None:
    """Tell of the card, and make the model of 1B with random weights if the job names a folder for it."""
    import torch

    cuda = job["device"] == "cuda"
    if cuda and not torch.cuda.is_available():
        task.keep(job, {"missing": True})
        return
    names = "rlhf-core", "torch", "transformers", "trl", "peft", "bitsandbytes"
    found: task.Answer = {"card": "cpu", "versions": {name: importlib.metadata.version(name) for name in names}}
    if cuda:
        card = torch.cuda.get_device_properties(0)
        found |= {"card": card.name, "memory_gib": card.total_memory / 2**30, "cuda": torch.version.cuda}
    if job["start"]:
        from transformers import AutoModelForCausalLM, LlamaConfig

        sizes = job["sizes"]["model"]
        torch.manual_seed(0)
        config = LlamaConfig(**sizes, **IDS)
        with torch.device(job["device"]):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for name, value in IDS.items():
            setattr(model.generation_config, name, value)
        model.save_pretrained(job["start"])
        make_tokenizer(sizes["vocab_size"], sizes["max_position_embeddings"]).save_pretrained(job["start"])
        found["parameters"] = sum(p.numel() for p in model.parameters())
    task.keep(job, found)


def registry(job: Job, folder: Path) -> dict[str, Any]:
    """The registry of a run: that of speed.py, with weights in bf16 on the card."""
    found = speed_ours.registry({**job, "algorithm": "rloo", "precision": "bf16", "defaults": False}, folder)
    found["pipelines"]["peers"].update(dtype="bfloat16", device=job["device"])
    return found


def step(job: Job) -> None:
    """Seconds of every step; with `profile` those of every phase, which cost a wait at each of their borders."""
    import rlhf_core

    out, steps = Path(job["out"]), job["sizes"]["step"]["steps"]
    found: task.Answer = {"seconds": [], "tokens": []}

    class Watcher:
        @rlhf_core.hookimpl
        def rlhf_run_started(self) -> None:
            self.marked = time.perf_counter()

        @rlhf_core.hookimpl
        def rlhf_step_finished(self, stats: Any) -> None:
            task.wait_for(job["device"])
            found["seconds"].append(time.perf_counter() - self.marked)
            found["tokens"].append(stats["response/length"])
            found["peak_gb"] = task.peak_gb(job["device"])
            if job["profile"]:
                lines = (out / "run" / "timings.jsonl").read_text().splitlines()
                found["phases"] = [json.loads(line)["phases"] for line in lines]
            task.keep(job, found)
            if len(found["seconds"]) == steps:
                raise speed_ours.Enough  # without what a run writes at its end
            self.marked = time.perf_counter()

    speed_task.write_prompts(out / "prompts.jsonl", job["prompts"])
    (out / "registry.yaml").write_text(json.dumps(registry(job, out)))  # JSON is YAML
    project = rlhf_core.load(out / "registry.yaml", trust_functions=True)
    project.plugins.manager.register(Watcher())
    with suppress(speed_ours.Enough):
        project.run("peers", out=out / "run", profile=job["profile"])
    speed_ours.complete(found["seconds"], steps)


# --- decoding ---


def decoding(job: Job) -> None:
    """Tokens per second of every way to draw at every batch size, and the bandwidth that bounds them."""
    import torch
    from rlhf_core.interfaces import Context
    from rlhf_core.policies.causal_lm import CausalLM
    from rlhf_core.policies.config import CausalLMConfig

    device, sizes = job["device"], job["sizes"]["decoding"]
    found: task.Answer = {"bytes_per_second": bandwidth(sizes["copied_bytes"], device), "cells": []}
    policy = CausalLM(CausalLMConfig(model=job["start"]), Context(device=device, dtype="bfloat16"))
    model = policy.network.model
    found |= footprint(model)
    words = prompts(max(sizes["batches"]), sizes["prompt_tokens"], model.config.vocab_size)
    for batch in sizes["batches"]:
        for name, draw in ways(policy, words[:batch], sizes["max_new_tokens"], device):
            cell: dict[str, Any] = {"batch": batch, "engine": name, "seconds": [], "tokens": []}
            try:
                for number in range(sizes["repeats"] + 1):  # the first, which also compiles and captures, is left out
                    task.wait_for(device)
                    begun = time.perf_counter()
                    drawn = draw(number)
                    task.wait_for(device)
                    if number:
                        cell["seconds"].append(time.perf_counter() - begun)
                        cell["tokens"].append(drawn)
            except Exception as error:  # whatever a way meets on this card: it is told, and the others go on
                cell["error"] = f"{type(error).__name__}: {error}"
            found["cells"].append(cell)
            task.keep(job, found)
            if device == "cuda":
                torch.cuda.empty_cache()


def ways(policy: Any, words: list[str], longest: int, device: str) -> Iterator[tuple[str, Callable[[int], int]]]:
    """Every way to answer `words`: its name, and what draws with a seed and returns the number of tokens."""
    import torch
    from rlhf_core.interfaces import Sampling
    from rlhf_core.policies import config, continuous, decoding
    from rlhf_core.records import Prompt

    def engine(kind: str, options: dict[str, Any]) -> Callable[[int], int]:
        module = continuous if kind == "Continuous" else decoding
        made = getattr(module, kind)(getattr(config, f"{kind}Config")(**options), policy.context)

        def draw(seed: int) -> int:
            policy.engine = made
            policy.weights_changed()  # as after every step: what is kept of the weights is made anew
            sampling = Sampling(max_new_tokens=longest)
            return int(policy.generate([Prompt(text=text) for text in words], sampling, seed=seed).attention.sum())

        return draw

    def generate(seed: int) -> int:
        torch.manual_seed(seed)
        model = policy.network.model
        ids = policy.tokenizer(words, return_tensors="pt").input_ids.to(device)
        with torch.no_grad():
            drawn = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=True,
                                   top_k=0, top_p=1.0, temperature=1.0)  # fmt: skip
        return int((drawn[:, ids.shape[1] :] != model.generation_config.pad_token_id).sum())

    yield "generate", generate
    for name, kind, options in ENGINES:
        yield name, engine(kind, options)


def footprint(model: Any) -> dict[str, float]:
    """Bytes of weights that a step of decoding reads, and of cache per token that is there."""
    config = model.config
    embeddings = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.nbytes  # a row per token
    width = config.hidden_size // config.num_attention_heads
    weights = sum(p.nbytes for p in model.parameters()) - embeddings
    entry = model.get_output_embeddings().weight.element_size()
    return {"weight_bytes": weights,
            "cache_bytes": 2 * config.num_hidden_layers * config.num_key_value_heads * width * entry}  # fmt: skip


def bandwidth(size: int, device: str, times: int = 10) -> float:
    """Bytes per second that are read and written in a large copy."""
    import torch

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    task.wait_for(device)
    begun = time.perf_counter()
    for _ in range(times):
        target.copy_(source)
    task.wait_for(device)
    return 2 * size * times / (time.perf_counter() - begun)


if __name__ == "__main__":
    task.main(str(__doc__), {"begin": begin, "step": step, "decoding": decoding})
