"""A profile: where the time of steps went, from the `phases` that ``--profile`` writes into timings.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from .wording import finite, mapping, real

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Phase:
    """A phase of a stage: seconds per step (the median over the `steps` that have it), and its share of all time."""

    name: str
    steps: int
    median: float
    share: float

    @property
    def step(self) -> str:
        return f"{self.median:.4f} s"

    @property
    def percent(self) -> str:
        return f"{100 * self.share:.1f} %"


@dataclass(frozen=True)
class Profile:
    """The phases of a stage's measured steps."""

    stage: str
    phases: list[Phase]


def profiles(timings: Iterable[Mapping[str, Any]]) -> list[Profile]:
    """One per stage with measured steps; lines without phases (of a run without ``--profile``) are left out."""
    stages: dict[str, list[dict[str, float]]] = {}
    for line in timings:
        phases = {str(name): real(seconds) for name, seconds in mapping(line.get("phases")).items()}
        if phases:
            stages.setdefault(str(line.get("stage", "")), []).append(phases)
    found = []
    for stage, steps in stages.items():
        seconds = {name: finite(step[name] for step in steps if name in step) for name in _order(steps)}
        total = sum(map(sum, seconds.values())) or 1.0
        rows = [Phase(name, len(s), median(s), sum(s) / total) for name, s in seconds.items() if s]
        found.append(Profile(stage, rows))
    return found


def _order(steps: Iterable[Mapping[str, float]]) -> list[str]:
    """The phases of all steps, in the order of the step."""
    from ..interfaces import PHASES

    names = dict.fromkeys(name for step in steps for name in step)
    return [name for name in PHASES if name in names] + [name for name in names if name not in PHASES]


def device_done(device: torch.device) -> Callable[[], None] | None:
    """What waits until `device` has done all that it was told; None for a CPU, which does it at once."""
    import torch

    return None if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)
