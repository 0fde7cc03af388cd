"""Options of the shapers. Light: imports no torch.

Every docstring says what its shaper changes of the optimum, with an optimizer whose own discount is 1.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from rlhf_core.interfaces import Config, Needs, RewardRef, Scheduled, within

# --- on scores -------------------------------------------------------------------------------------------------------


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


class PromptBaselineConfig(Config):
    """Scores less the mean that their prompt got in earlier steps.

    Changes nothing of the optimum: what is taken off was known before the response was drawn. It changes the noise.
    """

    decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="what a prompt's earlier scores still count each time new ones come; 1: all count alike",
    )


class SuccessBonusConfig(Config):
    """A bonus for scores of at least `threshold`.

    Keeps the order of the scores, and with `max_tokens` that of success and failure. Changes what success weighs
    against all else, such as a KL penalty; `max_tokens` moves the optimum to brevity among successful responses only.
    """

    threshold: float = Field(description="a score from here on is a success")
    bonus: Annotated[Scheduled, within(ge=0)] = Field(default=1.0, description="added to a successful score")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="the bonus falls with length, to 0 at so many tokens; by default length does not count",
    )


# --- on scores, by length --------------------------------------------------------------------------------------------


class MissingEOSConfig(Config):
    """A penalty on responses that hit the length limit before they ended.

    Moves the optimum to responses that end in time; says nothing about those that do. With `replace` it does so only
    where finished responses score more than -penalty: below that, being cut would be the best that can be had.
    """

    penalty: float = Field(default=1.0, ge=0, description="taken off the score of a truncated response")
    replace: bool = Field(
        default=False,
        description="score a truncated response -penalty, whatever it got, instead of score - penalty; "
        "give a penalty that no finished response falls below",
    )


class LengthPenaltyConfig(Config):
    """``score - coef * max(0, length - free_tokens)``, in tokens of the response, end of text included.

    Moves the optimum to shorter responses, by as much as `coef` weighs; among equally long ones, and up to
    `free_tokens`, it changes nothing.
    """

    coef: Annotated[Scheduled, within(ge=0)] = Field(
        default=0.01, description="taken off the score for each token beyond `free_tokens`"
    )
    free_tokens: int = Field(default=0, ge=0, description="tokens that cost nothing")


class OverlongConfig(Config):
    """The soft overlong penalty of DAPO (Yu et al., 2025, equation 13).

    Moves the optimum away from the last `buffer` tokens before the limit; shorter responses are left alone.
    """

    max_tokens: int = Field(
        ge=1, description="length at which the penalty is full; as a rule the stage's max_new_tokens"
    )
    buffer: int = Field(ge=1, description="it sets in so many tokens earlier and grows by the same with each")
    coef: Annotated[Scheduled, within(ge=0)] = Field(default=1.0, description="the full penalty")

    @model_validator(mode="after")
    def _fits(self) -> OverlongConfig:
        if self.buffer > self.max_tokens:
            raise ValueError(
                f"got a buffer of {self.buffer} tokens before max_tokens {self.max_tokens}, expected at most "
                "max_tokens; lower buffer"
            )
        return self


# --- on tokens -------------------------------------------------------------------------------------------------------


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


class DiscountConfig(Config):
    """The reward of the response's k-th token, counted from 0, times gamma^k.

    Moves the optimum to what pays early and costs late: a score at the end is worth more in a shorter response if it is
    positive, in a longer one if it is negative. Among equally long responses, nothing else changes.
    """

    gamma: float = Field(
        default=0.99, gt=0, le=1, description="factor per token; instead of the optimizer's, which stays 1"
    )


class RepetitionPenaltyConfig(Config):
    """A price on every token that completes an n-gram which the response has had before.

    Moves the optimum to responses that repeat no n-gram; those that repeat none are left alone.
    """

    coef: Annotated[Scheduled, within(ge=0)] = Field(default=0.1, description="taken off the reward of such a token")
    n: int = Field(default=3, ge=1, description="tokens of an n-gram; 1: any token that comes again")


class SpreadConfig(Config):
    """The score, which lies on the last token, spread over all tokens.

    Keeps the sum of every response, and the optimum for optimizers that read the sum (RLOO, GRPO). Those that credit a
    token with what comes after it (PPO, A2C) credit later tokens with a smaller part of the score, which favours going
    on if scores are positive and ending if they are negative.
    """

    decay: float = Field(
        default=1.0, gt=0, le=1, description="share of a token for each share of the next one; 1: equal shares"
    )


class PotentialConfig(Config):
    """Potential-based shaping (Ng, Harada & Russell, 1999), the potential being a reward model's score so far.

    Changes nothing of the optimum, whatever the reward model: every response of a prompt gets the same, what the empty
    response scores, taken off. It changes when a token's worth shows.
    """

    reward: RewardRef = Field(description="the reward model that scores responses before they are complete")
    coef: float = Field(default=1.0, gt=0, description="factor on its scores")
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount per token; must equal the optimizer's")
    every: int = Field(
        default=8, ge=1, description="score before every so many tokens; in between the last score stands"
    )

    @property
    def needs(self) -> Needs:
        return Needs(token_ends=True)
