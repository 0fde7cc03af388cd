"""Runs end to end on a tiny pipeline: what is written, resumed, refused, and shown."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rlhf_core.api import load, replay
from rlhf_core.cli.app import build_app
from rlhf_core.errors import ConfigError, DataError, NumericalError, RegistryErrors, RewardError, RunError
from rlhf_core.runs import checkpoint
from rlhf_core.runs.directory import Log
from rlhf_core.runs.display import interval
from typer.testing import CliRunner

GPT2 = """architecture: gpt2
          sizes: {n_embd: 32, n_layer: 2, n_head: 4, n_positions: 64}"""
BEFORE = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background

REGISTRY = """\
schema_version: 1
functions: {vowels: rewards.py:vowels, broken: rewards.py:broken, short: rewards.py:short}
components:
  policy:
    tiny:
      use: causal-lm
      config:
        fresh:
          architecture: gpt2
          sizes: {n_embd: 32, n_layer: 2, n_head: 4, n_positions: 64}
          tokenizer: {text: [demos], vocab_size: 280}
  feedback:
    demos: {use: demonstrations, config: {path: demos.jsonl}}
  prompts:
    questions: {use: jsonl, config: {path: prompts.jsonl}}
  reward:
    vowels: {use: function, config: {function: vowels}}
    broken: {use: function, config: {function: broken}}
    short: {use: function, config: {function: short}}
  shaper:
    kl: {use: kl, config: {target: 2.0, horizon: 50}}
  optimizer:
    ppo: {use: ppo, config: {prompts_per_step: 8, minibatch_size: 4, learning_rate: 3e-3}}
  metric:
    vowels: {use: reward, config: {reward: vowels}}
pipelines:
  tiny:
    policy: tiny
    checkpoint_every: 2
    device: cpu
    precision: fp32
    stages:
      - sft: {feedback: [demos], epochs: 2, batch_size: 8, learning_rate: 3e-3, held_out: 0.2}
      - optimize:
          optimizer: ppo
          prompts: questions
          rewards: {vowels: 1.0}
          shapers: [kl]
          steps: 5
          sampling: {max_new_tokens: 8}
          evaluate_every: 2
          evaluation: {prompts: questions, metrics: [vowels, kl]}
      - evaluate: {prompts: questions, metrics: [reward, vowels, kl, length, truncated], samples: 2}
      - export
"""

REWARDS = """\
def vowels(prompts, completions, **columns):
    return [sum(c in "aeiou" for c in text) / (len(text) or 1) for text in completions]

def broken(prompts, completions, **columns):
    return [float("nan")] * len(completions)

def short(prompts, completions, **columns):
    return [0.0]
"""


def write_project(folder):
    """The tiny registry with its functions and data."""
    (folder / "registry.yaml").write_text(REGISTRY)
    (folder / "rewards.py").write_text(REWARDS)
    words = ["parcel", "password", "printer", "refund", "login", "screen"]
    demos = [{"prompt": f"my {w} {n}:", "completion": f" see the {w} page"} for w in words for n in "abcd"]
    (folder / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demos))
    questions = [{"prompt": f"my {w}:", "topic": w} for w in words]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the tiny registry, and the working directory in it."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics(directory):
    return list(Log(directory / "metrics.jsonl"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run, shared by the tests that look at what it left."""
    folder = tmp_path_factory.mktemp("whole")
    before = Path.cwd()
    write_project(folder)
    os.chdir(folder)
    try:
        yield load().run("tiny", out=folder / "run")
    finally:
        os.chdir(before)


