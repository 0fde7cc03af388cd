"""The peer's side of gpu.py: a few steps of TRL's RLOO with transformers' generate.

python benchmarks/gpu_trl.py --job JOB.json          # gpu.py writes the job, and starts this
"""

from __future__ import annotations

from typing import Any

import gpu_task as task
import peers_trl
import torch
from speed_trl import Watcher
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed


class Noting(Watcher):
    """Waits for the device before it looks at the clock, and writes every step down."""

    def __init__(self, job: dict[str, Any], updates: int) -> None:
        super().__init__(updates, None)
        self.job = job

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step % self.updates:  # a step of its trainer is an update of the weights
            return
        task.wait_for(self.job["device"])
        super().on_step_end(args, state, control, **options)
        memory = task.peak_gb(self.job["device"])
        task.keep(self.job, {"seconds": self.seconds, "tokens": self.tokens, "peak_gb": memory})


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Those of peers_trl.py, on the card, and with the fused optimizer that is the default of both sides there."""
    return {**_usual(job), "use_cpu": job["device"] == "cpu", "optim": "adamw_torch_fused"}


_usual, peers_trl.arguments = peers_trl.arguments, arguments


def step(job: dict[str, Any]) -> None:
    set_seed(job["seed"])
    settings = job["settings"]
    tokenizer = AutoTokenizer.from_pretrained(job["start"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job["start"], dtype=torch.bfloat16)
    updates = settings["prompts"] * settings["samples_per_prompt"] // settings["minibatch_size"]
    watcher = Noting(job, updates)
    trainer = peers_trl.grouped({**job, "algorithm": "rloo", "bf16": True}, model, tokenizer, watcher.by_text)
    trainer.add_callback(watcher)
    trainer.train()


if __name__ == "__main__":
    task.main(str(__doc__), {"step": step})
