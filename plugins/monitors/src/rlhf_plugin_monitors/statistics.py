"""Monitors of the statistics that are logged anyway."""

from __future__ import annotations

from statistics import fmean
from typing import Any, TypeVar

from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Context, Monitor, Observation, State

from .config import DriftConfig, EntropyCollapseConfig, KLBudgetConfig, LengthDriftConfig
from .drift import Series

D = TypeVar("D", bound=DriftConfig)


def statistic(monitor: Monitor[Any], seen: Observation, name: str, fix: str) -> float:
    """The statistic `name` of this step.

    Raises:
        ConfigError: the stage has no such statistic.
    """
    if name not in seen.stats:
        raise ConfigError(
            monitor.context.where,
            f"stage {seen.stage!r} has no statistic {name!r}",
            f"it among {', '.join(sorted(seen.stats)) or 'its statistics, of which there are none'}",
            fix,
        )
    return seen.stats[name]


class Drift(Monitor[D]):
    """A monitor that compares the latest steps with the first ones."""

    def __init__(self, config: D, context: Context) -> None:
        super().__init__(config, context)
        self.series = Series(config.warmup, config.window)

    def state_dict(self) -> State:
        return self.series.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.series.load_state_dict(state)


class KLBudget(Monitor[KLBudgetConfig]):
    """An absolute limit: what the policy may drift is known beforehand (Gao et al., 2023, arXiv:2210.10760)."""

    def __init__(self, config: KLBudgetConfig, context: Context) -> None:
        super().__init__(config, context)
        self.recent: list[float] = []

    def look(self, seen: Observation) -> str | None:
        value = statistic(self, seen, "kl/sequence", "add the shaper kl, which asks for the reference")
        self.recent = [*self.recent, value][-self.config.window :]
        spent = fmean(self.recent)
        if len(self.recent) < self.config.window or spent <= self.config.budget:
            return None
        return f"{spent:.1f} nats per response from the reference, over a budget of {self.config.budget:g}"

    def state_dict(self) -> State:
        return {"recent": list(self.recent)}

    def load_state_dict(self, state: State) -> None:
        self.recent = list(state["recent"])


class LengthDrift(Drift[LengthDriftConfig]):
    """Rewards that grow with length are the commonest to be exploited (Singhal et al., 2023, arXiv:2310.03716)."""

    def look(self, seen: Observation) -> str | None:
        value = statistic(self, seen, "response/length", "name this monitor in a stage that samples responses")
        if not self.series.add(value):
            return None
        level, now, factor = self.series.level, self.series.now, self.config.factor
        if level / factor <= now <= level * factor or abs(self.series.z) < self.config.z:
            return None
        return f"responses of {now:.1f} tokens, {level:.1f} in the first {self.config.warmup} steps"


class EntropyCollapse(Drift[EntropyCollapseConfig]):
    """A policy that hardly varies learns nothing more, and has often settled on one trick."""

    def look(self, seen: Observation) -> str | None:
        value = statistic(self, seen, "policy/entropy", "name this monitor in a stage that samples responses")
        if not self.series.add(value):
            return None
        level, now = self.series.level, self.series.now
        if now >= self.config.share * level or self.series.z > -self.config.z:
            return None
        return f"an entropy of {now:.3g} nats per token, {level:.3g} in the first {self.config.warmup} steps"
