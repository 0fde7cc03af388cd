"""The small steps of a stage, and what a whole one would take."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ..errors import OutOfMemory
from ..interfaces import Component, Context, Policy, Stage, StepStats
from ..randomness import derive_seed, seed_everything
from .memory import Meter, held, resident, trained_parameters
from .sizes import Batch, Parts

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = 1.5
"""Seconds after which a stage is tried with no more prompts, as soon as it has been with two sizes."""
PATIENCE_BY_CLOCK = 4.0
"""Seconds that the steps by the clock may take, if twice as much took twice as long."""


class Trial(Protocol):
    """What is used of the dry run."""

    accelerator: Accelerator
    context: Context
    meter: Meter
    longest: int
    """Tokens of the longest sample of this stage so far, padding included."""

    @property
    def policy(self) -> Policy[Any]: ...

    @property
    def built(self) -> Sequence[Component[Any]]: ...

    def room(self) -> int | None: ...


class Measured:
    """The small steps of one stage, and what follows from them.

    Attributes:
        stats: of the last step. phases: seconds of the last one by the clock.
    """

    def __init__(self, run: Trial, name: str, stage: Stage[Any], batch: Batch) -> None:
        self.run, self.name, self.stage, self.batch = run, name, stage, batch
        self.stats: StepStats = {}
        self.index = 0 if batch.what == "examples" else stage.total - 1  # past warm-ups, which train less
        self.times: dict[int, float] = {}
        self.peaks: dict[int, tuple[Parts | None, Mapping[str, int]]] = {}
        self.trained: list[nn.Parameter] = []
        self.roles: dict[str, int] = {}
        self.process = 0
        self.phases: dict[str, float] = {}

    def steps(self) -> None:
        """On as many prompts as there are processes, to warm up; then twice as many each time, with an eye on memory;
        then by the clock: the largest of those, and four times as many each time."""
        run, batch = self.run, self.batch
        size = min(run.accelerator.num_processes, batch.whole)
        with trained_parameters() as self.trained:
            if not batch.whole:
                self._with_memory(0)
                self._hold()
                return
            self._step(size)
        self._hold()
        spent = seconds = 0.0
        while not self.peaks or (size < batch.whole and (len(self.peaks) < 2 or spent + 2 * seconds <= PATIENCE)):
            size = min(2 * size, batch.whole) if self.peaks else size
            seconds = self._agreed(self._with_memory(size))
            spent += seconds
        smaller, size = ([*self.peaks][-2:] * 2)[:2]
        spent = sum(self._timed(one) for one in dict.fromkeys((smaller, size)))
        while size < batch.whole and self._fits():
            larger = min(4 * size, batch.whole)
            if spent + self.times[size] * larger / size > PATIENCE_BY_CLOCK:
                break
            size = larger
            try:
                spent += self._timed(size)
            except OutOfMemory:  # what is known so far says how much would be needed
                break

    def _timed(self, size: int) -> float:
        self.times[size] = self._agreed(self._step(size))
        return self.times[size]

    def _fits(self) -> bool:
        """Whether there seems to be room for a whole step, so that larger ones may be tried."""
        room = self.run.room()
        return room is None or bool(self.result()["peak"] < 0.8 * room)

    def _hold(self) -> None:
        self.roles = held(self.run.policy, self.run.built)
        if self.run.accelerator.device.type == "cpu":
            self.process = max(0, resident() - sum(self.roles.values()))

    def _agreed(self, seconds: float) -> float:
        """The most of all processes."""
        mine = torch.tensor([seconds], device=self.run.accelerator.device)
        return float(self.run.accelerator.gather(mine).max())

    def _step(self, size: int) -> float:
        """A step on `size` prompts; its seconds."""
        run = self.run
        self.batch.take(size)
        seed_everything(derive_seed(run.context.seed, "step", self.name, self.index))
        clock = run.context.clock
        clock.reset()
        with clock("update" if self.batch.what == "examples" else "overhead"):
            self.stats = dict(self.stage.step(self.index))
        if not run.meter.on:
            self.phases = clock.seconds
        return sum(clock.seconds.values())

    def _with_memory(self, size: int) -> float:
        """A step that is measured for memory. Gradients are there beforehand, as in the parts of an update that come
        second and later."""
        for parameter in self.trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        with self.run.meter():
            seconds = self._step(size)
        self.peaks[size] = self.batch.parts(size, self.run.longest), dict(self.run.meter.peaks)
        if not size:
            self.times[0] = seconds
        for parameter in self.trained:
            parameter.grad = None
        return seconds

    def result(self) -> dict[str, Any]:
        """Everything, as JSON values; bytes are of each process."""
        batch = self.batch
        batch.take(batch.whole)
        parts = batch.parts(batch.whole, self.run.longest)
        gradients = sum(p.numel() * p.element_size() for p in self.trained)
        cache, work = self._on_top(parts)
        together: Callable[[int, int], int] = operator.add if self.run.accelerator.device.type == "cpu" else max
        if parts is None or parts.accumulation == 1:
            work = max(work - gradients, 0)  # what is kept for the backward pass goes as gradients come
        roles = {**self.roles, "gradients": gradients, "activations": work, "cache": cache}
        first, last = min(self.times.items()), max(self.times.items())
        return {
            "what": batch.what,
            "whole": batch.whole,
            "tried": last[0],
            "tried_seconds": last[1],
            "step_seconds": line([first, last], batch.whole),
            "parts": None if parts is None else vars(parts),
            "trained": sum(p.numel() for p in self.trained),
            "memory": {"process": self.process, **roles},
            # what drawing took is free again by then; a CPU's allocator has not given it back, nor found a use for it
            "peak": self.process + sum(self.roles.values()) + together(gradients + work, cache),
        }

    def _on_top(self, parts: Parts | None) -> tuple[int, int]:
        """Bytes that generation takes on top of what is held, and that any other phase does, in a whole step."""
        tried = [self.peaks[size] for size in sorted(self.peaks)[-2:]]
        found: dict[str, float] = {}
        for phase in {phase for _, peaks in tried for phase in peaks}:
            known = [(0 if p is None else p.units.get(phase, p.samples), m.get(phase, 0)) for p, m in tried]
            found[phase] = line(known, 0 if parts is None else parts.units.get(phase, parts.samples))
        generation = found.pop("generation", 0.0)
        return int(generation), int(max(found.values(), default=0))


def line(points: Sequence[tuple[int, float]], at: int) -> float:
    """What the line through the last two of `points`, which does not fall, is `at`; of one point, its own value."""
    x, y = points[-1]
    if len(points) < 2 or points[-2][0] == x:
        return max(y, points[0][1]) if len(points) > 1 else y
    before, value = points[-2]
    return max(y + max(0.0, (y - value) / (x - before)) * (at - x), 0.0)
