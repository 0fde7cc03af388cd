"""A run end to end: what its manifests say, `rlhf trace` and `rlhf diff` of it, and monitors that warn and stop."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from rlhf_core import load
from rlhf_core.cli.app import build_app
from rlhf_core.errors import MonitorAlarm, PluginError
from rlhf_core.runs.display import Display
from rlhf_core.runs.lineage import manifests
from typer.testing import CliRunner

KEY = "sk-planted-5f2c9e"
WORDS = ["parcel", "password", "printer", "refund", "login", "screen", "invoice", "router"]
REGISTRY = """\
schema_version: 1
functions:
  pages: {factory: rewards.py:counting, kwargs: {word: page, key: "${env:PLANTED_KEY}"}}
  plain: rewards.py:plain
components:
  policy:
    lm:
      use: causal-lm
      config:
        fresh:
          architecture: gpt2
          sizes: {n_embd: 32, n_layer: 1, n_head: 2, n_positions: 64}
          tokenizer: {text: [demos], vocab_size: 280}
  feedback:
    demos: {use: demonstrations, config: {path: demos.jsonl}}
    votes: {use: preference, config: {path: votes.jsonl}}
  prompts:
    questions: {use: jsonl, config: {path: prompts.jsonl}}
  reward:
    liked: {use: linear}
    pages: {use: function, config: {function: pages}}
    plain: {use: function, config: {function: plain}}
  shaper:
    kl: {use: kl, config: {coef: 0.0}}
  optimizer:
    reinforce: {use: reinforce, config: {prompts_per_step: 8, samples_per_prompt: 4, minibatch_size: 32,
                baseline: leave-one-out, learning_rate: 2e-3}}
  monitor:
    repeats: {use: repetition-drift, config: {warmup: 4, window: 2}}
    gold: {use: gold, config: {gold: plain, every: 3}}
pipelines:
  whole:
    policy: lm
    device: cpu
    precision: fp32
    stages:
      - sft: {feedback: [demos], epochs: 2, batch_size: 32, learning_rate: 3e-3}
      - fit-reward: {reward: liked, feedback: [votes]}
      - optimize: {optimizer: reinforce, prompts: questions, rewards: {liked: 1.0, pages: 0.1}, steps: 2,
                   sampling: {max_new_tokens: 6}}
      - evaluate: {prompts: questions, metrics: [reward, length], samples: 1}
      - export
  hacked:
    policy: lm
    device: cpu
    precision: fp32
    stages:
      - sft: {feedback: [demos], epochs: 50, batch_size: 32, learning_rate: 3e-3, held_out: 0}
      - optimize: {optimizer: reinforce, prompts: questions, rewards: {pages: 1.0}, shapers: [kl], steps: 18,
                   sampling: {max_new_tokens: 10}, monitors: {repeats: stop, gold: warn}}
"""
REWARDS = """\
def counting(word, key):
    assert key
    return lambda prompts, completions, **columns: [float(text.split().count(word)) for text in completions]

def plain(prompts, completions, **columns):
    return [float(text.split().count("page") == 1) - abs(len(text.split()) - 4) / 4 for text in completions]
