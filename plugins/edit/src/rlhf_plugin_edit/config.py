"""Configurations; importing them does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from rlhf_core.interfaces import SourceConfig
from rlhf_core.rewards import TextRewardConfig


class EditsConfig(SourceConfig):
    """What people made of responses. Rows have `prompt`, `original` and `edited`."""

    gives: Literal["edits", "comparisons", "demonstrations", "salt"] = Field(
        default="edits",
        description="what an edit becomes: itself, for the reward `edit`; a comparison, for rewards of comparisons; "
        "for sft the edited text with its new words weighted; or both texts as in SALT, deleted words to be avoided",
    )
    skip_below: float = Field(
        default=0.02, ge=0, le=1, description="edits that change a smaller share of the words than this give nothing"
    )
    rewrite_above: float = Field(
        default=0.7, ge=0, le=1, description="edits that change more than this are rewrites: demonstrations only"
    )
    margin: float = Field(
        default=1.0, ge=0, description="margin of a comparison whose texts have no word in common; others get a share"
    )
    changed_weight: float = Field(
        default=2.0, gt=0, description="in sft, weight of inserted words and of avoiding deleted ones; all others: 1"
    )

    @model_validator(mode="after")
    def _in_order(self) -> EditsConfig:
        if self.skip_below > self.rewrite_above:
            raise ValueError(
                f"skip_below ({self.skip_below}) exceeds rewrite_above ({self.rewrite_above}): nothing is left between"
            )
        return self


class EditRewardConfig(TextRewardConfig):
    """A score per response and a credit per word, learnt from edits. Give `model`, `policy` or `fresh`."""

    pooling: Literal["last", "mean"] = Field(
        default="mean", description="which hidden state is scored: of the last token, or the mean of all"
    )
    margin: float = Field(
        default=1.0, ge=0, description="lead of the edited text that is asked for, times the share of changed words"
    )
    center_coef: float = Field(
        default=0.01, ge=0, description="weight of (r_edited + r_original)^2, which keeps scores around 0"
    )
    credit_coef: float = Field(
        default=1.0, gt=0, description="weight of the loss that tells inserted, kept and deleted words apart"
    )
    span_weight: float = Field(
        default=1.0,
        ge=0,
        description="what a word of credit 1 earns as it is said; the rest of the score comes at the end",
    )
