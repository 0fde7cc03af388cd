"""Keeping an eye on evaluations during a stage: `best` and `until`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..interfaces import StageConfig, State


class Watch:
    """Keeps an eye on the evaluations during a stage, for `best` and `until`."""

    def __init__(self, config: StageConfig) -> None:
        self.config = config
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.stopped_at: int | None = None
        self.reached = 0

    def look(self, measured: Mapping[str, float], stage: str, step: int) -> bool:
        """Take in the evaluation after `step`; True if it is the best so far.

        Raises:
            ConfigError: `best` or `until` name a metric that is not measured.
        """
        best, until = self.config.best, self.config.until
        sign, best = (-1, best[1:]) if best is not None and best.startswith("-") else (1, best)
        for key, name in (("best", best), ("until.metric", until.metric if until else None)):
            if name is not None and name not in measured:
                raise ConfigError(
                    f"stage {stage!r} {key}",
                    f"no metric {name!r}",
                    f"one of {', '.join(measured)}",
                    "name a metric that the stage's evaluation has",
                )
        if until is not None:
            self.reached = self.reached + 1 if measured[until.metric] >= until.at_least else 0
        if best is None or (self.best_value is not None and sign * measured[best] <= sign * self.best_value):
            return False
        self.best_value, self.best_step = measured[best], step
        return True

    @property
    def satisfied(self) -> bool:
        until = self.config.until
        return until is not None and self.reached >= until.patience

    @property
    def reason(self) -> str:
        """Why the stage may stop, in words."""
        until = self.config.until
        return f"{until.metric} reached {until.at_least}" if until else "nothing to reach"

    def outcome(self) -> dict[str, Any]:
        """What summary.json says of it: the step whose weights were kept, and the step at which the stage stopped."""
        best = {"best": {"metric": self.config.best, "value": self.best_value, "step": self.best_step}}
        return {
            **(best if self.best_step is not None else {}),
            **({"stopped_at": self.stopped_at} if self.stopped_at is not None else {}),
        }

    def state_dict(self) -> State:
        return {"best_value": self.best_value, "best_step": self.best_step, "reached": self.reached}

    def load_state_dict(self, state: State) -> None:
        self.best_value, self.best_step, self.reached = state["best_value"], state["best_step"], state["reached"]
