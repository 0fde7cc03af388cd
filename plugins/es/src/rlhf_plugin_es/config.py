"""Configuration of evolution strategies; importing it does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from rlhf_core.interfaces import Config, Scheduled, within


class ESConfig(Config):
    """Evolution strategies (Salimans et al., 2017)."""

    population: int = Field(
        default=30, ge=2, description="perturbed policies that are tried per step; even, for they come in pairs +-noise"
    )
    sigma: Annotated[Scheduled, within(gt=0)] = Field(
        default=1e-3, description="standard deviation of the noise on every weight, or a schedule of it"
    )
    learning_rate: Annotated[Scheduled, within(ge=0)] = Field(
        default=5e-4,
        description="length of a step along the mean of noise x fitness, not divided by sigma; or a schedule of it",
    )
    fitness: Literal["z-score", "rank"] = Field(
        default="z-score",
        description="how the rewards of a population become weights: over their deviation, or their ranks alone",
    )
    only: str | None = Field(
        default=None,
        description="perturb only weights with this in their name, such as lm_head; by default all that are trained",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="each step takes learning_rate times this share of what is perturbed away"
    )
    prompts_per_step: int = Field(
        default=32, ge=1, description="prompts that every member of the population answers, over all processes"
    )

    @model_validator(mode="after")
    def _pairs(self) -> ESConfig:
        if self.population % 2:
            raise ValueError(
                f"population must be even, got {self.population}: its members are pairs that add and subtract the same "
                f"noise; take {self.population + 1}"
            )
        return self
