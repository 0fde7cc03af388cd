"""Where a run's numbers come from: versions, machine, git state, and hashes of the files it read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "safetensors")


def provenance(
    pipeline: str, seed: int, root: Path, configs: Iterable[Mapping[str, Any]], device: str, processes: int
) -> dict[str, Any]:
    """What is known at the start of a run, as JSON."""
    import torch

    return {
        "pipeline": pipeline,
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "processes": processes,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        },
        "git": _git(root),
        "files": {str(path): _digest(path) for path in sorted(set(_files(list(configs))))},
    }


def _versions() -> dict[str, str]:
    ours = {d.name: d.version for d in importlib.metadata.distributions() if d.name and d.name.startswith("rlhf-")}
    found = dict(sorted(ours.items()))
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(root: Path) -> dict[str, Any] | None:
    """Commit and whether the work tree differs from it; None outside a repository."""

    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _files(value: Any) -> Iterator[Path]:
    """Every string in the configs that names an existing file, or a function in one ("file.py:name")."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _files(item)
    elif isinstance(value, list):
        for item in value:
            yield from _files(item)
    elif isinstance(value, str) and value.startswith("/") and len(value) < 4096:
        yield from (path for path in (Path(value), Path(value.rpartition(":")[0])) if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
