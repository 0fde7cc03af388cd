"""The null check: what the same network learns where there is nothing to learn.

A second network, begun with the same weights, is fitted in the same way to tell samples of the policy from other
samples of the same policy. Nobody can: on prompts kept out it must be a coin, and its scores must have little to do
with those of the reward. Scores that agree with it come from the network's beginnings and habits, not from
demonstrations.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf_core.functional import rank_correlation
from rlhf_core.interfaces import StepStats
from rlhf_core.training import fit_task

from .discriminator import Contrast, ContrastTask

if TYPE_CHECKING:
    from .reward import IRLReward

LIMIT = 0.35
"""Rank correlation with the null network above which a reward is not to be trusted."""
ERRORS = 2.58
"""Standard errors above a coin at which an accuracy is no luck any more: one time in 200."""


class NullCheck:
    """Fits the second network at the first evaluation and keeps it for later ones.

    Args:
        reward: as it is before it is trained. train, held_out: contrasts of samples with samples.
    """

    def __init__(self, reward: IRLReward, train: Sequence[Contrast], held_out: Sequence[Contrast]) -> None:
        self.twin = copy.copy(reward)
        self.twin.context = reward.context.named("reward", f"{reward.context.id} null check")
        self.twin.network = copy.deepcopy(reward.network)
        self.task = ContrastTask(self.twin, train, held_out)
        self.found: StepStats = {}

    def measure(self, reward: IRLReward) -> StepStats:
        """`null_accuracy`, and `null_correlation` with the scores of `reward`, both on held-out samples."""
        if not self.found:
            self.found = fit_task(self.task, self.twin.config, self.twin.context)
        texts = [contrast.sample for contrast in self.task.held_out]
        correlation = rank_correlation(reward.predict(texts)[:, 0].cpu(), self.twin.predict(texts)[:, 0].cpu())
        accuracy, size = self.found["accuracy"], len(texts)
        where = reward.context.where
        if accuracy > 0.5 + ERRORS * 0.5 / size**0.5:
            reward.context.warn(
                f"{where}: told the policy's samples from more of them in {accuracy:.0%} of {size} held-out contrasts, "
                "where nothing but chance could; the accuracy on demonstrations is not to be trusted"
            )
        if abs(correlation) > LIMIT:
            reward.context.warn(
                f"{where}: its scores go with those of a network that saw no demonstration (rank correlation "
                f"{correlation:.2f}): it has learnt little from them; give more of them, or more epochs"
            )
        return {"null_accuracy": accuracy, "null_correlation": correlation}
