"""Where a run's numbers come from: versions, machine, git state, hashes of files and folders, and hiding secrets."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ..registry import ResolvedPipeline
from ..registry.environment import PLACEHOLDER, hide, lookup, substitute
from .directory import REGISTRY, file_hash, write_atomically

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "safetensors")
POINTER = "rlhf-run.json"
"""In a folder outside the run directory: which run wrote it. It is no part of what the folder holds."""
SECRET = re.compile(r"(.*_)?(api_?key|secret|password|passwd|credentials?)|key|token|(access|auth|hf)_token", re.I)
"""What options that hold secrets are called."""
HIDDEN = "(hidden)"


def provenance(resolved: ResolvedPipeline, device: str, processes: int) -> dict[str, Any]:
    """What is known at the start of a run, as JSON."""
    return {
        "pipeline": resolved.name,
        "seed": resolved.settings.seed,
        "started": now(),
        "command": command(resolved),
        **surroundings(resolved.root, device, processes),
        "files": hashes(resolved, [resolved.to_dict()]),
        "config": settings(resolved),
    }


def write_registry(resolved: ResolvedPipeline, directory: Path) -> None:
    """The pipeline with everything resolved, as the run directory's registry.yaml."""
    text = io.StringIO()
    YAML().dump(resolved.to_dict(), text)
    write_atomically(directory / REGISTRY, text.getvalue())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def surroundings(root: Path, device: str, processes: int) -> dict[str, Any]:
    """Versions, machine, and the git state of the folder `root`."""
    import torch

    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "processes": processes,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        },
        "git": _git(root),
    }


# --- the configuration, and where each value of it comes from --------------------------------------------------------


def settings(resolved: ResolvedPipeline) -> dict[str, dict[str, Any]]:
    """Every value of the pipeline by its path (as ``--set`` knows it), with its origin: "file:line path", "--set path"
    or "default". Variables stay ``${env:NAME}``; what else looks like a secret is not shown."""
    parts: list[tuple[str, Any, Mapping[str, str]]] = [("", resolved.written, resolved.origins)]
    parts += [(f"stages.{s.id}", s.written, s.origins) for s in resolved.stages]
    for (kind, id), declared in resolved.components.items():
        places = {path.removeprefix("config."): origin for path, origin in declared.origins.items()}
        written = {key: value for key, value in declared.written.items() if key != "config"}
        parts.append((f"{kind}.{id}", {**declared.written.get("config", {}), **written}, places))
    found = {}
    for prefix, written, origins in parts:
        for path, value in _flat(written):
            whole = f"{prefix}.{path}" if prefix else path
            found[whole] = {"value": _without_secrets(path, value), "origin": origins.get(path, "default")}
    for name, function in resolved.functions.items():
        for path, value in _flat({f"functions.{name}": function.written}):
            found[path] = {"value": _without_secrets(path, value), "origin": function.where}
    values = variables(resolved)
    return {path: {key: _hidden(item, values) for key, item in entry.items()} for path, entry in found.items()}


def variables(resolved: ResolvedPipeline) -> dict[str, str]:
    """The environment variables that the pipeline names, with their values: what must not be written anywhere."""
    return lookup(resolved.to_dict())


def command(resolved: ResolvedPipeline) -> list[str]:
    """The command line, without secrets."""
    values = variables(resolved)
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return [_hidden(_masked(word), values) for word in words]


def _masked(word: str) -> str:
    """``judge.api_key=(hidden)`` for a setting that holds a secret; another word as it is."""
    path, equals, value = word.partition("=")
    return f"{path}={HIDDEN}" if equals and value and _is_secret(path, value) else word


def _is_secret(path: str, value: Any) -> bool:
    written = isinstance(value, str) and value and not PLACEHOLDER.search(value)
    return bool(written and SECRET.fullmatch(path.rpartition(".")[2]))


def _without_secrets(path: str, value: Any) -> Any:
    """`value` with whatever is called like a secret hidden; ``${env:NAME}`` says nothing and stays."""
    if isinstance(value, Mapping):
        return {key: _without_secrets(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_secrets("", item) for item in value]
    return HIDDEN if _is_secret(path, value) else value


def _hidden(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return hide(value, values)
    if isinstance(value, Mapping):
        return {key: _hidden(item, values) for key, item in value.items()}
    return [_hidden(item, values) for item in value] if isinstance(value, list) else value


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested mappings by its dotted path; lists stay whole."""
    for key, item in value.items():
        place = f"{path}.{key}" if path else str(key)
        if isinstance(item, Mapping) and item:
            yield from _flat(item, place)
        else:
            yield place, item


# --- hashes ----------------------------------------------------------------------------------------------------------


def files(value: Any, folders: bool = False) -> Iterator[Path]:
    """Every string in the configs that names an existing file, or a function in one ("file.py:name"); with `folders`
    existing folders as well."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from files(item, folders)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from files(item, folders)
    elif isinstance(value, str) and value.startswith("/") and len(value) < 4096:
        found = (path for path in (Path(value), Path(value.rpartition(":")[0])) if path != Path())
        yield from (path for path in found if path.is_file() or (folders and path.is_dir()))


def hashes(resolved: ResolvedPipeline, written: Any, folders: bool = False) -> dict[str, str]:
    """Hashes of the files (and folders) that `written` names, variables in their paths not filled in."""
    values = variables(resolved)
    found = sorted(set(files(substitute(written, values), folders)))
    return {hide(str(path), values): digest(path) for path in found}


def digest(path: Path) -> str:
    """The hash of a file, or of a folder's files with their names, `POINTER` apart."""
    if path.is_dir():
        return _hash_of(f"{p.relative_to(path)} {digest(p)}" for p in sorted(path.rglob("*"))
                        if p.is_file() and p.name != POINTER)  # fmt: skip
    return f"sha256:{file_hash(path)}"


def _hash_of(lines: Iterable[str]) -> str:
    whole = hashlib.sha256()
    for line in lines:
        whole.update(f"{line}\n".encode())
    return "sha256:" + whole.hexdigest()


# --- versions and machine --------------------------------------------------------------------------------------------


@cache  # a fifth of a second, and every stage asks
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
