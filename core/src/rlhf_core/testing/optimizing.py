"""What the checks of optimizers share: a fixed rollout as data, steps on a tiny policy, and what may differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..interfaces import Context, Needs, Policy, PolicyOptimizer, Sampling, StepStats, TrainingData, Traits
from ..randomness import seed_everything
from ..records import Feedback, Prompt, Rollout
from .compare import weights
from .records import example_feedback, example_prompts
from .subjects import Example, NotApplicable


class Given(TrainingData):
    """One rollout made beforehand, in every step.

    With `policy`, rewards follow its weights, as they do for whoever looks at nothing else: each token is paid its
    log-probability of today.
    """

    def __init__(self, rollout: Rollout, policy: Policy[Any] | None = None) -> None:
        self.given, self.policy, self.step = rollout, policy, 0

    @property
    def sampling(self) -> Sampling:
        return Sampling()

    def prompts(self, count: int) -> list[Prompt]:
        return [example_prompts()[i % 5] for i in range(count)]

    @torch.no_grad()
    def rollout(self, *arguments: Any, **options: Any) -> Rollout:
        sampling = options.get("sampling")
        if self.policy is None and sampling is not None and sampling.heat == 0:
            return self._greedy(len(arguments[0]))
        if self.policy is None:
            return self.given
        logprobs = self.policy.forward(self.given, Needs()).logprobs
        assert self.given.rewards is not None
        return self.given.replace(rewards=self.given.rewards + logprobs.where(self.given.mask, 0.0))

    def _greedy(self, count: int) -> Rollout:
        """So many greedy responses: one token each, worth what samples are worth on average."""
        assert self.given.rewards is not None
        worth = self.given.rewards.sum() / self.given.mask.any(1).sum()
        shortest = self.given.mask.sum(1).where(self.given.mask.any(1), 1_000).argmin()
        one = self.given.select([int(shortest)] * count)
        return one.replace(rewards=worth.expand(count, 1).clone(), sample_ids=torch.arange(count))

    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        return rollout

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        return (record for record in example_feedback() if kind in (None, record.kind))


def bound(example: Example, policy: Any, context: Context | None = None) -> PolicyOptimizer[Any]:
    policy.set_reference("stage-start")
    optimizer: PolicyOptimizer[Any] = example.build(**({"dtype": context.dtype} if context else {}))
    optimizer.bind(policy, 4)
    return optimizer


def traits_of(example: Example) -> Traits:
    try:
        traits = example.build().traits
    except Exception:
        traits = None
    if not isinstance(traits, Traits):
        raise NotApplicable("its traits are not known: see traits_are_true")
    return traits


def samples_needed(example: Example) -> Traits:
    traits = traits_of(example)
    if traits.learns_from == "offline":
        raise NotApplicable("it learns from feedback, not from samples")
    return traits


TAME = {"learning_rate": 1.0, "adam_eps": 1.0, "max_grad_norm": 1e6, "target_kl": None, "epochs": 1,
        "minibatch_size": 1_000_000}  # fmt: skip


def precise(example: Example, **changes: Any) -> Example:
    """The same optimizer with AdamW so tame that a step is nearly the gradient: scale is seen, rounding is not.

    All samples are in one update, so that their order may not matter. Options that it does not have are left out.
    """
    fields = example.subject.config_class.model_fields
    return example.with_config(**{name: value for name, value in {**TAME, **changes}.items() if name in fields})


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm().clamp(min=1e-30))


def steps(optimizer: PolicyOptimizer[Any], data: Any, first: int, count: int) -> StepStats:
    """Steps as the runner takes them; the statistics of the last one."""
    stats: StepStats = {}
    for step in range(first, first + count):
        seed_everything(step)
        data.begin(step)
        stats = dict(optimizer.step(data))
    return stats


def check_finite(example: Example, policy: Any, stats: StepStats, when: str) -> None:
    if not bool(weights(policy.module).isfinite().all()):
        example.fail(f"weights that are not finite after {when}", "finite weights", "guard the division")
    for name, value in stats.items():
        if type(value) not in (int, float, bool) or not abs(value) < float("inf"):
            example.fail(
                f"statistic {name!r} is {value!r} after {when}",
                "a finite Python number",
                "return numbers, and guard the division",
            )
