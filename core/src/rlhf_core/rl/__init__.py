"""Reinforcement learning: rollouts, rewards on their way to tokens, and the base of on-policy optimizers.

What needs torch loads when it is asked for, so that a plugin's configuration can import `rlhf_core.rl.config` without
it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import OnPolicyConfig

if TYPE_CHECKING:
    from .batching import joined, rollout_sizes
    from .failure import refusal
    from .guards import within_update
    from .on_policy import Batch, OnPolicyOptimizer

_MODULES = {
    "Batch": "on_policy",
    "OnPolicyOptimizer": "on_policy",
    "joined": "batching",
    "refusal": "failure",
    "rollout_sizes": "batching",
    "within_update": "guards",
}

__all__ = [
    "Batch",
    "OnPolicyConfig",
    "OnPolicyOptimizer",
    "joined",
    "refusal",
    "rollout_sizes",
    "within_update",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
