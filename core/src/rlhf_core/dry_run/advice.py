"""What a dry run warns of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..interfaces import Policy
from ..randomness import derive_seed

LARGE = 10.0
"""Scores beyond this are far from the order of 1 that step sizes, clipping and the price of drift are made for."""
TRUNCATED = 0.2
LOOKED_AT = 32
"""Prompts that are answered at natural length."""


class Advice:
    """Looks at stages before and after they are tried. What stages themselves warn of comes on top."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._demonstrated: list[int] = []  # tokens of the responses that the policy has been shown
        self._trained = False

    def before(self, name: str, stage: Any, policy: Policy[Any]) -> None:
        """Once the stage is set up."""
        task = getattr(getattr(stage, "loop", None), "task", None)
        if task is not None and task.module is policy.module:
            self._trained = True
            self._demonstrated = [len(e.response) for e in task.train if hasattr(e, "response")]
        optimizer, data = getattr(stage, "optimizer", None), getattr(stage, "data", None)
        if optimizer is None or data is None or not stage.config.prompts:
            self._trained |= optimizer is not None
            return
        self._kl(name, stage)
        if getattr(optimizer.config, "prompts_per_step", 2) * getattr(optimizer.config, "samples_per_prompt", 1) == 1:
            self._warn(
                f"{name}: a step has one sample, a group of one: baselines and whitening have nothing to compare it "
                "with; raise prompts_per_step"
            )
        self._length(name, stage, policy)
        self._trained = True

    def _kl(self, name: str, stage: Any) -> None:
        holding = [shaper.config for shaper in stage.shapers.values() if shaper.config.needs.reference]
        if stage.optimizer.config.needs.reference or any(getattr(c, "coef", 1.0) != 0 for c in holding):
            return
        self._warn(
            f"{name}: nothing holds the policy near its reference (KL is off), so it may drift to whatever the rewards "
            "overlook; add a shaper such as kl"
        )

    def _length(self, name: str, stage: Any, policy: Policy[Any]) -> None:
        """Truncation: of what the policy was shown, if it is to learn first; else of what it writes."""
        longest = stage.config.sampling.max_new_tokens
        if self._demonstrated:
            share = sum(length > longest for length in self._demonstrated) / len(self._demonstrated)
            whose = "demonstrations that it learns from are longer than"
        elif self._trained:
            return
        else:
            source = stage.data.source
            prompts = [source[i] for i in range(min(LOOKED_AT, len(source)))]
            rollout = policy.generate(
                prompts, stage.config.sampling.at(0, 1), seed=derive_seed(stage.context.seed, "dry run")
            )
            share = float(rollout.truncated.float().mean())
            whose = f"responses to {len(prompts)} prompts are cut at"
        if share > TRUNCATED:
            self._warn(
                f"{name}: {share:.0%} of the {whose} max_new_tokens ({longest}): their ends are never judged; raise "
                "it, or teach shorter responses first"
            )

    def after(self, name: str, stage: Any, stats: Mapping[str, float], peak: int, room: int | None) -> None:
        """Once it has been tried; `stats`: of its last step; peak, room: bytes that it needs, and that there are."""
        if room is not None and peak > room:
            self._warn(
                f"{name}: needs about {peak / 2**30:.1f} GiB, and there are {room / 2**30:.1f} GiB: lower "
                "micro_batch_tokens or the responses' length, or set gradient_checkpointing or lora"
            )
        score, deviation = stats.get("reward/score", 0.0), stats.get("reward/score_std", 0.0)
        scaled = any(shaper.level == "sequence" for shaper in getattr(stage, "shapers", {}).values())
        if max(abs(score), deviation) > LARGE and not scaled:
            self._warn(
                f"{name}: scores are around {score:.3g} with a deviation of {deviation:.3g}; updates are made for "
                "scores of about 1: lower the weights of the rewards, or add a shaper such as whiten or scale"
            )
