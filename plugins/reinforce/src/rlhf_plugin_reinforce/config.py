"""Configuration of REINFORCE and its family; importing it does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from rlhf_core.interfaces import Needs, Scheduled, within
from rlhf_core.rl import OnPolicyConfig


class ReinforceConfig(OnPolicyConfig):
    """The policy gradient without a critic (Williams, 1992), by choice of its baseline."""

    baseline: Literal["none", "moving-average", "greedy", "leave-one-out", "group", "batch"] = Field(
        default="moving-average",
        description="what a response's return is compared with: nothing; the mean of past steps; the greedy response "
        "to its prompt (ReMax); the other samples of its prompt (RLOO); the mean of them all (GRPO); or whiten the "
        "returns of all tokens of the step (REINFORCE++)",
    )
    baseline_decay: float = Field(
        default=0.9, ge=0, lt=1, description="of the moving average: what each step keeps of it; 0: the last step alone"
    )
    scale: Literal["none", "std", "batch-std"] = Field(
        default="none", description="divide group advantages by the deviation of their group (GRPO) or of the step"
    )
    scale_eps: float = Field(
        default=1e-4, gt=0, description="added to that deviation; other libraries: 1e-4 (TRL), 1e-6 (verl)"
    )
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount per token")
    clip: Annotated[Scheduled, within(gt=0, lt=1)] | None = Field(
        default=None,
        description="the ratio of new to old probability is clipped to 1 +- this; null: plain log-probabilities",
    )
    clip_high: Annotated[Scheduled, within(gt=0)] | None = Field(
        default=None, description="upper clip, if it differs from `clip`; 0.28 keeps exploring (DAPO)"
    )
    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"] = Field(
        default="seq-mean-token-sum",
        description="how token losses become one number: mean over all tokens (DAPO); mean over responses of their "
        "mean (GRPO) or their sum (REINFORCE, RLOO); or of their sum divided by `norm_tokens` (Dr. GRPO)",
    )
    norm_tokens: int | None = Field(
        default=None,
        ge=1,
        description="of seq-mean-token-sum-norm: the fixed length; usual: the stage's max_new_tokens",
    )
    kl_coef: Annotated[Scheduled, within(ge=0)] = Field(
        default=0.0, description="weight of the KL to the reference in the loss (GRPO), beside any in the rewards"
    )
    kl_estimator: Literal["k2", "k3"] = Field(
        default="k3", description="its estimate: k3 (GRPO), or k2, whose gradient is that of the KL itself"
    )
    entropy_coef: Annotated[Scheduled, within(ge=0)] = Field(default=0.0, description="weight of the entropy bonus")
    resample: int = Field(
        default=0, ge=0,
        description="groups of equal scores are dropped and other prompts drawn for them, at most so many times (DAPO)",
    )  # fmt: skip

    @property
    def compares_samples(self) -> bool:
        """Whether a response is compared with others of its prompt, as one action, whatever its tokens earned."""
        return self.baseline in ("leave-one-out", "group")

    @property
    def needs(self) -> Needs:
        return Needs(reference=self.kl_coef != 0, samples_per_prompt=2 if self.compares_samples else 1)

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> ReinforceConfig:
        if self.scale != "none" and self.baseline != "group":
            raise ValueError(f"scale: {self.scale} needs baseline: group, got baseline: {self.baseline}")
        if self.clip_high is not None and self.clip is None:
            raise ValueError("clip_high needs `clip`, the lower bound; usual: clip: 0.2")
        if self.resample and not self.compares_samples:
            raise ValueError(
                f"resample needs groups, got baseline: {self.baseline}; use baseline: group or leave-one-out"
            )
        if self.gamma < 1 and self.compares_samples:
            raise ValueError(
                f"got gamma {self.gamma:g} with baseline: {self.baseline}, which takes a response as one action: "
                "there is nothing to discount; leave out gamma"
            )
        if (self.norm_tokens is None) == (self.aggregation == "seq-mean-token-sum-norm"):
            raise ValueError(
                f"got aggregation: {self.aggregation} and norm_tokens: {self.norm_tokens or 'null'}; norm_tokens is "
                "what seq-mean-token-sum-norm divides by, and it needs one: give the stage's max_new_tokens"
            )
        return self
