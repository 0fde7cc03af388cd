"""Taking turns with code that owns its loop: it runs in a thread of its own, and stands still while we go on.

TRL's `train()` returns when all is done; the runner wants to log, evaluate and stop after every step. So `train()`
runs in a thread, and a callback at the end of each of its steps hands over to us and waits. One of the two always
waits for the other: nothing runs at the same time, and random numbers are drawn in the same order as without a thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
Pause = Callable[[T], bool]
"""Called by the work at the end of a turn with what it has to show; False if it shall come to an end."""


class _End(Exception):
    """The work is done; `reason` is what it raised, if it did."""

    def __init__(self, reason: BaseException | None) -> None:
        self.reason = reason


class Turns(Generic[T]):
    """Runs ``work(pause)`` from one call of `pause` to the next."""

    def __init__(self, work: Callable[[Pause[T]], None]) -> None:
        go: SimpleQueue[bool] = SimpleQueue()
        shown: SimpleQueue[T | _End] = SimpleQueue()

        def pause(value: T) -> bool:
            shown.put(value)
            return go.get()

        def run() -> None:
            reason: BaseException | None = None
            try:
                if go.get():
                    work(pause)
            except BaseException as error:
                reason = error
            shown.put(_End(reason))

        self._go, self._shown = go, shown
        self._ended = False
        self._thread = threading.Thread(target=run, name="trl", daemon=True)
        self._thread.start()
        # nobody will ask again: let it go; at exit it is left where it stands
        weakref.finalize(self, go.put, False).atexit = False

    def next(self) -> T | None:
        """Let the work go on to its next pause and return what it shows; None once it has ended.

        Raises:
            BaseException: what the work raised.
        """
        if self._ended:
            return None
        self._go.put(True)
        return self._wait()

    def close(self) -> None:
        """Tell the work to end, and wait until it has. Raises what the work raises on its way out."""
        while not self._ended:
            self._go.put(False)
            self._wait()

    def _wait(self) -> T | None:
        value = self._shown.get()
        if not isinstance(value, _End):
            return value
        self._ended = True
        self._thread.join()
        if value.reason is not None:
            raise value.reason
        return None
