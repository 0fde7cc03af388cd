"""Options of the shapers. Light: imports no torch."""

from __future__ import annotations

from pydantic import Field, model_validator
from rlhf_core.interfaces import Config


class WhitenConfig(Config):
    """Token rewards scaled to variance 1 over the batch, as in Ziegler et al. (2019) and TRL.

    Changes the optimum where responses differ in length: with or without `shift_mean` every token gets a constant. What
    it keeps is how the rewards of one batch relate up to that constant; rewards stop being comparable between batches.
    """

    shift_mean: bool = Field(
        default=False, description="shift the mean to 0 as well, instead of keeping it; pays or charges each token"
    )
    unbiased: bool = Field(default=True, description="variance over n - 1 (TRL, verl) instead of n (OpenRLHF, MOSS)")
    eps: float = Field(default=1e-8, gt=0, description="added to the variance under the root")


class ClipConfig(Config):
    """Scores held in [low, high].

    Changes the optimum beyond the bounds, where better is no longer better; scores inside and their order are kept.
    """

    low: float = Field(default=-10.0, description="scores below are raised to this")
    high: float = Field(default=10.0, description="scores above are lowered to this")

    @model_validator(mode="after")
    def _ordered(self) -> ClipConfig:
        if self.low >= self.high:
            raise ValueError(
                f"got low {self.low:g} and high {self.high:g}, expected low < high; raise high or lower low"
            )
        return self


class ScaleConfig(Config):
    """Scores divided by the standard deviation of all scores so far, as in PPO-max (Zheng et al., 2023).

    Keeps the order of the scores of a batch, and with it the optimum of the score alone. Changes what a score weighs
    against later shapers: beside a KL penalty it is as if the penalty's coefficient were multiplied by the deviation.
    `center` takes the same off every response, which changes nothing of the optimum. `clip` ties what is beyond it.
    """

    center: bool = Field(default=False, description="subtract the running mean first")
    clip: float | None = Field(
        default=None, gt=0, description="hold the result in [-clip, clip]; by default it is free"
    )


class MissingEOSConfig(Config):
    """A penalty on responses that hit the length limit before they ended.

    Moves the optimum to responses that end in time; says nothing about those that do.
    """

    penalty: float = Field(default=1.0, ge=0, description="taken off the score of a truncated response")
    replace: bool = Field(
        default=False, description="score a truncated response -penalty, whatever it got, instead of score - penalty"
    )


class LengthPenaltyConfig(Config):
    """``score - coef * max(0, length - free_tokens)``, in tokens of the response, end of text included.

    Moves the optimum to shorter responses, by as much as `coef` weighs; among equally long ones, and up to
    `free_tokens`, it changes nothing.
    """

    coef: float = Field(default=0.01, gt=0, description="taken off the score for each token beyond `free_tokens`")
    free_tokens: int = Field(default=0, ge=0, description="tokens that cost nothing")
