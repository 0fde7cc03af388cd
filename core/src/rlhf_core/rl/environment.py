"""The built-in environment: one response per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..interfaces import Environment, Policy, Sampling
from ..records import Prompt, Rollout
from .config import SingleTurnConfig


class SingleTurn(Environment[SingleTurnConfig]):
    """The policy answers once. Longer conversations return rollouts whose `mask` has holes where others speak."""

    def rollout(
        self,
        policy: Policy[Any],
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        sample_ids: Sequence[int],
    ) -> Rollout:
        return policy.generate(prompts, sampling, seed=seed, sample_ids=sample_ids)
