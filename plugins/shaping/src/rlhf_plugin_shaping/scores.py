"""Shapers of scores, one per response. B samples; `ClipConfig` and so on say what each does to the optimum."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_core.interfaces import Context, RewardShaper, State, StepStats
from rlhf_core.records import Prompt, Rollout
from torch import Tensor

from .common import check_finite, check_state, judged, mean_of, own_lengths
from .config import ClipConfig, PromptBaselineConfig, ScaleConfig, SuccessBonusConfig


class Clip(RewardShaper[ClipConfig]):
    """Scores held in [low, high]."""

    level = "sequence"

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        live = judged(rollout)
        clipped = rewards.clamp(self.config.low, self.config.high)
        return clipped.where(live, 0.0), {"shaping/clipped": mean_of(clipped != rewards, live)}


class Scale(RewardShaper[ScaleConfig]):
    """Scores divided by the standard deviation of all scores so far, this batch included.

    PPO-max (MOSS-RLHF, arXiv:2307.04964): the moments take in the batch before it is scaled, and the deviation is
    unbiased. Departing from its code, where the first update with one score gives nan: as long as there is no spread
    (one score, or differences below the resolution of float32) scores are not divided.

    Batches are merged as in Chan, Golub and LeVeque (1983), in float64, with exactly rounded sums, so the moments
    depend neither on the order within a batch nor on the number of threads.
    """

    level = "sequence"

    def __init__(self, config: ScaleConfig, context: Context) -> None:
        super().__init__(config, context)
        self.count, self.mean, self.m2 = 0, 0.0, 0.0  # m2: sum of squared deviations from the mean

    @property
    def std(self) -> float:
        """Unbiased standard deviation so far; 1 where there is no spread."""
        std = math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else 0.0
        return std if std > 1e-6 * abs(self.mean) else 1.0

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        live = judged(rollout)
        self._update(rewards[live].tolist())
        scaled = (rewards - (self.mean if self.config.center else 0.0)) / self.std
        stats = {"shaping/scale_mean": self.mean, "shaping/scale_std": self.std}
        if (bound := self.config.clip) is not None:
            stats["shaping/scale_clipped"] = mean_of(scaled.abs() > bound, live)
            scaled = scaled.clamp(-bound, bound)
        return scaled.where(live, 0.0), stats

    def _update(self, scores: list[float]) -> None:
        check_finite(scores, self.context)
        if not scores:
            return
        mean = math.fsum(scores) / len(scores)
        m2 = math.fsum((score - mean) ** 2 for score in scores)
        delta, count = mean - self.mean, self.count + len(scores)
        self.m2 += m2 + delta**2 * self.count * len(scores) / count
        self.mean += delta * len(scores) / count
        self.count = count

    def state_dict(self) -> State:
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load_state_dict(self, state: State) -> None:
        check_state(state, self.state_dict(), self.context)
        self.count, self.mean, self.m2 = int(state["count"]), float(state["mean"]), float(state["m2"])


class Mean(NamedTuple):
    """The mean of scores of a total weight."""

    weight: float = 0.0
    mean: float = 0.0

    def then(self, scores: Sequence[float], decay: float) -> Mean:
        """With new `scores` of weight 1 each, those before counting `decay` of what they did."""
        before = decay * self.weight
        weight = before + len(scores)
        return Mean(weight, math.fsum([before * self.mean, *scores]) / weight)


class PromptBaseline(RewardShaper[PromptBaselineConfig]):
    """Scores less the mean of their prompt's scores in earlier steps.

    A baseline that does not depend on the response leaves the expected gradient as it is (Williams, 1992); a mean that
    the response's own score is part of would shrink it. So this step's scores wait until the next step, however often
    the optimizer samples in a step. As in the single-stream method of Xu and Ding (2025, arXiv:2509.13232) the history
    of a prompt takes the place of a group of samples; the tracker there is Bayesian, for scores of 0 and 1.

    A prompt without history gets the mean of all scores of earlier steps, whoever's they are; in the very first step
    the mean of the batch's other scores, drawn independently of its own, and 0 if there are none. Prompts of the same
    text are the same prompt. Sums are exactly rounded: the order within a batch does not matter.

    Which step it is comes from `progress`, as the stage keeps it.
    """

    level = "sequence"

    def __init__(self, config: PromptBaselineConfig, context: Context) -> None:
        super().__init__(config, context)
        self.step = 0
        self.overall = Mean()  # of earlier steps
        self.prompts: dict[str, Mean] = {}  # of earlier steps, by prompt
        self.recent: dict[str, list[float]] = {}  # of this step, by prompt

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        if self.progress[0] != self.step:
            self._settle()
            self.step = self.progress[0]
        live = judged(rollout)
        scores = rewards[live].tolist()
        check_finite(scores, self.context)
        keys = [prompt_key(s.prompt) for s, kept in zip(rollout.samples, live.tolist(), strict=True) if kept]
        total = math.fsum(scores)
        baselines = [self._baseline(key, score, total, len(scores)) for key, score in zip(keys, scores, strict=True)]
        shaped = rewards.where(live, 0.0)
        shaped[live] -= rewards.new_tensor(baselines)
        count = max(len(scores), 1)
        stats = {
            "shaping/baseline": math.fsum(baselines) / count,
            "shaping/baseline_known": sum(key in self.prompts for key in keys) / count,
        }
        for key, score in zip(keys, scores, strict=True):
            self.recent.setdefault(key, []).append(score)
        return shaped, stats

    def _baseline(self, key: str, score: float, total: float, count: int) -> float:
        if key in self.prompts:
            return self.prompts[key].mean
        if self.overall.weight:
            return self.overall.mean
        return (total - score) / (count - 1) if count > 1 else 0.0

    def _settle(self) -> None:
        """The step is over: its scores become history."""
        for key, scores in self.recent.items():
            self.prompts[key] = self.prompts.get(key, Mean()).then(scores, self.config.decay)
        if everything := [score for scores in self.recent.values() for score in scores]:
            self.overall = self.overall.then(everything, self.config.decay)
        self.recent = {}

    def state_dict(self) -> State:
        return {
            "step": self.step,
            "overall": list(self.overall),
            "prompts": {key: list(mean) for key, mean in self.prompts.items()},
            "recent": {key: list(scores) for key, scores in self.recent.items()},
        }

    def load_state_dict(self, state: State) -> None:
        check_state(state, self.state_dict(), self.context)
        self.step, self.overall = int(state["step"]), Mean(*state["overall"])
        self.prompts = {key: Mean(*mean) for key, mean in state["prompts"].items()}
        self.recent = {key: list(scores) for key, scores in state["recent"].items()}


def prompt_key(prompt: Prompt) -> str:
    """A hash of the prompt's text, the same in every run."""
    return hashlib.sha256(json.dumps(prompt.messages).encode()).hexdigest()[:16]


class SuccessBonus(RewardShaper[SuccessBonusConfig]):
    """``score + bonus`` where ``score >= threshold``; with `max_tokens` times ``max(0, 1 - length / max_tokens)``."""

    level = "sequence"

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        live = judged(rollout)
        success = rewards >= self.config.threshold
        bonus = success.to(rewards.dtype) * self.now(self.config.bonus)  # (B,)
        if self.config.max_tokens is not None:
            bonus = bonus * (1 - own_lengths(rollout) / self.config.max_tokens).clamp(min=0).to(rewards.dtype)
        stats = {"shaping/success": mean_of(success, live), "shaping/success_bonus": mean_of(bonus, live)}
        return (rewards + bonus).where(live, 0.0), stats
