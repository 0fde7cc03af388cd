"""Wrong shapers. Each fails one check, and what it derives from fails none."""

from __future__ import annotations

from typing import Any

import torch
from rlhf_core.interfaces import Config, Needs, RewardShaper

from .wrong_everywhere import Plain


class Twice(RewardShaper[Plain]):
    """A shaper as it should be."""

    level = "token"

    def shape(self, rewards, rollout):
        return 2 * rewards, {"twice": 2.0}


class Tokens(Twice):
    level = "tokens"


class Wide(Twice):
    def shape(self, rewards, rollout):
        return rewards.double(), {}


class TensorStatistics(Twice):
    def shape(self, rewards, rollout):
        return rewards, {"mean": rewards.mean()}


class InPlace(Twice):
    def shape(self, rewards, rollout):
        return rewards.mul_(2), {}


class PaysPadding(Twice):
    def shape(self, rewards, rollout):
        return rewards - 0.1, {}


class PunishesAbstaining(Twice):
    level = "sequence"

    def shape(self, rewards, rollout):
        return rewards - 1, {}


class CentresOverAll(Twice):
    level = "sequence"

    def shape(self, rewards, rollout):
        return (rewards - rewards.mean()).masked_fill(rollout.abstained, 0.0), {}


class PerColumn(Twice):
    def shape(self, rewards, rollout):
        return rewards / rewards.shape[1], {}


class ForgetsItsCount(Twice):
    count = 0

    def shape(self, rewards, rollout):
        self.count += 1
        return rewards * self.count, {}


class TakesTheGlobalSeed(Twice):
    def shape(self, rewards, rollout):
        return rewards * (1 + torch.initial_seed() % 1000), {}


class AddsToZero(Twice):
    zero_stays_zero = True

    def shape(self, rewards, rollout):
        return (rewards + 0.1).masked_fill(~rollout.mask, 0.0), {}


class AsksForTheReference(Config):
    @property
    def needs(self):
        return Needs(reference=True)


class Penalises(RewardShaper[AsksForTheReference]):
    """A penalty as it should be."""

    level = "token"
    coef = 0.1

    def shape(self, rewards, rollout):
        kl = (rollout.logprobs - rollout.reference_logprobs).masked_fill(~rollout.mask, 0.0)
        return rewards - self.coef * kl.to(rewards), {}


class PaysForDrift(Penalises):
    coef = -0.1


RIGHT: list[tuple[str, type[Any]]] = [("shaper", Twice), ("shaper", Penalises)]
MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("shaper", Tokens, "declares_its_level", "level is 'tokens'; expected 'sequence' or 'token'"),
    ("shaper", Wide, "keeps_shape_and_dtype", "torch.float64 of shape (8, 7) on cpu; expected torch.float32"),
    ("shaper", TensorStatistics, "statistics_are_numbers", "statistic 'mean' is tensor("),
    ("shaper", InPlace, "leaves_its_inputs_alone", "shaping changes its inputs"),
    ("shaper", PaysPadding, "masked_positions_stay_zero", "masked positions are paid; expected 0 outside the mask"),
    ("shaper", PunishesAbstaining, "abstained_scores_stay_zero", "an abstained sample gets [-1.0]; expected 0"),
    ("shaper", CentresOverAll, "abstained_samples_do_not_count", "when an abstained sample is left out"),
    ("shaper", PerColumn, "padding_changes_nothing", "three columns of padding change rewards"),
    ("shaper", ForgetsItsCount, "continues_after_a_checkpoint", "expected the same, bit for bit"),
    ("shaper", TakesTheGlobalSeed, "same_seed_same_output", "once the global generators were seeded"),
    ("shaper", AddsToZero, "zero_stays_zero_where_declared", "of rewards of 0 it makes up to 0.1; expected 0 everywhere"),
    ("shaper", PaysForDrift, "drifting_from_the_reference_is_not_paid", "for log-probabilities 0.5 nats above the"),
]  # fmt: skip
