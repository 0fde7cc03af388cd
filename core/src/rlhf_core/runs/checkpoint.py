"""Checkpoints: nested state as one JSON file and one safetensors file, written beside and then renamed.

No pickle: what is not a tensor or a JSON scalar cannot be saved, and loading runs no code. A third file holds the
hashes of the two; what does not match them is damaged, and is never loaded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import RunError
from ..interfaces import State
from .directory import file_hash, sync, writing

STATE_FILE, TENSOR_FILE, HASH_FILE = "state.json", "tensors.safetensors", "sha256.json"
_TENSOR_KEY = "$tensor"


def save(directory: Path, state: State) -> None:
    """Write `state` so that `directory` holds either all of it or what it held before.

    Raises:
        RunError: the disk is full or not writable; whatever was there before stays whole.
        TypeError: `state` holds something that is neither tensor nor JSON.
    """
    beside = directory.with_name(f".{directory.name}.partial")
    tensors: dict[str, Tensor] = {}
    tree = _without_tensors(state, "", tensors)
    with writing(f"checkpoint {directory}", SafetensorError):
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            save_file(tensors, beside / TENSOR_FILE)
            (beside / STATE_FILE).write_text(json.dumps(tree), encoding="utf-8")
            hashes = {name: file_hash(beside / name) for name in (TENSOR_FILE, STATE_FILE)}
            (beside / HASH_FILE).write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
            for path in (*(beside / name for name in (TENSOR_FILE, STATE_FILE, HASH_FILE)), beside):
                sync(path)
            _put_in_place(beside, directory)
        except (OSError, SafetensorError):
            shutil.rmtree(beside, ignore_errors=True)
            raise


def load(directory: Path, *, verify: bool = True) -> State:
    """Read what `save` wrote.

    Args:
        verify: compare its hashes first; False for whoever has just asked for its `damage`.

    Raises:
        RunError: it is not there, or damaged; says which file.
    """
    problem = damage(directory) if verify else ""
    try:
        if not problem:
            tree = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
            state: State = _with_tensors(tree, load_file(directory / TENSOR_FILE))
            return state
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        problem = str(error)
    raise RunError(
        f"checkpoint {directory}", f"cannot be read: {problem}", "the files as they were written", "take an older one"
    )


def damage(directory: Path) -> str:
    """What is wrong with a checkpoint's files; empty: they are, byte for byte, what was written."""
    try:
        hashes = json.loads((directory / HASH_FILE).read_text(encoding="utf-8"))
        for name in (TENSOR_FILE, STATE_FILE):
            if (found := file_hash(directory / name)) != hashes[name]:
                return f"{name} is damaged: its sha256 is {found[:12]}..., and was {hashes[name][:12]}... when written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{HASH_FILE} is damaged: {type(error).__name__}: {error}"
    return ""


def clean(folder: Path) -> None:
    """Take away what a killed `save` has left in `folder`, and put back what it was about to replace.

    Raises:
        RunError: the folder cannot be written.
    """
    with writing(str(folder)):
        for left in folder.glob(".*.partial"):
            shutil.rmtree(left)
        for old in folder.glob(".*.old"):
            place = folder / old.name.removeprefix(".").removesuffix(".old")
            if place.exists():
                shutil.rmtree(old)
            else:
                old.rename(place)


def remove(directory: Path) -> None:
    """Take a checkpoint away; nothing that is half gone ever looks like one."""
    beside = directory.with_name(f".{directory.name}.partial")
    with writing(f"checkpoint {directory}"):
        shutil.rmtree(beside, ignore_errors=True)
        directory.rename(beside)
        shutil.rmtree(beside)


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
    sync(directory.parent)
