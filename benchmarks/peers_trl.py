"""The peer's side of peers.py: one run of a TRL trainer. It runs in an environment that has TRL, and not rlhf-core.

    python benchmarks/peers_trl.py --job JOB.json          # peers.py writes the job, and starts this

Leaves the policy as plain Hugging Face folders `half` and `final` in the job's folder, and `answer.json` beside them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from peers import reward, score
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)


class Clock(TrainerCallback):
    """Saves the policy half-way, and times the steps without that."""

    def __init__(self, policy: Any, half: int, folder: Path) -> None:
        self.policy, self.half, self.folder = policy, half, folder
        self.seconds = 0.0

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        self.seconds -= time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step == self.half:
            self.seconds += time.perf_counter()
            self.policy.save_pretrained(self.folder)
            self.seconds -= time.perf_counter()

    def on_train_end(self, *arguments: Any, **options: Any) -> None:
        self.seconds += time.perf_counter()


class Rule(nn.Module):
    """A rule in the shape of a reward model as TRL's PPO calls one: a backbone, and a head over its states.

    Args:
        judge: from ids and attention (B, N), prompt and response together, to scores (B,). Every place has the score.
    """

    base_model_prefix = "backbone"

    def __init__(self, judge: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.judge = judge

    def backbone(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        scores = self.judge(input_ids, attention_mask.bool())  # (B,)
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(*input_ids.shape, 1)])

    def score(self, states: Tensor) -> Tensor:
        return states


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments that every trainer of TRL has."""
    settings = job["settings"]
    return {
        "output_dir": job["out"], "seed": job["seed"], "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant", "optim": "adamw_torch", "adam_beta1": settings["betas"][0],
        "adam_beta2": settings["betas"][1], "adam_epsilon": settings["adam_eps"],
        "weight_decay": settings["weight_decay"], "temperature": settings["temperature"],
        "bf16": job.get("bf16", False), "gradient_checkpointing": False, "use_cpu": True,
        "dataloader_pin_memory": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1000,
        "disable_tqdm": True, "gradient_accumulation_steps": 1,
    }  # fmt: skip


def ppo_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments of TRL's PPO that make it do what ours does with the same settings."""
    settings = job["settings"]
    return {
        # a minibatch is one piece: with accumulation TRL would take one update per epoch, however many it is told
        **arguments(job), "per_device_train_batch_size": settings["prompts"],
        "num_mini_batches": settings["prompts"] // settings["minibatch_size"], "num_ppo_epochs": settings["epochs"],
        "total_episodes": settings["samples"], "local_rollout_forward_batch_size": settings["prompts"],
        "num_sample_generations": 0, "response_length": settings["max_new_tokens"], "stop_token": "eos",
        "missing_eos_penalty": None, "whiten_rewards": False, "kl_coef": settings["kl_coef"], "kl_estimator": "k1",
        "cliprange": settings["clip"], "cliprange_value": settings["value_clip"], "vf_coef": settings["value_coef"],
        "gamma": settings["gamma"], "lam": settings["lam"],
    }  # fmt: skip


def by_text(tokenizer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """`score` of what stands behind the first colon, with which a prompt ends, as a judge of `Rule`."""

    def judge(input_ids: Tensor, attention: Tensor) -> Tensor:
        rows = [ids[mask].tolist() for ids, mask in zip(input_ids, attention, strict=True)]
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return torch.tensor([score(text.split(":", 1)[1]) for text in texts])

    return judge


def ppo(job: dict[str, Any], model: Any, tokenizer: Any, judge: Callable[[Tensor, Tensor], Tensor]) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    critic = AutoModelForSequenceClassification.from_pretrained(job["start"], num_labels=1, dtype=torch.float32)
    nn.init.zeros_(critic.score.weight)
    args = PPOConfig(**ppo_arguments(job))
    return PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=model,
        ref_model=AutoModelForCausalLM.from_pretrained(job["start"], dtype=torch.float32),
        reward_model=Rule(judge),
        value_model=critic,
        train_dataset=Dataset.from_list([{"input_ids": tokenizer(prompt).input_ids} for prompt in job["prompts"]]),
    )


def grouped(job: dict[str, Any], model: Any, tokenizer: Any, rule: Callable[..., list[float]]) -> Any:
    """RLOO or GRPO, paid by `rule`."""
    import trl

    settings = job["settings"]
    samples = settings["prompts"] * settings["samples_per_prompt"]
    pieces = samples // settings["minibatch_size"]
    options: dict[str, Any] = {
        **arguments(job), "max_steps": settings["samples"] // samples * pieces * settings["epochs"],
        "per_device_train_batch_size": settings["minibatch_size"], "steps_per_generation": pieces,
        "num_iterations": settings["epochs"], "num_generations": settings["samples_per_prompt"],
        "max_completion_length": settings["max_new_tokens"], "beta": settings["kl_coef"],
        "max_grad_norm": settings["max_grad_norm"], "top_k": 0, "top_p": 1.0, "mask_truncated_completions": False,
    }  # fmt: skip
    if job["algorithm"] == "grpo":
        options |= {"loss_type": "grpo", "scale_rewards": "group", "epsilon": settings["clip"],
                    "use_bias_correction_kl": False}  # fmt: skip
    else:
        options |= {"normalize_advantages": False}
    name = job["algorithm"].upper()
    return getattr(trl, f"{name}Trainer")(
        model=model,
        args=getattr(trl, f"{name}Config")(**options),
        reward_funcs=rule,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in job["prompts"]]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--job", type=Path, required=True)
    job = json.loads(parser.parse_args().job.read_text())
    torch.set_num_threads(1)
    set_seed(job["seed"])  # PPOTrainer leaves numpy's generator, which orders its minibatches, as it finds it
    out, settings = Path(job["out"]), job["settings"]
    tokenizer = AutoTokenizer.from_pretrained(job["start"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job["start"], dtype=torch.float32)
    if job["algorithm"] == "ppo":
        trainer = ppo(job, model, tokenizer, by_text(tokenizer))
    else:
        trainer = grouped(job, model, tokenizer, reward)

    steps = settings["samples"] // (settings["prompts"] * settings["samples_per_prompt"])
    if job["algorithm"] != "ppo":  # a step of theirs is an update of the weights; one of PPO's is all of a batch
        steps = trainer.args.max_steps
    clock = Clock(model, steps // 2, out / "half")
    trainer.add_callback(clock)
    trainer.train()
    model.save_pretrained(out / "final")
    for folder in ("half", "final"):
        tokenizer.save_pretrained(out / folder)
    answer = {"seconds": clock.seconds, "trl": importlib.metadata.version("trl"),
              "transformers": importlib.metadata.version("transformers"), "torch": torch.__version__}  # fmt: skip
    (out / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
