"""Checkpoints that are damaged, of another configuration or cannot be written, and what a killed process leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rlhf_core import hookimpl
from rlhf_core.api import load, resume_run
from rlhf_core.cli.app import build_app
from rlhf_core.errors import ConfigError, RunError
from rlhf_core.interfaces import Context, State
from rlhf_core.plugins import load_plugins
from rlhf_core.runs import changes, checkpoint
from rlhf_core.runs.directory import Log, new_directory, write_json
from rlhf_core.runs.display import Display
from rlhf_core.runs.kept import Kept
from rlhf_core.runs.shelf import Shelf
from rlhf_core.runs.signals import Interrupted
from rlhf_core.stages.config import ExportConfig, FitRewardConfig, OptimizeConfig
from rlhf_core.stages.export import Export
from rlhf_core.stages.fit_reward import FitReward
from rlhf_core.stages.optimize import Optimize
from rlhf_core.testing import tiny_run
from rlhf_core.testing.toys import ToyReward
from typer.testing import CliRunner

from .test_runs import project, write_project  # noqa: F401

CONFIG = OptimizeConfig(
    optimizer="toy",
    prompts="toy",
    rewards={"toy": 1.0},
    steps=4,
    sampling={"max_new_tokens": 4},  # type: ignore[arg-type]
)


def interrupted(folder: Path, after: int = 3) -> list[str]:
    """A run that was stopped, with a checkpoint at every step; the names of the checkpoints."""
    with pytest.raises(Interrupted):
        tiny_run(folder, Optimize, CONFIG, stop_after=after, checkpoint_every=1, keep_checkpoints=5).run(resume=False)
    return Shelf(folder, ["tiny"], 5).names


def go_on(folder: Path, **options: Any) -> dict[str, Any]:
    return tiny_run(folder, Optimize, CONFIG, checkpoint_every=1, keep_checkpoints=5).run(resume=True, **options)


def spoil(path: Path) -> None:
    """One bit of the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_named_and_the_one_before_leads_to_the_same_end(tmp_path: Path) -> None:
    tiny_run(tmp_path / "whole", Optimize, CONFIG).run(resume=False)
    names = interrupted(tmp_path / "run")
    assert names == ["000001-tiny-1", "000002-tiny-2", "000003-tiny-3"]
    folder = tmp_path / "run" / "checkpoints"
    spoil(folder / names[2] / "tensors.safetensors")
    (folder / names[1] / "state.json").unlink()
    with pytest.raises(
        RunError,
        match=r"checkpoint \S+/000003-tiny-3: tensors\.safetensors is damaged: its sha256 is \w{12}\.\.\., and was "
        r"\w{12}\.\.\. when written; expected the files as they were written; go on from the one before: "
        r"rlhf run tiny --resume --out \S+/run --checkpoint 000001-tiny-1$",
    ):
        go_on(tmp_path / "run")
    with pytest.raises(RunError, match=r"000002-tiny-2: state\.json is missing; .*--checkpoint 000001-tiny-1$"):
        go_on(tmp_path / "run", name=names[1])
    with pytest.raises(RunError, match=r"has no checkpoint '000001-tiny-2'; expected one of .*; did you mean '0000"):
        go_on(tmp_path / "run", name="000001-tiny-2")
    go_on(tmp_path / "run", name=names[0])
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "sha256.json"])
def test_every_file_of_a_checkpoint_is_looked_at(file: str, tmp_path: Path) -> None:
    names = interrupted(tmp_path, after=1)
    spoil(tmp_path / "checkpoints" / names[0] / file)
    with pytest.raises(RunError, match=r"is damaged.*no older one is whole: start a new run without --resume"):
        go_on(tmp_path)


def test_going_back_forgets_what_came_after(tmp_path: Path) -> None:
    names = interrupted(tmp_path)
    with pytest.raises(Interrupted):
        tiny_run(tmp_path, Optimize, CONFIG, stop_after=2).run(resume=True, name=names[0])
    assert Shelf(tmp_path, ["tiny"], 5).names == names[:2]
    assert [line["step"] for line in Log(tmp_path / "metrics.jsonl")] == [1, 2]


