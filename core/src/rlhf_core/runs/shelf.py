"""The checkpoints of a run: their order, which to go on from, and which to forget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import RunError, did_you_mean
from ..interfaces import State
from . import checkpoint
from .directory import CHECKPOINTS, writing

_NAME = re.compile(r"(\d+)-(.+)-(\d+)")


class Shelf:
    """The folder ``checkpoints/`` of a run. Names are ``STEP-STAGE-STEP``: of the run, and of the stage.

    Args:
        stages: ids in their order. keep: how many of the newest to keep.
    """

    def __init__(self, run: Path, stages: Sequence[str], keep: int) -> None:
        self.run, self.folder = run, run / CHECKPOINTS
        self._stages, self._keep = list(stages), keep

    def path(self, step: int, stage: str, inside: int) -> Path:
        return self.folder / f"{step:06d}-{stage}-{inside}"

    @property
    def names(self) -> list[str]:
        """Oldest first. Stages between which no step was taken share its number, and go by their own order."""
        found = [match for path in self.folder.glob("[0-9]*") if (match := _NAME.fullmatch(path.name))]
        places = {stage: place for place, stage in enumerate(self._stages)}
        return [m[0] for m in sorted(found, key=lambda m: (int(m[1]), places.get(m[2], -1), int(m[3])))]

    def save(self, path: Path, state: State) -> None:
        """Write a checkpoint, then forget those that are too old.

        Raises:
            RunError: it cannot be written; older ones are whole.
        """
        checkpoint.save(path, state)
        for name in self.names[: -self._keep]:
            checkpoint.remove(self.folder / name)

    def clean(self) -> None:
        """Take away what was being written when an earlier process was killed.

        Raises:
            RunError: the run directory cannot be written.
        """
        for folder in (self.folder, *(self.run / name for name in ("best", "components"))):
            if folder.is_dir():
                checkpoint.clean(folder)
        with writing(f"run directory {self.run}"):
            for path in self.run.glob(".*.partial"):
                path.unlink()

    def choose(self, name: str | None, command: str) -> Path | None:
        """The checkpoint to go on from: the one called `name`, or the newest; None if there are none.

        Args:
            command: what resumes this run, for the error.

        Raises:
            RunError: there is none of that name, or it is damaged; says which older one is whole.
        """
        names = self.names
        if name is not None and name not in names:
            raise RunError(
                f"run directory {self.run}",
                f"has no checkpoint {name!r}",
                f"one of {', '.join(names)}" if names else "a checkpoint; there is none yet",
                did_you_mean(name, names),
            )
        if not names:
            return None
        name = name or names[-1]
        if problem := checkpoint.damage(self.folder / name):
            older = reversed(names[: names.index(name)])
            whole = next((other for other in older if not checkpoint.damage(self.folder / other)), None)
            raise RunError(
                f"checkpoint {self.folder / name}",
                problem,
                "the files as they were written",
                f"go on from the one before: {command} --checkpoint {whole}"
                if whole
                else "no older one is whole: start a new run without --resume",
            )
        return self.folder / name

    def forget_after(self, path: Path) -> None:
        """Take away what is newer than the checkpoint at `path`: the run goes on from there."""
        names = self.names
        for name in names[names.index(path.name) + 1 :]:
            checkpoint.remove(self.folder / name)
