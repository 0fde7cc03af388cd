"""Fitting a reward model on feedback: by gradient in the supervised loop, or in one go if it learns otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import ConfigError
from ..interfaces import Component, RewardModel, Run, Stage, State, StepStats, SupervisedConfig
from ..records import Feedback
from ..training import SupervisedLoop
from .config import FitRewardConfig


class FitReward(Stage[FitRewardConfig]):
    """Fits the reward and keeps it in the run directory, where `load:` of a later registry finds it.

    A baseline is fitted on the same records, with the same prompts held out, and reported beside it.
    """

    def setup(self, run: Run) -> None:
        self.run = run
        self.reward: RewardModel[Any] = run.component("reward", self.config.reward)
        self.metrics: StepStats = {}
        task = self.reward.task(self._records())
        self.loop: SupervisedLoop | None = None
        if task is not None:
            config = self.reward.config
            if not isinstance(config, SupervisedConfig):
                raise ConfigError(
                    self.reward.context.where,
                    "is trained by gradient but its Config has no settings for that",
                    "a Config that subclasses SupervisedConfig",
                )
            self.loop = SupervisedLoop(task, config, self.reward.context)

    def _records(self) -> Iterator[Feedback]:
        for id in self.config.feedback:
            yield from self.run.component("feedback", id)

    @property
    def total(self) -> int:
        return 1 if self.loop is None else self.loop.total

    def step(self, index: int) -> StepStats:
        if self.loop is None:
            self.metrics = self.reward.fit(self._records())
            stats = self.metrics
        else:
            stats = self.loop.step(index)
        return {f"fit/{name}": value for name, value in stats.items()}

    def evaluate(self) -> StepStats:
        return self.metrics if self.loop is None else self.loop.evaluate()

    def trained(self) -> Component[Any]:
        return self.reward

    def finish(self) -> dict[str, Any]:
        self.run.keep(self.reward)
        result: dict[str, Any] = {"reward": self.config.reward, "held_out": self.evaluate()}
        if self.config.baseline is not None:
            baseline: RewardModel[Any] = self.run.component("reward", self.config.baseline)
            result["baseline"] = {"reward": self.config.baseline, "held_out": baseline.fit(self._records())}
            self.run.keep(baseline)  # a later stage may score with it
        return result

    def components(self) -> dict[str, Component[Any]]:
        return {f"reward.{self.config.reward}": self.reward}

    def state_dict(self) -> State:
        return {"metrics": self.metrics, "loop": None if self.loop is None else self.loop.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.metrics = state["metrics"]
        if self.loop is not None:
            self.loop.load_state_dict(state["loop"])