def test_metrics_that_are_shorter_than_at_the_checkpoint_are_not_made_up(tmp_path: Path) -> None:
    interrupted(tmp_path)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    os.truncate(tmp_path / "metrics.jsonl", 5)
    with pytest.raises(RunError, match=rf"metrics\.jsonl: 5 bytes; expected the {size} that were there"):
        go_on(tmp_path)


def test_checkpoints_are_ordered_by_step_and_then_by_stage(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, ["sft", "fit-reward", "evaluate"], 2)
    names = ["000006-fit-reward-0", "000006-sft-6", "1000000-evaluate-1", "000010-fit-reward-4", "notes"]
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert shelf.names == ["000006-sft-6", "000006-fit-reward-0", "000010-fit-reward-4", "1000000-evaluate-1"]
    shelf.save(shelf.path(1_000_001, "evaluate", 2), {})
    assert shelf.names == ["1000000-evaluate-1", "1000001-evaluate-2"], "the newest two"


# --- what a killed process leaves ------------------------------------------------------------------------------------


def test_what_was_being_written_goes_and_what_was_being_replaced_comes_back(tmp_path: Path) -> None:
    for folder in ("checkpoints/.000002-a-2.partial", "best/.a.old", "best/a", "components/.reward.b.old"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "components/.reward.b.old/state.json").touch()
    (tmp_path / ".summary.json.partial").touch()
    Shelf(tmp_path, ["a"], 2).clean()
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert left == [
        "best",
        "best/a",
        "checkpoints",
        "components",
        "components/reward.b",
        "components/reward.b/state.json",
    ]


def test_a_baseline_is_kept_like_the_reward(tmp_path: Path) -> None:
    config = FitRewardConfig(reward="one", feedback=["any"], baseline="other")
    tiny_run(tmp_path, FitReward, config).run(resume=False)
    assert sorted(path.name for path in (tmp_path / "components").iterdir()) == ["reward.one", "reward.other"]


