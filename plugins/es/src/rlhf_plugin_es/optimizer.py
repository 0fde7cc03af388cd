"""Evolution strategies for language models, in one file.

Salimans et al. (2017), arXiv:1703.03864, as Qiu et al. (2025), arXiv:2509.24372, apply them to whole language models.
With noise e_i ~ N(0, I), weights theta, and F(theta) the mean shaped reward of the policy that has these weights,

    theta <- theta + learning_rate / N * sum over pairs i of (u(F(theta + sigma e_i)) - u(F(theta - sigma e_i))) e_i

for a population of N = 2 x pairs, where u standardises rewards within the population (z-scores or centred ranks). For
u(F) = F this is, in expectation, learning_rate x sigma x the gradient of E F(theta + sigma e), the smoothed objective.
No gradient is taken, so the memory is that of decoding and one copy of what is trained, and any reward will do.

Departures from the papers. The step is not divided by sigma (as in the second paper, not the first), so `learning_rate`
keeps its meaning when `sigma` changes. Pairs are antithetic (as in the first, not the second). Plain steps, without
Adam. Weight decay is decoupled: theta is first multiplied by 1 - learning_rate x weight_decay. One stream of noise runs
over all parameters: a generator seeded anew for each would repeat the same numbers in every layer. Weights are put back
from a copy, since in bf16 adding and subtracting noise does not restore them. Responses are drawn as the stage's
`sampling` says, for this is what is evaluated later: at a temperature above 0 every member draws by chance, which is
noise on its fitness but no bias; the second paper's greedy decoding is `temperature: 0`, and then the same weights
always earn the same.

Fresh LoRA adapters (B = 0) need no special care: A and B are both perturbed. While B is 0 the noise of A changes
nothing to first order, so the first step moves B by what it earns, and A by chance, as A was made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Policy, PolicyOptimizer, StepStats, TrainingData, Traits
from rlhf_core.randomness import derive_seed
from rlhf_core.rl import refusal
from torch import Tensor

from .config import ESConfig

TINY = 1e-6  # relative to the largest: rewards as close as this are equal but for rounding in float32


class ES(PolicyOptimizer[ESConfig]):
    """Tries perturbed policies on the same prompts and moves towards those that earn more."""

    @property
    def traits(self) -> Traits:
        # fitness is compared between weights that hardly differ, which multiplies rounding errors
        return Traits("on-policy", gradient=False, baseline=self.config.weight_decay == 0, rounding=1e-3)

    def bind(self, policy: Policy[Any], total_steps: int) -> None:
        """Take charge of all trainable weights but those of the critic, which decide nothing.

        Raises:
            ConfigError: nothing of the policy is trainable.
        """
        super().bind(policy, total_steps)
        policy.prepare(self.config.needs)
        critic = {id(p) for p in policy.value_parameters}
        named = {n: p for n, p in policy.module.named_parameters() if p.requires_grad and id(p) not in critic}
        self.parameters = [p for name, p in named.items() if self._perturbs(name)]
        if named and not self.parameters:
            raise ConfigError(f"{self.context.where} only", f"{self.config.only!r} is in no name of a trainable weight",
                              f"a part of names such as {', '.join(list(named)[:3])}")  # fmt: skip
        if not self.parameters:
            raise ConfigError(self.context.where, f"policy {policy.context.id!r} has nothing to train",
                              "weights that require gradients, its critic's apart",
                              "unfreeze some of them, or give it lora adapters")  # fmt: skip

    def _perturbs(self, name: str) -> bool:
        return self.config.only is None or self.config.only in name

    def step(self, data: TrainingData) -> StepStats:
        config, step = self.config, data.step
        rate, sigma = self.now(config.learning_rate), self.now(config.sigma)
        prompts = data.prompts(config.prompts_per_step)  # the same for all, so that none is judged by harder ones
        start = [p.detach().clone() for p in self.parameters]
        earned: list[Tensor] = []  # of each member (B,) rewards, nan of abstained samples
        try:
            for member in range(config.population):
                with self.context.clock("update"):
                    self._place(start, {member // 2: sigma if member % 2 == 0 else -sigma}, step)
                rollout = data.rollout(prompts, needs=config.needs)
                if rollout.rewards is None:
                    raise ConfigError(self.context.where, "a rollout without rewards", "shaped rewards")
                live = rollout.mask.any(1)
                rewards = rollout.rewards.sum(1).double()
                if not bool(rewards[live].isfinite().all()):
                    raise refusal(self.context, self.policy, rollout, {}, f"reward {float(rewards[live].sum())}", step)
                earned.append(rewards.masked_fill(~live, math.nan).cpu())
        finally:
            with self.context.clock("update"):
                self._place(start, {}, step)
        with self.context.clock("update"):
            rewards = torch.stack(earned)  # (N, B)
            fitness = mean_rewards(rewards)  # (N,) nan where all samples abstained
            weights = pair_weights(fitness, config.fitness)  # (N / 2,)
            shifts = {pair: rate / config.population * weight for pair, weight in enumerate(weights.tolist())}
            self._place(start, shifts, step, keep=1 - rate * config.weight_decay)

        judged = fitness[~fitness.isnan()]
        stats = {"es/equal_pairs": float((weights == 0).double().mean()), "es/step_norm": self._distance(start),
                 "es/learning_rate": rate, "es/sigma": sigma}  # fmt: skip
        if len(judged):
            mean, spread, best = judged.mean(), judged.std(unbiased=False), judged.max()
            stats.update({"es/fitness": float(mean), "es/fitness_std": float(spread), "es/fitness_best": float(best)})
            noise = fitness_noise(rewards)
            stats.update({} if noise is None else {"es/fitness_noise": noise})
        return stats

    @torch.no_grad()
    def _place(self, start: Sequence[Tensor], shifts: Mapping[int, float], step: int, keep: float = 1.0) -> None:
        """Weights = keep x start + the sum over pairs of shift x noise; without shifts the start itself, bit for bit.

        The noise of a pair is one stream of standard normal numbers over all parameters in their order, made anew from
        its seed. All processes make the same. Sums are taken in float32 or wider and rounded once.
        """
        seeds = {pair: derive_seed(self.context.seed, "es", step, pair) for pair, shift in shifts.items() if shift}
        device = self.parameters[0].device
        streams = [(shifts[pair], torch.Generator(device).manual_seed(seed)) for pair, seed in seeds.items()]
        for parameter, origin in zip(self.parameters, start, strict=True):
            total = origin.to(torch.promote_types(origin.dtype, torch.float32), copy=True).mul_(keep)
            for shift, stream in streams:
                total.add_(torch.randn(total.shape, generator=stream, device=device, dtype=total.dtype), alpha=shift)
            parameter.copy_(total)
        self.policy.weights_changed()

    def _distance(self, start: Sequence[Tensor]) -> float:
        """How far the weights are from `start`."""
        pairs = zip(self.parameters, start, strict=True)
        return math.sqrt(sum(float((p.detach() - origin).double().square().sum()) for p, origin in pairs))


def mean_rewards(rewards: Tensor) -> Tensor:
    """(N,) the mean reward of each member over its samples (N, B), nan those that are abstained; nan of none.

    Means are exactly equal where all rewards are, however many samples each member has.
    """
    judged = rewards[~rewards.isnan()]
    lowest = judged.min() if len(judged) else judged.new_zeros(())
    return lowest + (rewards - lowest).nanmean(1)


def fitness_noise(rewards: Tensor) -> float | None:
    """The standard deviation that members' mean rewards would have by chance alone, were their weights the same.

    What is hard about a prompt is common to all members and is taken away; what is left varies by sampling, and by
    which prompts were asked. None if no member has two samples, or there are not two members.

    Args:
        rewards: (N, B) of each member and sample, those in one column to the same prompt; nan: abstained.
    """
    members = int((~rewards.isnan()).any(1).sum())
    rest = rewards - rewards.nanmean(0)
    counts = (~rest.isnan()).sum(1)  # (N,)
    kept = counts > 1
    if members < 2 or not bool(kept.any()):
        return None
    rest, counts = rest[kept], counts[kept]
    variance = (rest - rest.nanmean(1, keepdim=True)).square().nansum(1) / (counts - 1)  # (kept,) of one sample
    return math.sqrt(float((variance / counts).mean()) * members / (members - 1))  # a column's mean takes one degree


def pair_weights(fitness: Tensor, kind: str) -> Tensor:
    """The weight of each pair's noise: utility of its first member (+noise) minus that of its second (-noise).

    "z-score": deviation from the population's mean over its standard deviation. "rank": centred ranks, from -1/2 for
    the lowest to 1/2 for the highest; equal rewards share their rank. Equal rewards for all give 0 exactly.

    Args:
        fitness: (N,) float64, pairs side by side; nan where a member could not be judged: its pair gets 0.
    Returns:
        (N / 2,) float64.
    Source:
        Salimans et al. 2017 (arXiv:1703.03864), sections 2 and 2.1; Qiu et al. 2025 (arXiv:2509.24372), algorithm 2.
    """
    pairs = fitness.view(-1, 2)
    judged = ~pairs.isnan().any(1)  # (N / 2,)
    weights = fitness.new_zeros(len(pairs))
    if not bool(judged.any()):
        return weights
    known = pairs[judged].flatten()
    apart = known[:, None] - known  # (n, n)
    apart[apart.abs() <= TINY * known.abs().max()] = 0.0
    if kind == "rank":
        utility = apart.sign().sum(1) / (2 * (len(known) - 1))
    else:
        deviation = apart.mean(1)  # from the mean, exactly 0 where all are equal
        spread = deviation.square().mean().sqrt()
        utility = deviation / spread if spread > 0 else torch.zeros_like(deviation)
    weights[judged] = utility[::2] - utility[1::2]
    return weights
