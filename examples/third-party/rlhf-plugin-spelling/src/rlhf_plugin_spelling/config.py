"""Options of `spelling`. Light: imports no torch, and no spell checker either."""

from typing import Literal

from pydantic import Field
from rlhf_core.interfaces import Config


class SpellingRewardConfig(Config):
    """The share of a response's words that a dictionary knows."""

    language: Literal["en", "es", "fr", "it", "pt", "de", "ru", "ar", "lv", "eu", "nl", "fa"] = Field(
        default="en", description="whose dictionary is asked, as a language code"
    )
    known: tuple[str, ...] = Field(default=(), description="further words that are right: names, terms of the trade")
    silence: float = Field(default=0.0, ge=0, le=1, description="score of a response without a word")