def test_a_directory_of_a_run_that_never_began_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".registry.yaml.partial").touch()
    assert new_directory("any", tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run" / "checkpoints" / "mine").touch()
    with pytest.raises(RunError, match="is not an empty directory"):
        new_directory("any", tmp_path / "run")


def test_an_export_elsewhere_is_written_again_by_the_run_that_was_killed_after_it(tmp_path: Path) -> None:
    class Dies(Export):
        def finish(self) -> dict[str, Any]:
            raise SystemExit

    config = ExportConfig(path=str(tmp_path / "model"))
    with pytest.raises(SystemExit):
        tiny_run(tmp_path / "run", Dies, config).run(resume=False)
    (tmp_path / "model" / "model.safetensors").unlink()
    tiny_run(tmp_path / "run", Export, config).run(resume=True)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    with pytest.raises(RunError, match="model is not empty"):
        tiny_run(tmp_path / "other", Export, config).run(resume=False)


class Counting(ToyReward):
    """A reward whose state is a number."""

    value = 0

    def state_dict(self) -> State:
        return {"value": self.value}

    def load_state_dict(self, state: State) -> None:
        self.value = state["value"]


def test_what_a_stage_keeps_anew_leaves_the_earlier_state_for_a_run_that_goes_on_from_before(tmp_path: Path) -> None:
    """Killed after a stage had kept a reward that it changed, and before the next checkpoint."""

    def at(index: int, kept: bool) -> Any:
        run = tiny_run(tmp_path, Optimize, CONFIG, components={("reward", "r"): make})
        run._kept = Kept(tmp_path, stages=3)
        run._kept.stage = index
        if kept:  # as the checkpoint says
            run.artefacts["kept"] = {"reward.r": "components/reward.r"}
        return run

    def make(context: Context) -> Counting:
        reward = object.__new__(Counting)
        reward.context = context
        return reward

    first = at(0, kept=False)
    reward = first.component("reward", "r")
    for index, value in ((0, 1), (1, 5)):
        first._kept.stage, reward.value = index, value
        first.keep(reward)
    assert at(1, kept=True).component("reward", "r").value == 1, "the second stage begins again with what it began with"
    assert at(2, kept=True).component("reward", "r").value == 5
    assert checkpoint.load(tmp_path / "components" / "reward.r") == {"value": 5}, "what `load` reads"


# --- another configuration -------------------------------------------------------------------------------------------

SCHEDULE = "optimizer.ppo.learning_rate={schedule: linear, start: 1e-3}"


@pytest.mark.parametrize(("overrides", "begun", "key", "harmless"), [
    (["seed=1"], 1, "seed 0 -> 1", False),
    (["checkpoint_every=7"], 4, "checkpoint_every 2 -> 7", True),
    (["trackers=[tensorboard]"], 4, "trackers [] -> ['tensorboard']", True),
    (["optimizer.ppo.learning_rate=1e-3"], 2, "optimizer.ppo.learning_rate 0.003 -> 0.001", False),
    (["optimizer.ppo.learning_rate=1e-3"], 1, "optimizer.ppo.learning_rate 0.003 -> 0.001", True),  # optimize is ahead
    (["optimizer.ppo.micro_batch_tokens=64"], 2, "optimizer.ppo.micro_batch_tokens", True),
    (["stages.optimize.steps=9"], 2, "stages.optimize.steps 5 -> 9", True),
    (["stages.optimize.evaluate_every=1"], 2, "stages.optimize.evaluate_every 2 -> 1", True),
    (["stages.optimize.evaluate_every=1", "stages.optimize.best=vowels"], 2, "stages.optimize.evaluate_every", False),
    (["stages.optimize.sampling.max_new_tokens=4"], 2, "stages.optimize.sampling.max_new_tokens 8 -> 4", False),
    (["stages.evaluate.samples=5"], 2, "stages.evaluate.samples 2 -> 5", True),
    (["stages.evaluate.samples=5"], 3, "stages.evaluate.samples 2 -> 5", False),
    (["stages.sft.epochs=5"], 2, "stages.sft.epochs 2 -> 5", False),
    (["policy.tiny.lora={r: 4}"], 1, "policy.tiny.lora", False),
])  # fmt: skip
def test_which_changes_do_no_harm(project: Path, overrides: list[str], begun: int, key: str, harmless: bool) -> None:  # noqa: F811
    """`begun` of the four stages sft, optimize, evaluate, export have begun, the last of them is under way."""
    old, new = (changes.snapshot(load().resolve("tiny", o)) for o in ([], overrides))
    found = {str(change): change.harmless for change in changes.changes(old, new, begun, begun - 1)}
    (named,) = [text for text in found if text.startswith(key)]
    assert found[named] is harmless
    assert not changes.changes(old, json.loads(json.dumps(old)), begun, begun - 1)


def test_steps_may_not_change_where_a_schedule_is_stretched_over_them(project: Path) -> None:  # noqa: F811
    old, new = (changes.snapshot(load().resolve("tiny", [SCHEDULE, *o])) for o in ([], ["stages.optimize.steps=9"]))
    (change,) = changes.changes(old, new, 2, 1)
    assert not change.harmless


def test_stages_may_come_after_those_that_have_begun(project: Path) -> None:  # noqa: F811
    old = changes.snapshot(load().resolve("tiny"))
    new = {**old, "stages": {id: s for id, s in old["stages"].items() if id != "export"}}
    assert [c.harmless for c in changes.changes(old, new, 3, 2)] == [True]
    assert [c.harmless for c in changes.changes(old, new, 4, 3)] == [False]


def test_secrets_are_not_told(project: Path) -> None:  # noqa: F811
    change = changes.Change("reward.judge.api_key", "sesame", "open", False)
    assert str(change) == "reward.judge.api_key (hidden)"


class Stop:
    """Sends a signal when the checkpoint of this name has been saved."""

    def __init__(self, name: str, number: int = signal.SIGTERM) -> None:
        self.name, self.number = name, number

    @hookimpl
    def rlhf_checkpoint_saved(self, run: Any, path: Path) -> None:
        if path.name == self.name:
            os.kill(os.getpid(), self.number)


def test_a_signal_between_stages_stops_there_and_a_changed_run_goes_on_only_if_it_may(project: Path) -> None:  # noqa: F811
    plugins = load_plugins()
    plugins.manager.register(Stop("000003-optimize-0"))
    short = ["stages.sft.epochs=1", "stages.optimize.steps=1", "stages.optimize.evaluate_every=0"]
    quiet = Display(quiet=True)
    with pytest.raises(
        Interrupted, match=r"stopped by SIGTERM at a checkpoint; go on with: rlhf run tiny --resume --out \S+run$"
    ) as found:
        load(plugins=plugins).run("tiny", out="run", overrides=short, display=quiet)
    assert found.value.exit_code == 143
    assert {line["stage"] for line in Log(project / "run" / "metrics.jsonl")} == {"sft"}
    with pytest.raises(
        RunError,
        match=r"checkpoint \S+/000003-optimize-0: 3 settings differ from its own: seed 0 -> 1; keep_checkpoints 2 -> 3; "
        r"stages\.evaluate\.samples 2 -> 1; expected the configuration that it was taken with; leave what was computed "
        r"with it as it was, or start a new run without --resume; keep_checkpoints, stages\.evaluate\.samples alone may "
        r"change, with --allow-config-change",
    ):
        resume_run("tiny", out="run", overrides=["seed=1", "keep_checkpoints=3", "stages.evaluate.samples=1"])
    with pytest.raises(RunError, match=r"1 setting differs from its own: seed 0 -> 1;.*start a new run without"):
        resume_run("tiny", out="run", overrides=["seed=1"], allow_config_change=True)
    harmless = ["stages.evaluate.samples=1"]
    with pytest.raises(RunError, match=r"samples 2 -> 1; .*; add --allow-config-change: this does no harm to what was"):
        resume_run("tiny", out="run", overrides=harmless)
    plugins = load_plugins()
    plugins.manager.register(Stop("000004-evaluate-0", signal.SIGINT))
    with pytest.raises(Interrupted):
        resume_run("tiny", out="run", overrides=harmless, allow_config_change=True, plugins=plugins, display=quiet)
    facts = json.loads((project / "run" / "provenance.json").read_text())
    assert facts["changed"] == [{"at": "000003-optimize-0", "settings": ["stages.evaluate.samples 2 -> 1"]}]
    resume_run("tiny", out="run", display=quiet)  # from now on it is the run's own
    assert len(list(Log(project / "run" / "samples.jsonl"))) == 1

    (project / "run" / "report.html").unlink()  # as if it had been killed while it wrote that
    again = resume_run("tiny", out="run", display=quiet)
    assert again.report is not None and again.report.is_file() and again.summary["pipeline"] == "tiny"


def test_a_second_stage_with_the_same_optimizer_and_shapers_is_the_same_after_an_interruption_between(
    project: Path,  # noqa: F811
) -> None:
    """The adaptive coefficient of the KL shaper and the moving average of REINFORCE begin anew in both."""
    pytest.importorskip("rlhf_plugin_reinforce")
    text = (project / "registry.yaml").read_text()
    start, end = text.index("      - sft:"), text.index("      - evaluate:")
    stage = "      - optimize: {id: NAME, optimizer: reinforce, prompts: questions, rewards: {vowels: 1.0}, shapers: [kl],\n"
    stage += "                   steps: 2, sampling: {max_new_tokens: 8}}\n"
    stages = stage.replace("NAME", "one") + stage.replace("NAME", "two")
    text = text[:start] + stages + text[end:].replace("      - evaluate:", "#")
    (project / "registry.yaml").write_text(text.replace("use: ppo", "use: reinforce").replace("ppo:", "reinforce:"))
    quiet = Display(quiet=True)
    load().run("tiny", out="whole", display=quiet)
    plugins = load_plugins()
    plugins.manager.register(Stop("000002-two-0"))
    with pytest.raises(Interrupted):
        load(plugins=plugins).run("tiny", out="run", display=quiet)
    resume_run("tiny", out="run", display=quiet)
    lines = list(Log(project / "run" / "metrics.jsonl"))
    assert lines == list(Log(project / "whole" / "metrics.jsonl")) and len(lines) == 5


def test_another_registry_file_can_be_named(project: Path) -> None:  # noqa: F811
    plugins = load_plugins()
    plugins.manager.register(Stop("000003-optimize-0"))
    with pytest.raises(Interrupted):
        load(plugins=plugins).run("tiny", out="run", overrides=["stages.sft.epochs=1"], display=Display(quiet=True))
    told = CliRunner().invoke(build_app(), ["run", "tiny", "--resume", "--out", "run", "--registry", "registry.yaml"])
    assert isinstance(told.exception, RunError) and "stages.sft.epochs 1 -> 2" in str(told.exception)
    for option in (["--checkpoint", "000003-optimize-0"], ["--allow-config-change"]):
        told = CliRunner().invoke(build_app(), ["run", "tiny", *option])
        assert isinstance(told.exception, ConfigError)
        assert str(told.exception).startswith(f"{option[0]}: without --resume; expected a run to go on with")


# --- disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "words"), [
    (errno.ENOSPC, r"the disk is full; expected room for it; free some space and go on with --resume; the checkpoint before"),
    (errno.EROFS, r"cannot be written: it is read-only; expected a place that can be written; mend that and go on with"),
    (errno.EIO, r"cannot be written: \[Errno 5\] Input/output error; expected a place that can be written"),
])  # fmt: skip
def test_what_the_file_system_refuses_is_told(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = interrupted(tmp_path)
    (tmp_path / "old.json").write_text("old")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "sync", refuse)
        with pytest.raises(RunError, match=rf"checkpoint \S+/000004-tiny-4: {words}"):
            tiny_run(tmp_path, Optimize, CONFIG, stop_after=4, checkpoint_every=1).run(resume=True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(RunError, match=rf"old\.json: {words}"):
            write_json(tmp_path / "old.json", {})
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(RunError, match=rf"metrics\.jsonl: {words}"):
            Log(tmp_path / "metrics.jsonl").append({})
    assert (tmp_path / "old.json").read_text() == "old"
    assert not list(tmp_path.rglob(".*"))
    assert [checkpoint.damage(tmp_path / "checkpoints" / name) for name in names] == [""] * 3
    assert go_on(tmp_path)["steps"] == {"tiny": 4}


def test_a_disk_that_fills_up_in_a_stage_is_told_and_a_missing_file_is_not_called_that(tmp_path: Path) -> None:
    class Writes(Optimize):
        number = errno.ENOSPC

        def step(self, index: int) -> dict[str, float]:
            raise OSError(self.number, os.strerror(self.number), "weights.bin")

    with pytest.raises(RunError, match=r"stage 'tiny': the disk is full \(weights\.bin\)"):
        tiny_run(tmp_path / "a", Writes, CONFIG).run(resume=False)
    Writes.number = errno.EACCES
    with pytest.raises(PermissionError):
        tiny_run(tmp_path / "b", Writes, CONFIG).run(resume=False)


DISK = """\
import os, subprocess, sys
from pathlib import Path
from rlhf_core.errors import RunError
from rlhf_core.runs import checkpoint
from rlhf_core.stages.config import ExportConfig, FitRewardConfig, OptimizeConfig
from rlhf_core.stages.export import Export
from rlhf_core.stages.optimize import Optimize
from rlhf_core.testing import Interrupted, tiny_run

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
config = OptimizeConfig(optimizer="toy", prompts="toy", rewards={"toy": 1.0}, steps=3, sampling={"max_new_tokens": 4})

def run(stop, resume):
    try:
        tiny_run(disk / "run", Optimize, config, stop_after=stop, checkpoint_every=1).run(resume=resume)
        print("done")
    except Interrupted:
        print("stopped")
    except RunError as error:
        print(error)

run(1, False)
with (disk / "junk").open("wb", buffering=0) as junk:
    try:
        while junk.write(bytes(4096)):
            pass
    except OSError:
        pass
run(None, True)
os.unlink(disk / "junk")
run(2, True)
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
run(None, True)
subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
run(None, True)
print(*sorted(p.name for p in (disk / "run").rglob(".*")))
"""


def test_a_disk_that_is_full_and_one_that_is_read_only_for_real(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk.py").write_text(DISK)
    alone = ["unshare", "--mount", "--map-root-user"]
    possible = (
        shutil.which("unshare")
        and not subprocess.run(
            [*alone, "mount", "-t", "tmpfs", "tmpfs", tmp_path / "disk"], capture_output=True
        ).returncode
    )
    if not possible:
        pytest.skip("no file system can be mounted here")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*alone, sys.executable, tmp_path / "disk.py", tmp_path / "disk"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    stopped, full, stopped_again, read_only, finished, left = done.stdout.split("\n")[:6]
    assert (stopped, stopped_again, finished, left) == ("stopped", "stopped", "done", "")
    assert "the disk is full" in full and "free some space and go on with --resume" in full
    assert "cannot be written: it is read-only" in read_only and str(tmp_path / "disk" / "run") in read_only
