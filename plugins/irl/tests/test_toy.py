"""Where the truth is known: 3,125 responses that can be enumerated (benchmarks/irl_toy.py)."""

from __future__ import annotations

from statistics import mean
from typing import Any

import pytest

from .toys import experiment


def test_the_world_is_what_it_says() -> None:
    toy = experiment()
    world = toy.World(0)
    assert len(world.texts) == len(set(world.texts)) == 5**5
    assert float(world.log_reference.exp().sum()) == pytest.approx(1, abs=1e-4)
    assert float(world.log_expert.exp().sum()) == pytest.approx(1, abs=1e-4)
    shift = world.log_expert - world.log_reference - world.truth / toy.BETA
    assert float(shift.std()) < 1e-4, "the expert is pi_ref exp(truth / beta)"
    drawn = world.draw(world.log_expert, 500, 0)
    assert not any(bool(world.held_out[world.place[text]]) for text in drawn)


def test_one_shot_finds_the_reward_from_600_demonstrations() -> None:
    """The fast version: one seed, fewer demonstrations, no null control; the bounds of the issue are for 2,000."""
    toy = experiment()
    world = toy.World(0)
    shown = world.draw(world.log_expert, 600, 1)
    scores = toy.learn(world, shown, "one-shot", 0, samples_per_demonstration=2, epochs=8)
    kept = world.held_out
    assert toy.rank_correlation(scores[kept], world.truth[kept]) >= 0.8


def test_airl_finds_the_reward_without_a_warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a few alternations: it has begun to, and the policy that learns from it earns more of the true reward."""
    toy = experiment()
    monkeypatch.setattr(toy.IRLReward, "fit", lambda reward, feedback: {})
    monkeypatch.setattr(toy, "STEPS", 12)
    world = toy.World(0)
    scores = toy.learn(
        world, world.draw(world.log_expert, 1000, 1), "airl", 0, learning_rate=5e-3, update_learning_rate=5e-3
    )
    kept = world.held_out
    assert toy.rank_correlation(scores[kept], world.truth[kept]) >= 0.75
    reference, optimised = world.log_reference.exp(), (world.log_reference + scores).softmax(0)
    assert float((optimised - reference) @ world.truth) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["one-shot", "airl"])
def test_the_bounds_of_the_issue(algorithm: str) -> None:
    """2,000 demonstrations, three seeds; the mean correlation with log pi_ref is that of a reward that left it out."""
    rows: list[dict[str, Any]] = [experiment().run(algorithm, seed) for seed in range(3)]
    for row in rows:
        assert row["spearman"] >= 0.85
        assert row["pair_accuracy"] >= 0.83
        assert abs(row["null"]) < 0.35
        assert row["gain"] >= 0.8
    assert abs(mean(row["reference"] for row in rows)) < 0.15
