"""Optimizers: they move the weights, and only for reasons that are in the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...interfaces import Context, Needs, PolicyOptimizer, Sampling, StepStats, TrainingData
from ...randomness import seed_everything
from ...records import Feedback, Prompt, Rollout
from ...rl import OnPolicyOptimizer
from ..compare import padded, same, through_checkpoint, weights
from ..kit import check_example
from ..records import example_feedback, example_prompts
from ..rollouts import example_rollout
from ..subjects import Example, NotApplicable
from ..toys import Indifferent, NoOptions, example_data, tiny_context, tiny_policy

TOLERANCE = 1e-10  # of weights, relative, in float64


class Given(TrainingData):
    """One rollout made beforehand, in every step."""

    def __init__(self, rollout: Rollout) -> None:
        self.given, self.step = rollout, 0

    @property
    def sampling(self) -> Sampling:
        return Sampling()

    def prompts(self, count: int) -> list[Prompt]:
        return [example_prompts()[i % 5] for i in range(count)]

    def rollout(self, *arguments: Any, **options: Any) -> Rollout:
        return self.given

    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        return rollout

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        return (record for record in example_feedback() if kind in (None, record.kind))


def _bound(example: Example, policy: Any, context: Context | None = None) -> PolicyOptimizer[Any]:
    policy.set_reference("stage-start")
    optimizer: PolicyOptimizer[Any] = example.build(**({"dtype": context.dtype} if context else {}))
    optimizer.bind(policy, 4)
    return optimizer


# --- what must not change anything -----------------------------------------------------------------------------------


def _precise(example: Example, **changes: Any) -> Example:
    """The same optimizer with AdamW so tame that a step is nearly the gradient: scale is seen, rounding is not."""
    if not issubclass(example.subject.component_class, OnPolicyOptimizer):
        raise NotApplicable("only for optimizers on the base OnPolicyOptimizer")
    tame = {"learning_rate": 0.1, "adam_eps": 1.0, "max_grad_norm": 1e6, "target_kl": None}
    return example.with_config(**{**tame, **changes})


def _after_a_step(example: Example, change: Any = None) -> Tensor:
    """The weights of a float64 policy after a step on one fixed rollout, `change`d before."""
    context = tiny_context("policy", dtype="float64")
    policy = tiny_policy(context)
    optimizer = _bound(example, policy, context)
    rollout = example_rollout(policy)
    optimizer.step(Given(change(rollout) if change else rollout))
    return weights(policy.module)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


@check_example("optimizer")
def padding_changes_nothing(example: Example) -> None:
    """More columns of padding, left of prompts and right of responses, lead to the same weights."""
    tame = _precise(example)
    moved = _distance(_after_a_step(tame), _after_a_step(tame, lambda r: padded(r, prompt=2, response=3)))
    if not moved <= TOLERANCE:
        example.fail(
            f"padding moves the weights by {moved:.2g} (relative)",
            f"at most {TOLERANCE}",
            "average over the mask, never over T",
        )


@check_example("optimizer")
def micro_batches_change_nothing(example: Example) -> None:
    """One sample per forward pass leads to the same weights as all in one."""
    whole, parts = (_after_a_step(_precise(example, micro_batch_tokens=n)) for n in (1_000_000, 1))
    if not (moved := _distance(whole, parts)) <= TOLERANCE:
        example.fail(
            f"micro-batches move the weights by {moved:.2g} (relative)",
            f"at most {TOLERANCE}",
            "in loss, use batch.token_mean and batch.sample_mean, or pass denominator=batch.token_count; what "
            "looks at the whole batch belongs in prepare",
        )


@check_example("optimizer")
def masked_junk_changes_nothing(example: Example) -> None:
    """What stands at masked positions (padding, other speakers, abstained samples) does not matter.

    Rewards are 0 there by contract; everything else may be anything.
    """
    tame = _precise(example)
    moved = _distance(_after_a_step(tame), _after_a_step(tame, _with_junk))
    if not moved <= TOLERANCE:
        example.fail(
            f"junk at masked positions moves the weights by {moved:.2g} (relative)",
            f"at most {TOLERANCE}",
            "mask before summing: torch.where(batch.mask, x, 0), masked_mean, batch.token_mean",
        )


def _with_junk(rollout: Rollout) -> Rollout:
    noise = torch.Generator().manual_seed(9)
    names = ("logprobs", "reference_logprobs", "values", "entropy", "top_logprobs")
    changes = {"response_ids": torch.where(rollout.attention, rollout.response_ids, 7)}
    for name in names:
        tensor: Tensor = getattr(rollout, name)
        mask = rollout.mask.view(*rollout.mask.shape, *[1] * (tensor.dim() - 2))
        junk = -3 * torch.rand(tensor.shape, generator=noise, dtype=torch.float64).to(tensor)
        changes[name] = torch.where(mask, tensor, junk)
    return rollout.replace(**changes)


# --- what a step does ------------------------------------------------------------------------------------------------


def _steps(optimizer: PolicyOptimizer[Any], data: Any, first: int, count: int) -> StepStats:
    """Steps as the runner takes them; the statistics of the last one."""
    stats: StepStats = {}
    for step in range(first, first + count):
        seed_everything(step)
        data.begin(step)
        stats = dict(optimizer.step(data))
    return stats


def _check_finite(example: Example, policy: Any, stats: StepStats, when: str) -> None:
    if not bool(weights(policy.module).isfinite().all()):
        example.fail(f"weights that are not finite after {when}", "finite weights", "guard the division")
    for name, value in stats.items():
        if type(value) not in (int, float, bool) or not abs(value) < float("inf"):
            example.fail(
                f"statistic {name!r} is {value!r} after {when}",
                "a finite Python number",
                "return numbers, and guard the division",
            )


@check_example("optimizer")
def a_step_changes_weights_and_stays_finite(example: Example) -> None:
    """Two steps on a tiny policy move its weights; weights and statistics stay finite."""
    policy = tiny_policy()
    optimizer = _bound(example, policy)
    before = weights(policy.module)
    stats = _steps(optimizer, example_data(policy, optimizer.config.needs), 0, 2)
    _check_finite(example, policy, stats, "two steps")
    after = weights(policy.module)
    if torch.equal(before, after):
        example.fail(
            "two steps leave all weights as they were",
            "a policy that learns",
            "let the loss depend on new.logprobs, and groups have several samples",
        )


@check_example("optimizer")
def an_abstained_batch_is_harmless(example: Example) -> None:
    """A step in which the reward has no opinion on any sample leaves everything finite."""
    policy = tiny_policy()
    optimizer = _bound(example, policy)
    reward = Indifferent(NoOptions(), tiny_context("reward", "indifferent"))
    try:
        stats = _steps(optimizer, example_data(policy, optimizer.config.needs, reward=reward), 0, 1)
    except Exception as error:
        example.fail(
            f"a batch of abstained samples raises {type(error).__name__}: {error}",
            "a step that does nothing",
            "masks may be empty",
        )
    _check_finite(example, policy, stats, "a batch of abstained samples")


@check_example("optimizer")
def continues_after_a_checkpoint(example: Example) -> None:
    """An optimizer that was saved and loaded goes on bit for bit as one that was not."""
    straight, saved = _run(example, None)
    resumed, _ = _run(example, saved)
    if not same(straight, resumed):
        example.fail(
            f"after loading its state the next step differs by {_distance(straight, resumed):.2g} (relative)",
            "the same weights, bit for bit",
            "put everything that changes into state_dict",
        )


def _run(example: Example, saved: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
    """Weights after step 1, and the state before it: from the beginning, or from what was saved there."""
    policy = tiny_policy()
    optimizer = _bound(example, policy)  # both begin from equal weights, so the reference is the same
    data = example_data(policy, optimizer.config.needs)
    parts: dict[str, Any] = {"policy": policy, "optimizer": optimizer, "data": data}
    if saved is None:
        _steps(optimizer, data, 0, 1)
        saved = through_checkpoint({name: part.state_dict() for name, part in parts.items()})
    else:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    _steps(optimizer, data, 1, 1)
    return weights(policy.module), saved
