"""What a judge said, by content: in memory, and in a JSONL file if there is one."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from rlhf_core.errors import RunError


class Reply(NamedTuple):
    """What came back for a question: its text, or why there is none."""

    text: str | None
    truncated: bool = False
    """Whether it was cut off at `max_tokens`."""
    failure: str = ""


class Cache:
    """Replies by key. A line of the file is ``{"key": ..., "text": ..., "truncated": ...}``.

    Every reply is appended in one write, so that threads and processes may share a file. A line that a crash left
    damaged is passed over: its question is asked again.

    Raises:
        RunError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None, where: str) -> None:
        self._path, self._where, self._lock = path, where, Lock()
        self._replies: dict[str, Reply] = {}
        self._gap = b""  # ends the line that a crash broke off
        if path is not None and path.exists():
            self._read(path)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}  # each process has its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                line = b"\n"
                for line in file:
                    try:
                        row = json.loads(line)
                        key, text, truncated = row["key"], row["text"], row["truncated"]
                    except (ValueError, KeyError, TypeError):
                        continue
                    if isinstance(key, str) and isinstance(text, str | None):
                        self._replies[key] = Reply(text, bool(truncated))
                self._gap = b"" if line.endswith(b"\n") else b"\n"
        except OSError as error:
            raise self._trouble("read", error) from error

    def get(self, key: str) -> Reply | None:
        """The reply kept under `key`."""
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keep `reply`, on disk too if there is a file."""
        row = {"key": key, "text": reply.text, "truncated": reply.truncated}
        with self._lock:
            self._replies[key] = reply
            if self._path is None:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab", buffering=0) as file:
                    file.write(self._gap + json.dumps(row).encode() + b"\n")
            except OSError as error:
                raise self._trouble("written", error) from error
            self._gap = b""

    def _trouble(self, done: str, error: OSError) -> RunError:
        return RunError(
            f"{self._where} cache",
            f"{self._path} cannot be {done}: {error.strerror or error}",
            "a file of its own in a folder that can be written to",
            "set `cache` to another path",
        )
