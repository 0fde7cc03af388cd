"""What the checks of engines and of environments share: a policy worth drawing from, and that it stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..records import Rollout
from .compare import copied, nudge, same
from .subjects import Example


def enlivened(policy: Any) -> Any:
    """A tiny policy, as if trained, whose responses end at many lengths."""
    nudge(policy.module, 0, 0.3)
    with torch.no_grad():  # the last norm adds its bias to every state, so this much to the logit of end of text
        model = policy.network.model
        bias = model.transformer.ln_f.bias
        model.get_output_embeddings().weight[policy.codec.eos] += 4 * bias / (bias @ bias)
    policy.weights_changed()
    return policy


def rows(rollout: Rollout) -> list[list[int]]:
    """The ids of each response, without padding."""
    return [ids[mask].tolist() for ids, mask in zip(rollout.response_ids, rollout.attention, strict=True)]


@contextmanager
def unmoved(example: Example, policy: Any, doing: str, fix: str) -> Iterator[None]:
    """Inside, no weight, gradient or flag of a parameter may change, nor torch's own generator.

    Raises:
        ConformanceError: `doing` changes them; `fix` says what to do about the policy.
    """
    before, random = _held(policy), torch.get_rng_state()
    yield
    if not torch.equal(random, torch.get_rng_state()):
        example.fail("it draws from torch's own generator", "randomness from `seed` alone", "use a torch.Generator")
    if not same(before, _held(policy)) or any(p.grad is not None for p in policy.module.parameters()):
        example.fail(f"{doing} changes the policy", "weights and flags as they were", fix)


def _held(policy: Any) -> list[Any]:
    return [copied(dict(policy.module.state_dict())), [p.requires_grad for p in policy.module.parameters()]]
