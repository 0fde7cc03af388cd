"""The numbers of public implementations, from golden.json beside the project (skipped where it is absent).

core/tests/test_golden.py compares the functions behind them; here they go through the optimizer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_core.interfaces import Outputs
from rlhf_core.rl import Batch
from torch import Tensor

from .toys import made_up, make

PATH = Path(os.environ.get("RLHF_GOLDEN") or Path(__file__).resolve().parents[3] / "../shared/golden/golden.json")
pytestmark = pytest.mark.skipif(not PATH.is_file(), reason=f"no reference data at {PATH} (set RLHF_GOLDEN)")


def case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    (entry,) = [c for c in json.loads(PATH.read_text(encoding="utf-8"))["cases"] if c["id"] == name]
    return entry["inputs"], entry["expected"]


def same(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mode", ["seq-mean-token-sum", "token-mean"])
def test_returns_less_a_baseline_per_response(mode: Any) -> None:
    """The peer's ReMax: reward to go, a baseline for each response, and its plain policy-gradient loss."""
    given, expected = case("reinforce/baseline")
    optimizer = make(baseline="greedy", aggregation=mode)
    optimizer.greedy = torch.tensor(given["baseline"], dtype=torch.float64)
    rollout = made_up(given["rewards"], given["mask"])
    prepared = optimizer.prepare(rollout)
    same(prepared["advantages"], expected["advantages"])
    logprobs = torch.tensor(given["logprob"], dtype=torch.float64, requires_grad=True)
    batch = Batch(rollout, prepared, float(rollout.mask.sum()), float(len(rollout)))
    loss, _ = optimizer.loss(batch, Outputs(logprobs))
    same(loss.detach(), expected[f"loss_{mode.replace('-', '_')}"])
    same(torch.autograd.grad(loss, logprobs)[0], expected[f"grad_{mode.replace('-', '_')}"])


def test_the_worked_example() -> None:
    given, expected = case("returns/worked_example_quick_brown_fox")
    prepared = make(baseline="none", gamma=given["gamma"]).prepare(made_up([given["rewards"]], [[1] * 4]))
    same(prepared["advantages"], [expected["returns"]])
    assert float(prepared["advantages"][0, 1]) == pytest.approx(11.74)


def test_credit_passes_over_a_hole() -> None:
    """The peer's REINFORCE++ forgets later credit at a hole. After the last hole we agree; before it we keep it."""
    given, expected = case("reinforce_pp/interior_hole_QUIRK")
    prepared = make(baseline="none", gamma=given["gamma"]).prepare(made_up(given["rewards"], given["mask"]))
    same(prepared["advantages"][:, 3:], [row[3:] for row in expected["returns"]])
    same(prepared["advantages"][:, :3], [[7.603, 8.47, 0], [-0.4959, 0, 0]])  # .01 + .9 x 9.4; -.02 + .9 x 8.47; ...


def scored(scores: list[float], mask: Tensor, groups: list[int]) -> Any:
    """A rollout in which each response earns its score with its last token; a nan: the reward abstained."""
    values = torch.tensor([float(score) for score in scores], dtype=torch.float64)
    mask = mask & ~values.isnan()[:, None]
    last = mask & (torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1)
    return made_up(torch.where(last, values[:, None], 0.0), mask, groups)


@pytest.mark.parametrize(("name", "config"), [
    ("grpo/verl_std_eps1e-6", {"baseline": "group", "scale": "std", "scale_eps": 1e-6}),
    ("rloo/verl_unequal_groups", {"baseline": "leave-one-out"}),
])  # fmt: skip
def test_groups_of_unequal_size(name: str, config: dict[str, Any]) -> None:
    """All but the sample alone in its group, which keeps its raw score in the peer and gets 0 here."""
    given, expected = case(name)
    groups, mask = [ord(letter) for letter in given["group"]], torch.tensor(given["mask"]) != 0
    advantages = make(**config).prepare(scored(given["scores"], mask, groups))["advantages"]
    alone = torch.tensor([groups.count(group) == 1 for group in groups])
    same(advantages[~alone], torch.tensor(expected["token_advantage"], dtype=torch.float64)[~alone])
    assert alone.sum() == 1
    assert not advantages[alone].any()


@pytest.mark.parametrize(("name", "scale"), [("grpo/trl_group", "std"), ("grpo/trl_none", "none")])
def test_groups_with_a_sample_that_was_not_scored(name: str, scale: Any) -> None:
    given, expected = case(name)
    groups = [i // given["num_generations"] for i in range(len(given["rewards"]))]
    rollout = scored(given["rewards"], torch.ones(len(groups), 2, dtype=torch.bool), groups)
    advantages = make(baseline="group", scale=scale).prepare(rollout)["advantages"]
    same(advantages, [[a, a] for a in expected["advantages"]])
