"""The peer's side of memory.py: one run of TRL's PPO. It runs in an environment that has TRL, and not rlhf-core.

python benchmarks/memory_trl.py --job JOB.json          # memory.py writes the job, and starts this
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from memory import BATCH, answer, batch_prompts, imports, weights
from peers_trl import ppo_arguments
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from transformers.models.llama import modeling_llama  # noqa: F401
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Watcher(TrainerCallback):
    """Looks at the memory after the last step."""

    def __init__(self, before: float) -> None:
        self.before = before
        self.trainer: Any = None

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step < BATCH["steps"]:
            return
        seconds, trainer = time.perf_counter() - self.begun, self.trainer
        moments = [t for one in trainer.optimizer.state.values() for t in one.values() if torch.is_tensor(t)]
        roles = [
            ("base", whole(trainer.policy_model)),
            ("critic", whole(trainer.value_model)),
            ("reference", whole(trainer.ref_model)),
            ("reward", whole(trainer.reward_model)),
            ("optimizer", moments),
        ]
        found = weights(roles, [p for p in trainer.model.parameters() if p.requires_grad])
        self.answer = answer(self.before, found, seconds)


def whole(model: Any) -> list[Any]:
    return [*model.parameters(), *model.buffers()]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--job", type=Path, required=True)
    job = json.loads(parser.parse_args().job.read_text())
    torch.set_num_threads(BATCH["threads"])
    set_seed(0)
    before = imports()
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")

    def model(auto_class: Any, **options: Any) -> Any:
        return auto_class.from_pretrained(job["model"], dtype=torch.float32, **options)

    settings = {
        **BATCH, "minibatch_size": BATCH["rows"], "samples": BATCH["prompts"] * BATCH["steps"],
        "betas": (0.9, 0.999), "adam_eps": 1e-8, "weight_decay": 0.0,
    }  # fmt: skip
    args = PPOConfig(**ppo_arguments({"settings": settings, "out": job["out"], "seed": 0}))
    watcher = Watcher(before)
    watcher.trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=model(AutoModelForCausalLM),
        ref_model=model(AutoModelForCausalLM),
        reward_model=model(AutoModelForSequenceClassification, num_labels=1),
        value_model=model(AutoModelForSequenceClassification, num_labels=1),
        train_dataset=Dataset.from_list([{"input_ids": tokenizer(prompt).input_ids} for prompt in batch_prompts()]),
        callbacks=[watcher],
    )
    watcher.trainer.train()
    Path(job["out"], "answer.json").write_text(json.dumps(watcher.answer))


if __name__ == "__main__":
    main()
