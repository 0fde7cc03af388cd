"""Configurations; importing them does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from rlhf_core.interfaces import Config, FeedbackRef, SourceConfig
from rlhf_core.rewards import TextRewardConfig


class PreferencesConfig(SourceConfig):
    """Comparisons of responses.

    Rows have `chosen` and `rejected`, each text or messages, with or without a `prompt`; or `responses` and `ranks`.
    """


class PreferenceRewardConfig(TextRewardConfig):
    """A reward model trained on comparisons (Bradley and Terry, 1952). Give `model`, `policy` or `fresh`."""

    rankings: Literal["pairs", "plackett-luce"] = Field(
        default="pairs", description="a ranking is all its ordered pairs, or one row of choices"
    )
    ties: Literal["ignore", "davidson"] = Field(
        default="ignore", description="pairs: ties say nothing, or that both are about equally good (Davidson, 1970)"
    )
    use_margin: bool = Field(default=True, description="ask for the margin that a comparison carries, where it does")
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="probability that a comparison is the wrong way round, where it does not carry its confidence",
    )
    center_coef: float = Field(
        default=0.01, ge=0, description="weight of (r_chosen + r_rejected)^2, which keeps scores around 0"
    )

    @model_validator(mode="after")
    def _that_fits(self) -> PreferenceRewardConfig:
        if self.rankings == "plackett-luce" and self.ties == "davidson":
            raise ValueError("Davidson's ties are for pairs; Plackett-Luce has its own, leave out `ties`")
        if self.rankings == "plackett-luce" and self.label_smoothing:
            raise ValueError("label_smoothing is for pairs; leave it out with Plackett-Luce")
        return self


class StrengthConfig(Config):
    """Comparisons of another source, cleaned by how strongly an ensemble of reward models agrees with them."""

    feedback: FeedbackRef = Field(description="the source of comparisons")
    member: PreferenceRewardConfig = Field(description="what each model of the ensemble is, and how it is trained")
    members: int = Field(default=10, ge=2, description="models in the ensemble")
    lowest: Literal["flip", "smooth", "drop", "keep"] = Field(
        default="flip", description="what becomes of the weakest comparisons, where the ensemble holds the contrary"
    )
    lowest_share: float = Field(default=0.1, ge=0, le=1, description="share of comparisons that are the weakest")
    ambiguous: Literal["smooth", "drop", "keep"] = Field(
        default="smooth", description="what becomes of those that are next to the weakest"
    )
    ambiguous_share: float = Field(default=0.2, ge=0, le=1, description="share of comparisons that are next to them")
    margin: bool = Field(
        default=False, description="ask for a margin of the ensemble's mean difference, where it is > 0"
    )

    @model_validator(mode="after")
    def _at_most_all(self) -> StrengthConfig:
        if self.lowest_share + self.ambiguous_share > 1:
            raise ValueError("lowest_share and ambiguous_share together are more than all comparisons")
        return self
