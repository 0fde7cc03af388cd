"""Reinforcement learning: rollouts, rewards on their way to tokens, and the base of on-policy optimizers.

What needs torch loads when it is asked for, so that a plugin's configuration can import `OnPolicyConfig` without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import attributes
from .config import OnPolicyConfig, SingleTurnConfig

if TYPE_CHECKING:
    from ..components.scoring import checked_scores
    from .batching import joined, rollout_sizes
    from .environment import SingleTurn
    from .evaluation import evaluate
    from .failure import refusal
    from .guards import within_update
    from .on_policy import Batch, OnPolicyOptimizer
    from .rewards import RewardMix
    from .sampler import Sampler

_MODULES = {
    "Batch": "on_policy",
    "OnPolicyOptimizer": "on_policy",
    "RewardMix": "rewards",
    "Sampler": "sampler",
    "SingleTurn": "environment",
    "checked_scores": ".components.scoring",
    "evaluate": "evaluation",
    "joined": "batching",
    "refusal": "failure",
    "rollout_sizes": "batching",
    "within_update": "guards",
}

__all__ = [
    "Batch",
    "OnPolicyConfig",
    "OnPolicyOptimizer",
    "RewardMix",
    "Sampler",
    "SingleTurn",
    "SingleTurnConfig",
    "checked_scores",
    "evaluate",
    "joined",
    "refusal",
    "rollout_sizes",
    "within_update",
]

__getattr__ = attributes(__name__, _MODULES)
