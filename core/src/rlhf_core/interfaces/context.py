"""What a component is given besides its configuration. Nothing in the framework is global."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..randomness import derive_seed
from .clock import Clock

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from ..records import Feedback
    from .components import Component


def _no_resolver(kind: str, name: str) -> Component[Any]:
    raise ConfigError(
        f"{kind} {name!r}",
        "is named in a config, but this context was made without a registry",
        fix="build through rlhf_core.load(...), or give Context(resolve=...)",
    )


def _resolver_elsewhere(kind: str, name: str) -> Component[Any]:
    raise ConfigError(
        f"{kind} {name!r}",
        "is asked for in another process than that of the run",
        "a component that holds what it needs before it is sent there",
        "ask for it in __init__: self.other = context.component(...)",
    )


@dataclass(frozen=True)
class Context:
    """Surroundings of a component; ``Context()`` is enough for use from Python.

    Attributes:
        kind, id: which component this is, for messages: ``context.where`` reads "reward 'helpful'".
        seed: the run's seed; take random streams from `stream`.
        device: where tensors live. dtype: of parameters that are made or loaded ("float32", "bfloat16", "float64").
        directory: the run directory, or None outside a run.
        accelerator: of the run, or None for one process in full precision.
        resolve: (kind, id) -> component, behind `component`.
        policy: id of the pipeline's policy, or None outside a pipeline.
        bases: what `base` has loaded.
        clock: where the time of a step goes; one per run.
        seen: (id of a feedback source, place from 0, record): told of all that is read; None outside a run.
    """

    kind: str = "component"
    id: str = "unnamed"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    directory: Path | None = None
    accelerator: Accelerator | None = None
    resolve: Callable[[str, str], Component[Any]] = _no_resolver
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    policy: str | None = None
    bases: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    warn: Callable[[str], None] = warnings.warn
    seen: Callable[[str, int, Feedback], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What goes along to a worker process: not what belongs to the run's own, such as its shared models."""
        own: dict[str, Any] = {"accelerator": None, "bases": {}, "clock": Clock(), "warn": warnings.warn, "seen": None}
        return {**vars(self), **own, "resolve": _resolver_elsewhere}

    @property
    def where(self) -> str:
        """How messages call this component."""
        return f"{self.kind} {self.id!r}"

    def named(self, kind: str, id: str) -> Context:
        """The same surroundings for another component."""
        return replace(self, kind=kind, id=id)

    def component(self, kind: str, id: str) -> Any:
        """The component that a `Ref` names; one object per run, whoever asks."""
        return self.resolve(kind, id)

    def base(self, key: str, load: Callable[[], Any]) -> Any:
        """The frozen base model of the run that `key` describes, loaded by whoever asks first, shared by all others."""
        if key not in self.bases:
            self.bases[key] = load()
        return self.bases[key]

    def stream(self, *names: str | int) -> int:
        """A seed for a random stream of this component; the same names give the same stream in every run."""
        return derive_seed(self.seed, self.kind, self.id, *names)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch knows it."""
        import torch

        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision of the run, around forward passes."""
        if self.accelerator is None:
            return contextlib.nullcontext()
        mixed: contextlib.AbstractContextManager[Any] = self.accelerator.autocast()
        return mixed
