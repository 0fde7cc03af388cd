"""From which checkpoint a run goes on, and whether it may with today's configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RunError
from ..interfaces import State
from ..registry import ResolvedPipeline
from . import changes, checkpoint
from .directory import PROVENANCE, SUMMARY, Log, write_json
from .processes import agree
from .provenance import write_registry
from .shelf import Shelf

if TYPE_CHECKING:
    from accelerate import Accelerator


class Resume:
    """Finds the checkpoint, and puts shelf and logs where it left them.

    Args:
        logs: by what checkpoints call them. command: what resumes this run, for errors. say: tells the person.
    """

    def __init__(
        self, resolved: ResolvedPipeline, shelf: Shelf, logs: dict[str, Log], command: str, say: Callable[[str], None]
    ) -> None:
        self.resolved, self.shelf, self.logs, self.command, self.say = resolved, shelf, logs, command, say

    def state(self, accelerator: Accelerator, name: str | None, *, allow: bool) -> State | None:
        """What the checkpoint called `name` holds, or the latest one; None if the run has to begin anew.

        Args:
            allow: whether its configuration may have been another, if that does no harm.

        Raises:
            RunError: the run is complete, or the checkpoint is damaged or of another configuration.
        """
        run = self.shelf.run
        if (run / SUMMARY).exists():
            raise RunError(
                f"run directory {run}",
                "the run is complete",
                "an unfinished run",
                "look at its report.html, or start a new run without --resume",
            )
        # the main process chooses, so that what it takes away is not looked for by others
        chosen = agree(accelerator, lambda: self._choose(name))
        if chosen == run:
            return None
        state = checkpoint.load(chosen, verify=False)  # it was looked at when it was chosen
        old, new = state["config"], changes.snapshot(self.resolved)
        done = int(state["index"])
        begun = done + (state["stage"] is not None)
        changed = changes.check(old, new, begun, done, f"checkpoint {chosen}", allow=allow)
        if accelerator.is_main_process:
            if changed:
                self._take_over(chosen, state, changed)
            self.shelf.forget_after(chosen)
            for key, log in self.logs.items():
                log.cut(state[key])
        accelerator.wait_for_everyone()
        return state

    def _choose(self, name: str | None) -> Path:
        """The folder of the checkpoint to go on from; the run directory itself if there is none yet."""
        self.shelf.clean()
        chosen = self.shelf.choose(name, self.command)
        if chosen is None:
            for log in self.logs.values():
                log.cut(0)
        return chosen or self.shelf.run

    def _take_over(self, chosen: Path, state: State, changed: Sequence[changes.Change]) -> None:
        """From now on the run is configured as it is today, and says since when."""
        path = self.shelf.run / PROVENANCE
        facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        facts.setdefault("changed", []).append({"at": chosen.name, "settings": [str(change) for change in changed]})
        write_json(path, facts)
        checkpoint.save(chosen, {**state, "config": changes.snapshot(self.resolved)})
        write_registry(self.resolved, self.shelf.run)
        for change in changed:
            self.say(f"changed: {change}")
