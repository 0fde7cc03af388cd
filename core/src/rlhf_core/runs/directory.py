"""The run directory: where it is, what is in it, and its append-only logs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import RunError

REGISTRY, PROVENANCE, METRICS, TIMINGS = "registry.yaml", "provenance.json", "metrics.jsonl", "timings.jsonl"
SUMMARY, SAMPLES, REPORT, CHECKPOINTS = "summary.json", "samples.jsonl", "report.html", "checkpoints"
EVALUATIONS = "evaluations"
"""Folder with every prompt's measurements of each evaluate stage, for `rlhf diff` to pair them."""


_DENIED = (errno.EACCES, errno.EPERM)


@contextmanager
def writing(what: str, *others: type[Exception], strangers: bool = True) -> Iterator[None]:
    """Around what writes to `what`, such as "checkpoint DIR": what the file system refuses becomes an error of ours.

    Args:
        others: exceptions of libraries that write, to be treated like `OSError`.
        strangers: also what is neither a full disk nor a file system that is read-only.

    Raises:
        RunError: instead of the `OSError`.
    """
    try:
        yield
    except (OSError, *others) as error:  # type: ignore[misc]  # mypy does not see that it is a tuple of classes
        number, text = getattr(error, "errno", None), str(error).lower()  # libraries pass on the words alone
        full = number in (errno.ENOSPC, errno.EDQUOT) or "no space left" in text or "quota exceeded" in text
        read_only = number == errno.EROFS or "read-only file system" in text or (strangers and number in _DENIED)
        if not (full or read_only or strangers):
            raise
        name = getattr(error, "filename", None)
        place = f" ({name})" if name and str(name) not in what else ""
        raise RunError(
            what,
            f"the disk is full{place}"
            if full
            else f"cannot be written: {f'it is read-only{place}' if read_only else error}",
            "room for it" if full else "a place that can be written",
            f"{'free some space' if full else 'mend that'} and go on with --resume; the checkpoint before is whole",
        ) from error


def new_directory(pipeline: str, out: Path | None) -> Path:
    """Make the directory of a new run: `out`, or ``runs/PIPELINE/TIME``.

    Raises:
        RunError: `out` has been used already, or cannot be written.
    """
    if out is None:
        parent = Path("runs", pipeline)
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        out = next(p for n in range(1000) if not (p := parent / (f"{stamp}-{n}" if n else stamp)).exists())
    if (out / REGISTRY).exists():
        raise RunError(
            f"run directory {out}",
            "holds a run already",
            "a new directory",
            "add --resume to go on with it, or choose another --out",
        )
    if out.exists() and (not out.is_dir() or any(p for p in out.iterdir() if not _left_by_a_start(p))):
        raise RunError(
            f"run directory {out}", "is not an empty directory", "a new or empty directory", "choose another --out"
        )
    try:
        (out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"run directory {out}", f"cannot be made: {error}", "a writable place") from error
    return out.resolve()


def _left_by_a_start(path: Path) -> bool:
    """Whether `path` is what a run leaves that was killed before it had written down its registry."""
    nothing_yet = path.name == CHECKPOINTS and path.is_dir() and not any(path.iterdir())
    return nothing_yet or path.name == f".{REGISTRY}.partial"


def existing_directory(pipeline: str, out: Path | None) -> Path:
    """The directory to resume: `out`, or the latest of the pipeline's.

    Raises:
        RunError: there is none.
    """
    if out is None:
        parent = Path("runs", pipeline)
        runs = sorted(p.parent for p in parent.glob(f"*/{REGISTRY}"))
        if not runs:
            raise RunError(
                f"run of {pipeline!r}",
                f"nothing to resume under {parent}",
                "an earlier run",
                "start one without --resume, or name its directory with --out",
            )
        out = runs[-1]
    if not (out / REGISTRY).is_file():
        raise RunError(
            f"run directory {out}",
            "holds no run",
            f"a directory with {REGISTRY}",
            "start one without --resume, or name another --out",
        )
    return out.resolve()


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path` as a whole; what was there stays until the new text is on the disk.

    Raises:
        RunError: the disk is full or not writable.
    """
    beside = path.with_name(f".{path.name}.partial")
    with writing(str(path)):
        try:
            beside.write_text(text, encoding="utf-8")
            sync(beside)
            beside.replace(path)
            sync(path.parent)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """sha256 of the file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON; nan becomes null, for readers that are strict."""
    write_atomically(path, json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


class Log:
    """A file of JSON lines that can be cut back to where a checkpoint was taken."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, entry: Mapping[str, Any]) -> None:
        with writing(str(self.path)), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(entry), ensure_ascii=False) + "\n")

    def saved(self) -> int:
        """`size`, once all of it is on the disk: what a checkpoint may refer to."""
        if self.path.exists():
            with writing(str(self.path)):
                sync(self.path)
        return self.size

    def cut(self, size: int) -> None:
        """Forget everything after the first `size` bytes.

        Raises:
            RunError: there are fewer, or the file cannot be written.
        """
        if self.size < size:
            raise RunError(
                str(self.path), f"{self.size} bytes", f"the {size} that were there at the checkpoint",
                "put the file back as it was, or start a new run",
            )  # fmt: skip
        if self.path.exists():
            with writing(str(self.path)):
                os.truncate(self.path, size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.path.exists():
            with self.path.open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)
