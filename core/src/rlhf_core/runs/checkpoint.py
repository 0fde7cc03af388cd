"""Checkpoints: nested state as one JSON file and one safetensors file, written beside and then renamed.

No pickle: what is not a tensor or a JSON scalar cannot be saved, and loading runs no code.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import RunError
from ..interfaces import State

STATE_FILE, TENSOR_FILE = "state.json", "tensors.safetensors"
_TENSOR_KEY = "$tensor"


def save(directory: Path, state: State) -> None:
    """Write `state` so that `directory` holds either all of it or what it held before.

    Raises:
        RunError: the disk is full or not writable; whatever was there before stays whole.
        TypeError: `state` holds something that is neither tensor nor JSON.
    """
    beside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    tensors: dict[str, Tensor] = {}
    tree = _without_tensors(state, "", tensors)
    try:
        beside.mkdir(parents=True)
        save_file(tensors, beside / TENSOR_FILE)
        (beside / STATE_FILE).write_text(json.dumps(tree), encoding="utf-8")
        for name in (TENSOR_FILE, STATE_FILE):
            _sync(beside / name)
        _put_in_place(beside, directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        raise RunError(
            f"checkpoint {directory}",
            "the disk is full" if full else f"cannot be written: {error}",
            "room for the weights and the optimizer's moments",
            "free some space and go on with --resume; the checkpoint before is whole",
        ) from error


def load(directory: Path) -> State:
    """Read what `save` wrote.

    Raises:
        RunError: it is not there, or damaged.
    """
    try:
        tree = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        tensors = load_file(directory / TENSOR_FILE)
        state: State = _with_tensors(tree, tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(
            f"checkpoint {directory}",
            f"cannot be read: {error}",
            f"{STATE_FILE} and {TENSOR_FILE}",
            "take an older checkpoint: remove this folder and --resume again",
        ) from error
    return state


def _without_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors put into `tensors` under their path."""
    if isinstance(value, Tensor):
        # a copy each: safetensors refuses tensors that share memory, such as tied weights
        tensors[path] = value.detach().to("cpu").contiguous().clone()
        return {_TENSOR_KEY: path}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"state at {path or 'the top'} has the key {key!r}; keys must be strings")
        return {key: _without_tensors(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"state at {path} is a {type(value).__name__}; a checkpoint holds tensors and JSON only")


def _with_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {_TENSOR_KEY}:
            return tensors[tree[_TENSOR_KEY]]
        return {key: _with_tensors(item, tensors) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_with_tensors(item, tensors) for item in tree]
    return tree


def _put_in_place(beside: Path, directory: Path) -> None:
    if directory.exists():
        old = directory.with_name(f".{directory.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
        beside.rename(directory)
        shutil.rmtree(old, ignore_errors=True)
    else:
        beside.rename(directory)
    _sync(directory.parent)


def _sync(path: Path) -> None:
    """Make sure that what was written is on disk before anything is renamed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
