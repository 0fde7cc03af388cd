"""Several processes by `accelerate launch`: the same batch gives the same run as one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from rlhf_core.api import load
from safetensors.torch import load_file

from .test_runs import metrics, project  # noqa: F401

pytest.importorskip("rlhf_plugin_ppo")

SETTINGS = [
    "dtype=float64", "stages.optimize.steps=2", "stages.optimize.evaluate_every=0", "stages.sft.epochs=1",
    "shaper.kl.target=null", "shaper.kl.coef=0.1",
    # dropout draws other masks where the batch is cut otherwise
    "policy.tiny.fresh.sizes={n_embd: 32, n_layer: 2, n_head: 4, n_positions: 64, resid_pdrop: 0, embd_pdrop: 0, "
    "attn_pdrop: 0}",
]  # fmt: skip


def launch(folder, *arguments):
    """`accelerate launch` with two processes, which on CPUs it leaves to torchrun only if told --multi_gpu."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "rlhf_core", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def one_thread():
    """As the launched processes have it, whatever the test run was given: sums of two threads differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_equal_one(project):  # noqa: F811
    alone = load().run("tiny", out=project / "one", overrides=SETTINGS)
    done = launch(project, "run", "tiny", "--out", "two", *(word for s in SETTINGS for word in ("--set", s)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("run directory") == 1 and done.stdout.count("95 % interval") == 1  # one voice
    assert json.loads((project / "two" / "provenance.json").read_text())["machine"]["processes"] == 2
    one, two = metrics(alone.directory), metrics(project / "two")
    assert [(x["stage"], x["step"]) for x in one] == [(x["stage"], x["step"]) for x in two]  # one writer
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"stage"}:
            assert b[name] == pytest.approx(a[name], rel=1e-6, abs=1e-7), (a["stage"], name)
    mine, theirs = (load_file(p / "export" / "model.safetensors") for p in (alone.directory, project / "two"))
    for name, tensor in mine.items():
        assert float((tensor - theirs[name]).norm() / tensor.norm().clamp(min=1e-9)) < 1e-8, name


def test_an_error_in_one_process_is_told_by_all(project):  # noqa: F811
    (project / "two").mkdir()
    (project / "two" / "mine.txt").write_text("precious")
    done = launch(project, "run", "tiny", "--out", "two")
    assert done.returncode != 0 and "is not an empty directory" in done.stderr
