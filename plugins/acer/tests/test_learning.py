"""Learning: two tasks with a known optimum, from a policy that starts nearly uniform; and what replay is worth."""

from __future__ import annotations

from typing import Any

import pytest
from rlhf_core.testing.tasks import EXACT_STRING, FIRST_TOKEN, Learning, Task, learn
from rlhf_plugin_acer.optimizer import ACER

BUDGET = 1920  # samples, 32 per step


def trained(task: Task, seed: int, steps: int = BUDGET // 32, **changes: Any) -> Learning:
    config = {"learning_rate": falling(6e-3), "entropy_coef": falling(0.04), "truncation": 3.0, **changes}
    return learn(task, ACER, config, steps=steps, seed=seed)


def falling(start: float) -> dict[str, Any]:
    return {"schedule": "linear", "start": start}


def test_a_few_steps_raise_the_reward() -> None:
    found = trained(FIRST_TOKEN, seed=1, steps=15)
    assert found.curve[0][1] < 0.1
    assert found.reward > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", [FIRST_TOKEN, EXACT_STRING], ids=lambda task: task.name)
def test_it_learns(task: Task, seed: int) -> None:
    """90 % of the optimum within the budget, and still there at its end."""
    found = trained(task, seed)
    assert found.reached is not None and found.reached <= found.samples == BUDGET
    assert found.reward >= 0.9 * task.optimum


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [6e-3, 1.5e-2])
def test_without_replay_the_same_samples_teach_less(learning_rate: float) -> None:
    """Even where the updates that are left are larger."""
    without = trained(EXACT_STRING, 0, replay_ratio=0, learning_rate=falling(learning_rate))
    assert without.samples == BUDGET and without.reached is None
