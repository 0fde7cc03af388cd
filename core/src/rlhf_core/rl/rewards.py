"""From scores to token rewards: the weighted mix of rewards, its checks, and the placing of credit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..components.scoring import checked_scores
from ..interfaces import Policy, RewardModel
from ..records import Rollout


@dataclass(frozen=True)
class RewardMix:
    """Rewards by id with their weights; the score of a sample is the weighted sum."""

    models: Mapping[str, RewardModel[Any]]
    weights: Mapping[str, float]

    def score(self, rollout: Rollout) -> Rollout:
        """The rollout with `scores`, `score` and `abstained`.

        A sample on which any reward abstains has no score: its score is 0, its mask empty, and it is a group of its
        own, so that it has no weight in any loss or baseline.

        Raises:
            RewardError: a reward gave the wrong number of scores, or one that is not finite.
        """
        scores = {name: checked_scores(model, rollout.samples) for name, model in self.models.items()}
        device = rollout.mask.device
        total = torch.zeros(len(rollout), device=device)
        abstained = torch.zeros(len(rollout), dtype=torch.bool, device=device)
        for name, s in scores.items():
            total += self.weights[name] * s.values.to(total)
            if s.abstained is not None:
                abstained |= s.abstained.to(device)
        alone = -1 - rollout.sample_ids  # a group of its own, whatever the other processes' groups are called
        return rollout.replace(
            scores=scores,
            score=total.masked_fill(abstained, 0.0),
            abstained=abstained,
            mask=rollout.mask & ~abstained[:, None],
            groups=torch.where(abstained, alone, rollout.groups),
        )


def token_rewards(rollout: Rollout, score: Tensor, mix: RewardMix, policy: Policy[Any]) -> Tensor:
    """Place the (shaped) `score` (B,) on tokens: rewards (B, T) whose rows sum to it.

    A span's credit, times its reward's weight, goes to the last token of the span; what spans do not account for goes
    to the response's last token. Rows with an empty mask stay 0.
    """
    rewards = torch.zeros(rollout.mask.shape, device=rollout.mask.device)
    for name, scores in rollout.scores.items():
        for row, spans in enumerate(scores.spans or ()):
            own = rollout.mask[row].nonzero()[:, 0].tolist()
            if not spans or not own:
                continue
            ends = policy.token_ends(rollout.response_ids[row][rollout.attention[row]].tolist())
            for span in spans:
                last = next((t for t, end in enumerate(ends) if end >= span.end), own[-1])
                place = max((t for t in own if t <= last), default=own[0])
                rewards[row, place] += mix.weights[name] * span.credit
    rest = score - rewards.sum(1)  # (B,)
    positions = torch.arange(rollout.mask.shape[1], device=rewards.device)
    last_token = torch.where(rollout.mask, positions, -1).amax(1)  # (B,), -1: nothing to pay
    paid = last_token >= 0
    rows = paid.nonzero()[:, 0]
    rewards[rows, last_token[rows]] += rest[rows]
    return rewards
