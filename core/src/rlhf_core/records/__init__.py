"""Records: what flows between components. Immutable, typed, and light: importing them does not import torch."""

from .feedback import (
    Comparison,
    Demonstration,
    Edit,
    Feedback,
    FeedbackRecord,
    Keywords,
    Message,
    Prompt,
    Rating,
    Sentiment,
    SpanRating,
    SpanWeight,
    parse_feedback,
)
from .rollout import Rollout, Sample, Scores, Span

__all__ = [
    "Comparison", "Demonstration", "Edit", "Feedback", "FeedbackRecord", "Keywords", "Message", "Prompt", "Rating",
    "Rollout", "Sample", "Scores", "Sentiment", "Span", "SpanRating", "SpanWeight",
    "parse_feedback",
]  # fmt: skip