"""


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the registry, the working directory in it, and the key in the environment and on the command line."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "registry.yaml").write_text(REGISTRY)
    (folder / "rewards.py").write_text(REWARDS)
    lines(folder / "demos.jsonl", [
        {"prompt": f"my {word} {n}:", "completion": f" see the {word} page", "annotator": "ann" if n in "ab" else "bo"}
        for word in WORDS for n in "abcd"])  # fmt: skip
    lines(folder / "votes.jsonl", [
        {"prompt": f"my {word}:", "chosen": f" see the {word} page", "rejected": " no", "annotator": who}
        for word, who in zip(WORDS, ["cy", "bo", "cy", None] * 2, strict=True)])  # fmt: skip
    lines(folder / "prompts.jsonl", [{"prompt": f"my {word} {n}:"} for word in WORDS for n in "ab"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PLANTED_KEY", KEY)
        patch.setattr(sys, "argv", ["rlhf", "run", "whole", "--set", f"reward.judge.key={KEY}", "--set", f"x=a{KEY}b"])
        yield folder


def run(pipeline: str, out: str, **options):
    return load().run(pipeline, out=out, display=Display(quiet=True), **options)


@pytest.fixture(scope="module")
def whole(project):
    run("whole", "runs/one", overrides=["stages.optimize.steps=3"])
    return project / "runs" / "one"


def rlhf(*words: str) -> str:
    result = CliRunner().invoke(build_app(), [*words], env={"COLUMNS": "100"}, catch_exceptions=False)
    return result.output


# --- provenance ------------------------------------------------------------------------------------------------------


def test_every_stage_has_a_manifest_with_origins_and_hashes(whole: Path) -> None:
    sft, fit, optimize, evaluate, export = manifests(whole)
    line = next(i for i, text in enumerate(REGISTRY.splitlines(), 1) if "epochs: 2," in text)
    assert sft["config"]["stages.sft.epochs"] == {
        "value": 2, "origin": f"registry.yaml:{line} pipelines.whole.stages.sft.epochs"
    }  # fmt: skip
    assert sft["config"]["stages.sft.weight_decay"] == {"value": 0.0, "origin": "default"}
    assert optimize["config"]["stages.optimize.steps"] == {"value": 3, "origin": "--set stages.optimize.steps"}
    assert optimize["config"]["functions.pages.kwargs.key"]["value"] == "${env:PLANTED_KEY}"
    assert sft["inputs"]["feedback"]["demos"]["annotators"] == {"ann": 16, "bo": 16}
    assert fit["inputs"]["feedback"]["votes"]["annotators"] == {"cy": 4, "bo": 2, "": 2}
    assert [(m["policy"] or {}).get("changed") for m in (sft, fit, optimize, evaluate, export)] == [
        True, None, True, False, False
    ]  # fmt: skip
    assert set(fit["outputs"]) == {"components/reward.liked"} and set(export["outputs"]) == {"export"}
    assert [(p["stage"], p["through"]) for p in optimize["parents"]] == [
        ("fit-reward", "components/reward.liked"), ("sft", "policy")
    ]  # fmt: skip
    assert "rlhf-core" in sft["versions"] and sft["machine"]["threads"] and "git" in sft and sft["seed"] == 0


def test_a_planted_key_is_nowhere_in_the_run_directory(whole: Path) -> None:
    """It was used: the reward asserts that it is there. It is in the environment, and twice on the command line."""
    found = [path for path in whole.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert found == []
    command = json.loads((whole / "provenance.json").read_text())["command"]
    assert command[4:] == ["reward.judge.key=(hidden)", "--set", "x=a${env:PLANTED_KEY}b"]
    for words in (["trace", str(whole)], ["trace", str(whole), "--json"], ["diff", str(whole), str(whole), "--json"]):
        assert KEY not in rlhf(*words)


@pytest.mark.parametrize("name", ["", "export", "export/config.json"])
def test_a_policy_is_traced_to_its_reward_and_annotators(whole: Path, name: str) -> None:
    shown = rlhf("trace", str(whole / name))
    tree = ["stage optimize", "reward liked (linear)", "stage fit-reward", "feedback votes: 8 comparisons", "cy: 4 records",
            "(unnamed): 2 records", "the policy before", "stage sft", "ann: 16 records"]  # fmt: skip
    places = [shown.find(text) for text in tree]
    assert -1 not in places and places[:5] == sorted(places[:5]), shown
    assert "CHANGED" not in shown


def test_a_reward_is_traced_to_its_own_feedback_only(whole: Path) -> None:
    node = json.loads(rlhf("trace", str(whole / "components" / "reward.liked"), "--json"))
    (stage,) = node["made_from"]
    (votes,) = [child for child in stage["made_from"] if "feedback" in child]
    people = {person["annotator"]: person["records"] for person in votes["made_from"]}
    assert {who: len(ids) for who, ids in people.items()} == {"cy": 4, "bo": 2, None: 2}
    assert all(re.fullmatch("[0-9a-f]{16}", id) for ids in people.values() for id in ids)


def test_what_depends_on_one_annotator(whole: Path) -> None:
    shown = rlhf("trace", "--remove", "cy")
    for text in ("4 records of 'cy' went into", "stage fit-reward: read 4 of votes", "components/reward.liked",
                 "stage optimize: builds on fit-reward", "stage export: builds on optimize", "checkpoints"):  # fmt: skip
        assert text in shown, shown
    assert "stage sft" not in shown
    assert "stage sft: read 16 of demos" in rlhf("trace", "--remove", "ann")


def test_two_runs_are_compared(whole: Path) -> None:
    run("whole", "runs/two", overrides=["seed=1", "stages.optimize.steps=3"])
    shown = rlhf("diff", "runs/one", "runs/two")
    assert re.search(r"seed +0 +1", shown) and "default" in shown and "--set" in shown
    assert "data: the same" in shown and "versions: the same" in shown
    assert re.search(r"evaluate reward .* 16 *$", shown, re.M)  # paired over 16 prompts


# --- monitors --------------------------------------------------------------------------------------------------------


def test_a_reward_that_pays_for_a_word_is_found_out_and_the_run_goes_on_exactly(project: Path) -> None:
    """The policy learns to say "page page page": one monitor warns, one stops; resumed, it is as if never stopped."""
    run("hacked", "runs/straight", overrides=["stages.optimize.monitors.repeats=warn"])
    straight = json.loads(Path("runs/straight/summary.json").read_text())["stages"]["optimize"]["alarms"]
    assert "page page page" in next(alarm["reason"] for alarm in straight if alarm["monitor"] == "repeats")
    assert "fell from" in next(alarm["reason"] for alarm in straight if alarm["monitor"] == "gold")

    with pytest.raises(MonitorAlarm) as raised:
        run("hacked", "runs/stopped")
    assert raised.value.exit_code == 1
    words = r"optimize step \d+: stopped by monitor 'repeats': \d+% of 2-grams .*; look at metrics.jsonl; to go on in spite of it: rlhf run hacked"
    assert re.match(words, str(raised.value))
    assert "--allow-config-change --set stages.optimize.monitors.repeats=warn" in str(raised.value)

    run("hacked", "runs/stopped", resume=True, allow_config_change=True,
        overrides=["stages.optimize.monitors.repeats=warn"])  # fmt: skip
    assert Path("runs/stopped/metrics.jsonl").read_bytes() == Path("runs/straight/metrics.jsonl").read_bytes()
    resumed = json.loads(Path("runs/stopped/summary.json").read_text())["stages"]["optimize"]["alarms"]
    assert [{**alarm, "action": "warn"} for alarm in resumed] == straight
    last = manifests(project / "runs" / "stopped")[-1]
    assert last["config"]["stages.optimize.monitors.repeats"]["origin"].startswith("--set")
    assert last["config"]["stages.optimize.steps"]["origin"].startswith("registry.yaml:")


def test_an_answer_that_is_no_words_is_the_plugins_fault(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_plugin_monitors.statistics import LengthDrift

    monkeypatch.setattr(LengthDrift, "look", lambda self, seen: True)
    with pytest.raises(PluginError, match=r"monitor 'length-drift': answers True; expected None, or the reason"):
        run("whole", "runs/wrong", overrides=["stages.sft.monitors={length-drift: warn}"])
