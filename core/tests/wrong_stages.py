"""Wrong stages. Each fails one check, and what it derives from fails none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rlhf_core.interfaces import Stage, StageConfig


class Steps(StageConfig):
    steps: int = Field(default=3, description="how many")


class Nudges(Stage[Steps]):
    """A stage as it should be: it moves the policy by chance, and writes down by how much."""

    def setup(self, run):
        self.run, self.moved = run, 0.0

    @property
    def total(self):
        return self.config.steps

    def step(self, index):
        chance = torch.Generator().manual_seed(self.context.stream(index))
        by = float(torch.rand(1, generator=chance))
        with torch.no_grad():
            next(self.run.policy.module.parameters()).add_(by)
        self.moved += by
        return {"moved": self.moved}

    def finish(self):
        (self.run.directory / "moved.txt").write_text(str(self.moved))
        return {"moved": self.moved}

    def state_dict(self):
        return {"moved": self.moved}

    def load_state_dict(self, state):
        self.moved = state["moved"]


class CountsInHalves(Nudges):
    @property
    def total(self):
        return self.config.steps / 2


class OneStepTooMany(Nudges):
    def setup(self, run):
        super().setup(run)
        self.plan = list(range(self.config.steps - 1))

    def step(self, index):
        return {**super().step(index), "planned": self.plan[index]}


class LogsTensors(Nudges):
    def step(self, index):
        return {name: torch.tensor(value) for name, value in super().step(index).items()}


class LeavesAPath(Nudges):
    def finish(self):
        return {**super().finish(), "path": self.run.directory / "moved.txt"}


class HandsOnNumbers(Nudges):
    def finish(self):
        self.run.artefacts["moved"] = {3: self.moved}
        return super().finish()


class ForgetsWhatItMoved(Nudges):
    def state_dict(self):
        return {"moved": 0.0}


class KeepsASet(Nudges):
    def state_dict(self):
        return {**super().state_dict(), "seen": {1}}


class DrawsByTheClock(Nudges):
    """Its chance depends on how often it was set up."""

    setups = 0

    def setup(self, run):
        super().setup(run)
        DrawsByTheClock.setups += 1

    def step(self, index):
        with torch.no_grad():
            next(self.run.policy.module.parameters()).add_(1e-3 * self.setups)
        return super().step(index)


class WritesBeside(Nudges):
    def finish(self):
        Path("moved.txt").write_text(str(self.moved))
        return super().finish()


class ExpectsTheLastStep(Nudges):
    def step(self, index):
        stats = super().step(index)
        if index + 1 == self.total:
            self.last = stats
        return stats

    def finish(self):
        return {**super().finish(), "last": self.last["moved"]}

    def state_dict(self):
        return {**super().state_dict(), "last": getattr(self, "last", None)}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.last = state["last"]


RIGHT = [("stage", Nudges)]
MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("stage", CountsInHalves, "runs_all_its_steps", "after setup `total` is 1.5; expected a whole number"),
    ("stage", OneStepTooMany, "runs_all_its_steps", "step 2 raises IndexError: list index out of range; expected 3 steps"),
    ("stage", LogsTensors, "statistics_are_numbers", "statistic 'moved' is tensor("),
    ("stage", LeavesAPath, "leaves_json", "write str(...) around paths"),
    ("stage", HandsOnNumbers, "leaves_json", "run.artefacts is {'moved': {3: "),
    ("stage", ForgetsWhatItMoved, "resumes_bit_for_bit", "after step 1 and resumed, it ends with other statistics, results"),
    ("stage", KeepsASet, "resumes_bit_for_bit", "it raises TypeError: state at /stage/stage/seen is a set"),
    ("stage", DrawsByTheClock, "resumes_bit_for_bit", "it ends with other the policy; expected the same, bit for bit"),
    ("stage", WritesBeside, "writes_inside_its_run", "it writes moved.txt outside of the run directory"),
    ("stage", ExpectsTheLastStep, "works_in_a_dry_run", "it raises AttributeError: 'ExpectsTheLastStep' object has no"),
]  # fmt: skip
