"""What an optimizer is given as `data`: rollouts that are scored and shaped, rescoring, offline feedback."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..errors import ConfigError
from ..interfaces import FeedbackSource, Needs, PromptSource, RewardShaper, Sampling, State, StepStats, TrainingData
from ..randomness import derive_seed, permutation
from ..records import Feedback, Prompt, Rollout, Sample
from .rewards import token_rewards
from .sampler import Sampler


class StageData(TrainingData):
    """The data of an optimize stage.

    Prompts come in an order derived from the seed, every prompt once before any comes again. How many were handed out
    is all the state there is.
    """

    def __init__(
        self,
        sampler: Sampler,
        source: PromptSource[Any] | None,
        feedback: Sequence[FeedbackSource[Any]],
        shapers: Sequence[RewardShaper[Any]],
        sampling: Sampling,
        needs: Needs,
        total: int = 1,
    ) -> None:
        self.total = total
        self.sampler, self.source, self.sources = sampler, source, feedback
        self.shapers, self._sampling, self.needs = shapers, sampling, needs
        self.step = 0
        self.used = 0
        self.stats: StepStats = {}
        self._told: list[StepStats] = []
        self._calls = 0
        self._drawn: list[Rollout] = []

    def begin(self, step: int) -> None:
        """Step `step` begins: statistics are gathered anew, and shapers are told."""
        self.step, self.stats, self._told, self._calls, self._drawn = step, {}, [], 0, []
        for shaper in self.shapers:
            shaper.progress = (step, self.total)

    @property
    def sampling(self) -> Sampling:
        return self._sampling.at(self.step, self.total)

    def prompts(self, count: int) -> list[Prompt]:
        if self.source is None:
            raise ConfigError(
                "optimize",
                "the optimizer asks for prompts, and the stage names none",
                "a prompt source",
                "add `prompts: ID` to the optimize stage",
            )
        size, seed = len(self.source), self.sampler.context.seed
        chosen = []
        for place in range(self.used, self.used + count):
            order = permutation(derive_seed(seed, "prompts", place // size), size)
            chosen.append(self.source[order[place % size]])
        self.used += count
        return chosen

    def rollout(
        self,
        prompts: int | Sequence[Prompt],
        *,
        samples_per_prompt: int = 1,
        needs: Needs | None = None,
        sampling: Sampling | None = None,
    ) -> Rollout:
        chosen = self.prompts(prompts) if isinstance(prompts, int) else list(prompts)
        wanted = (needs or Needs()) | self.needs
        seed = derive_seed(self.sampler.context.seed, "rollout", self.step, self._calls)
        self._calls += 1
        rollout, online = self.sampler.rollout(
            chosen, samples_per_prompt, sampling or self.sampling, wanted, seed=seed, learn=True
        )
        with self.sampler.context.clock("shaping"):
            rollout = self.shaped(rollout)
        self._tell({**_statistics(rollout), **online}, own_sampling=sampling is not None)
        self._drawn.append(rollout)
        return rollout

    def _tell(self, stats: StepStats, *, own_sampling: bool) -> None:
        """Log means over the rollouts of a step; those that were drawn otherwise, as a greedy baseline is, do not count
        beside others."""
        if not own_sampling:
            self._told.append(stats)
            stats = {name: _mean([told[name] for told in self._told if name in told]) for name in stats}
        elif self._told:
            return
        self.stats.update(stats)

    def shown(self) -> tuple[list[Sample], list[float]]:
        """The samples of this step that have a score, and their scores before shaping."""
        samples: list[Sample] = []
        scores: list[float] = []
        for rollout in self._drawn:
            assert rollout.score is not None
            live = [True] * len(rollout) if rollout.abstained is None else (~rollout.abstained).tolist()
            samples += [sample for sample, kept in zip(rollout.samples, live, strict=True) if kept]
            scores += [score for score, kept in zip(rollout.score.tolist(), live, strict=True) if kept]
        return samples, scores

    def shaped(self, rollout: Rollout) -> Rollout:
        """Sequence shapers on the score, credit to tokens, token shapers on the rewards."""
        assert rollout.score is not None
        score = rollout.score
        for shaper in self.shapers:
            if shaper.level == "sequence":
                score, stats = shaper.shape(score, rollout)
                self.stats.update(stats)
        if rollout.abstained is not None:
            score = score.masked_fill(rollout.abstained, 0.0)
        rewards = token_rewards(rollout, score, self.sampler.mix, self.sampler.policy)
        self._warn_of_paid_length(rollout, rewards)
        for shaper in self.shapers:
            if shaper.level == "token":
                rewards, stats = shaper.shape(rewards, rollout)
                self.stats.update(stats)
        return rollout.replace(rewards=rewards.masked_fill(~rollout.mask, 0.0))

    def _warn_of_paid_length(self, rollout: Rollout, rewards: torch.Tensor) -> None:
        paid = rewards[rollout.mask]
        if len(paid) and bool((paid > 0).all()) and float(rollout.mask.sum(1).max()) > 1:
            self.sampler.context.warn(
                "every token is paid a positive reward, so a longer response earns more whatever it says; "
                "centre the ratings (subtract their mean) or pay one score per response"
            )

    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        with self.sampler.context.clock("scoring"):
            return self.sampler.evaluated(rollout, self.needs if needs is None else needs, rescore=True)

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        for source in self.sources:
            for record in source:
                if kind is None or record.kind == kind:
                    yield record

    def state_dict(self) -> State:
        return {"used": self.used}

    def load_state_dict(self, state: State) -> None:
        self.used = int(state["used"])


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _statistics(rollout: Rollout) -> StepStats:
    """What is logged of a rollout, before and after shaping; abstained samples are counted and left out."""
    live = rollout.mask.any(1)
    samples = max(int(live.sum()), 1)
    tokens = max(int(rollout.mask.sum()), 1)
    assert rollout.score is not None and rollout.rewards is not None
    score = rollout.score[live]
    stats: StepStats = {
        "reward/score": float(score.sum()) / samples,
        "reward/score_std": float(score.std()) if len(score) > 1 else 0.0,
        "reward/shaped": float(rollout.rewards.sum()) / samples,
        "response/length": float(rollout.lengths.float().mean()),
        "response/truncated": float(rollout.truncated.float().mean()),
        # the mean of -log p over sampled tokens estimates the entropy without bias, at no cost
        "policy/entropy": -float(rollout.logprobs[rollout.mask].sum()) / tokens,
    }
    if rollout.reference_logprobs is not None:
        k1 = float(
            (rollout.logprobs - rollout.reference_logprobs)[rollout.mask].sum()
        )  # unbiased for KL(policy || ref)
        stats.update({"kl/sequence": k1 / samples, "kl/token": k1 / tokens})
    for name, scores in rollout.scores.items():
        kept = live.to(scores.values.device) if scores.abstained is None else ~scores.abstained.to(scores.values.device)
        stats[f"reward/{name}"] = float(scores.values[kept].mean()) if bool(kept.any()) else math.nan
        if scores.abstained is not None:
            stats[f"reward/{name}/abstained"] = float(scores.abstained.sum())
        for part, values in scores.parts.items():
            stats[f"reward/{name}/{part}"] = float(values[kept].float().mean()) if bool(kept.any()) else math.nan
    return stats
