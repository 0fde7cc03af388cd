"""The reference: whoever asks for it holds the policy near it, and never drives it away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...functional import kl_estimate
from ...interfaces import Needs, Policy
from ...randomness import seed_everything
from ...records import Rollout
from ..answers import shaper_input
from ..compare import nudge
from ..kit import check_example
from ..optimizing import Given, precise
from ..rollouts import example_rollout
from ..subjects import Example, NotApplicable
from ..toys import tiny_context, tiny_policy

DRIFT = 0.5
"""Nats per token."""


def _wants_reference(example: Example) -> None:
    if not example.config.needs.reference:
        raise NotApplicable("it does not ask for the reference")


@check_example("shaper")
def drifting_from_the_reference_is_not_paid(example: Example) -> None:
    """Responses half a nat per token likelier than under the reference earn no more than those that are as likely."""
    _wants_reference(example)
    given = example_rollout()
    paid = []
    for drift in (0.0, DRIFT):
        rollout = given.replace(reference_logprobs=given.logprobs - drift * given.mask)
        shaper = example.build()
        paid.append(float(shaper.shape(shaper_input(shaper, rollout), rollout)[0].sum()))
    if not paid[1] <= paid[0] + 1e-5:
        example.fail(
            f"rewards of {paid[1]:.3g} in all for log-probabilities {DRIFT} nats above the reference's, and of "
            f"{paid[0]:.3g} for equal ones",
            "no more for drifting away",
            "subtract the penalty: rewards - coef * (rollout.logprobs - rollout.reference_logprobs)",
        )


@check_example("optimizer")
def penalises_drift_from_the_reference(example: Example) -> None:
    """With rewards of 0, a step brings a policy that has left its reference back towards it, not further away."""
    _wants_reference(example)
    calm = precise(example, learning_rate=1e-2, entropy_coef=0.0)
    context = tiny_context("policy", dtype="float64")
    policy = tiny_policy(context, critic="separate")
    policy.set_reference("stage-start")
    nudge(policy.module, scale=0.05)
    policy.weights_changed()
    optimizer = calm.build(dtype=context.dtype)
    optimizer.bind(policy, 4)
    rollout = _unpaid(policy, example_rollout(policy, needs=calm.config.needs))
    before = _drift(policy, rollout)
    seed_everything(0)
    optimizer.step(Given(rollout))
    after = _drift(policy, rollout)
    if after > before * (1 + 1e-9):
        example.fail(
            f"a step without rewards moves the policy from {before:.4g} to {after:.4g} nats per token from its "
            "reference",
            "a policy that comes back, or stays",
            "look at the sign of the penalty: the loss is minimised, so add coef * KL",
        )


@torch.no_grad()
def _unpaid(policy: Policy[Any], rollout: Rollout) -> Rollout:
    """The rollout with the policy's and the reference's own log-probabilities, and nothing paid or expected."""
    assert rollout.rewards is not None and rollout.score is not None
    assert rollout.values is not None and rollout.bootstrap is not None
    logprobs = policy.forward(rollout, Needs()).logprobs
    with policy.as_reference():
        reference = policy.forward(rollout, Needs()).logprobs
    return rollout.replace(
        logprobs=logprobs,
        reference_logprobs=reference,
        score=torch.zeros_like(rollout.score),
        rewards=torch.zeros_like(rollout.rewards),
        values=torch.zeros_like(rollout.values),
        bootstrap=torch.zeros_like(rollout.bootstrap),
        scores={},
    )


@torch.no_grad()
def _drift(policy: Policy[Any], rollout: Rollout) -> float:
    """The divergence from the reference on the tokens of the rollout, by the k3 estimate: never below 0."""
    reference: Tensor | None = rollout.reference_logprobs
    assert reference is not None
    return float(kl_estimate(policy.forward(rollout, Needs()).logprobs, reference, kind="k3")[rollout.mask].mean())
