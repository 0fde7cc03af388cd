"""Wrong optimizers. Each fails one check, and what it derives from fails none."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from rlhf_core.functional import masked_mean
from rlhf_core.interfaces import Needs, Traits
from rlhf_core.rl import OnPolicyConfig, OnPolicyOptimizer


class SmallSteps(OnPolicyConfig):
    prompts_per_step: int = Field(default=4, description="few")
    samples_per_prompt: int = Field(default=2, description="two")
    minibatch_size: int = Field(default=8, description="all at once")


class Reinforce(OnPolicyOptimizer[SmallSteps]):
    """An optimizer as it should be: the score above the mean of the batch."""

    baseline = True

    def prepare(self, rollout):
        scores, live = rollout.rewards.sum(1), rollout.mask.any(1)
        return {"advantages": scores - masked_mean(scores, live)}

    def loss(self, batch, new):
        logprobs = torch.where(batch.mask, new.logprobs, 0.0).sum(1)
        return -batch.sample_mean(batch.advantages * logprobs), {}


class DividesByWidth(Reinforce):
    def prepare(self, rollout):
        return {"advantages": super().prepare(rollout)["advantages"] / rollout.mask.shape[1]}


class MeanOfMeans(Reinforce):
    def loss(self, batch, new):
        return -masked_mean(batch.advantages[:, None] * new.logprobs, batch.mask), {}


class ForgetsTheMask(Reinforce):
    def prepare(self, rollout):
        unseen = rollout.logprobs.masked_fill(rollout.mask, 0.0).square().sum()
        return {"advantages": super().prepare(rollout)["advantages"] * (1 + unseen)}


class StandsStill(Reinforce):
    def loss(self, batch, new):
        return 0 * new.logprobs.sum(), {}


class WantsALiveSample(Reinforce):
    def prepare(self, rollout):
        rollout.rewards.sum(1)[rollout.mask.any(1)].max()
        return super().prepare(rollout)


class CallsItselfOffline(Reinforce):
    @property
    def traits(self):
        return Traits("offline", baseline=True)


class HidesItsBaseline(Reinforce):
    baseline = False


class ComparesNeighbours(Reinforce):
    def prepare(self, rollout):
        advantages = super().prepare(rollout)["advantages"]
        return {"advantages": advantages * torch.linspace(0.5, 1.5, len(rollout), dtype=advantages.dtype)}


class FlipsTheSign(Reinforce):
    def loss(self, batch, new):
        loss, stats = super().loss(batch, new)
        return -loss, stats


class DividesByTheEnded(Reinforce):
    def prepare(self, rollout):
        # what a fresh policy samples is truncated as well; only among judged and abstained samples is it told apart
        ended = (~rollout.truncated | ~rollout.abstained.any()).to(rollout.rewards).sum()
        return {"advantages": super().prepare(rollout)["advantages"] * (ended / ended)}


class ForgetsItsScale(Reinforce):
    scale = 1.0

    def prepare(self, rollout):
        self.scale *= 1.5
        return {"advantages": self.scale * super().prepare(rollout)["advantages"]}


class TakesTheGlobalSeed(Reinforce):
    def prepare(self, rollout):
        return {"advantages": super().prepare(rollout)["advantages"] * (1 + torch.initial_seed() % 1000)}


class ScalesInPlace(Reinforce):
    def prepare(self, rollout):
        rollout.rewards.mul_(2)
        return super().prepare(rollout)


class WidensWeights(Reinforce):
    def step(self, data):
        stats = super().step(data)
        if self.context.dtype == "bfloat16":
            self.policy.module.float()
        return stats


class WithPenalty(SmallSteps):
    kl_coef: float = Field(default=0.1, description="of the divergence from the reference")

    @property
    def needs(self):
        return super().needs | Needs(reference=True)


class StaysNear(Reinforce):
    """An optimizer with a penalty of its own, as it should be."""

    Config = WithPenalty

    def penalty(self, batch, new):
        k2 = (new.logprobs - batch.reference_logprobs).square() / 2
        return self.config.kl_coef * batch.sample_mean(torch.where(batch.mask, k2, 0.0).sum(1))

    def loss(self, batch, new):
        loss, stats = super().loss(batch, new)
        return loss + self.penalty(batch, new), stats


class FlipsThePenalty(StaysNear):
    def penalty(self, batch, new):
        return -super().penalty(batch, new)


class ReportsAPlainMean(Reinforce):
    def loss(self, batch, new):
        loss, _ = super().loss(batch, new)
        return loss, {"reach": new.logprobs.detach().abs().amax(1).mean()}


class NamesItReward(Reinforce):
    def loss(self, batch, new):
        loss, _ = super().loss(batch, new)
        return loss, {"reward/score": 7.0 / batch.sample_count * len(batch.rollout)}


RIGHT: list[tuple[str, type[Any]]] = [("optimizer", Reinforce), ("optimizer", StaysNear)]
MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("optimizer", DividesByWidth, "padding_changes_nothing", "padding changes a step by"),
    ("optimizer", MeanOfMeans, "micro_batches_change_nothing", "use batch.token_mean and batch.sample_mean"),
    ("optimizer", ForgetsTheMask, "masked_junk_changes_nothing", "junk at masked positions changes a step by"),
    ("optimizer", CallsItselfOffline, "traits_are_true", "'offline', and a step that asks for 1 rollouts"),
    ("optimizer", HidesItsBaseline, "equal_rewards_change_nothing_if_declared", "baseline=False, and equal rewards move"),
    ("optimizer", ComparesNeighbours, "order_changes_nothing", "compare samples by rollout.groups"),
    ("optimizer", FlipsTheSign, "good_samples_become_likelier_and_bad_ones_less_likely", "look at the sign of the loss"),
    ("optimizer", DividesByTheEnded, "a_truncated_batch_is_finite", "a batch of truncated responses raises NumericalError"),
    ("optimizer", StandsStill, "a_step_changes_weights_and_stays_finite", "two steps leave all weights as they were"),
    ("optimizer", WantsALiveSample, "an_abstained_batch_is_harmless", "a batch of abstained samples raises"),
    ("optimizer", ForgetsItsScale, "continues_after_a_checkpoint", "put everything that changes into state_dict"),
    ("optimizer", TakesTheGlobalSeed, "same_seed_same_output", "once the global generators were seeded anew"),
    ("optimizer", ScalesInPlace, "leaves_its_inputs_alone", "a step changes rewards of the rollout"),
    ("optimizer", ReportsAPlainMean, "statistics_are_shares", "statistic 'policy/reach' is"),
    ("optimizer", NamesItReward, "statistics_have_names_of_their_own", "reward/score have names that the stage logs itself"),
    ("optimizer", WidensWeights, "works_in_its_dtype", "changes the dtype or device of parameters in bfloat16 on cpu"),
    ("optimizer", FlipsThePenalty, "penalises_drift_from_the_reference", "look at the sign of the penalty"),
]  # fmt: skip
