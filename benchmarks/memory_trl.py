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

    args = PPOConfig(
        output_dir=job["out"],
        seed=0,
        learning_rate=BATCH["learning_rate"],
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        temperature=BATCH["temperature"],
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        # a minibatch is one piece: with accumulation TRL would take one update per epoch, however many it is told
        per_device_train_batch_size=BATCH["prompts"],
        gradient_accumulation_steps=1,
        num_mini_batches=BATCH["prompts"] // BATCH["rows"],
        num_ppo_epochs=BATCH["epochs"],
        total_episodes=BATCH["prompts"] * BATCH["steps"],
        local_rollout_forward_batch_size=BATCH["prompts"],
        num_sample_generations=0,
        response_length=BATCH["max_new_tokens"],
        stop_token="eos",
        missing_eos_penalty=None,
        whiten_rewards=False,
        kl_coef=BATCH["kl_coef"],
        kl_estimator="k1",
        cliprange=BATCH["clip"],
        cliprange_value=BATCH["value_clip"],
        vf_coef=BATCH["value_coef"],
        gamma=BATCH["gamma"],
        lam=BATCH["lam"],
    )
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
