"""Memory: what is held, by role; what a step takes on top, by phase; what the process takes by itself."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..interfaces import Clock, Component, Policy

LIBRARIES = ("rlhf_core", "torch", "transformers", "peft", "bitsandbytes", "accelerate")
"""Whose objects are looked into for tensors, beside those of the package that a component comes from."""


class Meter:
    """Bytes that tensors take beyond those that were there when it was entered, and the most of them in every phase.

    On CUDA the allocator says so. Elsewhere every operation is watched, which takes time: a step is either measured
    or timed. What another thread computes is not seen there.

    Attributes:
        peaks: phase -> bytes. on: whether it measures now.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self.peaks: dict[str, int] = {}
        self.on = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Measure what happens inside."""
        self.peaks, self.on = {}, True
        self._watch = _Watch()
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._base = torch.cuda.memory_allocated(self._cuda)
        watching: AbstractContextManager[Any] = nullcontext() if self._cuda is not None else self._watch
        try:
            with watching:
                yield
        finally:
            self.on = False

    def note(self, phase: str) -> None:
        """What was taken since the last call was taken by `phase`."""
        if not self.on:
            return
        if self._cuda is not None:
            peak = torch.cuda.max_memory_allocated(self._cuda) - self._base
            torch.cuda.reset_peak_memory_stats(self._cuda)
        else:
            peak, self._watch.peak = self._watch.peak, self._watch.now
        self.peaks[phase] = max(self.peaks.get(phase, 0), peak)


class MeteredClock(Clock):
    """The run's clock, which also tells the meter where one phase ends and another begins."""

    def __init__(self, meter: Meter, wait: Callable[[], object] | None = None) -> None:
        super().__init__(wait=wait)
        self._meter = meter

    def _border(self) -> None:
        if self._inside:
            self._meter.note(self._inside[-1][0])
        super()._border()


class _Watch(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta" and _key(tensor) not in before:
                self._add(tensor.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()

        def forget(_: Any) -> None:
            self._alive.pop(key, None)
            self.now -= size

        self._alive[key] = weakref.ref(storage, forget), size
        self.now += size
        self.peak = max(self.peak, self.now)


def _key(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse tensors, and those of other libraries
        return 0


# --- what is there between steps ---


def held(policy: Policy[Any], components: Iterable[Component[Any]]) -> dict[str, int]:
    """Bytes of all tensors in the process by role; a storage that several roles share counts once, for the first.

    What the garbage collector has been told to leave alone (`libraries_apart`) is not looked through.
    """
    gc.collect()
    optimizers, tensors = _living(torch.optim.Optimizer, Tensor)
    rewards = [c for c in components if c.context.kind == "reward"]
    roles: dict[str, Iterable[Tensor]] = {
        "critic": policy.value_parameters,
        "rewards": [p for c in rewards for p in _own_adapters(c)],  # those lie in the policy's base
        "policy": [*policy.module.parameters(), *policy.module.buffers()],
        "reference": _tensors(policy, policy, set()),
        "rewards ": [t for c in rewards for t in _tensors(c, c, set())],
        "optimizer": [t for o in optimizers for t in _tensors(dict(o.state), o, set())],
        "other": tensors,
    }
    seen: set[int] = set()
    found: dict[str, int] = {}
    for role, members in roles.items():
        for tensor in members:
            key = _key(tensor)
            if key and key not in seen and tensor.device.type != "meta":
                seen.add(key)
                found[role.strip()] = found.get(role.strip(), 0) + tensor.untyped_storage().nbytes()
    return found


def _living(*kinds: type) -> list[list[Any]]:
    """The objects of each kind that the garbage collector knows."""
    known: dict[type, int | None] = {}
    found: list[list[Any]] = [[] for _ in kinds]
    for thing in gc.get_objects():
        kind = type(thing)
        if kind not in known:
            known[kind] = next((place for place, wanted in enumerate(kinds) if issubclass(kind, wanted)), None)
        place = known[kind]
        if place is not None:
            found[place].append(thing)
    return found


@contextmanager
def libraries_apart() -> Iterator[None]:
    """Inside, the garbage collector, and who looks for tensors, leaves alone what is there now: half a million objects
    of libraries."""
    mine = gc.get_freeze_count() == 0
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


def _own_adapters(component: Component[Any]) -> list[Tensor]:
    network = getattr(component, "network", None)
    named = network.named_parameters() if isinstance(network, nn.Module) else ()
    return [p for name, p in named if "lora_" in name]


def _tensors(thing: Any, owner: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor in `thing`, and in what its own package or a library of models has put into it."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    inner: Iterable[Any] = ()
    if isinstance(thing, Mapping):
        inner = list(thing.values())
    elif isinstance(thing, list | tuple | set):
        inner = thing
    elif _package(thing) in (*LIBRARIES, _package(owner)) and not isinstance(thing, type):
        inner = [value for name, value in getattr(thing, "__dict__", {}).items() if name not in ("context", "config")]
    for value in inner:
        if not isinstance(value, Component) or value is owner:
            yield from _tensors(value, owner, seen)


def _package(thing: Any) -> str:
    return type(thing).__module__.partition(".")[0]


def resident() -> int:
    """Bytes of this process in main memory, once freed memory has been given back to the system; 0 if not known."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
        if trim is not None:
            trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the most so far, in bytes on a Mac


def room(device: torch.device) -> int | None:
    """Bytes that the device has, where it says so."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


@contextmanager
def trained_parameters() -> Iterator[list[nn.Parameter]]:
    """Inside, gathers the parameters that are given a gradient."""
    found: dict[int, nn.Parameter] = {}

    def note(parameter: Any) -> None:
        found.setdefault(id(parameter), parameter)

    (every,) = _living(Tensor)  # 4-bit ones and the like are parameters as well
    leaves = [t for t in every if isinstance(t, nn.Parameter) and t.requires_grad and t.is_leaf]
    handles = [leaf.register_post_accumulate_grad_hook(note) for leaf in leaves]  # type: ignore[no-untyped-call]
    trained: list[nn.Parameter] = []
    try:
        yield trained
    finally:
        for handle in handles:
            handle.remove()
        trained.extend(found.values())
