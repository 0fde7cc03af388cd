"""Peak memory of PPO: full fine-tuning, LoRA and QLoRA, and three kinds of critic, side by side with TRL's PPO.

    python benchmarks/memory.py [--variants NAME ...] [--venvs DIR] [--out FILE.json]
    python benchmarks/memory.py --read FILE.json          # print the table of an earlier run again

One llama with random weights (MODEL) is written once; both sides load that folder for every role, and take a few
steps of PPO with the batches of BATCH. Every run is a process of its own on two threads, in float32 on the CPU; TRL
1.12.0, the last with PPO, runs before each of ours, in an environment of its own that `peers.py` makes.

The peak is that of the resident memory of the whole process, Python and libraries included, at the end of the last
step. What it is made of, in this order:

- imports: resident before the first model is loaded, once torch, transformers and all that the run needs is imported;
- weights, one column per role, each storage counted once, for the first role that has it. A gradient counts as much as
  the weight it belongs to (all of them are there at once when the optimizer steps);
- activations and the rest: what remains. Activations, logits, caches of decoding, temporaries, and memory that was
  freed and not given back to the system.

What is not the same:

- TRL's policy, reference, value and reward model are four models. Ours are as many as a variant asks for: the
  reference is the weights as they were (full), or the base without its adapter; a shared critic is one more head.
- The reward is a language model of the same sizes with a head of random weights, unfitted: it is there for its memory
  and its time. TRL hands it token ids; ours decodes the response and tokenizes it anew, with one end of text more.
- TRL does not clip gradients; ours does, to a limit that is never met.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peers import NEVER, environment, train

HERE = Path(__file__).resolve()
TRL = "1.12.0"
MB = 2**20

MODEL: dict[str, Any] = {
    "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}  # of make_tokenizer
# prompts: per step. rows: of an update of the weights, which both sides take in one forward and backward
BATCH: dict[str, Any] = {
    "prompts": 16, "prompt_tokens": 64, "max_new_tokens": 64, "rows": 4, "epochs": 1, "steps": 2, "threads": 2,
    "temperature": 1.0, "learning_rate": 1e-5, "kl_coef": 0.05, "clip": 0.2, "value_clip": 0.2, "value_coef": 0.1,
    "gamma": 1.0, "lam": 0.95,
}  # fmt: skip

# what the four roles are made of: components as a registry file has them; MODEL is replaced by the model's folder
WHOLE = {"use": "preference", "config": {"model": "MODEL"}}
ON_BASE = {"use": "preference", "config": {"base": "policy"}}


def policy(use: str = "causal-lm", **config: Any) -> dict[str, Any]:
    return {"use": use, "config": {"model": "MODEL", **config}}


VARIANTS: dict[str, dict[str, Any]] = {
    **{f"full, {critic}": {"policy": policy(critic=critic), "reward": WHOLE} for critic in ("shared", "separate")},
    **{f"full, {critic}, checkpointing": {"policy": policy(critic=critic, gradient_checkpointing=True),
                                          "reward": WHOLE} for critic in ("shared", "separate")},
    **{f"full, {critic}, checkpointing, 8-bit AdamW": {"policy": policy(critic=critic, gradient_checkpointing=True),
                                                       "reward": WHOLE, "optimizer": {"adamw": "8bit"}}
       for critic in ("shared", "separate")},
    **{f"lora, {critic}": {"policy": policy(lora={}, critic=critic), "reward": ON_BASE}
       for critic in ("shared", "adapter", "separate")},
    "lora, adapter, checkpointing": {"policy": policy(lora={}, critic="adapter", gradient_checkpointing=True),
                                     "reward": ON_BASE},
    **{f"qlora, {critic}": {"policy": policy("qlora", critic=critic), "reward": ON_BASE}
       for critic in ("shared", "adapter", "separate")},
}  # fmt: skip

ROLES = ("base", "adapters", "critic", "reference", "reward", "gradients", "optimizer")


# --- what both sides share ---


def imports() -> float:
    """MB that are resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MB


