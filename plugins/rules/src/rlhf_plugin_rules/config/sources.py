"""Options of the feedback sources."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from rlhf_core.interfaces import SourceConfig


class KeywordFeedbackConfig(SourceConfig):
    """Words that people want and do not want: rows of `prompt`, `wanted`, `unwanted` and perhaps `response`."""


class SentimentFeedbackConfig(SourceConfig):
    """How responses feel: rows of `prompt`, `response`, and `label` or `score` or both."""

    labels: dict[str, Literal["positive", "neutral", "negative"]] | None = Field(
        default=None,
        description="the file's labels -> positive, neutral, negative; by default those words, pos/neu/neg and 1/0/-1",
    )
