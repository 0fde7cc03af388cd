"""Python's garbage collector stays out of the steps: it works between them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

FULL_EVERY = 100  # steps; between two of these only what is new is looked through


class Collector:
    """For the steps of a stage: ``with Collector() as collector:``, and in it ``with collector.off():`` for each step.

    What is there when the stage begins (half a million objects of libraries) is frozen until it ends, so that no
    collection between steps looks at it. Where the caller has switched the collector off nothing is done; where the
    caller has frozen objects they stay frozen, and no more are.

    Args:
        clean: collect first, which takes a quarter of a second: what an earlier stage left in cycles would keep its
            memory until this one ends.
    """

    def __init__(self, *, clean: bool = False) -> None:
        self._clean = clean

    def __enter__(self) -> Collector:
        self._active = gc.isenabled()
        self._froze = self._active and gc.get_freeze_count() == 0
        self._steps = 0
        if self._active and self._clean:
            gc.collect()
        if self._froze:
            gc.freeze()
        return self

    def __exit__(self, *error: object) -> None:
        if self._froze:
            gc.unfreeze()

    @contextmanager
    def off(self) -> Iterator[None]:
        """One step without the collector. After it, cycles that it left are collected; now and then all of them."""
        if not self._active:
            yield
            return
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
            self._steps += 1
            gc.collect(2 if self._steps % FULL_EVERY == 0 else 1)
