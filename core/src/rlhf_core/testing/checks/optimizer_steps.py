"""Steps of optimizers: weights and statistics stay finite, inputs stay as they are, and what is told is told truly."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...interfaces import StepStats
from ...randomness import seed_everything
from ..compare import copied, same, through_checkpoint, weights
from ..kit import check_example
from ..optimizing import Given, bound, check_finite, distance, precise, samples_needed, steps, traits_of
from ..rollouts import example_rollout
from ..subjects import Example, NotApplicable
from ..toys import Indifferent, NoOptions, example_data, tiny_context, tiny_policy

OF_THE_STEP = ("policy/loss", "policy/grad_norm")
"""What the base of on-policy optimizers reports itself."""


@check_example("optimizer")
def a_step_changes_weights_and_stays_finite(example: Example) -> None:
    """Two steps on a tiny policy move its weights; weights and statistics stay finite."""
    policy = tiny_policy()
    optimizer = bound(example, policy)
    before = weights(policy.module)
    stats = steps(optimizer, example_data(policy, optimizer.config.needs), 0, 2)
    check_finite(example, policy, stats, "two steps")
    after = weights(policy.module)
    if torch.equal(before, after):
        example.fail(
            "two steps leave all weights as they were",
            "a policy that learns",
            "let the loss depend on new.logprobs, and groups have several samples",
        )


@check_example("optimizer")
def leaves_its_inputs_alone(example: Example) -> None:
    """A step changes nothing in the rollout that it is given."""
    samples_needed(example)
    policy = tiny_policy(critic="separate")
    optimizer = bound(example, policy)
    rollout = example_rollout(policy, needs=optimizer.config.needs)
    before = copied(rollout.tensors())
    optimizer.step(Given(rollout))
    changed = [name for name, tensor in rollout.tensors().items() if not same(before[name], tensor)]
    if changed:
        example.fail(
            f"a step changes {', '.join(changed)} of the rollout",
            "inputs left as they are",
            "write x = x * y, not x *= y",
        )


@check_example("optimizer")
def an_abstained_batch_is_harmless(example: Example) -> None:
    """A step in which the reward has no opinion on any sample leaves everything finite."""
    samples_needed(example)
    policy = tiny_policy()
    optimizer = bound(example, policy)
    reward = Indifferent(NoOptions(), tiny_context("reward", "indifferent"))
    try:
        stats = steps(optimizer, example_data(policy, optimizer.config.needs, reward=reward), 0, 1)
    except Exception as error:
        example.fail(
            f"a batch of abstained samples raises {type(error).__name__}: {error}",
            "a step that does nothing",
            "masks may be empty",
        )
    check_finite(example, policy, stats, "a batch of abstained samples")


@check_example("optimizer")
def continues_after_a_checkpoint(example: Example) -> None:
    """An optimizer that was saved and loaded goes on bit for bit as one that was not."""
    straight, saved = _run(example, None)
    resumed, _ = _run(example, saved)
    if not same(straight, resumed):
        example.fail(
            f"after loading its state the next step differs by {distance(straight, resumed):.2g} (relative)",
            "the same weights, bit for bit",
            "put everything that changes into state_dict",
        )


def _run(example: Example, saved: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
    """Weights after step 1, and the state before it: from the beginning, or from what was saved there."""
    policy = tiny_policy()
    optimizer = bound(example, policy)  # both begin from equal weights, so the reference is the same
    data = example_data(policy, optimizer.config.needs)
    parts: dict[str, Any] = {"policy": policy, "optimizer": optimizer, "data": data}
    if saved is None:
        steps(optimizer, data, 0, 1)
        saved = through_checkpoint({name: part.state_dict() for name, part in parts.items()})
    else:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    steps(optimizer, data, 1, 1)
    return weights(policy.module), saved


@check_example("optimizer")
def a_truncated_batch_is_finite(example: Example) -> None:
    """A step in which every response hit the length limit leaves everything finite."""
    samples_needed(example)
    policy = tiny_policy(critic="separate")
    optimizer = bound(example, policy)
    rollout = example_rollout(policy, needs=optimizer.config.needs)
    try:
        stats = optimizer.step(Given(rollout.replace(truncated=torch.ones_like(rollout.truncated))))
    except Exception as error:
        example.fail(
            f"a batch of truncated responses raises {type(error).__name__}: {error}",
            "a step like any other",
            "nothing may divide by the number of responses that ended",
        )
    check_finite(example, policy, stats, "a batch of truncated responses")


# --- statistics ------------------------------------------------------------------------------------------------------


@check_example("optimizer")
def statistics_are_shares(example: Example) -> None:
    """Statistics are the same whether a step is computed at once or one sample at a time."""
    if not traits_of(example).gradient:
        raise NotApplicable("it takes no gradient")
    if "micro_batch_tokens" not in example.subject.config_class.model_fields:
        raise NotApplicable("its config has no micro_batch_tokens")
    whole, parts = (_statistics(precise(example, micro_batch_tokens=n)) for n in (1_000_000, 1))
    for name in sorted(whole.keys() | parts.keys(), key=lambda name: (name not in OF_THE_STEP, name)):
        a, b = (stats.get(name, math.nan) for stats in (whole, parts))
        if not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9):
            if name in OF_THE_STEP:
                raise NotApplicable("the step itself differs: see micro_batches_change_nothing")
            example.fail(
                f"statistic {name!r} is {a:.6g}, and {b:.6g} from micro-batches of one sample",
                "the same number",
                "let statistics be shares too: batch.sample_mean(x.detach()), batch.token_mean(x.detach())",
            )


def _statistics(example: Example) -> StepStats:
    """What one step on a fixed rollout reports, in float64."""
    policy = tiny_policy(tiny_context("policy", dtype="float64"), critic="separate")
    policy.set_reference("stage-start")
    optimizer = bound(example, policy, tiny_context("optimizer", dtype="float64"))
    seed_everything(0)
    return optimizer.step(Given(example_rollout(policy, needs=optimizer.config.needs)))


@check_example("optimizer")
def statistics_have_names_of_their_own(example: Example) -> None:
    """What a step reports hides nothing that the stage logs itself, such as reward/score and policy/entropy."""
    policy = tiny_policy()
    optimizer = bound(example, policy)
    data = example_data(policy, optimizer.config.needs)
    taken = steps(optimizer, data, 0, 1).keys() & data.stats.keys()
    if taken:
        example.fail(
            f"its statistics {', '.join(sorted(taken))} have names that the stage logs itself",
            "names of its own",
            f"rename them, for example {example.subject.spec.name}/{min(taken).rpartition('/')[2]}",
        )
