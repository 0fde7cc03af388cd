"""Where the time of a step goes. Always on: a phase costs two looks at the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PHASES = {
    "generation": "the environment's rollout: responses of the policy, with what it records while decoding",
    "scoring": "log-probabilities, values and other needs, under policy, critic and reference",
    "reward": "online rewards learn, and every reward scores",
    "shaping": "shapers, and placing the score on tokens",
    "update": "the optimizer: advantages, losses, gradients, weights; all of a step of sft and fit-reward",
    "evaluation": "measuring during a stage (`evaluate_every`), with all that it samples, and keeping the best",
    "overhead": "the rest of the step: prompts, statistics, gathering; metrics in evaluate; all of other stages",
}


class Clock:
    """Seconds per phase: what runs inside ``with clock("scoring"):`` counts to `scoring`.

    Of phases inside one another only the innermost counts, so `seconds` add up to the time spent in the outermost.

    Args:
        now: the time in seconds. wait: called before each look at it, such as to let a device finish its work.

    Attributes:
        seconds: by phase, since the last `reset`; `PHASES` in their order, then others.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter, wait: Callable[[], object] | None = None) -> None:
        self._now, self._wait = now, wait
        self._spent: dict[str, float] = {}
        self._inside: list[tuple[str, bool]] = []
        self._since = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        own = [phase for phase in self._spent if phase not in PHASES]
        return {phase: self._spent[phase] for phase in (*PHASES, *own) if phase in self._spent}

    def reset(self) -> None:
        """Forget what has been counted."""
        self._spent = {}

    @contextmanager
    def __call__(self, phase: str, *, whole: bool = False) -> Iterator[None]:
        """Count what happens inside to `phase`; `whole`: what phases inside it take, too."""
        self._border()
        outer = self._inside[-1] if self._inside else (phase, False)
        self._inside.append(outer if outer[1] else (phase, whole))
        try:
            yield
        finally:
            self._border()
            self._inside.pop()

    def _border(self) -> None:
        """Another phase begins or goes on: what has passed since the last border is the innermost one's."""
        if self._wait is not None:
            self._wait()
        now = self._now()
        if self._inside:
            phase = self._inside[-1][0]
            self._spent[phase] = self._spent.get(phase, 0.0) + now - self._since
        self._since = now
