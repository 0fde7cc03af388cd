"""Configurations; importing them does not import torch."""

from __future__ import annotations

from pydantic import Field
from rlhf_core.interfaces import SourceConfig
from rlhf_core.rewards.config import TextRewardConfig


class PreferencesConfig(SourceConfig):
    """Comparisons of responses.

    Rows have `chosen` and `rejected`, each text or messages, with or without a `prompt`; or `responses` and `ranks`.
    """


class PreferenceRewardConfig(TextRewardConfig):
    """A reward model trained on comparisons (Bradley and Terry, 1952). Give `model`, `policy` or `fresh`."""

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
