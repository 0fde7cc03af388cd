"""Five reward shapers. B samples, T response positions; `WhitenConfig` and so on say what each does to the optimum."""

from __future__ import annotations

import math

import torch
from rlhf_core.errors import RewardError, RunError
from rlhf_core.functional import masked_mean, masked_var, masked_whiten
from rlhf_core.interfaces import Context, RewardShaper, State, StepStats
from rlhf_core.records import Rollout
from torch import Tensor

from .config import ClipConfig, LengthPenaltyConfig, MissingEOSConfig, ScaleConfig, WhitenConfig


def _judged(rollout: Rollout) -> Tensor:
    """(B,) bool: True where the rewards had an opinion."""
    if rollout.abstained is None:
        return torch.ones_like(rollout.truncated)
    return ~rollout.abstained


def _share(which: Tensor, judged: Tensor) -> float:
    """Among the judged samples, the share of those in `which`."""
    return float(masked_mean(which.float(), judged))


class Whiten(RewardShaper[WhitenConfig]):
    """``(r - mean) / sqrt(var + eps) + mean`` over the valid tokens of the batch; `shift_mean` drops the last term.

    So a reward r becomes r / s plus a constant per token, mean * (1 - 1 / s) or -mean / s, that longer responses
    collect more often.
    """

    level = "token"

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        c = self.config
        mask = rollout.mask & _judged(rollout)[:, None]  # (B, T)
        white = masked_whiten(rewards, mask, shift_mean=c.shift_mean, unbiased=c.unbiased, eps=c.eps)
        mean, var = masked_mean(rewards, mask), masked_var(rewards, mask, unbiased=c.unbiased)
        return white, {"shaping/whiten_mean": float(mean), "shaping/whiten_std": float(var) ** 0.5}


class Clip(RewardShaper[ClipConfig]):
    """Scores held in [low, high]."""

    level = "sequence"

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        judged = _judged(rollout)
        clipped = rewards.clamp(self.config.low, self.config.high)
        return clipped.where(judged, 0.0), {"shaping/clipped": _share(clipped != rewards, judged)}


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
        judged = _judged(rollout)
        self._update(rewards[judged].tolist())
        scaled = (rewards - (self.mean if self.config.center else 0.0)) / self.std
        stats = {"shaping/scale_mean": self.mean, "shaping/scale_std": self.std}
        if (bound := self.config.clip) is not None:
            stats["shaping/scale_clipped"] = _share(scaled.abs() > bound, judged)
            scaled = scaled.clamp(-bound, bound)
        return scaled.where(judged, 0.0), stats

    def _update(self, scores: list[float]) -> None:
        if not all(map(math.isfinite, scores)):
            raise RewardError(
                self.context.where,
                f"got a score that is not finite among {len(scores)}",
                "finite scores",
                "look at the rewards, and at the shapers before this one",
            )
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
        if state.keys() != self.state_dict().keys():
            raise RunError(
                self.context.where,
                f"got a state with {', '.join(state) or 'nothing'}",
                ", ".join(self.state_dict()),
                "resume with the shapers that the run was started with",
            )
        self.count, self.mean, self.m2 = int(state["count"]), float(state["mean"]), float(state["m2"])


class MissingEOS(RewardShaper[MissingEOSConfig]):
    """Truncated responses lose `penalty`, or with `replace` score ``-penalty``; no end of text is made up for them."""

    level = "sequence"

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        judged = _judged(rollout)
        base = torch.zeros_like(rewards) if self.config.replace else rewards
        penalised = (base - self.config.penalty).where(rollout.truncated, rewards)
        return penalised.where(judged, 0.0), {"shaping/missing_eos": _share(rollout.truncated, judged)}


class LengthPenalty(RewardShaper[LengthPenaltyConfig]):
    """``score - coef * max(0, length - free_tokens)``."""

    level = "sequence"

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        judged = _judged(rollout)
        excess = (rollout.lengths - self.config.free_tokens).clamp(min=0)  # (B,)
        penalty = self.config.coef * excess.to(rewards.dtype)
        stats = {"shaping/length_penalty": float(masked_mean(penalty, judged))}
        return (rewards - penalty).where(judged, 0.0), stats
