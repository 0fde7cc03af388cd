"""Monitors: they watch a stage for what its reward does not say, and answer with an alarm."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from .components import Component
from .config import Config

if TYPE_CHECKING:
    from ..records import Sample

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Observation:
    """What a monitor is shown of one step.

    Attributes:
        stage: id of the stage. step: from 1; total: the stage's last.
        stats: the statistics that are logged, such as ``kl/sequence`` and ``response/length``; a statistic that an
            optimizer does not give is not there.
        samples: what the policy answered in this step, where the monitor wants samples; empty otherwise.
        scores: one per sample: the weighted sum of the rewards, before shaping. Empty where there are no samples;
            samples on which a reward abstained are left out of both.
    """

    stage: str
    step: int
    total: int
    stats: Mapping[str, float]
    samples: tuple[Sample, ...] = ()
    scores: tuple[float, ...] = ()


class Monitor(Component[C]):
    """Watches a stage. What it has seen is its state, so that a resumed run raises the same alarms.

    A stage names its monitors, and says of each whether its alarm warns or stops the run.
    """

    def wants_samples(self, step: int) -> bool:
        """Whether it is to be shown the samples of `step`, from 1, as well as its statistics."""
        return False

    @abstractmethod
    def look(self, seen: Observation) -> str | None:
        """Take in a step. None, or an alarm: what is wrong, in one line, with the numbers that show it.

        It may be answered at every step for as long as it is wrong; whoever asks tells it once.
        """
