"""A whole pipeline on one base in 4 bits: sft, reward, PPO with an adapter critic, evaluation, export; and its resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import rlhf_core
import torch
from rlhf_core.api import Project, RunResult
from rlhf_core.policies.quantization import is_4bit
from rlhf_core.runs.display import Display
from safetensors.torch import load_file

ASKS = [f"{text} {n}" for n in range(5) for text in ("Ask:", "Please say:", "Tell me:", "What?")]
POLICY = {
    "fresh": {
        "architecture": "llama",
        "sizes": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.1},
        "tokenizer": {"text": ["told"], "vocab_size": 280},
    },
    "lora": {"r": 8, "dropout": 0.1},
    "critic": "adapter",
}  # fmt: skip


def project(folder: Path, weights: str = "merged") -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    told = [{"prompt": ask, "response": " yes, of course."} for ask in ASKS]
    pairs = [{"prompt": ask, "chosen": " yes, sir.", "rejected": " no, never."} for ask in ASKS]
    for name, rows in (("told", told), ("pairs", pairs), ("asks", [{"prompt": ask} for ask in ASKS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reward = {"base": "policy", "lora": {"r": 4}, "epochs": 2, "batch_size": 8, "learning_rate": 5e-3}
    ppo = {"prompts_per_step": 8, "minibatch_size": 8, "epochs": 2, "learning_rate": 1e-3, "adamw": "8bit"}
    sampling = {"max_new_tokens": 6}
    optimize = {"optimizer": "ppo", "prompts": "asks", "rewards": {"yes": 1.0}, "shapers": ["kl"], "steps": 3}
    registry: dict[str, Any] = {
        "schema_version": 1,
        "components": {
            "policy": {"lm": {"use": "qlora", "config": POLICY}},
            "feedback": {
                "told": {"use": "demonstrations", "config": {"path": "told.jsonl"}},
                "pairs": {"use": "preference", "config": {"path": "pairs.jsonl"}},
            },
            "prompts": {"asks": {"use": "jsonl", "config": {"path": "asks.jsonl"}}},
            "reward": {"yes": {"use": "preference", "config": reward}},
            "optimizer": {"ppo": {"use": "ppo", "config": ppo}},
        },
        "pipelines": {
            "four": {
                "policy": "lm",
                "checkpoint_every": 1,
                "stages": [
                    {"sft": {"feedback": ["told"], "epochs": 2, "batch_size": 8, "learning_rate": 5e-3}},
                    {"fit-reward": {"reward": "yes", "feedback": ["pairs"]}},
                    {"optimize": {**optimize, "sampling": sampling}},
                    {"evaluate": {"prompts": "asks", "metrics": ["reward", "kl"]}},
                    {"export": {"weights": weights}},
                ],
            }
        },
    }
    (folder / "registry.yaml").write_text(json.dumps(registry), encoding="utf-8")
    return rlhf_core.load(folder / "registry.yaml")


class _Falls(Display):
    """Breaks the run off after the second step of a stage, as a power cut would."""

    def __init__(self, stage: str) -> None:
        super().__init__(quiet=True)
        self.where = stage

    def step(self, name: str, step: int, total: int, stats: Any) -> None:
        if name == self.where and step == 2:
            raise RuntimeError("power cut")


def exported(done: RunResult) -> dict[str, torch.Tensor]:
    return load_file(done.directory / "export" / "model.safetensors")


def lines(done: RunResult) -> str:
    return (done.directory / "metrics.jsonl").read_text(encoding="utf-8")


def test_a_run_on_one_base_resumes_to_the_last_bit(tmp_path: Path) -> None:
    """Cut while the reward is fitted, and again while PPO runs; over 4 bits, dropout and 8-bit moments."""
    made = project(tmp_path / "p")
    whole = made.run("four", out=tmp_path / "whole", display=Display(quiet=True))
    for stage in ("fit-reward", "optimize"):
        cut = tmp_path / stage
        with pytest.raises(RuntimeError, match="power cut"):
            made.run("four", out=cut, display=_Falls(stage))
        resumed = made.run("four", out=cut, resume=True, display=Display(quiet=True))
        one, two = exported(whole), exported(resumed)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        assert lines(whole) == lines(resumed)
    found = whole.summary["stages"]
    assert found["fit-reward"]["held_out"]["accuracy"] > 0.9
    first = json.loads(next(line for line in lines(whole).splitlines() if "kl/sequence" in line))
    assert first["kl/sequence"] == pytest.approx(0.0, abs=1e-4), "the reference is the policy as sft left it"
    assert found["export"]["weights"].endswith("4-bit nf4 weights made whole in float32, not into the original ones")
    card = (whole.directory / "export" / "README.md").read_text(encoding="utf-8")
    assert "merged into 4-bit nf4 weights made whole in float32, not into the original ones." in " ".join(card.split())


def test_all_roles_share_one_base(tmp_path: Path) -> None:
    """Built as a pipeline builds them, policy and reward hold the same frozen modules."""
    from rlhf_core.interfaces import Context

    made = project(tmp_path)
    policy, reward = made.build_together(("policy", "lm"), ("reward", "yes"), context=Context(policy="lm"))
    frozen = [m for m in policy.network.model.modules() if is_4bit(m)]
    assert frozen and {id(m) for m in frozen} == {id(m) for m in reward.network.modules() if is_4bit(m)}


def test_a_fresh_base_cannot_be_left_behind(tmp_path: Path) -> None:
    """Adapters of a base that is in no file are refused, before anything is trained if it is a dry run."""
    with pytest.raises(rlhf_core.errors.ConfigError, match="adapters of a fresh base"):
        project(tmp_path, "adapters").run("four", dry_run=True, display=Display(quiet=True))
