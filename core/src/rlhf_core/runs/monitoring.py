"""Showing each step to the monitors of a stage, and what comes of their alarms: a warning, or the end of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import MonitorAlarm, PluginError
from ..interfaces import Monitor, Observation, Run, StageConfig, State, StepStats

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..interfaces import Stage


@dataclass(frozen=True)
class Alarm:
    """Why the run is to end."""

    where: str
    monitor: str
    reason: str

    def error(self, command: str) -> MonitorAlarm:
        """What ends the run; `command` goes on with it."""
        stage = self.where.partition(" ")[0]
        return MonitorAlarm(
            self.where,
            f"stopped by monitor {self.monitor!r}: {self.reason}",
            fix=f"look at metrics.jsonl; to go on in spite of it: {command} "
            f"--allow-config-change --set stages.{stage}.monitors.{self.monitor}=warn",
        )


class Monitors:
    """The monitors of one stage. Each alarm is told once, when it begins; one that ends and begins again, again."""

    def __init__(self, run: Run, stage: str, config: StageConfig) -> None:
        self.run, self.stage = run, stage
        self.actions = dict(config.monitors)
        self.monitors: dict[str, Monitor[Any]] = {id: run.component("monitor", id) for id in self.actions}
        self.sounding: dict[str, bool] = {}
        self.alarms: list[dict[str, Any]] = []

    def look(self, stage: Stage[Any], step: int, total: int, stats: StepStats) -> Alarm | None:
        """Show `step`, from 1, to every monitor; the first alarm that is to stop the run.

        Raises:
            PluginError: a monitor answers with something else than None or words.
        """
        reasons = {id: self._ask(id, stage, step, total, stats) for id in self.monitors}
        found = None
        for id, reason in _as_the_main_process(reasons, self.run.accelerator).items():
            new = reason is not None and not self.sounding.get(id)
            self.sounding[id] = reason is not None
            if reason is None:
                continue
            stops = self.actions[id] == "stop"
            if new:
                self.alarms.append({"monitor": id, "step": step, "reason": reason, "action": self.actions[id]})
                if not stops:
                    self.run.warn(f"monitor {id!r}, stage {self.stage!r}, step {step}: {reason}")
            if stops and found is None:
                found = Alarm(f"{self.stage} step {step}", id, reason)
        return found

    def _ask(self, id: str, stage: Stage[Any], step: int, total: int, stats: StepStats) -> str | None:
        monitor = self.monitors[id]
        samples, scores = stage.shown() if monitor.wants_samples(step) else ((), ())
        reason = monitor.look(Observation(self.stage, step, total, dict(stats), tuple(samples), tuple(scores)))
        if reason is not None and not (isinstance(reason, str) and reason.strip()):
            raise PluginError(monitor.context.where, f"answers {reason!r}", "None, or the reason of its alarm")
        return reason

    def outcome(self) -> dict[str, Any]:
        """What summary.json says of it: every alarm with its step and reason."""
        return {"alarms": self.alarms} if self.monitors else {}

    def state_dict(self) -> State:
        states = {id: monitor.state_dict() for id, monitor in self.monitors.items()}
        return {"monitors": states, "sounding": dict(self.sounding), "alarms": list(self.alarms)}

    def load_state_dict(self, state: State) -> None:
        for id, monitor in self.monitors.items():
            if id in state["monitors"]:  # one that was added at the resume begins here
                monitor.load_state_dict(state["monitors"][id])
        self.sounding, self.alarms = dict(state["sounding"]), list(state["alarms"])


def _as_the_main_process(reasons: dict[str, str | None], accelerator: Accelerator) -> dict[str, str | None]:
    """All processes stop, or none does."""
    if accelerator.num_processes == 1 or not reasons:
        return reasons
    from accelerate.utils import broadcast_object_list

    told = list(reasons.values())
    broadcast_object_list(told)
    return dict(zip(reasons, told, strict=True))
