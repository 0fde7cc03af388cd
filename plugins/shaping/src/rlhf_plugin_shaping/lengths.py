"""Shapers of scores by length. B samples; a length is what the policy wrote itself, end of text included."""

from __future__ import annotations

import torch
from rlhf_core.interfaces import RewardShaper, StepStats
from rlhf_core.records import Rollout
from torch import Tensor

from .common import judged, mean_of, own_lengths
from .config import LengthPenaltyConfig, MissingEOSConfig, OverlongConfig


class MissingEOS(RewardShaper[MissingEOSConfig]):
    """Truncated responses lose `penalty`, or with `replace` score ``-penalty``; no end of text is made up for them."""

    level = "sequence"

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        live = judged(rollout)
        base = torch.zeros_like(rewards) if self.config.replace else rewards
        penalised = (base - self.config.penalty).where(rollout.truncated, rewards)
        return penalised.where(live, 0.0), {"shaping/missing_eos": mean_of(rollout.truncated, live)}


class LengthPenalty(RewardShaper[LengthPenaltyConfig]):
    """``score - coef * max(0, length - free_tokens)``."""

    level = "sequence"

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        live = judged(rollout)
        excess = (own_lengths(rollout) - self.config.free_tokens).clamp(min=0)  # (B,)
        penalty = self.now(self.config.coef) * excess.to(rewards.dtype)
        return (rewards - penalty).where(live, 0.0), {"shaping/length_penalty": mean_of(penalty, live)}


class Overlong(RewardShaper[OverlongConfig]):
    """The soft overlong punishment of DAPO (arXiv:2503.14476, equation 13), times `coef`.

    0 up to ``max_tokens - buffer``, -1 from `max_tokens` on, and on a straight line between.
    """

    level = "sequence"

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        c, live = self.config, judged(rollout)
        excess = own_lengths(rollout) - (c.max_tokens - c.buffer)  # (B,)
        penalty = self.now(c.coef) * (excess / c.buffer).clamp(0, 1).to(rewards.dtype)
        stats = {"shaping/overlong": mean_of(excess > 0, live), "shaping/overlong_penalty": mean_of(penalty, live)}
        return (rewards - penalty).where(live, 0.0), stats
