"""Stopping politely: the first signal is noted, a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import RLHFError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Interrupted(RLHFError):
    """A signal asked the run to stop; it has, at a checkpoint."""

    def __init__(self, number: int, directory: Path, resume: str) -> None:
        self.exit_code = 128 + number
        super().__init__(
            f"run {directory}", f"stopped by {signal.Signals(number).name} at a checkpoint", fix=f"go on with: {resume}"
        )


class PoliteStop:
    """Notes SIGINT and SIGTERM in `number` while it is entered; outside the main thread it does nothing.

    Args:
        say: called with a line for the person when the first signal comes.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.number: int | None = None
        self._say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> PoliteStop:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, accelerator: Accelerator) -> int | None:
        """The signal that came, if any, in whichever process: all of them stop after the same step."""
        if accelerator.num_processes > 1:
            import torch

            mine = torch.tensor([self.number or 0], device=accelerator.device)
            self.number = int(accelerator.gather(mine).max()) or None
        return self.number

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)  # asked twice: at once; the last checkpoint is whole
        self.number = number
        self._say(f"{signal.Signals(number).name}: finishing this step, then a checkpoint; again to stop at once")
