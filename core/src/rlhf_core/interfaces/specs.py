"""How plugins announce components: specs and hook specifications. A plugin module needs nothing else to be listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .stage import Run

API_VERSION = 1
"""The version of the plugin interface; it changes only when plugins written for it would stop working."""

hookspec = pluggy.HookspecMarker("rlhf")
hookimpl = pluggy.HookimplMarker("rlhf")


@dataclass(frozen=True)
class ComponentSpec:
    """One component that a distribution offers.

    Args:
        kind: one of the known kinds, such as "reward".
        name: what registry files write after `use`; unique per kind over all installed distributions.
        factory: "package.module:Class", imported only when the component is built.
        config: "package.module:Class" of its pydantic Config; that module must import no torch.
        summary: one line for `rlhf components`.
        api_version: the plugin interface it was written for.
    """

    kind: str
    name: str
    factory: str
    config: str
    summary: str
    api_version: int = API_VERSION


@dataclass(frozen=True)
class KindSpec:
    """A kind of component: its name, the interface ("package.module:Class") its classes implement, and one line."""

    name: str
    interface: str
    summary: str = ""


class Hooks:
    """The hooks a plugin may implement, all with ``@rlhf_core.hookimpl``."""

    @hookspec
    def rlhf_components(self) -> list[ComponentSpec]:  # type: ignore[empty-body]
        """The components this plugin offers."""

    @hookspec
    def rlhf_kinds(self) -> list[KindSpec]:  # type: ignore[empty-body]
        """New kinds of component."""

    @hookspec
    def rlhf_commands(self, app: Any) -> None:
        """Add commands to `app`, the typer application behind `rlhf`."""

    @hookspec
    def rlhf_run_started(self, run: Run) -> None:
        """A run begins or is resumed."""

    @hookspec
    def rlhf_step_finished(self, run: Run, stage: str, step: int, stats: Mapping[str, float]) -> None:
        """Step `step` (from 1) of the stage with id `stage` is done."""

    @hookspec
    def rlhf_checkpoint_saved(self, run: Run, path: Path) -> None:
        """A checkpoint is complete on disk."""

    @hookspec
    def rlhf_run_finished(self, run: Run, summary: Mapping[str, Any]) -> None:
        """The run is done; `summary` is what summary.json holds."""
