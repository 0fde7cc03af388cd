"""What the optimize and evaluate stages build alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..interfaces import RewardModel, Run
from ..rl.rewards import RewardMix
from ..rl.sampler import Sampler


def build_sampler(
    run: Run, rewards: Mapping[str, float], environment: str, *, forward_tokens: int, rescore: bool = False
) -> Sampler:
    """A sampler over the run's policy that scores with `rewards` (id -> weight)."""
    models: dict[str, RewardModel[Any]] = {id: run.component("reward", id) for id in rewards}
    return Sampler(
        policy=run.policy,
        environment=run.component("environment", environment),
        mix=RewardMix(models, dict(rewards)),
        context=run.context,
        forward_tokens=forward_tokens,
        rescore=rescore,
    )
