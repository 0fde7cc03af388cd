"""Several processes by `accelerate launch`: the same batch gives the same run as one process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from rlhf_core.api import load
from safetensors.torch import load_file

from .test_runs import metrics, project  # noqa: F401

pytest.importorskip("rlhf_plugin_ppo")

SETTINGS = [
    "dtype=float64", "stages.optimize.steps=2", "stages.optimize.evaluate_every=0", "stages.sft.epochs=1",
    "shaper.kl.target=null", "shaper.kl.coef=0.1",
]  # fmt: skip


def test_two_processes_equal_one(project):  # noqa: F811
    alone = load().run("tiny", out=project / "one", overrides=SETTINGS)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "rlhf_core",
        "run", "tiny", "--out", "two",
    ]  # fmt: skip
    for setting in SETTINGS:
        command += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = metrics(alone.directory), metrics(project / "two")
    assert [(x["stage"], x["step"]) for x in one] == [(x["stage"], x["step"]) for x in two]  # one writer
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"stage"}:
            assert b[name] == pytest.approx(a[name], rel=1e-6, abs=1e-7), (a["stage"], name)
    mine, theirs = (load_file(p / "export" / "model.safetensors") for p in (alone.directory, project / "two"))
    for name, tensor in mine.items():
        assert float((tensor - theirs[name]).norm() / tensor.norm().clamp(min=1e-9)) < 1e-8, name
