"""PPO, RLOO and GRPO side by side with TRL: is as much learnt from as many samples?

    python benchmarks/peers.py [--seeds 5] [--algorithms ppo rloo grpo] [--venvs DIR] [--out FILE.json]

TRL 1.12.0 is the last with PPO; RLOO and GRPO are those of 1.16.0. Each version gets a virtual environment of its own
below --venvs, made at the first run with the versions of constraints.txt, unless this Python has that version already.

A llama of two layers and width 64 first learns to write short sentences about a pair of nouns. That one starting model,
the prompts, the rule that pays (letters o, and a full stop at the end) and every number in COMMON and ALGORITHMS are
the same for both. Each run is a process of its own on one thread; who goes first alternates. Both leave a plain Hugging
Face folder after half of the samples and after all of them; one evaluator, ours, draws fresh responses from every
folder and takes their mean reward. Errors are standard errors over seeds. The verdict is `within` if the two means
differ by no more than two standard errors of their difference, else `above` or `below`. Seconds are those of the steps
alone: not of importing, loading, saving and judging.

What is not the same:

- Random numbers, so the samples themselves, and the order of prompts.
- ppo: TRL puts the score of a response that ended one place behind its last token and trains the critic there as well;
  ours stands on the last token. TRL does not clip the gradient of PPO, so ours has a limit that it never meets, and
  each of TRL's updates is a minibatch of one piece (with accumulation it would take one update per epoch, however many
  minibatches it is told). Both critics begin as the starting model with a head of zeros; TRL's head has no bias.
- grpo: TRL walks through the minibatches of a generation in the same order in both epochs; ours shuffles anew. By
  default TRL also multiplies k3 by the ratio, which makes its gradient that of the KL itself; here that is off, as in
  the paper and in ours (`kl_estimator: k2` has that gradient where the ratio is 1).
- rloo: TRL has one probability ratio per response, ours one per token, or none as here; since each generation makes one
  update, the ratio is 1 and its gradient the same.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]

# --- what both sides are given ---

COMMON: dict[str, Any] = {
    "samples": 2048, "max_new_tokens": 20, "temperature": 1.0, "betas": (0.9, 0.999), "adam_eps": 1e-8,
    "weight_decay": 0.0,
}  # fmt: skip
# kl_coef: of k1 in the rewards (ppo, rloo), of k3 in the loss (grpo). max_grad_norm: None where TRL does not clip
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"trl": "1.12.0", "prompts": 64, "samples_per_prompt": 1, "epochs": 2, "minibatch_size": 16,
            "learning_rate": 1e-4, "kl_coef": 0.02, "clip": 0.2, "value_clip": 0.2, "value_coef": 0.1, "gamma": 1.0,
            "lam": 0.95, "max_grad_norm": None},
    "rloo": {"trl": "1.16.0", "prompts": 8, "samples_per_prompt": 4, "epochs": 1, "minibatch_size": 32,
             "learning_rate": 3e-4, "kl_coef": 0.02, "max_grad_norm": 1.0},
    "grpo": {"trl": "1.16.0", "prompts": 16, "samples_per_prompt": 4, "epochs": 2, "minibatch_size": 32,
             "learning_rate": 2e-4, "kl_coef": 0.02, "clip": 0.2, "scale_eps": 1e-4, "max_grad_norm": 1.0},
}  # fmt: skip
NEVER = 1e9  # a limit that no gradient meets

NOUNS = ["bee", "cat", "dog", "fox", "hill", "king", "lamp", "moon", "queen", "river", "road", "sheep", "street",
         "tower", "tree", "wheel"]  # fmt: skip
ADJECTIVES = ["big", "cold", "deep", "free", "green", "loud", "new", "old", "red", "small", "steep", "sweet", "tall"]
VERBS = ["finds", "follows", "has", "keeps", "likes", "meets", "needs", "sees", "shows", "takes"]
PROMPTS = [f"{one}, {other}:" for one in NOUNS for other in NOUNS if one != other]  # 240; one colon each, at the end


def score(response: str) -> float:
    """What a response is paid: an eighth for each letter o, one at most, and half of that if it does not end with ."""
    return min(response.count("o"), 8) / (8 if response.endswith(".") else 16)


def reward(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
    """`score` as a function of rlhf-core and of TRL."""
    return [score(completion) for completion in completions]


# --- the starting model ---


def sentences(draw: random.Random) -> str:
    """A prompt and the one to three sentences that might answer it."""
    prompt = draw.choice(PROMPTS)
    one, other = prompt[:-1].split(", ")
    found = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        adjectives = draw.choice(ADJECTIVES), draw.choice(ADJECTIVES)
        found.append(f" the {adjectives[0]} {one} {draw.choice(VERBS)} the {adjectives[1]} {other}.")
        one, other = other, one
    return prompt + "".join(found)


def make_start(folder: Path) -> None:
    """A small model that writes such sentences, as a plain Hugging Face folder with its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    draw = random.Random(0)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [sentences(draw) for _ in range(2000)],
        trainers.BpeTrainer(vocab_size=384, special_tokens=["<|end|>", "<|pad|>"], initial_alphabet=alphabet,
                            show_progress=False),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>", padding_side="left", model_max_length=128,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        texts = [sentences(draw) + "<|end|>" for _ in range(32)]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- ours: a registry file and a run ---


