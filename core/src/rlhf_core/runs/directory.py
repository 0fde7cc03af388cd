"""The run directory: where it is, what is in it, and its append-only logs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import RunError

REGISTRY, PROVENANCE, METRICS, TIMINGS = "registry.yaml", "provenance.json", "metrics.jsonl", "timings.jsonl"
SUMMARY, SAMPLES, REPORT, CHECKPOINTS = "summary.json", "samples.jsonl", "report.html", "checkpoints"


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
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"run directory {out}", "is not an empty directory", "a new or empty directory", "choose another --out"
        )
    try:
        (out / CHECKPOINTS).mkdir(parents=True)
    except OSError as error:
        raise RunError(f"run directory {out}", f"cannot be made: {error}", "a writable place") from error
    return out.resolve()


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
    """Replace the file at `path` as a whole."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(entry), ensure_ascii=False) + "\n")

    def cut(self, size: int) -> None:
        """Forget everything after the first `size` bytes."""
        if self.path.exists():
            os.truncate(self.path, size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.path.exists():
            with self.path.open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)
