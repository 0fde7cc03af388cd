"""The 8B QLoRA step of gpu.py: PPO with four roles on one base in 4 bits, in a process of its own.

python benchmarks/gpu_qlora.py --job JOB.json          # gpu.py writes the job, and starts this

A llama of 8B parameters with random weights is made on the GPU layer by layer, each weight quantised before the next
is drawn: it is whole nowhere, neither in memory nor on disk. Policy `qlora` (an adapter), reference (adapter off),
critic (`adapter`) and reward (`preference` with `base: policy`, unfitted) speak from it. A step is 64 samples of 256
prompt and 256 response tokens: decoding, values, reference, reward, and one epoch of PPO in updates of 16 samples.

The peak is torch's own, of everything from the making of the model on, beside what it had reserved. The first step
includes what is done once. Weights per role are those of `memory.py`, in MB.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gpu_task as task
from memory import IDS, NEVER, make_tokenizer, prompts, weights_of
from speed_ours import complete


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


def measure(job: dict[str, Any]) -> None:
    """Run the job's steps of PPO, and keep what was measured after every one."""
    import rlhf_core
    import torch
    from rlhf_core.policies.causal_lm import CausalLM
    from transformers import LlamaConfig

    sizes, device, folder = job["sizes"]["qlora"], job["device"], Path(job["out"])
    steps = sizes["steps"]
    begun = time.perf_counter()
    found: task.Answer = {"steps": []}

    class Watcher:
        @rlhf_core.hookimpl
        def rlhf_run_started(self, run: Any) -> None:
            found.update(parameters=run.policy.parameter_count, seconds_to_make=time.perf_counter() - begun)
            self.marked = time.perf_counter()

        @rlhf_core.hookimpl
        def rlhf_step_finished(self, run: Any, step: int, stats: Any) -> None:
            task.wait_for(device)
            seconds = time.perf_counter() - self.marked
            tokens = sizes["samples"] * stats["response/length"]
            found["steps"].append({"seconds": seconds, "samples_per_second": sizes["samples"] / seconds,
                                   "tokens_per_second": tokens / seconds})  # fmt: skip
            found["peak_gb"] = task.peak_gb(device)
            if device == "cuda":
                found["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
            found["samples_per_second"] = max(one["samples_per_second"] for one in found["steps"])
            found["weights_mb"] = weights_of(run)
            found["seconds"] = time.perf_counter() - begun
            task.keep(job, found)
            self.marked = time.perf_counter()

    def load(policy: Any, config: Any) -> tuple[Any, Any]:
        return random_4bit(config, policy.context)

    CausalLM.load = load  # type: ignore[method-assign]  # the one thing that is not as a user would have it
    LlamaConfig(**sizes["model"], **IDS, architectures=["LlamaForCausalLM"]).save_pretrained(folder / "model")
    vocabulary, longest = (sizes["model"][name] for name in ("vocab_size", "max_position_embeddings"))
    make_tokenizer(vocabulary, longest).save_pretrained(folder / "model")
    texts = prompts(sizes["samples"] * steps, sizes["prompt_tokens"], vocabulary)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    (folder / "registry.yaml").write_text(json.dumps(registry(sizes, steps, folder, device)))  # JSON is YAML
    project = rlhf_core.load(folder / "registry.yaml", trust_functions=True)
    project.plugins.manager.register(Watcher())
    project.run("gpu", out=folder / "run")
    complete(found["steps"], steps)


if __name__ == "__main__":
    task.main(str(__doc__), {"qlora": measure})
