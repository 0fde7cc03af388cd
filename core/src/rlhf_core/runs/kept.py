"""The components that stages have fitted, which lie in ``components/`` of the run directory for good."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..interfaces import Component
from . import checkpoint

KEPT = "components"


class Kept:
    """What stages keep. What an earlier stage kept of a component stays beside what a later one keeps anew, for a run
    that goes on from before.

    Attributes:
        stage: index of the stage under way.
    """

    def __init__(self, run: Path, stages: int) -> None:
        self.folder, self.stage, self._stages = run / KEPT, 0, stages

    def keep(self, component: Component[Any], artefacts: dict[str, Any], *, write: bool) -> None:
        """Note in `artefacts` that there is a component, and with `write` put its state there."""
        name = f"{component.context.kind}.{component.context.id}"
        place = self.folder / name
        if write:
            before = self._before(name, self.stage)
            if self.place(name, artefacts) == place and not before.exists():
                place.rename(before)
            checkpoint.save(place, component.state_dict())
        artefacts.setdefault("kept", {})[name] = f"{KEPT}/{name}"

    def place(self, name: str, artefacts: dict[str, Any]) -> Path | None:
        """What the stages that are over have kept of a component: no stage from today's on has written it."""
        if name not in artefacts.get("kept", {}):
            return None
        later = (self._before(name, index) for index in range(self.stage, self._stages))
        return next((place for place in later if place.exists()), self.folder / name)

    def settle(self) -> None:
        """Nothing goes on from before any more."""
        for old in self.folder.glob(".*.before-*"):
            shutil.rmtree(old, ignore_errors=True)

    def _before(self, name: str, index: int) -> Path:
        """Where a component is put that the stage at `index` keeps anew."""
        return self.folder / f".{name}.before-{index}"
