"""Configuration of the stage; importing it imports neither torch nor trl."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from packaging.version import Version
from pydantic import Field, model_validator
from rlhf_core.interfaces import FeedbackRef, PromptsRef, RewardRef, Sampling, StageConfig
from rlhf_core.stages.config import EvaluationConfig

MINIMUM = "1.16"
"""The first trl whose trainers are driven as here."""

GROUP = ("rloo", "grpo")
"""Trainers that sample several responses to each prompt; the others learn from records."""

SAMPLING = "set by `sampling`"
OWNED = {
    "max_steps": "set by `steps`",
    "num_train_epochs": "`steps` says how long to train",
    "output_dir": "everything is written into the run directory",
    "seed": "derived from the run's seed",
    "data_seed": "derived from the run's seed",
    "full_determinism": "a run is repeatable as it is",
    "report_to": "set by the pipeline's `trackers`",
    "run_name": "set by the pipeline's `trackers`",
    "disable_tqdm": "the run shows its own progress",
    "bf16": "set by the pipeline's `precision`",
    "fp16": "set by the pipeline's `precision`",
    "use_cpu": "set by the pipeline's `device`",
    "accelerator_config": "the run's accelerator is used",
    "deepspeed": "the run's accelerator is used",
    "fsdp": "the run's accelerator is used",
    "auto_find_batch_size": "it would take steps twice",
    "remove_unused_columns": "rewards read the columns",
    "load_best_model_at_end": "set by `best`",
    "metric_for_best_model": "set by `best`",
    "do_train": "the stage trains",
    "do_predict": "set by an `evaluate` stage",
    "model_init_kwargs": "the policy is loaded already",
    "trust_remote_code": "the policy is loaded already",
    "reward_weights": "set by `rewards`",
    "max_completion_length": SAMPLING,
    "temperature": SAMPLING,
    "top_k": SAMPLING,
    "top_p": SAMPLING,
}
"""Arguments that the stage sets itself, and what says so instead."""
OWNED_PREFIXES = {
    "save_": "the run takes its own checkpoints",
    "restore_callback": "the run takes its own checkpoints",
    "resume_": "the run resumes by itself",
    "logging_": "the run logs every step",
    "eval_": "set by `evaluate_every` and `evaluation`",
    "do_eval": "set by `evaluate_every` and `evaluation`",
    "hub_": "an `export` stage writes the model",
    "push_to_hub": "an `export` stage writes the model",
}


class TRLConfig(StageConfig):
    """Train the policy with one of TRL's trainers.

    An interrupted stage begins again from its first step, with the same seed: nothing of TRL's own state is kept.
    """

    trainer: Literal["rloo", "grpo", "dpo", "kto", "sft"] = Field(description="which of TRL's trainers")
    steps: int = Field(ge=1, description="updates of the weights: TRL's max_steps")
    prompts: PromptsRef | None = Field(default=None, description="rloo, grpo: what responses are sampled for")
    feedback: list[FeedbackRef] = Field(default_factory=list, description="dpo, kto, sft: the records to learn from")
    rewards: dict[RewardRef, float] = Field(
        default_factory=dict,
        description="rewards and their weights: what rloo and grpo raise; for the others only what `evaluate` shows",
    )
    sampling: Sampling = Field(
        default_factory=lambda: Sampling(), description="how responses are drawn, here and in the evaluation after it"
    )
    reference: str = Field(
        default="stage-start",
        description="stage-start: the policy as this stage found it; base: before any training; or a path",
    )
    held_out: float = Field(
        default=0.1, ge=0, lt=1, description="dpo, kto, sft: share of prompts whose records are kept to measure on"
    )
    evaluation: EvaluationConfig | None = Field(default=None, description="what `evaluate_every` measures")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="any other field of the trainer's TRL config, such as learning_rate or beta"
    )

    @model_validator(mode="after")
    def _trl_is_there(self) -> TRLConfig:
        try:
            found = version("trl")
        except PackageNotFoundError:
            raise ValueError(f"trl is not installed; pip install 'trl>={MINIMUM}'") from None
        if Version(found) < Version(MINIMUM):
            raise ValueError(f"trl {found} is installed, too old; pip install --upgrade 'trl>={MINIMUM}'")
        return self

    @model_validator(mode="after")
    def _has_what_it_learns_from(self) -> TRLConfig:
        if self.evaluate_every and self.evaluation is None:
            raise ValueError("`evaluate_every` needs `evaluation: {prompts: ..., metrics: [...]}`")
        if self.trainer in GROUP:
            if not self.prompts or not self.rewards:
                missing = "`prompts` to sample for" if not self.prompts else "`rewards`, such as {helpful: 1.0}"
                raise ValueError(f"trainer {self.trainer!r} samples responses and needs {missing}")
            if self.feedback:
                raise ValueError(f"trainer {self.trainer!r} learns from rewards alone; leave out `feedback`")
        else:
            if not self.feedback:
                raise ValueError(f"trainer {self.trainer!r} learns from records and needs `feedback`")
            if self.prompts:
                raise ValueError(f"trainer {self.trainer!r} samples nothing; leave out `prompts`")
        taken = sorted({"score", "score_std"} & self.rewards.keys())
        if taken:
            raise ValueError(
                f"a reward called {taken[0]!r} would be logged over the statistic reward/{taken[0]}; give it another id"
            )
        return self

    @model_validator(mode="after")
    def _sampling_is_possible(self) -> TRLConfig:
        if self.trainer in GROUP:
            if not isinstance(self.sampling.temperature, (int, float)) or self.sampling.temperature == 0:
                raise ValueError("sampling.temperature: TRL's trainers take one number above 0")
            if self.sampling.stop:
                raise ValueError("sampling.stop: TRL's trainers end a response at end of text only; leave it out")
        return self

    @model_validator(mode="after")
    def _arguments_are_free(self) -> TRLConfig:
        for name in self.arguments:
            reason = OWNED.get(name) or next((r for p, r in OWNED_PREFIXES.items() if name.startswith(p)), None)
            if reason:
                raise ValueError(f"arguments.{name} belongs to the stage ({reason}); leave it out")
        if self.trainer in GROUP and self.arguments.get("num_generations") in (0, 1):
            raise ValueError(
                f"arguments.num_generations: {self.trainer} compares responses to one prompt; give 2 or more"
            )
        return self
