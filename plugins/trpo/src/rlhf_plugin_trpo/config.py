"""Configuration of TRPO; importing it does not import torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from rlhf_core.interfaces import Needs, OptimizerSettings, Scheduled, within


class TRPOConfig(OptimizerSettings):
    """Trust region policy optimisation (Schulman et al., 2015). AdamW trains the critic alone."""

    learning_rate: Annotated[Scheduled, within(ge=0)] = Field(
        default=1e-4, description="learning rate of the critic, or a schedule of it, counted in its updates"
    )
    prompts_per_step: int = Field(default=32, ge=1, description="prompts sampled per step, over all processes")
    samples_per_prompt: int = Field(default=1, ge=1, description="responses to each of them")
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="most tokens, padding included, in one forward and backward"
    )
    max_kl: Annotated[Scheduled, within(gt=0)] = Field(
        default=0.01,
        description="the trust region: most KL(old || new) of a step, mean over tokens; or a schedule of it",
    )
    cg_iterations: int = Field(
        default=15, ge=1, description="conjugate gradient iterations, each a pass over the batch"
    )
    damping: float = Field(default=0.1, ge=0, description="added to the diagonal of the Fisher matrix")
    backtrack: float = Field(default=0.8, gt=0, lt=1, description="factor by which the line search shortens a step")
    backtracks: int = Field(default=10, ge=1, description="lengths that are tried before a step is given up")
    fisher_tokens: int | None = Field(
        default=None,
        ge=1,
        description="estimate the Fisher matrix from samples of about so many tokens; null: from all",
    )
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount per token")
    lam: float | None = Field(
        default=None, ge=0, le=1,
        description="lambda of GAE; by default 1 with a shared critic and 0.95 with one of its own",
    )  # fmt: skip
    whiten_advantages: bool = Field(default=True, description="advantages of a step to mean 0 and variance 1")
    bootstrap_truncated: bool = Field(
        default=False, description="a response cut at the length limit is worth its last value, not 0, beyond the cut"
    )
    value_updates: int = Field(
        default=10, ge=1, description="AdamW updates of the critic per step, each on all of its samples"
    )

    @property
    def needs(self) -> Needs:
        return Needs(values=True, bootstrap=self.bootstrap_truncated)