def registry(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The registry of one run; `folder` is where its prompts lie."""
    settings = job["settings"]
    group = settings["samples_per_prompt"]
    optimizer: dict[str, Any] = {
        "prompts_per_step": settings["prompts"], "samples_per_prompt": group, "epochs": settings["epochs"],
        "minibatch_size": settings["minibatch_size"], "learning_rate": settings["learning_rate"],
        "betas": list(settings["betas"]), "adam_eps": settings["adam_eps"], "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"] or NEVER,
    }  # fmt: skip
    if job["algorithm"] == "ppo":
        optimizer |= {name: settings[name] for name in ("clip", "value_clip", "value_coef", "gamma", "lam")}
    elif job["algorithm"] == "rloo":
        optimizer |= {"baseline": "leave-one-out", "aggregation": "seq-mean-token-sum"}
    else:
        optimizer |= {"baseline": "group", "scale": "std", "scale_eps": settings["scale_eps"],
                      "clip": settings["clip"], "aggregation": "seq-mean-token-mean", "kl_coef": settings["kl_coef"],
                      "kl_estimator": "k3"}  # fmt: skip
    steps = settings["samples"] // (settings["prompts"] * group)
    shapers = {} if job["algorithm"] == "grpo" else {"kl": {"use": "kl", "config": {"coef": settings["kl_coef"]}}}
    ppo = job["algorithm"] == "ppo"
    return {
        "schema_version": 1,
        "functions": {"rule": f"{HERE}:reward"},
        "components": {
            "policy": {"start": {"use": "causal-lm", "config": {"model": job["start"],
                                                                **({"critic": "separate"} if ppo else {})}}},
            "prompts": {"pairs": {"use": "jsonl", "config": {"path": str(folder / "prompts.jsonl")}}},
            "reward": {"rule": {"use": "function", "config": {"function": "rule"}}},
            "optimizer": {"learner": {"use": "ppo" if ppo else "reinforce", "config": optimizer}},
            "shaper": shapers,
        },
        "pipelines": {"peers": {
            "seed": job["seed"], "policy": "start", "checkpoint_every": steps // 2,
            "stages": [
                {"optimize": {"optimizer": "learner", "prompts": "pairs", "rewards": {"rule": 1.0},
                              "shapers": list(shapers), "steps": steps,
                              "sampling": {"max_new_tokens": settings["max_new_tokens"],
                                           "temperature": settings["temperature"]}}},
                {"export": {"path": str(Path(job["out"], "final"))}},
            ],
        }},
    }  # fmt: skip


def train_ours(job: dict[str, Any]) -> dict[str, Any]:
    """Train with rlhf-core as `job` says; leaves the folders `half` and `final` in its `out`."""
    import rlhf_core
    from rlhf_core.runs import checkpoint

    out = Path(job["out"])
    (out / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    (out / "registry.yaml").write_text(json.dumps(registry(job, out)))  # JSON is YAML
    project = rlhf_core.load(out / "registry.yaml", trust_functions=True)
    run = project.run("peers", out=out / "run")
    first = sorted((run.directory / "checkpoints").iterdir())[0]
    policy = project.build("policy", "start")
    policy.load_state_dict(checkpoint.load(first)["policy"])
    policy.export(out / "half")
    return {"seconds": run.summary["seconds"]["optimize"]}


# --- what was learnt ---


class Evaluator:
    """Draws fresh responses from a folder: the mean of the rule, and the divergence from the starting model."""

    def __init__(self, start: Path, samples: int) -> None:
        from rlhf_core.records import Prompt

        self.prompts = [Prompt(text=PROMPTS[i * 7 % len(PROMPTS)]) for i in range(samples)]
        self.start = self._policy(start)

    def _policy(self, folder: Path) -> Any:
        from rlhf_core.interfaces import Context
        from rlhf_core.policies.causal_lm import CausalLM
        from rlhf_core.policies.config import CausalLMConfig

        return CausalLM(CausalLMConfig(model=str(folder)), Context())

    def __call__(self, folder: Path, seed: int) -> dict[str, float]:
        """reward: the mean. kl: nats per response. length: tokens, end of text included. ended: share of responses."""
        import torch
        from rlhf_core.interfaces import Needs, Sampling

        sampling = Sampling(max_new_tokens=COMMON["max_new_tokens"], temperature=COMMON["temperature"])
        with torch.no_grad():
            rollout = self._policy(folder).generate(self.prompts, sampling, seed=1000 + seed)
            before = self.start.forward(rollout, Needs()).logprobs
        return {
            "reward": statistics.fmean(score(sample.response) for sample in rollout.samples),
            "kl": float((rollout.logprobs - before).sum()) / len(rollout),
            "length": float(rollout.lengths.float().mean()),
            "ended": 1 - float(rollout.truncated.float().mean()),
        }


# --- the environments of the peers ---


def environment(version: str, folder: Path) -> Path:
    """The Python of an environment with that TRL, made if need be; torch and all else as in constraints.txt."""
    try:
        if importlib.metadata.version("trl") == version:
            return Path(sys.executable)
    except importlib.metadata.PackageNotFoundError:
        pass
    home = folder / f"trl-{version}"
    python, done = home / "bin" / "python", home / ".made"
    if not done.exists():
        print(f"making {home} ...", file=sys.stderr, flush=True)
        venv.create(home, with_pip=True, clear=True)
        pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("trl==")]
        (home / "constraints.txt").write_text("\n".join(pins) + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch = next(pin for pin in pins if pin.startswith("torch=="))
        subprocess.run([*pip, "-c", home / "constraints.txt", torch, f"trl=={version}"], check=True)
        done.touch()
    return python


# --- the comparison ---


def train(job: dict[str, Any], python: Path, script: Path, work: Path, threads: int = 1) -> dict[str, Any]:
    """Run a job in a process of its own; what it answers."""
    out = Path(job["out"])
    out.mkdir(parents=True)
    (out / "job.json").write_text(json.dumps(job))
    quiet = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
             "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "CUDA_VISIBLE_DEVICES": "",
             "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    with (out / "log.txt").open("w") as log:
        command = [str(python), str(script), "--job", str(out / "job.json")]
        code = subprocess.run(command, env={**os.environ, **quiet}, cwd=work, stdout=log, stderr=log).returncode
    if code:
        raise SystemExit(f"{command} failed:\n{(out / 'log.txt').read_text()[-3000:]}")
    answer: dict[str, Any] = json.loads((out / "answer.json").read_text())
    return answer


def runs(options: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """Every run, measured as soon as it is done."""
    pythons = {version: environment(version, options.venvs) for version in
               {ALGORITHMS[name]["trl"] for name in options.algorithms}}  # fmt: skip
    make_start(work / "start")
    evaluate = Evaluator(work / "start", options.fresh)
    yield {"library": "start", **evaluate(work / "start", 0)}
    for seed in range(options.seeds):
        for place, name in enumerate(options.algorithms):
            settings = {**COMMON, **ALGORITHMS[name]}
            libraries = {"ours": (Path(sys.executable), HERE),
                         "trl": (pythons[settings["trl"]], HERE.with_name("peers_trl.py"))}  # fmt: skip
            for library in sorted(libraries, reverse=(seed + place) % 2 == 1):
                out = work / f"{name}-{seed}-{library}"
                job = {"algorithm": name, "seed": seed, "settings": settings, "prompts": PROMPTS,
                       "start": str(work / "start"), "out": str(out)}  # fmt: skip
                answer = train(job, *libraries[library], work)
                half, final = evaluate(out / "half", seed), evaluate(out / "final", seed)
                yield {"library": library, "algorithm": name, "seed": seed, **answer, "half": half, "final": final}
                if not options.keep:
                    shutil.rmtree(out)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error: nan of a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def verdict(ours: Sequence[float], peer: Sequence[float]) -> str:
    """Whether ours lies within two standard errors of the difference."""
    (a, a_error), (b, b_error) = mean_and_error(ours), mean_and_error(peer)
    room = 2 * math.hypot(a_error, b_error)
    return "?" if math.isnan(room) else "within" if abs(a - b) <= room else "above" if a > b else "below"


def table(found: Sequence[dict[str, Any]], algorithms: Sequence[str]) -> str:
    """A Markdown table with a row per algorithm and number of samples; KL, tokens and seconds: ours / TRL."""
    lines = ["| algorithm | samples | ours | TRL | verdict | KL | tokens | seconds |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in algorithms:
        mine, theirs = ([run for run in found if run.get("algorithm") == name and run["library"] == library]
                        for library in ("ours", "trl"))  # fmt: skip
        for stage, part in (("half", 2), ("final", 1)):
            pair = [[run[stage]["reward"] for run in side] for side in (mine, theirs)]
            means = ["{:.3f} ± {:.3f}".format(*mean_and_error(values)) for values in pair]
            extra = [" / ".join(f"{statistics.fmean(run[stage][key] for run in side):.1f}" for side in (mine, theirs))
                     for key in ("kl", "length")]  # fmt: skip
            seconds = [f"{statistics.fmean(run['seconds'] for run in side):.1f}" for side in (mine, theirs)]
            cells = [f"{name} ({ALGORITHMS[name]['trl']})", f"{COMMON['samples'] // part:,}", *means, verdict(*pair),
                     *extra, " / ".join(seconds) if part == 1 else ""]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fresh", type=int, default=512, help="responses that every folder is judged by")
    parser.add_argument("--venvs", type=Path, default=Path("~/.cache/rlhf-core-peers"), help="where they are kept")
    parser.add_argument("--out", type=Path, help="write every run to this JSON file")
    parser.add_argument("--keep", type=Path, help="work in this new folder and keep all that the runs leave")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # what this script asks of itself
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job.read_text())
        Path(job["out"], "answer.json").write_text(json.dumps(train_ours(job)))
        return
    options.venvs = options.venvs.expanduser().resolve()
    begun, found = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="rlhf-peers-") as scratch:
        for run in runs(options, options.keep.resolve() if options.keep else Path(scratch)):
            found.append(run)
            print(json.dumps(run), file=sys.stderr, flush=True)
    print(f"The starting model has {found[0]['reward']:.3f}.\n\n{table(found, options.algorithms)}")
    if options.out:
        versions = {name: importlib.metadata.version(name) for name in ("rlhf-core", "torch", "transformers")}
        document = {"python": sys.version.split()[0], "versions": versions, "common": COMMON, "algorithms": ALGORITHMS,
                    "seconds": time.perf_counter() - begun, "runs": found}  # fmt: skip
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
