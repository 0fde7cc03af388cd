"""The five trainers in pipelines: they change the policy, leave what the next stage reads, learn, and begin again."""

from __future__ import annotations

import gc
import json
import threading
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.records import Sample
from rlhf_core.runs.display import Display

from .toys import PROMPTS, evaluation, exported, metrics, policy_of, project, records, run, trl


@pytest.mark.parametrize("trainer", ["rloo", "grpo", "dpo", "kto", "sft"])
def test_each_trainer_changes_the_policy_and_leaves_what_the_report_needs(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    group = trainer in ("rloo", "grpo")
    made = project(tmp_path / "p", trl(trainer), evaluation(*["reward"] * group, "kl", "length"), "export")  # type: ignore[arg-type]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capfd.readouterr()
    done = run(made, tmp_path / "run")
    assert capfd.readouterr() == ("", ""), "progress is the display's to show"
    assert not list((tmp_path / "elsewhere").iterdir()) and not (done.directory / "trl" / "trl").exists()

    before = dict(policy_of(made).network.lm.named_parameters())
    after = exported(done)
    assert before.keys() == after.keys()
    assert max(float((before[name].detach() - after[name]).abs().max()) for name in after) > 1e-4

    rows = metrics(done)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["trl/learning_rate"] > 0 and "trl/loss" in row and "trl/step_time" not in row for row in rows)
    assert all(("reward/vowels" in row and row["response/length"] > 0) == group for row in rows)
    stage = done.summary["stages"]["trl"]
    assert stage["trainer"] == trainer and stage["steps"] == 3
    if not group:
        told = {e["prompt"]["text"] for e in map(json.loads, (tmp_path / "p" / "told.jsonl").read_text().splitlines())}
        assert 0 < stage["examples"] < len(told) and stage["held_out"]["loss"] > 0
    measured = done.summary["stages"]["evaluate"]["metrics"]
    assert measured["kl"]["after"]["mean"] != 0 and measured["kl"]["before"]["mean"] == 0
    assert ("reward" in measured) == group
    assert "Learning rate" in done.report.read_text() or "trl/learning_rate" in done.report.read_text()  # type: ignore[union-attr]


