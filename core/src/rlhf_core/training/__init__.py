"""Training by gradient: optimizer steps, the supervised loop, and cutting work into parts."""

from .batching import Size, by_tokens, parts, share
from .gradient import GradientSteps, Rate, as_floats, backward, summed
from .supervised import SupervisedLoop, fit_task

__all__ = [
    "GradientSteps",
    "Rate",
    "Size",
    "SupervisedLoop",
    "as_floats",
    "backward",
    "by_tokens",
    "fit_task",
    "parts",
    "share",
    "summed",
]
