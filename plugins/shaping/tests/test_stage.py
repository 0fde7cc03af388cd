"""All shapers together with `kl` in the data of an optimize stage, around a policy that really samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rlhf_core.components.config import KLConfig
from rlhf_core.components.kl import KL
from rlhf_core.interfaces import Needs
from rlhf_core.records import Rollout
from rlhf_core.rl.data import StageData
from rlhf_core.runs import checkpoint
from rlhf_core.testing import example_data, tiny_context, tiny_policy
from rlhf_core.testing.compare import nudge

from .toys import ALL

STEPS = 4


def stage() -> StageData:
    """Sampled data with one of each shaper, `kl` the last."""
    chosen = dict(reversed(ALL))  # the first config of each
    shapers: list[Any] = [cls(cls.Config(**config), tiny_context("shaper")) for cls, config in chosen.items()]
    shapers.sort(key=lambda shaper: shaper.level)  # "sequence" before "token"
    shapers.append(KL(KLConfig(coef=0.1, target=1.0), tiny_context("shaper", "kl")))
    policy = tiny_policy()
    policy.set_reference("stage-start")
    nudge(policy.module)  # away from the reference
    policy.weights_changed()
    needs = Needs()
    for shaper in shapers:
        needs = needs | shaper.config.needs
    assert needs == Needs(reference=True, token_ends=True)
    data = example_data(policy, needs)
    data.shapers, data.total = shapers, STEPS
    return data


def roll(data: StageData, start: int, stop: int) -> list[tuple[Rollout, dict[str, float]]]:
    found = []
    for step in range(start, stop):
        data.begin(step)
        found.append((data.rollout(3, samples_per_prompt=2), dict(data.stats)))
    return found


def test_all_shapers_and_kl_together() -> None:
    for rollout, stats in roll(stage(), 0, 2):
        assert rollout.rewards is not None
        assert torch.isfinite(rollout.rewards).all()
        assert not rollout.rewards[~rollout.mask].any()
        names = {name for name in stats if name.startswith("shaping/")}
        assert {"shaping/baseline", "shaping/overlong", "shaping/repetition", "shaping/potential_texts"} <= names
        assert stats["kl/penalty"] != 0


def test_kl_beside_potential_is_the_same_before_and_after_it() -> None:
    """Both add to rewards without looking at them."""
    found = []
    for order in (["KL", "Potential"], ["Potential", "KL"]):
        data = stage()
        named = {type(shaper).__name__: shaper for shaper in data.shapers}
        data.shapers = [named[name] for name in order]
        rollout, stats = roll(data, 0, 1)[0]
        assert stats["kl/penalty"] != 0 and stats["shaping/potential_change"] != 0
        found.append(rollout.rewards)
    torch.testing.assert_close(found[0], found[1])


def test_a_run_that_is_resumed_shapes_as_one_that_is_not(tmp_path: Path) -> None:
    whole = stage()
    expected = roll(whole, 0, STEPS)
    half, resumed = stage(), stage()
    roll(half, 0, 2)
    checkpoint.save(tmp_path / "state", {
        "data": half.state_dict(), "shapers": [shaper.state_dict() for shaper in half.shapers],
    })  # fmt: skip
    state = checkpoint.load(tmp_path / "state")
    resumed.load_state_dict(state["data"])
    for shaper, saved in zip(resumed.shapers, state["shapers"], strict=True):
        shaper.load_state_dict(saved)
    for (rollout, stats), (again, stats_again) in zip(expected[2:], roll(resumed, 2, STEPS), strict=True):
        assert rollout.rewards is not None and again.rewards is not None
        assert torch.equal(rollout.rewards, again.rewards)
        assert stats == stats_again
