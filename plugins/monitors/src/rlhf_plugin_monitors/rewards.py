"""Monitors that hold the reward in training against others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlhf_core.interfaces import Context, Monitor, Observation, RewardModel, State
from rlhf_core.records import Sample

from .config import DisagreementConfig, GoldConfig
from .drift import Series


def _scores(reward: RewardModel[Any], samples: Sequence[Sample]) -> list[float | None]:
    """What `reward` says of each sample, None where it abstains."""
    import torch

    with torch.no_grad():
        found = reward.score(samples)
    abstained = [False] * len(samples) if found.abstained is None else found.abstained.tolist()
    values = found.values.tolist()
    return [None if silent else float(value) for value, silent in zip(values, abstained, strict=True)]


class Gold(Monitor[GoldConfig]):
    """Overoptimization (Gao et al., 2023, arXiv:2210.10760): the score goes on rising, what it stands for falls.

    Both are compared with their first looks; an alarm needs the score to be up and the gold reward to be down, each by
    `z` standard errors of a mean over that many samples.
    """

    def __init__(self, config: GoldConfig, context: Context) -> None:
        super().__init__(config, context)
        self.gold: RewardModel[Any] = context.component("reward", config.gold)
        self.looks: list[list[float]] = []  # of each: mean and squared error of the score, then of the gold reward

    def wants_samples(self, step: int) -> bool:
        return step % self.config.every == 0

    def look(self, seen: Observation) -> str | None:
        if not seen.samples:
            return None
        told = _scores(self.gold, seen.samples)
        kept = [(score, gold) for score, gold in zip(seen.scores, told, strict=True) if gold is not None]
        if len(kept) < 2:
            return None
        score, gold = ([pair[i] for pair in kept] for i in (0, 1))
        self.looks.append([fmean(score), stdev(score) ** 2 / len(kept), fmean(gold), stdev(gold) ** 2 / len(kept)])
        warmup, window = self.config.warmup, self.config.window
        if len(self.looks) < warmup + window:
            return None
        self.looks = [*self.looks[:warmup], *self.looks[-window:]]
        first, now = self.looks[:warmup], self.looks[-window:]
        if _change(first, now, 0) < self.config.z or _change(first, now, 2) > -self.config.z:
            return None
        (was, is_), (gold_was, gold_is) = ((_mean(first, i), _mean(now, i)) for i in (0, 2))
        return (
            f"the score rose from {was:.3g} to {is_:.3g} while {self.config.gold!r}, kept out of training, fell from "
            f"{gold_was:.3g} to {gold_is:.3g}"
        )

    def state_dict(self) -> State:
        return {"looks": [list(look) for look in self.looks]}

    def load_state_dict(self, state: State) -> None:
        self.looks = [list(look) for look in state["looks"]]

    @staticmethod
    def conformance_examples(folder: Path) -> list[dict[str, Any]]:
        return [{"gold": "toy"}, {"gold": "toy", "every": 1}]


def _mean(looks: Sequence[Sequence[float]], i: int) -> float:
    return fmean(look[i] for look in looks)


def _change(first: Sequence[Sequence[float]], now: Sequence[Sequence[float]], i: int) -> float:
    """The change of the mean in column `i`, in standard errors."""
    variance = sum(sum(look[i + 1] for look in looks) / len(looks) ** 2 for looks in (first, now))
    change = _mean(now, i) - _mean(first, i)
    return change / variance**0.5 if variance else (change and float("inf") * (1 if change > 0 else -1))


class Disagreement(Monitor[DisagreementConfig]):
    """Rewards that were fitted apart agree on what they have seen, and part ways on what they have not.

    Each is put on the scale of its scores in the first look: mean 0, deviation 1. Then the deviation among them,
    averaged over the samples, is compared with that of the first looks.
    """

    def __init__(self, config: DisagreementConfig, context: Context) -> None:
        super().__init__(config, context)
        self.rewards: list[RewardModel[Any]] = [context.component("reward", id) for id in config.rewards]
        self.series = Series(config.warmup, config.window)
        self.scales: list[list[float]] = []  # of the score and each reward: mean and deviation over the first look

    def wants_samples(self, step: int) -> bool:
        return step % self.config.every == 0

    def look(self, seen: Observation) -> str | None:
        if not seen.samples:
            return None
        told = [list(seen.scores), *(_scores(reward, seen.samples) for reward in self.rewards)]
        rows = [[value for value in row if value is not None] for row in zip(*told, strict=True)]
        whole = [row for row in rows if len(row) == len(told)]
        if len(whole) < 2:
            return None
        if not self.scales:
            columns = [[row[i] for row in whole] for i in range(len(told))]
            self.scales = [[fmean(column), stdev(column) or 1.0] for column in columns]
        on_scale = [[(v - mean) / deviation for v, (mean, deviation) in zip(row, self.scales, strict=True)]
                    for row in whole]  # fmt: skip
        if not self.series.add(fmean(stdev(row) for row in on_scale)):
            return None
        level, now = self.series.level, self.series.now
        if now <= self.config.factor * level or self.series.z < self.config.z:
            return None
        names = ", ".join(map(repr, self.config.rewards))
        return f"the score and {names} differ by {now:.2g} of their own deviations, {level:.2g} in the first looks"

    def state_dict(self) -> State:
        return {**self.series.state_dict(), "scales": [list(scale) for scale in self.scales]}

    def load_state_dict(self, state: State) -> None:
        self.series.load_state_dict(state)
        self.scales = [list(scale) for scale in state["scales"]]

    @staticmethod
    def conformance_examples(folder: Path) -> list[dict[str, Any]]:
        return [{"rewards": ["one", "other"]}, {"rewards": ["one"], "every": 1, "window": 1}]
