"""Reinforcement learning: rollouts, rewards on their way to tokens, and the base of on-policy optimizers.

The classes load when they are asked for, so that a plugin's configuration can import `rlhf_core.rl.config` without
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import OnPolicyConfig

if TYPE_CHECKING:
    from .on_policy import Batch, OnPolicyOptimizer

__all__ = ["Batch", "OnPolicyConfig", "OnPolicyOptimizer"]


def __getattr__(name: str) -> Any:
    if name in ("Batch", "OnPolicyOptimizer"):
        from . import on_policy

        return getattr(on_policy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
