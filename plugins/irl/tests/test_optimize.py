"""Through the stages of a run: fitted, learning beside PPO, resumed to the last bit; and the truth found on the toy."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rlhf_core import hookimpl
from rlhf_core.api import load
from rlhf_core.plugins import load_plugins
from rlhf_core.runs import checkpoint
from rlhf_core.runs.signals import Interrupted

REGISTRY = """\
schema_version: 1
components:
  policy:
    tiny:
      use: causal-lm
      config:
        fresh: &fresh
          architecture: gpt2
          sizes: {n_embd: 32, n_layer: 1, n_head: 2, n_positions: 64, resid_pdrop: 0, embd_pdrop: 0, attn_pdrop: 0}
          tokenizer: {text: [drafts], vocab_size: 280}
  feedback:
    drafts: {use: demonstrations, config: {path: drafts.jsonl}}
    experts: {use: demonstrations, config: {path: experts.jsonl}}
  prompts:
    questions: {use: feedback, config: {feedback: experts, part: train}}
  reward:
    expert:
      use: irl
      config:
        policy: tiny
        algorithm: airl
        demonstrations: experts
        samples_from: tiny
        sampling: {max_new_tokens: 10}
        batch_size: 8
        learning_rate: 3e-3
        gradient_penalty: 0.01
        label_smoothing: 0.1
  shaper:
    kl: {use: kl, config: {coef: 0.1}}
  optimizer:
    ppo: {use: ppo, config: {prompts_per_step: 8, minibatch_size: 4, learning_rate: 3e-3}}
pipelines:
  tiny:
    policy: tiny
    device: cpu
    stages:
      - sft: {feedback: [drafts], epochs: 1, batch_size: 8, learning_rate: 3e-3}
      - fit-reward: {reward: expert, feedback: [experts]}
      - optimize:
          optimizer: ppo
          prompts: questions
          rewards: {expert: 1.0}
          shapers: [kl]
          steps: 3
          sampling: {max_new_tokens: 10}
      - evaluate: {prompts: questions, metrics: [reward], samples: 0}
"""


def write_project(folder: Path) -> Path:
    """Drafts say see, experts say please see."""
    (folder / "registry.yaml").write_text(REGISTRY)
    things = ["parcel", "password", "printer", "refund", "login", "screen"]
    for name, start in (("drafts", " see"), ("experts", " please see")):
        rows = [{"prompt": f"my {t} {n}:", "response": f"{start} the {t} page"} for t in things for n in "abcd"]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Stop:
    """Stops the run politely after a step."""

    def __init__(self, stage: str, step: int) -> None:
        self.place = stage, step

    @hookimpl
    def rlhf_step_finished(self, run: Any, stage: str, step: int, stats: Any) -> None:
        if (stage, step) == self.place:
            os.kill(os.getpid(), signal.SIGINT)


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted run."""
    pytest.importorskip("rlhf_plugin_ppo")
    folder = write_project(tmp_path_factory.mktemp("whole"))
    return Path(load(folder / "registry.yaml").run("tiny", out=folder / "run").directory)


def test_every_step_tells_what_the_reward_learnt(whole: Path) -> None:
    steps = [row for row in metrics(whole) if row["stage"] == "optimize"]
    assert len(steps) == 3
    names = ("loss", "accuracy", "demo_score", "sample_score", "penalty", "grad_norm")
    for row in steps:
        assert all(math.isfinite(row[f"reward/expert/{name}"]) for name in names)
        assert row["reward/expert/penalty"] > 0
        assert math.isfinite(row["reward/expert"]) and math.isfinite(row["policy/loss"])
    assert len({row["reward/expert/loss"] for row in steps}) == 3
    held_out = json.loads((whole / "summary.json").read_text())["stages"]["fit-reward"]["held_out"]
    assert held_out.keys() == {"accuracy", "loss", "demo_score", "sample_score", "longer", "deviation", "examples"}


def test_what_the_run_keeps_is_the_reward_as_optimize_left_it(whole: Path) -> None:
    kept = checkpoint.load(whole / "components" / "reward.expert")
    assert kept["updates"] == 6, "three steps of two updates"


@pytest.mark.parametrize(("stage", "step"), [("fit-reward", 2), ("optimize", 2), ("optimize", 3)])
def test_a_resumed_run_is_the_same_to_the_last_bit(whole: Path, stage: str, step: int, tmp_path: Path) -> None:
    folder = write_project(tmp_path)
    plugins = load_plugins()
    plugins.manager.register(Stop(stage, step))
    with pytest.raises(Interrupted):
        load(folder / "registry.yaml", plugins=plugins).run("tiny", out=folder / "run")
    assert metrics(folder / "run")[-1]["step"] == step
    load(folder / "registry.yaml").run("tiny", out=folder / "run", resume=True)
    assert metrics(folder / "run") == metrics(whole)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    folder = write_project(tmp_path)
    settings = ["dtype=float64"]
    alone = load(folder / "registry.yaml").run("tiny", out=folder / "one", overrides=settings)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "rlhf_core", "run",
        "tiny", "--out", "two", *(word for s in settings for word in ("--set", s)),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    for a, b in zip(metrics(alone.directory), metrics(folder / "two"), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"stage", "value/clip_fraction", "policy/clip_fraction"}:  # a last bit can tip a count
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-6), (a["stage"], a["step"], name)
