"""The numbers of a public implementation of ACER, from golden.json beside the project (skipped where it is absent).

Kaixhin/ACER at c0eae34d, whose policy and action values are small tables. Its shapes are (steps, batch, actions); its
conventions, composed here from the same functions as ours, differ in this:

- its loss is summed over steps and averaged over the batch, and the value loss has weight 1;
- the weight of the bias correction is not a constant: the gradient runs through pi_a in it too;
- the trust region knows the taken action only, and its gradients are those by that action's probability, not by logits;
- their products are averaged over the batch before the multiplier is formed: one multiplier for all samples;
- in g it adds the correction, of shape (batch,), to a column of shape (batch, 1), so that each sample gets the
  corrections of all samples: a slip of broadcasting, without meaning, but part of its numbers.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_plugin_acer.losses import correction_weights, retrace_targets, truncated_weights, trust_region_multiplier
from torch import Tensor

PATH = Path(os.environ.get("RLHF_GOLDEN") or Path(__file__).resolve().parents[3] / "../shared/golden/golden.json")
pytestmark = pytest.mark.skipif(not PATH.is_file(), reason="no golden.json beside the project")


@cache
def golden() -> dict[str, Any]:
    return {entry["id"]: entry for entry in json.loads(PATH.read_text(encoding="utf-8"))["cases"]}


def tensor(values: Any, **options: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, **options)


def close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, tensor(expected), rtol=1e-8, atol=1e-9)


def sequences(x: Tensor) -> Tensor:
    """(steps, batch, 1) -> (batch, steps)"""
    return x[..., 0].T


def test_retrace_targets() -> None:
    case = golden()["acer/retrace_targets"]
    given = {name: sequences(tensor(case["inputs"][name])) for name in ("rewards", "q_taken", "V", "rho")}
    found = retrace_targets(
        given["rewards"], given["q_taken"], given["V"], given["rho"], torch.ones(2, 3), gamma=case["inputs"]["gamma"]
    )
    close(found, sequences(tensor(case["expected"]["Qret"])).tolist())


@pytest.mark.parametrize("name", ["offpolicy_c1.5", "offpolicy_trust_region"])
def test_loss_and_gradients(name: str) -> None:
    case = golden()[f"acer/{name}"]
    given = case["inputs"]
    logits, q = (tensor(given[x], requires_grad=True) for x in ("policy_logits", "q_values"))  # (T, B, A)
    average, behaviour = tensor(given["average_policy_logits"]).softmax(-1), tensor(given["behaviour_probs"])
    actions, c = torch.tensor(given["actions"]), given["c"]
    logp = logits.log_softmax(-1)
    pi, everything = logp.exp(), torch.ones_like(q)
    ratio, q_ = pi.detach() / behaviour, q.detach()
    v = (pi.detach() * q_).sum(-1)  # (T, B)

    def taken(x: Tensor) -> Tensor:
        return x.gather(-1, actions)[..., 0]  # (T, B)

    targets = retrace_targets(
        sequences(tensor(given["rewards"])), taken(q_).T, v.T, taken(ratio).T, torch.ones(2, 3), gamma=given["gamma"]
    ).T
    one = torch.ones_like(v)
    truncated = truncated_weights(taken(ratio), targets - v, one, truncation=c)
    correction = correction_weights(pi, ratio, q_ - v[..., None], everything, truncation=c)  # pi has its gradient
    policy = -truncated * taken(logp) - (correction * logp).sum(-1)  # (T, B)
    if given["trust_region"]:
        k = -taken(average) / taken(pi).detach()
        own, others = truncated / taken(pi).detach(), (correction / pi).sum(-1).detach()  # (T, B)
        g = own[..., None] + others[:, None, :]  # (T, B, B): the peer adds (B, 1) and (B,), so samples mix
        k_dot_g = (k[..., None] * g).sum(-1).mean(1, keepdim=True)  # (T, 1)
        k_dot_k = k.square().mean(1, keepdim=True)
        multiplier = trust_region_multiplier(k_dot_g, k_dot_k, torch.ones(3, 1), delta=given["delta"])
        policy = policy + multiplier * taken(average) * (taken(average).log() - taken(logp))
    entropy = -(pi * logp).sum(-1)
    values = (targets - taken(q)).square() / 2
    loss = (policy - given["entropy_weight"] * entropy + values).mean(1).sum()
    loss.backward()
    close(loss.detach(), case["expected"]["loss"])
    close(logits.grad, case["expected"]["grad_policy_logits"])
    close(q.grad, case["expected"]["grad_q"])
