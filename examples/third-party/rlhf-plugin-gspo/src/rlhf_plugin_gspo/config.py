"""Options of `gspo`. Light: imports no torch."""

from pydantic import Field
from rlhf_core.interfaces import Needs
from rlhf_core.rl import OnPolicyConfig


class GspoOptimizerConfig(OnPolicyConfig):
    """Group Sequence Policy Optimization: one importance ratio for a whole response."""

    samples_per_prompt: int = Field(default=4, ge=2, description="responses to each prompt, compared with each other")
    clip_low: float = Field(default=3e-4, gt=0, lt=1, description="ratios are clipped below 1 - this")
    clip_high: float = Field(default=4e-4, gt=0, description="ratios are clipped above 1 + this")

    @property
    def needs(self) -> Needs:
        return Needs(samples_per_prompt=2)
