"""Configurations; importing them does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from rlhf_core.interfaces import SourceConfig
from rlhf_core.rewards import TextRewardConfig

EVENTS = {"thumbs_up": 1.0, "thumbs_down": 0.0, "purchase": 1.0, "click": 1.0, "ignored": 0.0}


class RatingsConfig(SourceConfig):
    """Ratings of single responses.

    Rows have `prompt` and `response` (or `completion`), and one of: `rating`, on `scale`; `aspects`, an object of
    ratings by aspect; `label`, true or false; `event`, a word of `events`. `spans` or `tokens` rate parts.
    """

    scale: tuple[float, float] = Field(default=(1.0, 5.0), description="lowest and highest possible rating")
    aspects: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="weight of each aspect in the rating of a row with aspects only; by default all equal",
    )
    events: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=lambda: dict(EVENTS),
        description="what people did -> how good that says the response was, 0 to 1",
    )

    @model_validator(mode="after")
    def _ascending(self) -> RatingsConfig:
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale goes from the lowest to the highest rating, got {list(self.scale)}")
        return self


class RatingRewardConfig(TextRewardConfig):
    """A reward model trained on ratings. Give `model`, `policy` or `fresh`."""

    loss: Literal["regression", "ordinal", "pairs"] = Field(
        default="regression",
        description="squared error; CORAL, one question per step of the scale; or Bradley-Terry within a prompt",
    )
    levels: int = Field(
        default=5, ge=2, description="ordinal: steps of the scale, such as 5 for 1 to 5, and 2 for thumbs"
    )
    normalise: bool = Field(default=True, description="take out what is an annotator's own: harshness and spread")
    shrinkage: float = Field(
        default=5.0, ge=0, description="ratings an annotator must give before they count as much as the crowd's"
    )
    aspects: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="learn these aspects one by one; the score is their mean with these weights",
    )
    min_gap: float = Field(
        default=1.0, gt=0, description="pairs: ratings of one prompt this far apart, in points of the scale, are a pair"
    )
    margin: float = Field(
        default=1.0, ge=0, description="pairs: margin asked for a gap as wide as the deviation of all ratings"
    )
    center_coef: float = Field(
        default=0.01, ge=0, description="pairs: weight of (sum of both scores)^2, which keeps scores around 0"
    )
    span_coef: float = Field(
        default=0.0,
        ge=0,
        description="weight of the loss on ratings of spans; above 0, the score comes with their credit",
    )

    @model_validator(mode="after")
    def _that_fits(self) -> RatingRewardConfig:
        if self.aspects and not any(self.aspects.values()):
            raise ValueError("at least one aspect needs a weight above 0")
        if self.loss == "pairs" and (self.aspects or self.span_coef):
            raise ValueError("pairs compare whole ratings; leave out `aspects` and `span_coef`, or take another loss")
        return self
