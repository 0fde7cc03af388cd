"""Optimizers: they move the weights, and only for reasons that are in the data.

Which checks apply follows from `traits`, and whether those are true is checked as well, so none is left out by mistake:

    learns_from   padding, junk, order   micro-batches   direction   equal rewards   truncated batch
    on-policy     yes                    yes             yes         as declared     yes
    off-policy    yes, but for order     yes             yes         as declared     yes
    offline       no (reads feedback)    yes             no          no              no
    no gradient   yes                    no              no          as declared     yes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ...interfaces import Needs, Traits
from ...randomness import seed_everything
from ...records import Rollout
from ..compare import padded, weights
from ..kit import check_example
from ..optimizing import Given, bound, distance, precise, samples_needed, traits_of
from ..rollouts import example_rollout
from ..subjects import Example, NotApplicable
from ..toys import example_data, tiny_context, tiny_policy

TOLERANCE = 1e-10
"""In float64, of what a step adds to the weights: the norm of the difference over its own norm. In float32 it is
`Traits.rounding`."""


# --- what kind of algorithm it is ------------------------------------------------------------------------------------


@check_example("optimizer")
def traits_are_true(example: Example) -> None:
    """It says what it learns from, and a step asks for just that; one without gradient takes none."""
    traits = example.build().traits
    if not isinstance(traits, Traits):
        example.fail(f"traits are {traits!r}", "Traits(learns_from=...)", "declare what kind of algorithm it is")
    policy = tiny_policy()
    optimizer = bound(example, policy)
    data = example_data(policy, optimizer.config.needs)
    data.begin(0)
    with (
        mock.patch.object(data, "rollout", wraps=data.rollout) as rollouts,
        mock.patch.object(torch.autograd, "backward", wraps=torch.autograd.backward) as backward,
        mock.patch.object(torch.autograd, "grad", wraps=torch.autograd.grad) as grad,
    ):
        optimizer.step(data)
    samples, gradients = rollouts.call_count, backward.call_count + grad.call_count
    if (samples > 0) == (traits.learns_from == "offline"):
        example.fail(
            f"{traits.learns_from!r}, and a step that asks for {samples} rollouts",
            "rollouts, unless it is offline",
            "declare traits as they are",
        )
    if (gradients > 0) != traits.gradient:
        example.fail(
            f"gradient={traits.gradient}, and a step that takes {gradients} gradients",
            "what is declared",
            "declare traits as they are",
        )


# --- what must not change anything -----------------------------------------------------------------------------------


def _movement(example: Example, change: Callable[[Rollout], Rollout] | None = None, dtype: str = "float64") -> Tensor:
    """What a step on one fixed rollout, `change`d before, adds to the weights of a policy."""
    context = tiny_context("policy", dtype=dtype)
    policy = tiny_policy(context, critic="separate")
    optimizer = bound(example, policy, context)
    rollout = example_rollout(policy, needs=optimizer.config.needs)
    before = weights(policy.module)
    rollout = change(rollout) if change else rollout
    data = Given(rollout, None if optimizer.traits.gradient else policy)
    seed_everything(0)
    optimizer.step(data)
    return weights(policy.module) - before


_PLAIN: dict[tuple[Any, ...], Tensor] = {}


def _plain_movement(example: Example, dtype: str) -> Tensor:
    """`_movement` without a change, kept while one subject is checked: several checks compare with it."""
    key = (example.subject, example.config.model_dump_json(), dtype)
    if key not in _PLAIN:
        for other in [old for old in _PLAIN if old[0] is not example.subject]:
            del _PLAIN[other]
        _PLAIN[key] = _movement(example, None, dtype)
    return _PLAIN[key]


def _unchanged(example: Example, change: Callable[[Rollout], Rollout], what: str, fix: str) -> None:
    """The step is the same, within rounding, for a changed rollout."""
    for dtype, tolerance in (("float64", TOLERANCE), ("float32", traits_of(example).rounding)):
        moved = distance(_plain_movement(example, dtype), _movement(example, change, dtype))
        if not moved <= tolerance:
            example.fail(f"{what} changes a step by {moved:.2g} of its size in {dtype}", f"at most {tolerance}", fix)


@check_example("optimizer")
def padding_changes_nothing(example: Example) -> None:
    """More columns of padding, left of prompts and right of responses, lead to the same step."""
    samples_needed(example)
    _unchanged(precise(example), lambda r: padded(r, prompt=2, response=3), "padding",
               "average over the mask, never over T")  # fmt: skip


@check_example("optimizer")
def order_changes_nothing(example: Example) -> None:
    """The samples in another order lead to the same step."""
    if samples_needed(example).learns_from == "off-policy":
        raise NotApplicable("what is replayed is drawn by place, so the order of samples may matter")
    _unchanged(precise(example), lambda r: r.select([4, 2, 7, 0, 6, 1, 3, 5]), "another order of the samples",
               "compare samples by rollout.groups, not by where they stand")  # fmt: skip


@check_example("optimizer")
def masked_junk_changes_nothing(example: Example) -> None:
    """What stands at masked positions (padding, other speakers, abstained samples) does not matter.

    Rewards are 0 there by contract; everything else may be any finite number.
    """
    samples_needed(example)
    _unchanged(precise(example), _with_junk, "junk at masked positions",
               "mask before summing: torch.where(batch.mask, x, 0), masked_mean, batch.token_mean")  # fmt: skip


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


@check_example("optimizer")
def micro_batches_change_nothing(example: Example) -> None:
    """One sample per forward pass leads to the same step as all in one."""
    if not traits_of(example).gradient:
        raise NotApplicable("it takes no gradient")
    if "micro_batch_tokens" not in example.subject.config_class.model_fields:
        raise NotApplicable("its config has no micro_batch_tokens")
    offline = traits_of(example).learns_from == "offline"
    for dtype, tolerance in (("float64", TOLERANCE), ("float32", traits_of(example).rounding)):
        whole, parts = (_movement(precise(example, micro_batch_tokens=n), None, dtype) for n in (1_000_000, 1))
        if not (moved := distance(whole, parts)) <= tolerance:
            example.fail(
                f"micro-batches change a step by {moved:.2g} of its size in {dtype}",
                f"at most {tolerance}",
                "divide sums by the counts of the whole step"
                if offline
                else "in loss, use batch.token_mean and batch.sample_mean, or pass denominator=batch.token_count; what "
                "looks at the whole batch belongs in prepare",
            )


# --- which way it goes -----------------------------------------------------------------------------------------------


def _paid(rollout: Rollout, score: Tensor) -> Rollout:
    """The rollout with `score` (B,) as the rewards of last tokens, a critic that expects nothing, and true old
    log-probabilities."""
    last = (rollout.mask.cumsum(1) == rollout.mask.sum(1, keepdim=True)) & rollout.mask
    last = last & (last.cumsum(1) == 1)
    live = rollout.mask.any(1)
    score = score.to(rollout.logprobs).where(live, 0.0)
    assert rollout.values is not None and rollout.bootstrap is not None
    return rollout.replace(
        score=score,
        rewards=score[:, None] * last,
        values=torch.zeros_like(rollout.values),
        bootstrap=torch.zeros_like(rollout.bootstrap),
        scores={},
    )


@check_example("optimizer")
def good_samples_become_likelier_and_bad_ones_less_likely(example: Example) -> None:
    """Tokens of samples that were paid become likelier than they were, those that were charged less likely."""
    traits = samples_needed(example)
    if not traits.gradient:
        raise NotApplicable("it takes no gradient, and a single step of it may go anywhere")
    careful = precise(example, learning_rate=1e-2, entropy_coef=0.0, kl_coef=0.0)
    for sign in (1.0, -1.0):
        context = tiny_context("policy", dtype="float64")
        policy = tiny_policy(context, critic="separate")
        optimizer = bound(careful, policy, context)
        rollout = example_rollout(policy, needs=optimizer.config.needs)
        with torch.no_grad():
            before = policy.forward(rollout, Needs()).logprobs
        good = torch.tensor([1.0, -1.0] * 4) * sign  # two samples of each prompt, one good and one bad
        optimizer.step(Given(_paid(rollout.replace(logprobs=before), good)))
        with torch.no_grad():
            gained = (policy.forward(rollout, Needs()).logprobs - before).where(rollout.mask, 0.0).sum(1)  # (B,)
        live = rollout.mask.any(1)
        for name, rows, right in (("paid 1", live & (good > 0), 1), ("charged 1", live & (good < 0), -1)):
            change = float(gained[rows].mean())
            if not change * right > 0:
                example.fail(
                    f"the log-probability of samples that were {name} changes by {change:.2g}",
                    "a rise of what is paid and a fall of what is charged",
                    "look at the sign of the loss: it is minimised",
                )


@check_example("optimizer")
def equal_rewards_change_nothing_if_declared(example: Example) -> None:
    """With a baseline, rewards that are all equal leave the policy as it is; without one they do not."""
    plain = precise(example, entropy_coef=0.0, kl_coef=0.0)
    traits = samples_needed(plain)
    context = tiny_context("policy", dtype="float64")
    policy = tiny_policy(context, critic="separate")
    optimizer = bound(plain, policy, context)
    given = example_rollout(policy, needs=optimizer.config.needs)
    # the critic has its own opinion of each token: only what compares samples gets rid of what they have in common
    rollout = _paid(given, torch.ones(8)).replace(values=given.values, bootstrap=given.bootstrap)
    critic = {id(p) for p in policy.value_parameters}
    before = [p.detach().clone() for p in policy.module.parameters()]
    optimizer.step(Given(rollout))
    after = policy.module.parameters()
    moved = (
        sum(float((a.detach() - b).square().sum()) for a, b in zip(after, before, strict=True) if id(a) not in critic)
        ** 0.5
    )
    size = sum(float(b.square().sum()) for b in before) ** 0.5
    still = moved <= 1e-12 * size
    if still != traits.baseline:
        example.fail(
            f"baseline={traits.baseline}, and equal rewards move the policy by {moved / size:.2g} (relative)",
            "a policy that stays as it is" if traits.baseline else "a policy that moves, or baseline=True",
            "subtract what the samples have in common" if traits.baseline else "declare traits as they are",
        )
