"""The optimizer `gspo`: Group Sequence Policy Optimization (Zheng et al., 2025, equations 5 to 7)."""

from collections.abc import Mapping
from typing import Any

import torch
from rlhf_core.functional import group_advantages, masked_mean
from rlhf_core.interfaces import Outputs
from rlhf_core.records import Rollout
from rlhf_core.rl import Batch, OnPolicyOptimizer
from torch import Tensor

from .config import GspoOptimizerConfig


class GspoOptimizer(OnPolicyOptimizer[GspoOptimizerConfig]):
    """Clips the ratio of whole responses, its length normalised: the reward was given to the whole response too."""

    baseline = True  # equal rewards for all responses change nothing

    def prepare(self, rollout: Rollout) -> Mapping[str, Tensor]:
        assert rollout.rewards is not None  # (B, T), 0 outside the mask
        scores = rollout.rewards.sum(1)
        return {"advantages": group_advantages(scores, rollout.groups, baseline="mean", scale="std", eps=1e-6)}  # (B,)

    def loss(self, batch: Batch, new: Outputs) -> tuple[Tensor, Mapping[str, Any]]:
        ratio = masked_mean(new.logprobs - batch.logprobs, batch.mask, dim=1).exp()  # (B,)
        clipped = ratio.clamp(1 - self.config.clip_low, 1 + self.config.clip_high)
        gain = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
        stats = {"policy/ratio": ratio, "policy/clip_fraction": (ratio != clipped).float()}
        return -batch.sample_mean(gain), {name: batch.sample_mean(x.detach()) for name, x in stats.items()}