@pytest.mark.parametrize("trainer", ["rloo", "dpo"])
def test_adapters_are_trained_against_themselves_as_they_were(trainer: str, tmp_path: Path) -> None:
    """After sft the reference is not the base; TRL's first KL and first DPO loss show which one it has."""
    sft = {"sft": {"feedback": ["told"], "epochs": 2, "batch_size": 8, "learning_rate": 1e-2}}
    again = {"sft": {"id": "again", "feedback": ["told"], "batch_size": 8}}
    lora = {"lora": {"r": 2}}
    made = project(tmp_path, sft, trl(trainer), again, evaluation("kl"), policy=lora)
    done = run(made, tmp_path / "run")
    first = metrics(done)[0]
    if trainer == "rloo":
        assert first["trl/kl"] == pytest.approx(0, abs=1e-6)
        assert metrics(done)[-1]["trl/kl"] != pytest.approx(0, abs=1e-4)
    else:
        assert first["trl/loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: policy and reference are one
    fresh, trained = policy_of(made), policy_of(made, done)  # loads: no adapter was added, none renamed or frozen
    assert fresh.state_dict()["weights"].keys() == trained.state_dict()["weights"].keys()


def test_the_reference_can_be_another_one(tmp_path: Path) -> None:
    """`reference: base` after sft: the KL of the first step is not 0."""
    sft = {"sft": {"feedback": ["told"], "epochs": 4, "batch_size": 8, "learning_rate": 1e-2}}
    done = run(project(tmp_path, sft, trl("rloo", reference="base", steps=1)), tmp_path / "run")
    assert metrics(done)[0]["trl/kl"] > 0.05


def test_trl_reads_the_tokens_that_the_policy_would_sample(tmp_path: Path) -> None:
    """TRL's log-probabilities of all records in one batch, before the first update, are our policy's."""
    pairs = records()["pairs"]
    stage = trl("dpo", held_out=0, steps=1, arguments={"per_device_train_batch_size": len(pairs)})
    made = project(tmp_path, stage, precision="fp32")  # that of the policy below
    row = metrics(run(made, tmp_path / "run"))[0]
    policy = policy_of(made)
    for name, response in (("chosen", " yes, sir."), ("rejected", " no, never.")):
        rollout = policy.encode([Sample(record.prompt, response) for record in pairs])
        assert row[f"trl/logps/{name}"] == pytest.approx(float(rollout.logprobs.sum(1).mean()), rel=1e-5)


def test_dpo_raises_the_margin_of_what_was_preferred(tmp_path: Path) -> None:
    made = project(tmp_path, trl("dpo", steps=8, held_out=0.3), evaluation("kl"), "export")
    done = run(made, tmp_path / "run")

    def margin(policy: CausalLM) -> float:
        both = [
            policy.encode([Sample(r.prompt, text) for r in records()["pairs"]])
            for text in (" yes, sir.", " no, never.")
        ]
        return float((both[0].logprobs.sum(1) - both[1].logprobs.sum(1)).mean())

    assert margin(policy_of(made, done)) > margin(policy_of(made)) + 3
    assert done.summary["stages"]["trl"]["held_out"]["accuracy"] == 1.0
    rows = metrics(done)
    assert rows[-1]["trl/rewards/margins"] > rows[0]["trl/rewards/margins"] + 0.3


def test_rloo_learns_what_is_rewarded(tmp_path: Path) -> None:
    """Over three seeds the last steps earn more than the first ones, far beyond the standard error."""
    small = {"per_device_train_batch_size": 24, "num_generations": 4, "beta": 0.0}
    fast = {"learning_rate": 3e-2, "lr_scheduler_type": "constant"}
    gains = []
    for seed in range(3):
        stage = trl(
            "rloo", steps=18, rewards={"ascii": 1.0}, sampling={"max_new_tokens": 1}, arguments={**small, **fast}
        )
        done = run(project(tmp_path / str(seed), stage, seed=seed), tmp_path / f"run{seed}")
        score = [row["reward/score"] for row in metrics(done)]
        gains.append(mean(score[-4:]) - mean(score[:4]))
    assert mean(gains) > 3 * stdev(gains) / 3**0.5 and min(gains) > 0.2, gains


class _Falls(Display):
    """Breaks the run off after a step of a stage, as a power cut would."""

    def __init__(self, step: int) -> None:
        super().__init__(quiet=True)
        self.fatal = step

    def step(self, name: str, step: int, total: int, stats: Any) -> None:
        if name == "trl" and step == self.fatal:
            raise RuntimeError("power cut")


def _left_behind() -> list[threading.Thread]:
    """Threads of stages nobody holds, that do not end by themselves."""
    threads = [t for t in threading.enumerate() if t.name == "trl"]
    for thread in threads:
        thread.join(60)  # told to end, it still has to leave TRL's loop
    return [t for t in threads if t.is_alive()]


@pytest.mark.parametrize(
    ("trainer", "lora"), [("rloo", True), ("kto", False), pytest.param("grpo", False, marks=pytest.mark.slow)]
)
def test_an_interrupted_stage_begins_again_and_ends_the_same(trainer: str, lora: bool, tmp_path: Path) -> None:
    policy = {"lora": {"r": 2, "dropout": 0.1}} if lora else {}
    sft = {"sft": {"feedback": ["told"], "batch_size": 8}}
    again = {"evaluate_every": 1, "evaluation": {"prompts": "asks", "metrics": ["kl"]}}
    stages = (sft, trl(trainer, **again), evaluation("kl"), "export")
    made = project(tmp_path / "p", *stages, policy=policy, checkpoint_every=1)  # type: ignore[arg-type]
    whole = run(made, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        made.run("toy", out=tmp_path / "cut", display=_Falls(3))
    assert len(list((tmp_path / "cut" / "checkpoints").glob("*-trl-2"))) == 1
    gc.collect()
    assert not _left_behind(), "a broken stage leaves no thread behind"
    resumed = run(made, tmp_path / "cut", resume=True)
    assert any("begins again from its first step, with the same seed" in w for w in resumed.summary["warnings"])
    assert not whole.summary["warnings"]
    one, two = exported(whole), exported(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)
    lines = [(done.directory / "metrics.jsonl").read_text() for done in (whole, resumed)]
    assert lines[0] == lines[1]


def test_the_best_weights_are_kept_and_a_stage_may_end_early(tmp_path: Path) -> None:
    watched = {"evaluate_every": 1, "evaluation": {"prompts": "asks", "metrics": ["length"]}}
    until = {"metric": "length", "at_least": 1}
    made = project(tmp_path, trl("sft", **watched, until=until, best="-length"), evaluation("kl"))
    done = run(made, tmp_path / "run")
    assert done.summary["stages"]["trl"]["stopped_at"] == 1
    assert len(metrics(done)) == 1
    assert not _left_behind()


def test_a_dry_run_takes_one_step(tmp_path: Path) -> None:
    done = run(project(tmp_path, trl("rloo"), evaluation()), tmp_path / "unused", dry_run=True)
    assert done.summary["steps"]["trl"] == 3 and not (tmp_path / "unused").exists()


def test_sampling_and_credit_follow_our_options(tmp_path: Path) -> None:
    """Two tokens at most, none of them an end; where a reward abstains there is no score, only a count."""
    sampling = {"max_new_tokens": 2, "min_new_tokens": 2, "temperature": 1.5, "top_k": 50}
    stage = trl(
        "rloo", steps=1, rewards={"vowels": 2.0, "shy": -1.0}, sampling=sampling,
        arguments={"per_device_train_batch_size": 2 * len(PROMPTS)},
    )  # fmt: skip
    done = run(project(tmp_path, stage, evaluation()), tmp_path / "run")
    row = metrics(done)[0]
    assert row["response/length"] == 2 and row["response/truncated"] == 1
    assert row["reward/shy/abstained"] == 2  # two responses to the one secret prompt
    assert row["reward/score"] == pytest.approx(row["trl/reward"], rel=1e-5)
    assert done.summary["stages"]["evaluate"]["metrics"]["length"]["after"]["mean"] == 2  # the same sampling
    assert done.summary["stages"]["evaluate"]["metrics"]["reward"]["after"]["n"] == len(PROMPTS) - 1


def test_precision_of_the_run_is_that_of_the_trainer(tmp_path: Path) -> None:
    """In bf16 TRL runs in bf16, over weights that stay in float32; after it our own forward passes do as well."""
    stages = (trl("rloo", arguments={"gradient_checkpointing": True}), evaluation("kl"))
    done = run(project(tmp_path, *stages, precision="bf16"), tmp_path / "run")
    weights = policy_of(project(tmp_path, *stages), done).state_dict()["weights"]
    assert {p.dtype for p in weights.values()} == {torch.float32}
    assert any(value != value.to(torch.bfloat16).float() for value in next(iter(weights.values())).flatten()[:50])
