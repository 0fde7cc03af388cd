"""Options of the linear reward. Light: imports neither torch nor sklearn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator
from rlhf_core.interfaces import Config


class LinearRewardConfig(Config):
    """A weight for every n-gram of the response, and for every word of the prompt with every word of the response."""

    estimator: Literal["auto", "ranking-svm", "ridge", "svr"] = Field(
        default="auto",
        description="ranking-svm learns from comparisons and edits, ridge (squared error) and svr (absolute error) "
        "from ratings or sentiment; auto: ranking-svm or ridge, as the records ask for",
    )
    C: float | None = Field(
        default=None,
        gt=0,
        description="how closely to fit: weight of the loss beside half the squared norm of the weights; none: "
        "the best of 0.01, 0.03, 0.1, 0.3 and 1 in five-fold cross-validation by prompt",
    )
    analyzer: Literal["word", "char"] = Field(
        default="word",
        description="what an n-gram is made of: words (in Chinese and other scripts without spaces: characters), or "
        "characters everywhere",
    )
    ngrams: tuple[int, int] = Field(default=(1, 2), description="shortest and longest n-gram of a response")
    min_count: int = Field(default=2, ge=1, description="an n-gram or product is kept if so many responses have it")
    max_features: int = Field(
        default=100_000, ge=1, description="of n-grams, and of products, only so many are kept, the most frequent ones"
    )
    features: Literal["prompt-response", "response"] = Field(
        default="prompt-response",
        description="whether words of the prompt have weights of their own, which matters to ratings only: between two "
        "responses to one prompt they cancel",
    )
    cross: bool = Field(
        default=True,
        description="whether what a word of the response is worth depends on the words of the prompt (their products)",
    )
    held_out: float = Field(default=0.1, ge=0, lt=1, description="share of prompts kept out of training")

    @field_validator("ngrams")
    @classmethod
    def _ascending(cls, ngrams: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= ngrams[0] <= ngrams[1]:
            raise ValueError(f"got {list(ngrams)}, expected [shortest, longest] with 1 <= shortest <= longest")
        return ngrams
