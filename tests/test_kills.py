"""Runs that are killed at any moment and resumed end as if nothing had happened, byte for byte."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parent / "kills.py"


def killed(*arguments: str) -> dict[str, list[int]]:
    """Pipeline -> kills of each kind, runs that ended after some, and differences to the run that was left alone."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, KILLS, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (\S+) \| ([\d.]+) \| (.*) \|$", done.stdout, re.M)
    assert all(float(seconds) < 5 for _, seconds, _ in rows), done.stdout
    return {name: [int(cell) for cell in cells.split(" | ")] for name, _, cells in rows}


def test_a_run_that_is_killed_four_times_ends_like_one_that_is_not() -> None:
    pytest.importorskip("rlhf_plugin_ppo")
    *kills, runs, differ = killed("ppo", "--moments", "4")["ppo"]
    assert kills == [1, 1, 1, 1] and runs >= 1 and differ == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "pipeline", ["ppo", "reinforce", "a2c", "acer", "trpo", "es", "ilql", "ppo-adapters", "ppo-qlora", "ppo-airl"]
)
def test_every_optimizer_survives_twenty_kills(pipeline: str) -> None:
    plugin = {"adapters": "ppo", "airl": "irl"}.get(name := pipeline.rpartition("-")[2], name)
    pytest.importorskip(f"rlhf_plugin_{plugin}")
    if plugin == "qlora":
        pytest.importorskip("bitsandbytes")
    *kills, runs, differ = killed(pipeline)[pipeline]
    assert kills == [5, 5, 5, 5] and runs >= 1 and differ == 0