def peak() -> float:
    """MB, the most that was ever resident in this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def weights(roles: Iterable[tuple[str, Iterable[Any]]], trained: Iterable[Any]) -> dict[str, float]:
    """MB per role; a storage that several tensors share counts once, for the first role.

    Args:
        roles: (role, tensors). trained: parameters whose gradients are there when the optimizer steps.
    """
    seen: set[int] = set()
    found = dict.fromkeys(ROLES, 0.0)
    for role, tensors in roles:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                found[role] += storage.nbytes() / MB
    found["gradients"] = sum(parameter.nbytes for parameter in trained) / MB
    return found


def answer(before: float, found: Mapping[str, float], seconds: float) -> dict[str, float]:
    """What a run reports of itself, all but the seconds in MB."""
    top = peak()
    return {"peak": top, "imports": before, **found, "rest": top - before - sum(found.values()), "seconds": seconds}


def prompts(count: int, tokens: int, vocabulary: int) -> list[str]:
    """Random words for `make_tokenizer`, each of them one token."""
    draw = random.Random(0)
    return [" ".join(f"w{draw.randrange(2, vocabulary)}" for _ in range(tokens)) for _ in range(count)]


def batch_prompts() -> list[str]:
    """As many as all steps of BATCH take."""
    return prompts(BATCH["prompts"] * BATCH["steps"], BATCH["prompt_tokens"], MODEL["vocab_size"])


def make_tokenizer(vocabulary: int, longest: int) -> Any:
    """A tokenizer whose every word is one token, forth and back, so that no sample changes its length as a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|end|>", "<|pad|>", *(f"w{i}" for i in range(2, vocabulary))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w2"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>", padding_side="left",
        model_max_length=longest, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_model(folder: Path) -> None:
    """The model, with random weights, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**MODEL, **IDS)).save_pretrained(folder)
    make_tokenizer(MODEL["vocab_size"], MODEL["max_position_embeddings"]).save_pretrained(folder)


# --- ours ---


def registry(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The registry of one run; `folder` is where its prompts lie."""
    parts = json.loads(json.dumps(job["variant"]).replace('"MODEL"', json.dumps(job["model"])))
    optimizer = {
        "prompts_per_step": BATCH["prompts"], "epochs": BATCH["epochs"], "minibatch_size": BATCH["rows"],
        "learning_rate": BATCH["learning_rate"], "max_grad_norm": NEVER,
        **{name: BATCH[name] for name in ("clip", "value_clip", "value_coef", "gamma", "lam")},
        **parts.get("optimizer", {}),
    }  # fmt: skip
    return {
        "schema_version": 1,
        "components": {
            "policy": {"model": parts["policy"]},
            "prompts": {"words": {"use": "jsonl", "config": {"path": str(folder / "prompts.jsonl")}}},
            "reward": {"judge": parts["reward"]},
            "optimizer": {"learner": {"use": "ppo", "config": optimizer}},
            "shaper": {"kl": {"use": "kl", "config": {"coef": BATCH["kl_coef"]}}},
        },
        "pipelines": {"memory": {
            "policy": "model",
            "stages": [{"optimize": {
                "optimizer": "learner", "prompts": "words", "rewards": {"judge": 1.0}, "shapers": ["kl"],
                "steps": BATCH["steps"],
                "sampling": {"max_new_tokens": BATCH["max_new_tokens"], "temperature": BATCH["temperature"]},
            }}],
        }},
    }  # fmt: skip


OWNERS = ("torch", "transformers", "peft", "bitsandbytes")


