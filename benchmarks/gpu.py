"""PPO of an 8B model on one GPU: four roles on one base in 4 bits. Peak memory, and samples per second.

    python benchmarks/gpu.py [--steps 2] [--out FILE.json]
    python benchmarks/gpu.py --tiny                       # the same script with a toy, on the CPU, in seconds

A llama of 8B parameters with random weights is made on the GPU layer by layer, each weight quantised before the next
is drawn: it is whole nowhere, neither in memory nor on disk. Policy `qlora` (an adapter), reference (adapter off),
critic (`adapter`) and reward (`preference` with `base: policy`, unfitted) speak from it. A step is 64 samples of 256
prompt and 256 response tokens: decoding, values, reference, reward, and one epoch of PPO in updates of 16 samples.

The peak is torch's own, of everything from the making of the model on, beside what it had reserved. The JSON is
written after every step, so a run that is cut off still tells of its first ones; the first step includes what is done
once. Weights per role are those of `memory.py`, in MB.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import IDS, NEVER, make_tokenizer, peak, prompts, weights_of

GOAL = 24.0  # GB, of 10^9 bytes

# Llama 3.1 8B
LARGE: dict[str, Any] = {
    "model": {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
              "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
              "rope_theta": 500_000.0, "tie_word_embeddings": False},
    "samples": 64, "prompt_tokens": 256, "max_new_tokens": 256, "minibatch": 16, "micro_batch_tokens": 2048,
    "forward_tokens": 8192,
}  # fmt: skip
TINY: dict[str, Any] = {
    "model": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
              "rope_theta": 500_000.0, "tie_word_embeddings": False},
    "samples": 8, "prompt_tokens": 8, "max_new_tokens": 8, "minibatch": 4, "micro_batch_tokens": 32,
    "forward_tokens": 64,
}  # fmt: skip


def random_4bit(config: Any, context: Any) -> tuple[Any, Any]:
    """A model of random weights in 4 bits, made layer by layer where it will stay, and its tokenizer.

    Args:
        config: of a policy, whose `model` is a folder with config.json and a tokenizer, and no weights.
    """
    import torch
    from rlhf_core.policies.quantization import compute_dtype, linear_4bit, quantizer, settled
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    shape, options = AutoConfig.from_pretrained(config.model), config.quantization
    bnb, dtype = quantizer(context), compute_dtype(options, context)
    draw = torch.Generator(context.device).manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)

    def drawn(weight: Any) -> Any:
        found = torch.empty(weight.shape, dtype=dtype, device=context.device)
        return found.normal_(std=shape.initializer_range, generator=draw)

    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            layer = linear_4bit(bnb, drawn(module.weight), None, options)
            layer.source_cls = nn.Linear
            model.set_submodule(path, layer.to(context.device))  # where it is quantised
        elif isinstance(module, nn.Linear | nn.Embedding):
            module.weight = nn.Parameter(drawn(module.weight), requires_grad=False)
        elif "norm" in path.rpartition(".")[2]:
            ones = torch.ones_like(module.weight, dtype=dtype, device=context.device)
            module.weight = nn.Parameter(ones, requires_grad=False)
    rotary = model.model.rotary_emb
    with torch.device(context.device):
        model.model.rotary_emb = type(rotary)(config=shape)  # its frequencies are no weights: they are computed
    model.is_loaded_in_4bit = True  # peft chooses its layers by this
    return settled(model, dtype, context), AutoTokenizer.from_pretrained(config.model)


def registry(sizes: dict[str, Any], steps: int, folder: Path, device: str) -> dict[str, Any]:
    """The registry of the run; `folder` is where model config, tokenizer and prompts lie."""
    model = {"model": str(folder / "model"), "critic": "adapter"}
    optimizer = {
        "prompts_per_step": sizes["samples"], "epochs": 1, "minibatch_size": sizes["minibatch"],
        "micro_batch_tokens": sizes["micro_batch_tokens"], "learning_rate": 1e-5, "max_grad_norm": NEVER,
    }  # fmt: skip
    return {
        "schema_version": 1,
        "components": {
            "policy": {"model": {"use": "qlora", "config": model}},
            "prompts": {"words": {"use": "jsonl", "config": {"path": str(folder / "prompts.jsonl")}}},
            "reward": {"judge": {"use": "preference", "config": {
                "base": "policy", "max_tokens": 2 * (sizes["prompt_tokens"] + sizes["max_new_tokens"]),
                "micro_batch_tokens": sizes["forward_tokens"],
            }}},
            "optimizer": {"learner": {"use": "ppo", "config": optimizer}},
            "shaper": {"kl": {"use": "kl", "config": {"coef": 0.05}}},
        },
        "pipelines": {"gpu": {
            "policy": "model", "device": device,
            "stages": [{"optimize": {
                "optimizer": "learner", "prompts": "words", "rewards": {"judge": 1.0}, "shapers": ["kl"],
                "steps": steps, "forward_tokens": sizes["forward_tokens"],
                "sampling": {"max_new_tokens": sizes["max_new_tokens"]},
            }}],
        }},
    }  # fmt: skip


def measure(sizes: dict[str, Any], steps: int, device: str, out: Path | None) -> dict[str, Any]:
    """Run `steps` of PPO and return what was measured; `out` has it after every step."""
    import rlhf_core
    import torch
    from rlhf_core.policies.causal_lm import CausalLM
    from transformers import LlamaConfig

    begun = marked = time.perf_counter()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {name: importlib.metadata.version(name) for name in
                     ("rlhf-core", "torch", "transformers", "peft", "bitsandbytes")},
        "sizes": sizes, "goal_gb": GOAL, "steps": [],
    }  # fmt: skip

    class Watcher:
        @rlhf_core.hookimpl
        def rlhf_run_started(self, run: Any) -> None:
            nonlocal marked
            model = run.policy
            found.update(parameters=model.parameter_count, seconds_to_make=time.perf_counter() - begun)
            marked = time.perf_counter()

        @rlhf_core.hookimpl
        def rlhf_step_finished(self, run: Any, step: int, stats: Any) -> None:
            nonlocal marked
            seconds, marked = time.perf_counter() - marked, time.perf_counter()
            tokens = sizes["samples"] * stats["response/length"]
            found["steps"].append({"seconds": seconds, "samples_per_second": sizes["samples"] / seconds,
                                   "tokens_per_second": tokens / seconds})  # fmt: skip
            if device == "cuda":
                found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
                found["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
            else:
                found["peak_gb"] = peak() * 2**20 / 1e9
            found["samples_per_second"] = max(one["samples_per_second"] for one in found["steps"])
            found["weights_mb"] = weights_of(run)
            found["seconds"] = time.perf_counter() - begun
            if out is not None:
                out.write_text(json.dumps(found, indent=1) + "\n")

    def load(policy: Any, config: Any) -> tuple[Any, Any]:
        return random_4bit(config, policy.context)

    usual = CausalLM.load
    CausalLM.load = load  # type: ignore[method-assign]  # the one thing that is not as a user would have it
    try:
        with tempfile.TemporaryDirectory(prefix="rlhf-gpu-") as scratch:
            folder = Path(scratch)
            LlamaConfig(**sizes["model"], **IDS, architectures=["LlamaForCausalLM"]).save_pretrained(folder / "model")
            vocabulary, longest = (sizes["model"][name] for name in ("vocab_size", "max_position_embeddings"))
            make_tokenizer(vocabulary, longest).save_pretrained(folder / "model")
            texts = prompts(sizes["samples"] * steps, sizes["prompt_tokens"], vocabulary)
            (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
            (folder / "registry.yaml").write_text(json.dumps(registry(sizes, steps, folder, device)))  # JSON is YAML
            project = rlhf_core.load(folder / "registry.yaml")
            project.plugins.manager.register(Watcher())
            project.run("gpu", out=folder / "run")
    finally:
        CausalLM.load = usual  # type: ignore[method-assign]
    if len(found["steps"]) < steps:
        raise SystemExit("not every step was measured; the warning above says why")  # a listener only warns
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a toy on the CPU, to see that the script runs")
    parser.add_argument("--out", type=Path, help="write what is found to this JSON file, after every step")
    options = parser.parse_args()
    import torch

    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU that torch can use; --tiny runs the same script with a toy on the CPU")
    sizes, device = (TINY, "cpu") if options.tiny else (LARGE, "cuda")
    found = measure(sizes, options.steps, device, options.out)
    json.dump(found, sys.stdout, indent=1)
    print(f"\npeak {found['peak_gb']:.1f} GB (goal {GOAL:.0f}), {found['samples_per_second']:.2f} samples/s",
          file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    main()
