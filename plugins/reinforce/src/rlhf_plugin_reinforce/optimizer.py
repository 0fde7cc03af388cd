"""REINFORCE and its family for language models, in one file: the policy gradient, by choice of its baseline.

The gradient of the expected return is that of ``sum_t A_t log pi(token t)`` with ``A_t = G_t - b``: the return from
token t on, less a baseline that does not depend on the sample (Williams, 1992). What b is makes the algorithm:

- none: 0. moving-average: the mean return of past steps, Williams's reinforcement baseline.
- greedy: ReMax (Li et al., 2023, arXiv:2310.10505), the return of the greedy response to the same prompt.
- leave-one-out: RLOO (Ahmadian et al., 2024, arXiv:2402.14740), the mean return of the prompt's other samples.
- group: GRPO (Shao et al., 2024, arXiv:2402.03300), that of all its samples, the difference divided by their deviation.
  Without the division and with a fixed length: Dr. GRPO (Liu et al., 2025, arXiv:2503.20783). With two clip bounds, a
  mean over tokens, and groups drawn again: DAPO (Yu et al., 2025, arXiv:2503.14476).
- batch: REINFORCE++ (Hu et al., 2025, arXiv:2501.03262), the returns of all tokens of the step, whitened.

The first four are unbiased, if gamma is 1, token losses are summed (seq-mean-token-sum), nothing is clipped, and a step
is one update. A group's mean holds the sample itself, which shrinks the gradient by (K - 1) / K; deviations, whitening
and means over tokens weight prompts and lengths anew.

Departures from the papers. leave-one-out and group take a response as one action, so its whole return counts for every
token; the others count what comes from a token on. A greedy response is worth its shaped return, as samples are, the KL
in it included; ReMax takes its score alone. Deviations are unbiased (n - 1). DAPO draws until its batch is full; here
there are at most `resample` further draws, and scores are compared before shaping. The moving average begins with the
mean of the first step, which itself has none. GRPO is the one with rewards for outcomes, not for single steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rlhf_core.errors import ConfigError
from rlhf_core.functional import (
    Baseline,
    aggregate,
    discounted_returns,
    group_advantages,
    kl_estimate,
    masked_var,
    masked_whiten,
    ppo_policy_loss,
)
from rlhf_core.interfaces import Context, Needs, Outputs, Policy, State, StepStats, TrainingData, Traits
from rlhf_core.records import Rollout
from rlhf_core.rl import Batch, OnPolicyOptimizer, joined
from torch import Tensor

from .config import ReinforceConfig


class Reinforce(OnPolicyOptimizer[ReinforceConfig]):
    """The policy gradient, with a baseline that needs no critic."""

    def __init__(self, config: ReinforceConfig, context: Context) -> None:
        super().__init__(config, context)
        self.average, self.averaged = 0.0, 0  # of the mean returns of past steps, and how many those are
        self.stats: StepStats = {}

    @property
    def traits(self) -> Traits:
        config = self.config
        still = config.compares_samples or (config.baseline in ("greedy", "batch") and config.gamma == 1)
        return Traits("on-policy", baseline=still and config.kl_coef == 0 and config.entropy_coef == 0)

    @property
    def update_needs(self) -> Needs:
        return Needs(entropy=self.config.entropy_coef != 0)

    def bind(self, policy: Policy[Any], total_steps: int) -> None:
        super().bind(policy, total_steps)
        if self.config.clip is None and self.config.epochs > 1:
            self.context.warn(
                f"{self.context.where}: {self.config.epochs} epochs without a clip: after the first the samples are no "
                "longer the policy's own, and nothing holds it back; set clip: 0.2, or epochs: 1"
            )

    def step(self, data: TrainingData) -> StepStats:
        self.stats = {}
        stats = super().step(data)
        if self.config.baseline == "moving-average" and self.mean_return is not None:
            share = 1.0 if self.averaged == 0 else 1 - self.config.baseline_decay
            self.average += share * (self.mean_return - self.average)
            self.averaged += 1
        return {**stats, **self.stats}

    # --- samples ---

    def sample(self, data: TrainingData) -> Rollout:
        config = self.config
        if config.resample:
            return self._sample_until_varied(data)
        if config.baseline != "greedy":
            return super().sample(data)
        prompts = data.prompts(config.prompts_per_step)
        sampling = data.sampling.model_copy(update={"temperature": 0.0})
        self.greedy = self._returns(data.rollout(prompts, sampling=sampling, needs=Needs()))[1]  # (prompts,)
        return data.rollout(prompts, samples_per_prompt=config.samples_per_prompt, needs=config.needs)

    def _sample_until_varied(self, data: TrainingData) -> Rollout:
        """Dynamic sampling (DAPO, section 3.2): groups whose scores are all equal give way to other prompts.

        What all draws kept; or the last of them as it is, if that is nothing.
        """
        config, missing = self.config, self.config.prompts_per_step
        kept: list[Rollout] = []
        for draw in range(config.resample + 1):
            drawn = data.rollout(missing, samples_per_prompt=config.samples_per_prompt, needs=config.needs)
            if rows := _varied_rows(drawn):
                part, before = drawn.select(rows), draw * config.prompts_per_step  # each draw counts prompts from 0
                ids = part.sample_ids + before * config.samples_per_prompt
                kept.append(part.replace(groups=part.groups + before, sample_ids=ids))
                missing -= len(set(part.groups.tolist()))
            if missing == 0:
                break
        self.stats.update({"baseline/draws": float(draw + 1), "baseline/groups_missing": float(missing)})
        return joined(kept) if kept else drawn

    # --- advantages ---

    def prepare(self, rollout: Rollout) -> Mapping[str, Tensor]:
        config, mask = self.config, rollout.mask
        returns, totals = self._returns(rollout)  # (B, T); (B,), nan for abstained samples
        if config.compares_samples:
            kind: Baseline = "mean" if config.baseline == "group" else "leave-one-out"
            ahead = group_advantages(totals, rollout.groups, baseline=kind, scale=config.scale, eps=config.scale_eps)
            advantages = ahead[:, None].where(mask, 0.0)  # (B, T)
        elif config.baseline == "batch":
            advantages = masked_whiten(returns, mask)
        else:
            baseline = self._baseline(rollout, totals)  # (B,), nan where there is none
            advantages = (returns - baseline[:, None]).where(mask & ~baseline.isnan()[:, None], 0.0)
            self.stats["baseline/mean"] = _mean(baseline) or 0.0
        self.mean_return = _mean(totals)
        self.stats["baseline/advantage_std"] = float(masked_var(advantages, mask)) ** 0.5
        idle = (advantages == 0).all(1).to(totals.dtype).masked_fill(totals.isnan(), torch.nan)
        self.stats["baseline/no_signal"] = _mean(idle) or 0.0
        return {"advantages": advantages}

    def _returns(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """The return from each token on (B, T), and of the whole response (B,): nan where its mask is empty."""
        if rollout.rewards is None:
            raise ConfigError(self.context.where, "a rollout without rewards", "scored and shaped samples",
                              "pass it to the data that rolls out")  # fmt: skip
        mask = rollout.mask
        returns = discounted_returns(rollout.rewards, mask, gamma=self.config.gamma)
        first = mask.int().argmax(1, keepdim=True)  # (B, 1) the first token that the policy chose
        return returns, returns.gather(1, first)[:, 0].masked_fill(~mask.any(1), torch.nan)

    def _baseline(self, rollout: Rollout, totals: Tensor) -> Tensor:
        """(B,), whatever the samples themselves earn; nan where the reward abstained on the greedy response."""
        if self.config.baseline == "greedy":
            return self.greedy[rollout.sample_ids // self.config.samples_per_prompt]  # samples of a prompt: in a row
        return torch.full_like(totals, self.average)  # 0 without a moving average

    # --- the loss ---

    def loss(self, batch: Batch, new: Outputs) -> tuple[Tensor, Mapping[str, Any]]:
        config, mask, advantages = self.config, batch.mask, batch.advantages
        # what sums of this part are divided by: counts of the whole update, so that its parts add up to its mean
        count = batch.token_count if config.aggregation == "token-mean" else batch.sample_count
        count *= config.norm_tokens or 1  # Dr. GRPO: each response counts a fixed length

        ratio = (new.logprobs.detach() - batch.logprobs).exp()  # (B, T)
        stats = {"policy/ratio": batch.token_mean(ratio)}
        if config.clip is None:
            loss = aggregate(-advantages * new.logprobs, mask, config.aggregation, count)
        else:
            low = self.now(config.clip)
            high = low if config.clip_high is None else self.now(config.clip_high)
            loss, _ = ppo_policy_loss(
                new.logprobs, batch.logprobs, advantages, mask, clip_low=low, clip_high=high,
                aggregation=config.aggregation, denominator=count,
            )  # fmt: skip
            clipped = torch.where(advantages > 0, ratio > 1 + high, (ratio < 1 - low) & (advantages < 0))
            stats["policy/clip_fraction"] = batch.token_mean(clipped.to(ratio.dtype))
        stats["policy/surrogate"] = loss.detach()

        if config.kl_coef != 0:
            reference = torch.where(mask, batch.reference_logprobs, new.logprobs.detach())
            kl = kl_estimate(new.logprobs, reference, kind=config.kl_estimator)  # (B, T)
            loss = loss + self.now(config.kl_coef) * aggregate(kl, mask, config.aggregation, count)
            stats["policy/kl_reference"] = batch.token_mean(kl.detach())
        if new.entropy is not None and config.entropy_coef != 0:
            loss = loss - self.now(config.entropy_coef) * aggregate(new.entropy, mask, config.aggregation, count)
            stats["policy/entropy_exact"] = batch.token_mean(new.entropy.detach())
        return loss, stats

    # --- state ---

    def state_dict(self) -> State:
        return {**super().state_dict(), "average": self.average, "averaged": self.averaged}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.average, self.averaged = float(state["average"]), int(state["averaged"])


def _varied_rows(rollout: Rollout) -> list[int]:
    """Samples whose group has more than one score; what a reward abstained on is a group of its own."""
    assert rollout.score is not None
    scores: dict[int, set[float]] = {}
    for group, score in zip(rollout.groups.tolist(), rollout.score.tolist(), strict=True):
        scores.setdefault(group, set()).add(score)
    return [row for row, group in enumerate(rollout.groups.tolist()) if len(scores[group]) > 1]


def _mean(x: Tensor) -> float | None:
    """The mean of what is not nan; None if all is."""
    known = x[~x.isnan()]
    return float(known.double().mean()) if len(known) else None
