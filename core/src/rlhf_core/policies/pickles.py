"""Pickles are refused: reading one can run any code. Weights are safetensors, all else is JSON or text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import ConfigError

SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
NEVER_OPENED = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*.pth")
"""What a trainer leaves beside a model, for its own resuming; nobody who loads the model reads it."""


def refuse_pickles(name: str | None, where: str) -> None:
    """Refuse a folder with a pickle in it, before any of its files is loaded; a hub id is left to who downloads it.

    Raises:
        ConfigError: there is one, or a file says that weights lie in one.
    """
    if name is None or not Path(name).is_dir():
        return
    folder = Path(name)
    base = _read(folder / "adapter_config.json").get("base_model_name_or_path")  # transformers loads it by itself
    folders = [folder, Path(base)] if isinstance(base, str) and Path(base).is_dir() else [folder]
    for found in (pickle for place in folders for pickle in _pickles(place)):
        raise ConfigError(
            where,
            f"{found} is a pickle, and reading a pickle can run any code",
            "weights in safetensors only",
            "save the model again with save_pretrained(), or remove the file if safetensors lie beside it",
        )


def _pickles(folder: Path) -> Iterator[str]:
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in SUFFIXES and not any(fnmatch(file.name, known) for known in NEVER_OPENED):
            yield str(file)
        elif file.name == "config.json":
            yield from _named(file, [_read(file).get("transformers_weights")])
        elif file.name.endswith(".index.json"):
            weights = _read(file).get("weight_map")
            yield from _named(file, list(weights.values()) if isinstance(weights, dict) else [])


def _named(file: Path, names: list[Any]) -> Iterator[str]:
    """What `file` calls weights and is no safetensors: whatever its name, it would be read as a pickle."""
    for name in names:
        if isinstance(name, str) and not name.endswith((".safetensors", ".safetensors.index.json")):
            yield f"{name!r}, which {file} names,"


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}  # whoever loads it says what is wrong
    return data if isinstance(data, dict) else {}
