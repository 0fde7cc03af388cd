"""Is a series of numbers still what it was at first?"""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import Any


class Series:
    """A series: mean and deviation of its first `warmup` values, and the latest `window` after them.

    Attributes:
        first: the first values; their mean is `level` once there are `warmup` of them. recent: the latest ones.
    """

    def __init__(self, warmup: int, window: int) -> None:
        self.warmup, self.window = warmup, window
        self.first: list[float] = []
        self.recent: list[float] = []

    def add(self, value: float) -> bool:
        """Take in a value, nan not; whether there is enough to judge."""
        if math.isnan(value):
            return False
        if len(self.first) < self.warmup:
            self.first.append(value)
            return False
        self.recent = [*self.recent, value][-self.window :]
        return len(self.recent) == self.window

    @property
    def level(self) -> float:
        """Mean of the first values."""
        return fmean(self.first)

    @property
    def now(self) -> float:
        """Mean of the latest ones."""
        return fmean(self.recent)

    @property
    def z(self) -> float:
        """(now - level) in standard errors: s sqrt(1/warmup + 1/window), s as the first values vary."""
        change = self.now - self.level
        error = stdev(self.first) * math.sqrt(1 / self.warmup + 1 / self.window)
        if error == 0:
            return math.copysign(math.inf, change) if change else 0.0
        return change / error

    def state_dict(self) -> dict[str, Any]:
        return {"first": list(self.first), "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first, self.recent = list(state["first"]), list(state["recent"])