def tensors_of(thing: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Every tensor that a component or module holds, itself or in what it holds; not in what it was given to use."""
    from torch import Tensor

    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    inner: Iterable[Any] = ()
    if isinstance(thing, Mapping):
        inner = thing.values()
    elif isinstance(thing, list | tuple | set):
        inner = thing
    elif type(thing).__module__.split(".")[0] in OWNERS or type(thing).__module__.startswith("rlhf_"):
        inner = [value for name, value in getattr(thing, "__dict__", {}).items() if name not in ("context", "config")]
    for value in inner:
        yield from tensors_of(value, seen)


def weights_of(run: Any) -> dict[str, float]:
    """`weights` of a run of ours, as it stands."""
    policy, reward = run.policy, run.component("reward", "judge")
    optimizer = run.component("optimizer", "learner").gradient.optimizer
    roles = [
        ("critic", policy.value_parameters),
        ("adapters", [p for name, p in policy.module.named_parameters() if "lora_" in name]),
        ("reward", [p for name, p in reward.network.named_parameters() if "lora_" in name]),  # they lie in the base
        ("base", tensors_of(policy.module)),
        ("reference", tensors_of(policy)),
        ("reward", tensors_of(reward)),
        ("optimizer", tensors_of(dict(optimizer.state))),
    ]
    return weights(roles, [p for group in optimizer.param_groups for p in group["params"]])


def train_ours(job: Mapping[str, Any]) -> dict[str, float]:
    """Run a variant with rlhf-core."""
    import rlhf_core
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401

    torch.set_num_threads(BATCH["threads"])
    out = Path(job["out"])
    (out / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in batch_prompts()))
    (out / "registry.yaml").write_text(json.dumps(registry(job, out)))  # JSON is YAML
    project = rlhf_core.load(out / "registry.yaml", trust_functions=True)
    used = project.resolve("memory")
    for spec in [*(c.spec for c in used.components.values()), *(s.spec for s in used.stages)]:
        project.plugins.import_class(spec, "factory")
    if job["variant"]["policy"]["config"].get("lora") is not None or job["variant"]["policy"]["use"] == "qlora":
        import peft  # noqa: F401
    before, found = imports(), {}

    class Watcher:
        @rlhf_core.hookimpl
        def rlhf_step_finished(self, run: Any, step: int) -> None:
            if step == BATCH["steps"]:
                found.update(answer(before, weights_of(run), time.perf_counter() - begun))

    project.plugins.manager.register(Watcher())
    begun = time.perf_counter()
    project.run("memory", out=out / "run")
    return found


# --- the comparison ---


def runs(options: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """Every run, as soon as it is done: TRL's before each of ours."""
    trl = environment(TRL, options.venvs)
    job = {"model": str(work / "model"), "out": str(work / "making")}
    train(job, Path(sys.executable), HERE, work)
    for number, name in enumerate(options.variants):
        for library, python, script in (("trl", trl, HERE.with_name("memory_trl.py")),
                                        ("ours", Path(sys.executable), HERE)):  # fmt: skip
            out = work / f"{number}-{library}"
            found = train({**job, "variant": VARIANTS[name], "out": str(out)}, python, script, work)
            yield {"library": library, **({"variant": name} if library == "ours" else {}), **found}
            shutil.rmtree(out)


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table in MB: TRL, with the median of its runs, and every run of ours."""
    theirs = [run for run in found if run["library"] == "trl"]
    columns = ["imports", *ROLES, "rest", "seconds"]
    peer = {name: statistics.median(run[name] for run in theirs) for name in ("peak", *columns)}
    lines = [f"| | peak | of TRL's | {' | '.join(columns)} |", "|---" * (len(columns) + 3) + "|"]
    rows = [(f"TRL {TRL}", peer), *((run["variant"], run) for run in found if run["library"] == "ours")]
    for name, run in rows:
        cells = [f"{run[column]:,.0f}" for column in columns]
        lines.append(f"| {name} | {run['peak']:,.0f} | {run['peak'] / peer['peak']:.2f} | {' | '.join(cells)} |")
    peaks = [run["peak"] for run in theirs]
    return "\n".join([*lines, "", f"TRL's peak over its {len(peaks)} runs: {min(peaks):,.0f} to {max(peaks):,.0f} MB."])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--venvs", type=Path, default=Path("~/.cache/rlhf-core-peers"), help="where they are kept")
    parser.add_argument("--out", type=Path, help="write every run to this JSON file")
    parser.add_argument("--read", type=Path, help="print the table of such a file; nothing is run")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # what this script asks of itself
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job.read_text())
        if "variant" in job:
            done: Mapping[str, float] = train_ours(job)
        else:  # in a process of its own as well: a peak is inherited by what is started
            make_model(Path(job["model"]))
            done = {}
        Path(job["out"], "answer.json").write_text(json.dumps(done))
        return
    if options.read:
        print(table(json.loads(options.read.read_text())["runs"]))
        return
    options.venvs = options.venvs.expanduser().resolve()
    begun, found = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="rlhf-memory-") as scratch:
        for run in runs(options, Path(scratch)):
            found.append(run)
            print(json.dumps(run), file=sys.stderr, flush=True)
            if options.out:
                write(options.out, found, time.perf_counter() - begun)
    print(table(found))


def write(path: Path, found: Sequence[Mapping[str, Any]], seconds: float) -> None:
    versions = {name: importlib.metadata.version(name) for name in ("rlhf-core", "torch", "transformers", "peft")}
    document = {"python": sys.version.split()[0], "versions": {**versions, "trl": TRL}, "model": MODEL, "batch": BATCH,
                "seconds": seconds, "runs": found}  # fmt: skip
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
