"""Every baseline learns two tasks with a known optimum, from a tiny fresh policy, within a stated number of samples."""

from __future__ import annotations

from typing import Any

import pytest
from rlhf_core.testing.tasks import EXACT_STRING, FIRST_TOKEN, learn
from rlhf_plugin_reinforce.optimizer import Reinforce


def linear(start: float, end: float) -> dict[str, Any]:
    return {"schedule": "linear", "start": start, "end": end}


# Divided by a deviation, advantages are several times larger, and so is the entropy bonus that keeps up with them.
PLAIN = {"learning_rate": 0.01, "entropy_coef": linear(0.05, 0.02)}
SCALED = {"learning_rate": 0.01, "entropy_coef": linear(0.2, 0.08), "clip": 0.2}
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {**PLAIN, "baseline": "none", "learning_rate": 0.005},
    "moving-average": {**PLAIN, "baseline": "moving-average"},
    "greedy": {**PLAIN, "baseline": "greedy"},
    "rloo": {**PLAIN, "baseline": "leave-one-out", "samples_per_prompt": 4},
    "dr-grpo": {**PLAIN, "baseline": "group", "clip": 0.2, "aggregation": "seq-mean-token-sum-norm", "norm_tokens": 3,
                "samples_per_prompt": 8},
    "grpo": {**SCALED, "baseline": "group", "scale": "std", "aggregation": "seq-mean-token-mean", "kl_coef": 0.001,
             "samples_per_prompt": 8},
    "dapo": {**SCALED, "baseline": "group", "scale": "std", "aggregation": "token-mean", "clip_high": 0.28, "resample": 2,
             "samples_per_prompt": 8, "entropy_coef": linear(0.3, 0.1)},
    "reinforce-plus-plus": {**SCALED, "baseline": "batch", "aggregation": "token-mean"},
}  # fmt: skip
BUDGETS = {"none": (60, 200), "reinforce-plus-plus": (40, 100), "dapo": (40, 100), "grpo": (40, 100)}
"""Steps of 128 samples for the bandit and for the string: (30, 100) where nothing else is said.

`greedy` has a greedy response per sample on top; `dapo` draws up to three times as many.
"""


def learnt(name: str, task: Any, seed: int) -> Any:
    config = {**VARIANTS[name], "minibatch_size": 128}
    config["prompts_per_step"] = 128 // config.get("samples_per_prompt", 1)
    steps = BUDGETS.get(name, (30, 100))[task is EXACT_STRING]
    return learn(task, Reinforce, config, steps=steps, seed=seed, policy={"critic": "shared"})


def test_leave_one_out_learns_a_bandit() -> None:
    """90 % of the optimum within 3,840 samples, from less than 30 %."""
    learning = learnt("rloo", FIRST_TOKEN, 0)
    assert learning.reached is not None
    assert learning.reward >= 0.9
    assert learning.curve[0][1] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", [FIRST_TOKEN, EXACT_STRING], ids=lambda task: task.name)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns(name: str, task: Any, seed: int) -> None:
    learning = learnt(name, task, seed)
    assert learning.reached is not None
    assert learning.reward >= 0.9
