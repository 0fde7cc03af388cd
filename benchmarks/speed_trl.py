"""The peer's side of speed.py: a few steps of a TRL trainer. It runs in an environment that has TRL, not rlhf-core.

python benchmarks/speed_trl.py --job JOB.json          # speed.py writes the job, and starts this
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peers_trl import grouped, ppo
from speed_task import PROMPT_TOKENS, first_reaching, judge, reward
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed


class Enough(KeyboardInterrupt):
    """The target is reached; no handler of errors holds this up."""


class Watcher(TrainerCallback):
    """Times every step, of so many updates as TRL counts, and keeps what the rule saw."""

    def __init__(self, updates: int, until: float | None) -> None:
        self.updates, self.until = updates, until
        self.seconds: list[float] = []
        self.scores: list[float] = []
        self.tokens: list[float] = []

    def by_ids(self, input_ids: Any, attention: Any) -> Any:
        scores = judge(input_ids, attention)
        self.scores.append(float(scores.mean()))
        self.tokens.append(float(attention[:, PROMPT_TOKENS:].sum(1).float().mean()))
        return scores

    def by_text(self, prompts: Any, completions: list[str], completion_ids: Any, **columns: Any) -> list[float]:
        scores = reward(prompts, completions)
        self.scores.append(sum(scores) / len(scores))
        self.tokens.append(sum(len(ids) for ids in completion_ids) / len(completion_ids))
        return scores

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        self.marked = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step % self.updates:
            return
        self.seconds.append(time.perf_counter() - self.marked)
        self.marked = time.perf_counter()
        if self.until is not None and first_reaching(self.scores, self.until):
            raise Enough


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--job", type=Path, required=True)
    job = json.loads(parser.parse_args().job.read_text())
    torch.set_num_threads(job["threads"])
    set_seed(job["seed"])
    settings = job["settings"]
    tokenizer = AutoTokenizer.from_pretrained(job["start"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job["start"], dtype=torch.float32)
    samples = settings["prompts"] * settings["samples_per_prompt"]
    is_ppo = job["algorithm"] == "ppo"  # a step of its trainer is one of ours; the others count updates
    watcher = Watcher(1 if is_ppo else samples // settings["minibatch_size"] * settings["epochs"], job["until"])
    if is_ppo:
        trainer = ppo(job, model, tokenizer, watcher.by_ids)
    else:
        trainer = grouped(job, model, tokenizer, watcher.by_text)
    trainer.add_callback(watcher)
    with suppress(Enough):
        trainer.train()
    versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")}
    answer = {"seconds": watcher.seconds, "scores": watcher.scores, "tokens": watcher.tokens, "versions": versions}
    Path(job["out"], "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
