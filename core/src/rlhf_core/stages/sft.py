"""Supervised fine-tuning: the policy imitates demonstrations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from ..errors import DataError
from ..interfaces import Run, Stage, State, StepStats
from ..memory import adapters, checkpointing, within_memory
from ..records import Comparison, Demonstration, Edit
from ..training import SupervisedLoop
from .config import SFTConfig


class SFT(Stage[SFTConfig]):
    """The language-model loss on response tokens."""

    def setup(self, run: Run) -> None:
        records = list(islice(self._records(run), self.config.max_examples))
        if not records:
            raise DataError(
                self.context.where,
                f"no demonstrations in {', '.join(self.config.feedback)}",
                "demonstrations, comparisons or edits",
                "name a feedback source that has them",
            )
        self.policy = run.policy
        task = self.policy.demonstrations(records, held_out=self.config.held_out)
        self.loop = SupervisedLoop(task, self.config, self.context)

    def _records(self, run: Run) -> Iterator[Demonstration]:
        for id in self.config.feedback:
            for record in run.component("feedback", id):
                if isinstance(record, Demonstration):
                    yield record
                elif isinstance(record, (Comparison, Edit)):
                    response = record.best if isinstance(record, Comparison) else record.edited
                    yield Demonstration(prompt=record.prompt, response=response, weight=record.weight)

    @property
    def total(self) -> int:
        return self.loop.total

    def step(self, index: int) -> StepStats:
        with within_memory(self.context, "supervised step", "the batch", self._advice()):
            return {f"sft/{name}": value for name, value in self.loop.step(index).items()}

    def evaluate(self) -> StepStats:
        with within_memory(self.context, "evaluation", "the held-out examples", self._advice()):
            return self.loop.evaluate()

    def _advice(self) -> Iterator[str | None]:
        """The loop says what of its own to lower; the rest is the policy's."""
        yield checkpointing(self.policy.config, self.policy.context.where)
        yield adapters(self.policy.config, self.policy.context.where)

    def finish(self) -> dict[str, Any]:
        return {"examples": len(self.loop.task.train), "held_out": self.evaluate()}

    def state_dict(self) -> State:
        return {"loop": self.loop.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.loop.load_state_dict(state["loop"])
