"""Running out of memory, said so that a person can act: while doing what, with which batch, and what to lower."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .errors import OutOfMemory

_SIGNS = re.compile(r"out of memory|DefaultCPUAllocator|CU\w+_STATUS_ALLOC_FAILED")
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) (bytes|[KMGTPE]iB)", re.I)
_DEVICE = re.compile(r"(GPU \d+) has a total capacity of ([\d.]+ \w+)(?: of which ([\d.]+ \w+) is free)?")
_MPS = re.compile(r"MPS .*max allowed: ([\d.]+ \w+)")


class Surroundings(Protocol):
    """What is used of a component's context."""

    @property
    def where(self) -> str: ...

    @property
    def directory(self) -> Path | None: ...


@dataclass(frozen=True)
class Part:
    """What goes through a network at once: `rows` texts, padded to so many tokens."""

    rows: int
    prompt: int
    response: int = 0
    what: str = "samples"

    @property
    def tokens(self) -> int:
        """All of them, padding included."""
        return self.rows * (self.prompt + self.response)

    def __str__(self) -> str:
        what = self.what.removesuffix("s") if self.rows == 1 else self.what
        width = (
            f"({self.prompt} prompt + {self.response} response tokens)" if self.response else f"{self.prompt} tokens"
        )
        return f"{self.rows} {what} x {width}"


@contextmanager
def within_memory(
    context: Surroundings,
    phase: str,
    batch: object | Callable[[], object],
    advice: Iterable[str | None] = (),
    clear: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Inside, running out of memory is an `OutOfMemory`. Guards nest: the innermost says where, the others add advice.

    Args:
        context: of the component that is at work.
        phase: what it does, such as "update".
        batch: what with, such as a `Part`; or a function that says so.
        advice: what to change, the best first, as `lower` puts it; the first two that are not None are told. It is
            looked at only when memory has run out, so a generator costs nothing.
        clear: called first, to forget gradients.

    Raises:
        OutOfMemory: for torch's errors on any device, and Python's.
    """
    try:
        yield
    except OutOfMemory as error:
        clear()
        error.advise(advice)
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        clear()
        what = batch() if callable(batch) else batch
        raise OutOfMemory(context.where, phase, str(what), room(error), advice, kept(context.directory)) from error


def lower(name: str, now: float | None, of: str, part: Part | None = None) -> str | None:
    """Advice to lower the setting `name` of the component or stage `of`; None where that cannot help.

    Args:
        now: its value. part: for a budget of tokens, the part that did not fit: it has to come below that, and cannot
            cut a part of one row any further.
    """
    if now is None or now <= 1 or (part is not None and part.rows == 1):
        return None
    below = f" below {part.tokens}" if part is not None else ""
    return f"lower `{name}` of {of}{below} (now {now})"


def checkpointing(config: object, of: str) -> str | None:
    """Advice to keep fewer activations, where the component `of` has the option and does not use it."""
    if getattr(config, "gradient_checkpointing", None) is False:
        return f"set `gradient_checkpointing: true` in {of} (now false)"
    return None


def adapters(config: object, of: str) -> str | None:
    """Advice to train adapters, or smaller ones, where the component `of` could: anew, for no checkpoint fits them."""
    if not hasattr(config, "lora"):
        return None
    if config.lora is None:
        return f"give `lora` to {of} in a new run (now all its weights are trained)"
    return lower("lora.r", config.lora.r, f"{of} in a new run")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is about memory: of a GPU, of the CPU's allocator, of Python."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_SIGNS.search(str(error)))


def room(error: BaseException) -> str:
    """How much was asked for and how much there is, as far as `error` and the machine tell."""
    text, said = str(error), []
    if asked := _ASKED.search(text):
        size = _readable(int(float(asked[1]))) if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
        said.append(f"{size} more were asked for")
    if device := _DEVICE.search(text):
        free = f", {device[3]} of it free" if device[3] else ""
        said.append(f"{device[1]} has {device[2]}{free}")
    elif mps := _MPS.search(text):
        said.append(f"the device may take {mps[1]}")
    elif (isinstance(error, (MemoryError, OSError)) or "CPUAllocator" in text) and (total := _machine()):
        said.append(f"the machine has {_readable(total)}")
    return ", ".join(said)


def kept(directory: Path | None) -> str:
    """What a run in `directory` can go on from."""
    saved = sorted(path.name for path in (directory / "checkpoints").glob("[0-9]*")) if directory else []
    return (
        f"checkpoint {saved[-1]} is whole: go on from it with --resume, --set and --allow-config-change"
        if saved
        else ""
    )


def _machine() -> int:
    """Bytes of main memory, 0 where that is not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 0


def _readable(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"