def test_a_run_leaves_everything_it_says(whole):
    directory = whole.directory
    names = {p.name for p in directory.iterdir()}
    assert {
        "registry.yaml",
        "provenance.json",
        "metrics.jsonl",
        "timings.jsonl",
        "summary.json",
        "samples.jsonl",
        "checkpoints",
        "report.html",
        "export",
    } <= names
    lines = metrics(directory)
    assert [(x["stage"], x["step"]) for x in lines if x["stage"] == "optimize"] == [
        ("optimize", i) for i in range(1, 6)
    ]
    steps = [x for x in lines if x["stage"] == "optimize"]
    assert steps[0]["kl/sequence"] == pytest.approx(0, abs=1e-4)  # after sft the reference is the policy
    assert "eval/vowels" in steps[1] and "eval/vowels" not in steps[0]
    assert all(torch.isfinite(torch.tensor([v for v in x.values() if isinstance(v, float)])).all() for x in lines)
    summary = json.loads((directory / "summary.json").read_text())
    entry = summary["stages"]["evaluate"]["metrics"]["vowels"]
    assert set(entry) == {"before", "after", "change", "higher_is_better"} and entry["after"]["n"] == 6
    assert entry["change"]["mean"] == pytest.approx(entry["after"]["mean"] - entry["before"]["mean"])
    facts = json.loads((directory / "provenance.json").read_text())
    assert facts["seed"] == 0 and "rlhf-core" in facts["versions"]
    assert any(name.endswith("demos.jsonl") and digest.startswith("sha256:") for name, digest in facts["files"].items())
    assert len(list((directory / "checkpoints").iterdir())) == 2  # keep_checkpoints
    assert not [p for p in directory.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_the_registry_in_the_run_directory_runs_again(whole):
    again = load(whole.directory / "registry.yaml").resolve("tiny")
    assert again.settings.seed == 0 and [s.id for s in again.stages] == ["sft", "optimize", "evaluate", "export"]


def test_the_exported_folder_is_a_plain_model(whole):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(whole.directory / "export")
    tokenizer = AutoTokenizer.from_pretrained(whole.directory / "export")
    output = model.generate(**tokenizer("my parcel:", return_tensors="pt"), max_new_tokens=3)
    assert output.shape[1] > 3
    card = (whole.directory / "export" / "README.md").read_text()
    assert "pipeline `tiny`, seed 0" in card and "sft, optimize, evaluate" in card


KILL = """\
import os, signal, sys
from rlhf_core import hookimpl
from rlhf_core.plugins import load_plugins
from rlhf_core.api import load

class Stop:
    @hookimpl
    def rlhf_step_finished(self, run, stage, step, stats):
        if (stage, step) == (sys.argv[1], int(sys.argv[2])):
            os.kill(os.getpid(), getattr(signal, sys.argv[3]))

plugins = load_plugins()
plugins.manager.register(Stop())
from rlhf_core.errors import RLHFError
try:
    load(plugins=plugins).run("tiny", out="run", resume="resume" in sys.argv)
except RLHFError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def python(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(("stage", "step", "how", "code"), [
    ("optimize", "3", "SIGKILL", -9), ("sft", "3", "SIGTERM", 143), ("optimize", "5", "SIGINT", 130),
])  # fmt: skip
def test_resume_repeats_an_uninterrupted_run_to_the_last_bit(whole, project, stage, step, how, code):
    (project / "kill.py").write_text(KILL)
    stopped = python(project, "kill.py", stage, step, how)
    assert stopped.returncode == code, stopped.stderr
    if code > 0:
        assert "at a checkpoint" in stopped.stdout and "rlhf run tiny --resume --out" in stopped.stdout
    assert not (project / "run" / "summary.json").exists()
    result = load().run("tiny", out=project / "run", resume=True)
    mine, theirs = (Path(r.directory) for r in (result, whole))
    assert (mine / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    weights = "export/model.safetensors"
    assert (mine / weights).read_bytes() == (theirs / weights).read_bytes()
    assert (mine / "samples.jsonl").read_bytes() == (theirs / "samples.jsonl").read_bytes()
    with pytest.raises(RunError, match="the run is complete"):
        load().run("tiny", out=project / "run", resume=True)


@pytest.mark.parametrize(("old", "new"), [
    ("precision: fp32", "precision: bf16"),
    pytest.param("        fresh:", "        engine: compaction\n        fresh:", marks=pytest.mark.slow),
    pytest.param("        fresh:", "        engine: continuous\n        fresh:", marks=pytest.mark.slow),
    pytest.param(GPT2, "architecture: llama\n          sizes: {hidden_size: 32, intermediate_size: 64, "
                 "num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 64}",
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_other_precisions_and_engines_resume_to_the_last_bit_too(project, old, new):
    registry = project / "registry.yaml"
    text = registry.read_text()
    assert old in text
    registry.write_text(text.replace(old, new))
    whole = load().run("tiny", out=project / "whole")
    (project / "kill.py").write_text(KILL)
    assert python(project, "kill.py", "optimize", "3", "SIGKILL").returncode == -9
    result = load().run("tiny", out=project / "run", resume=True)
    mine, theirs = (Path(r.directory) for r in (result, whole))
    for name in ("metrics.jsonl", "export/model.safetensors"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes()


def test_a_second_signal_stops_at_once(project):
    (project / "slow.py").write_text(
        KILL.replace(
            "os.kill(os.getpid(), getattr(signal, sys.argv[3]))",
            "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(60)",
        )
    )
    started = time.time()
    stopped = python(project, "slow.py", "sft", "1", "SIGINT")
    assert stopped.returncode == 130 and time.time() - started < 50


def test_same_seed_same_run_and_other_seed_another(whole, project):
    other = load().run("tiny", out=project / "other", overrides=["seed=1"])
    assert (other.directory / "metrics.jsonl").read_bytes() != (whole.directory / "metrics.jsonl").read_bytes()


def test_a_used_directory_is_refused_without_resume(whole, project):
    with pytest.raises(RunError, match=r"holds a run already; expected a new directory; add --resume"):
        load().run("tiny", out=whole.directory)
    (project / "full").mkdir()
    (project / "full" / "mine.txt").write_text("precious")
    with pytest.raises(RunError, match="is not an empty directory"):
        load().run("tiny", out=project / "full")
    with pytest.raises(RunError, match="nothing to resume under"):
        load().run("tiny", resume=True)
    with pytest.raises(RunError, match="holds no run"):
        load().run("tiny", out=project / "full", resume=True)


def test_resume_without_out_takes_the_latest_run(project):
    for name in ("20260101-000000", "20260102-000000"):
        (project / "runs" / "tiny" / name).mkdir(parents=True)
        (project / "runs" / "tiny" / name / "registry.yaml").write_text("{}")
    from rlhf_core.runs.directory import existing_directory

    assert existing_directory("tiny", None).name == "20260102-000000"


def test_best_keeps_the_weights_of_the_best_evaluation(project):
    overrides = ["stages.optimize.best=vowels", "optimizer.ppo.learning_rate=0.3", "stages.optimize.steps=4"]
    result = load().run("tiny", out=project / "best", overrides=overrides)
    seen = [x["eval/vowels"] for x in metrics(result.directory) if "eval/vowels" in x]
    assert len(seen) == 2
    kept = checkpoint.load(result.directory / "best" / "optimize")
    from safetensors.torch import load_file

    exported = load_file(result.directory / "export" / "model.safetensors")
    name = "transformer.wte.weight"
    assert torch.equal(kept["weights"][f"lm.{name}"], exported[name])


def test_best_of_a_fitted_reward_is_the_rewards_and_load_reuses_it(project):
    pytest.importorskip("rlhf_plugin_preference")
    rows = [{"prompt": f"q{i}:", "chosen": " good aaa", "rejected": " bad bbb"} for i in range(24)]
    (project / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = REGISTRY.replace(
        "  prompts:\n", "    pairs: {use: preference, config: {path: pairs.jsonl}}\n  prompts:\n", 1
    )
    text = text.replace(
        "  reward:\n",
        "  reward:\n    liked: {use: preference, config: {policy: tiny, batch_size: 8, "
        "epochs: 3, learning_rate: 1e-3, held_out: 0.3}}\n",
        1,
    )
    text += """  fitted:
    policy: tiny
    stages:
      - fit-reward: {reward: liked, feedback: [pairs], evaluate_every: 1, best: -loss}
      - evaluate: {prompts: questions, metrics: [reward], rewards: {liked: 1.0}, sampling: {max_new_tokens: 8}}
"""
    (project / "registry.yaml").write_text(text)
    result = load().run("fitted", out=project / "run")
    kept = result.summary["stages"]["fit-reward"]["best"]
    losses = [x["eval/loss"] for x in metrics(project / "run") if x["stage"] == "fit-reward"]
    assert kept["value"] == min(losses) and kept["metric"] == "-loss"
    assert result.summary["stages"]["fit-reward"]["held_out"]["loss"] == pytest.approx(kept["value"])

    (project / "registry.yaml").write_text(
        text.replace("liked: {use: preference,", "liked: {use: preference, load: run/components/reward.liked,").replace(
            "      - fit-reward: {reward: liked, feedback: [pairs], evaluate_every: 1, best: -loss}\n", ""
        )
    )
    again = load().run("fitted", out=project / "again")
    assert again.summary["stages"]["evaluate"]["metrics"] == result.summary["stages"]["evaluate"]["metrics"]
    (project / "registry.yaml").write_text(
        text.replace("liked: {use: preference,", "liked: {use: preference, load: no/where,")
    )
    with pytest.raises(ConfigError, match=r"reward 'liked' load: nothing to load at .*no/where"):
        load().run("fitted", out=project / "wrong")


def test_until_stops_a_stage_early(project):
    result = load().run(
        "tiny", out=project / "until", overrides=["stages.optimize.until={metric: vowels, at_least: -1, patience: 2}"]
    )
    assert [x["step"] for x in metrics(result.directory) if x["stage"] == "optimize"] == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match=r"stage 'optimize' best: no metric 'nope'; expected one of vowels, kl"):
        load().run("tiny", out=project / "wrong", overrides=["stages.optimize.best=nope"])


@pytest.mark.parametrize(("reward", "message"), [
    ("broken", r"reward 'broken': score nan for sample 0: 'my .*' -> "),
    ("short", r"reward 'short': scores of shape \(1,\) for 8 samples; expected one score per sample"),
])  # fmt: skip
def test_a_wrong_reward_is_named_and_nothing_is_lost(project, reward, message):
    with pytest.raises(RewardError, match=message):
        load().run("tiny", out=project / "run", overrides=[f"stages.optimize.rewards={{{reward}: 1.0}}"])
    assert metrics(project / "run")[-1]["stage"] == "sft"
    assert list((project / "run" / "checkpoints").iterdir())  # what sft learnt is there to go on from


def test_warnings_say_the_reason(project):
    result = load().run(
        "tiny",
        out=project / "run",
        overrides=["optimizer.ppo.gamma=0.5", "stages.optimize.sampling.top_k=5", "stages.optimize.steps=2"],
    )
    assert any(
        "a discount of 0.5 with the reward at the end of up to 8 tokens" in w for w in result.summary["warnings"]
    )
    assert any("draw from less than the full softmax" in w for w in result.summary["warnings"])


MISPLACED = "token shaper 'kl' stands before sequence shaper 'clip'; .*put 'clip' before 'kl'"


def test_a_token_shaper_before_a_sequence_shaper_is_found_before_anything_runs(project):
    pytest.importorskip("rlhf_plugin_shaping")
    (project / "registry.yaml").write_text(REGISTRY.replace("shapers: [kl]", "shapers: [kl, clip]"))
    (problem,) = load().validate()
    assert re.search(rf"registry.yaml:\d+ pipelines.tiny.stages.optimize.shapers: {MISPLACED}", str(problem))
    with pytest.raises(RegistryErrors, match=MISPLACED):
        load().run("tiny", out=project / "run")
    assert not (project / "run").exists()
    (project / "registry.yaml").write_text(REGISTRY.replace("shapers: [kl]", "shapers: [clip, kl]"))
    assert load().validate() == []


def test_a_token_shaper_before_a_sequence_shaper_is_refused_where_the_file_cannot_tell(project, monkeypatch):
    """A level that a class inherits is known once it is imported, when its stage begins."""
    pytest.importorskip("rlhf_plugin_shaping")
    monkeypatch.setattr("rlhf_core.registry.pipeline.level", lambda factory: "")
    with pytest.raises(ConfigError, match=f"stage 'optimize' shapers: {MISPLACED}"):
        load().run("tiny", out=project / "run", overrides=["stages.optimize.shapers=[kl, clip]", "stages.sft.epochs=1"])


def test_kl_in_evaluate_without_a_reference_is_refused(project):
    text = REGISTRY.replace(REGISTRY[REGISTRY.index("      - optimize:") : REGISTRY.index("      - evaluate:")], "")
    (project / "registry.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"'kl' compares with a reference, and no optimize stage has fixed one"):
        load().run("tiny", out=project / "run")


def test_bad_feedback_says_file_and_line(project):
    with (project / "demos.jsonl").open("a") as file:
        file.write('{"prompt": "x", "completion": \n{"prompt": "x"}\n[1]\n{"prompt": "x", "completion": " "}\n')
    with pytest.raises(DataError, match=r"demos\.jsonl:25: malformed line.*on_bad_record: skip"):
        load().run("tiny", out=project / "a")
    result = load().run(
        "tiny", out=project / "b", overrides=["feedback.demos.on_bad_record=skip", "stages.optimize.steps=1"]
    )
    assert "feedback 'demos': skipped 4 bad records" in result.summary["warnings"]
    (project / "demos.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"feedback 'demos': .*demos\.jsonl gives no feedback"):
        load().run("tiny", out=project / "c")
    (project / "demos.jsonl").unlink()
    with pytest.raises(DataError, match=r"feedback 'demos': no file at .*relative paths start at the registry file"):
        load().run("tiny", out=project / "d")


def test_columns_are_mapped_and_the_rest_are_fields(project):
    (project / "prompts.jsonl").write_text('{"question": "my parcel:", "gold": "p", "n": 1}\n')
    text = REGISTRY.replace("path: prompts.jsonl", "path: prompts.jsonl, columns: {prompt: question, reference: gold}")
    (project / "registry.yaml").write_text(text)
    source = load().build("prompts", "questions")
    assert source[0].text == "my parcel:" and source[0].fields == {"n": 1, "reference": "p"}
    (project / "registry.yaml").write_text(text.replace("question,", "queston,"))
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: no column 'queston', only 'question', 'gold', 'n'"):
        load().build("prompts", "questions")


def test_rows_with_their_oddities(project):
    from rlhf_core.interfaces import Context, SourceConfig, read_rows

    (project / "rows.jsonl").write_text('{"a": 1, "b": 2}\n{"a": 1}\n')
    swapped = SourceConfig(path="rows.jsonl", columns={"a": "b", "b": "a"})
    bad = []
    assert [row.data for row in read_rows(swapped, "x", bad.append)] == [{"a": 2, "b": 1}] and len(bad) == 1
    (project / "rows.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03garbage")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(SourceConfig(path="rows.jsonl.gz"), "x"))
    from rlhf_core.components.config import DemonstrationsConfig
    from rlhf_core.components.demonstrations import Demonstrations

    (project / "chat.jsonl").write_text(
        json.dumps({"prompt": [{"role": "human", "content": "hi"}], "completion": "yes"}) + "\n"
    )
    with pytest.raises(DataError, match=r"chat\.jsonl:1: .*role: Input should be 'system'"):
        list(Demonstrations(DemonstrationsConfig(path="chat.jsonl"), Context()))


def test_prompts_from_a_dataset_folder(project):
    (project / "set").mkdir()
    (project / "set" / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    text = REGISTRY.replace(
        "{use: jsonl, config: {path: prompts.jsonl}}", f"{{use: dataset, config: {{dataset: {project}/set}}}}"
    )
    (project / "registry.yaml").write_text(text)
    source = load().build("prompts", "questions")
    assert [source[i].text for i in range(len(source))] == ["a", "b"]
    (project / "registry.yaml").write_text(text.replace("/set}", "/nothing}"))
    with pytest.raises(DataError, match=r"prompts 'questions': cannot load dataset"):
        load().build("prompts", "questions")


def test_unknown_things_are_named_with_a_hint(project):
    with pytest.raises(RegistryErrors, match="there is no pipeline 'tinny'; did you mean 'tiny'"):
        load().run("tinny")
    with pytest.raises(RegistryErrors, match="did you mean 'steps'"):
        load().run("tiny", overrides=["stages.optimize.stepz=3"])


def test_components_from_python(project):
    reward = load().build("reward", "vowels")
    from rlhf_core.records import Prompt, Sample

    assert reward.score([Sample(Prompt(text="q"), "aei")]).values.tolist() == [1.0]


def test_dry_run_takes_one_step_of_each_stage_and_leaves_nothing(project):
    result = load().run("tiny", dry_run=True)
    assert (
        result.summary["steps"] == {"sft": 6, "optimize": 5, "evaluate": 1, "export": 1}
        or result.summary["steps"]["optimize"] == 5
    )
    assert not result.directory.exists() and not (project / "runs").exists()


def test_lora_run_starts_at_kl_zero_after_sft(project):
    for precision, rounding in (("fp32", 1e-4), ("bf16", 2e-2)):
        changes = ["policy.tiny.lora={r: 4}", "stages.optimize.steps=1", f"precision={precision}"]
        result = load().run("tiny", out=project / precision, overrides=changes)
        first = next(x for x in metrics(result.directory) if x["stage"] == "optimize")
        assert first["kl/sequence"] == pytest.approx(0, abs=rounding)


def test_trackers_get_the_metrics(project):
    pytest.importorskip("tensorboard")
    load().run("tiny", out=project / "run", overrides=["trackers=[tensorboard]", "stages.optimize.steps=1"])
    assert list((project / "run").rglob("events.out.tfevents*"))
    with pytest.raises(ConfigError, match="'nosuch'; expected one of"):
        load().run("tiny", out=project / "run2", overrides=["trackers=[nosuch]"])


HUGE = """
calls = 0

def vowels(prompts, completions, **columns):
    global calls
    calls += 1
    counts = [float(sum(c in "aeiou" for c in text)) for text in completions]
    return counts[:-1] + [3e38] if calls == 3 else counts
"""


def replayed(folder):
    """The rows of `replay`, and what the command prints."""
    printed = CliRunner().invoke(build_app(), ["replay", str(folder)])
    assert printed.exit_code == 0 and "the batch that stopped the run" in printed.output
    return replay(folder), printed.output


def named_folder(error):
    return Path(re.search(r"`rlhf replay (\S+)`", str(error.value))[1])


def test_a_loss_that_is_not_finite_stops_before_the_update_and_is_replayed(project):
    """A reward gives one score near the end of float32 at step 3: advantages, and so the loss, are nan."""
    plain = (project / "rewards.py").read_text()
    (project / "rewards.py").write_text(plain + HUGE)
    settings = ["stages.optimize.evaluate_every=0", "stages.optimize.shapers=[]", "checkpoint_every=1"]
    settings.append("optimizer.ppo.micro_batch_tokens=40")
    message = r"optimizer 'ppo': loss nan at step 3; expected finite numbers; see which .* with `rlhf replay .*`"
    with pytest.raises(NumericalError, match=message) as found:
        load().run("tiny", out=project / "run", overrides=settings)
    assert named_folder(found) == project / "run" / "failures" / "step-000003"
    assert re.search(r"or look for extreme rewards \(this step's scores: [\d.]+ to 3e\+38\); no weight", str(found.value))
    last = max((project / "run" / "checkpoints").iterdir())
    assert last.name.endswith("optimize-2")
    rows, printed = replayed(named_folder(found))
    assert all(math.isnan(row["loss"]) and "advantages" in row["not_finite"] for row in rows)
    assert all(math.isfinite(row["score"]) for row in rows)
    assert "loss of the batch, the sum: nan" in printed
    kept = checkpoint.load(named_folder(found))
    weights = checkpoint.load(last)["policy"]["weights"]
    assert all(torch.equal(kept["policy"]["weights"][name], w) for name, w in weights.items())
    assert kept["update"]["samples"] == 4 > len(rows), "part of an update, whose counts are kept"
    assert kept["update"]["tokens"] > kept["rollout"]["mask"].sum()
    (project / "rewards.py").write_text(plain)  # mended
    result = load().run("tiny", out=project / "run", resume=True)
    assert result.summary["steps"]["optimize"] == 5


def test_a_gradient_that_is_not_finite_is_replayed_with_the_loss_of_that_update(project, monkeypatch):
    """What samples add to the loss adds up to it: the counts are the whole update's, the schedule is that step's."""
    norms = iter([1.0] * 7 + [math.inf])
    monkeypatch.setattr("rlhf_core.training.gradient.clip_norm", lambda *arguments: next(norms))
    schedule = "optimizer.ppo.entropy_coef={schedule: linear, start: 2.0, end: 1.0}"
    settings = ["stages.sft.epochs=1", schedule, "optimizer.ppo.micro_batch_tokens=40"]
    with pytest.raises(NumericalError, match=r"gradient norm inf at update \d, loss -?\d+\.\d+ at step [23];") as found:
        load().run("tiny", out=project / "run", overrides=settings)
    loss = float(re.search(r"loss (\S+) at", str(found.value))[1])
    rows, printed = replayed(named_folder(found))
    assert sum(row["loss"] for row in rows) == pytest.approx(loss, rel=1e-4) and abs(loss) > 1
    assert f"the sum: {loss:.4g}" in printed and not any(row["not_finite"] for row in rows)


def test_weights_that_exploded_are_replayed_as_they_were(project):
    with pytest.raises(NumericalError, match=r"(loss|gradient norm).* (nan|inf).* at step (\d)") as found:
        load().run("tiny", out=project / "run", overrides=["optimizer.ppo.learning_rate=1e30"])
    rows, _ = replayed(named_folder(found))
    assert [row for row in rows if row["not_finite"] or not math.isfinite(row["loss"])], "the same batch fails again"
    assert all(row["response"] is not None for row in rows)
    with pytest.raises(RunError, match="cannot be read"):
        replay(project / "run" / "failures" / "step-999999")


def test_a_full_disk_leaves_the_checkpoint_before_whole(project, monkeypatch):
    good = {"a": torch.arange(3), "b": {"c": [1, 2.5, None, "x"]}}
    checkpoint.save(project / "cp", good)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match=r"cp: the disk is full.*the checkpoint before is whole"):
        checkpoint.save(project / "cp", {"a": torch.zeros(3)})
    back = checkpoint.load(project / "cp")
    assert torch.equal(back["a"], good["a"]) and back["b"] == good["b"]
    assert [p.name for p in project.iterdir() if "partial" in p.name] == []


def test_a_file_size_limit_is_a_full_disk_for_real(project):
    """The kernel refuses the write itself; no function is replaced."""
    script = """
import resource, signal, sys, torch
from pathlib import Path
from rlhf_core.runs import checkpoint
from rlhf_core.errors import RunError
checkpoint.save(Path("cp"), {"a": torch.arange(3)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save(Path("cp"), {"a": torch.zeros(100_000)})
except RunError as error:
    print(error)
print(checkpoint.load(Path("cp"))["a"].tolist())
"""
    (project / "limit.py").write_text(script)
    done = python(project, "limit.py")
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout and "[0, 1, 2]" in done.stdout


def test_checkpoints_hold_only_tensors_and_json(project):
    with pytest.raises(TypeError, match="state at /a/b is a set; a checkpoint holds tensors and JSON only"):
        checkpoint.save(project / "cp", {"a": {"b": {1}}})
    with pytest.raises(TypeError, match="keys must be strings"):
        checkpoint.save(project / "cp", {1: 2})
    with pytest.raises(RunError, match="cannot be read"):
        checkpoint.load(project / "nothing")
    shared = torch.ones(4)
    checkpoint.save(project / "cp", {"a": shared, "b": shared[:2]})
    assert checkpoint.load(project / "cp")["b"].tolist() == [1.0, 1.0]
    (project / "cp" / "tensors.safetensors").write_bytes(b"rubbish")
    with pytest.raises(RunError, match=r"tensors.safetensors is damaged.*take an older one"):
        checkpoint.load(project / "cp")


def test_intervals_are_196_standard_errors():
    assert interval({"mean": 1.0, "error": 0.1, "n": 4}) == "1.000 ± 0.196"
    assert interval({"mean": None, "error": None}) == "-" and interval({"mean": 2.0, "error": None}) == "2.000"


def test_signals_are_handed_back(whole):
    assert signal.getsignal(signal.SIGINT) is BEFORE
