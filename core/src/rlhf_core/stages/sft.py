"""Supervised fine-tuning: the policy imitates demonstrations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from ..errors import DataError
from ..interfaces import Run, Stage, State, StepStats
from ..records import Comparison, Demonstration, Edit, Prompt
from ..training import SupervisedLoop
from .config import SFTConfig


class SFT(Stage[SFTConfig]):
    """The language-model loss on response tokens."""

    def setup(self, run: Run) -> None:
        examples = list(islice(self._examples(run), self.config.max_examples))
        if not examples:
            raise DataError(
                self.context.where,
                f"no demonstrations in {', '.join(self.config.feedback)}",
                "demonstrations, comparisons or edits",
                "name a feedback source that has them",
            )
        task = run.policy.demonstrations(examples, held_out=self.config.held_out)
        self.loop = SupervisedLoop(task, self.config, self.context)

    def _examples(self, run: Run) -> Iterator[tuple[Prompt, str]]:
        for id in self.config.feedback:
            for record in run.component("feedback", id):
                if isinstance(record, Demonstration):
                    yield record.prompt, record.response
                elif isinstance(record, Comparison):
                    yield record.prompt, record.best
                elif isinstance(record, Edit):
                    yield record.prompt, record.edited

    @property
    def total(self) -> int:
        return self.loop.total

    def step(self, index: int) -> StepStats:
        return {f"sft/{name}": value for name, value in self.loop.step(index).items()}

    def evaluate(self) -> StepStats:
        return self.loop.evaluate()

    def finish(self) -> dict[str, Any]:
        return {"examples": len(self.loop.task.train), "held_out": self.loop.evaluate()}

    def state_dict(self) -> State:
        return {"loop": self.loop.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.loop.load_state_dict(state["loop"])
