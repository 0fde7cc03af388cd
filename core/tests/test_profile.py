"""Where the time of steps goes, and that the garbage collector stays out of them."""

from __future__ import annotations

import gc
import io
import json
import re
import signal
import weakref
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rlhf_core.api import load
from rlhf_core.cli.app import build_app
from rlhf_core.errors import RewardError
from rlhf_core.interfaces import PHASES, Clock, Context
from rlhf_core.runs import collector as collectors
from rlhf_core.runs.collector import Collector
from rlhf_core.runs.directory import Log
from rlhf_core.runs.display import Display
from rlhf_core.runs.profile import device_done, profiles
from rlhf_core.runs.report import write_report
from rlhf_core.runs.signals import Interrupted
from typer.testing import CliRunner

from .test_runs import project, write_project  # noqa: F401

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
DURING = ["generation", "scoring", "reward", "shaping", "update", "overhead"]  # of a step of optimize


class Watch:
    """A clock that a test moves on by hand."""

    def __init__(self) -> None:
        self.time, self.looks = 100.0, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.time


# --- the clock ---


def test_of_nested_phases_only_the_inner_one_counts() -> None:
    watch = Watch()
    clock = Clock(watch)
    with clock("update"):
        watch.time += 1
        with clock("scoring"):
            watch.time += 10
            with clock("reward"):
                watch.time += 100
            watch.time += 1000
        watch.time += 10_000
    watch.time += 5  # outside of any phase
    with clock("reward"):
        watch.time += 100_000
    assert clock.seconds == {"scoring": 1010, "reward": 100_100, "update": 10_001}
    assert list(clock.seconds) == ["scoring", "reward", "update"]  # in the order of a step
    clock.reset()
    assert clock.seconds == {}


def test_a_whole_phase_keeps_what_is_inside() -> None:
    watch = Watch()
    clock = Clock(watch)
    with clock("overhead"):
        with clock("evaluation", whole=True), clock("generation"), clock("scoring"):
            watch.time += 3
        with clock("generation"):
            watch.time += 4
    assert clock.seconds == {"generation": 4, "evaluation": 3, "overhead": 0}


def test_an_error_leaves_the_phase() -> None:
    watch = Watch()
    clock = Clock(watch)
    with clock("overhead"):
        with pytest.raises(ZeroDivisionError), clock("update"):
            watch.time += 1
            raise ZeroDivisionError
        watch.time += 2
    assert clock.seconds == {"update": 1, "overhead": 2}


def test_every_look_waits_if_it_is_to_and_a_phase_costs_two() -> None:
    watch, waited = Watch(), []
    with Clock(watch, wait=lambda: waited.append(watch.looks))("a phase of a plugin"):
        pass
    assert waited == [0, 1] and watch.looks == 2  # first the waiting, then the look


def test_only_a_device_is_waited_for() -> None:
    assert device_done(torch.device("cpu")) is None and device_done(torch.device("cuda", 0)) is not None


def test_components_of_a_run_share_a_clock_and_contexts_do_not() -> None:
    context = Context()
    assert context.named("reward", "a").clock is context.clock
    assert Context().clock is not context.clock


# --- a profile ---


def test_medians_are_over_the_steps_that_have_the_phase_and_shares_over_all() -> None:
    steps = [{"update": 1.0}, {"update": 3.0, "evaluation": 4.0}, {"update": 2.0, "own": 10.0}]
    lines = [{"stage": "optimize", "step": i, "seconds": 9.0, "phases": p} for i, p in enumerate(steps)]
    found = profiles([{"stage": "sft", "step": 1, "seconds": 5.0}, *lines])
    assert [p.stage for p in found] == ["optimize"]
    rows = [(r.name, r.steps, r.median, r.share) for r in found[0].phases]
    assert rows == [("update", 3, 2.0, 0.3), ("evaluation", 1, 4.0, 0.2), ("own", 1, 10.0, 0.5)]
    assert (found[0].phases[0].step, found[0].phases[0].percent) == ("2.0000 s", "30.0 %")


def test_a_profile_of_nothing_and_of_damaged_lines() -> None:
    lines = [{"phases": None}, {"phases": {}}, {"phases": [1]}, {"stage": "a", "phases": {"update": None}}, {}]
    assert [len(p.phases) for p in profiles(lines)] == [0]
    (found,) = profiles([{"stage": "a", "phases": {"update": 0.0}}])
    assert found.phases[0].share == 0


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A profiled run, another without, and what the terminal showed of the first."""
    folder = tmp_path_factory.mktemp("profiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_project(folder)
        file = io.StringIO()
        run = load().run("tiny", out=folder / "a", profile=True, display=Display(Console(file=file, width=100)))
        plain = load().run("tiny", out=folder / "b", display=Display(quiet=True))
    return run.directory, plain.directory, file.getvalue()


def test_a_profiled_run_says_where_the_time_of_every_step_went(profiled):
    lines = list(Log(profiled[0] / "timings.jsonl"))
    assert len(lines) == 13
    for line in lines:
        assert list(line) == ["stage", "step", "seconds", "phases"]
        assert list(line["phases"]) == [name for name in PHASES if name in line["phases"]]
        assert sum(line["phases"].values()) == pytest.approx(line["seconds"], abs=5e-4)  # eight roundings
        assert all(seconds == round(seconds, 4) for seconds in line["phases"].values())
    stages = {name: [line["phases"] for line in lines if line["stage"] == name] for name in ("sft", "optimize")}
    assert all(list(phases) == ["update"] for phases in stages["sft"])
    for step, phases in enumerate(stages["optimize"], 1):  # evaluated every second step
        assert [p for p in phases if p != "evaluation"] == DURING and ("evaluation" in phases) == (step % 2 == 0)
    for name in (*DURING, "evaluation"):
        assert sum(phases.get(name, 0) for phases in stages["optimize"]) > 0, name
    assert list(lines[-2]["phases"]) == ["generation", "scoring", "reward", "overhead"]
    assert list(lines[-1]["phases"]) == ["overhead"]


def test_a_profile_changes_nothing_else(profiled):
    run, plain, _ = profiled
    assert all(set(line) == {"stage", "step", "seconds"} for line in Log(plain / "timings.jsonl"))
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (run / name).read_bytes() == (plain / name).read_bytes()
    assert {p.name for p in run.iterdir()} == {p.name for p in plain.iterdir()}


def test_the_terminal_shows_a_table_at_the_end(profiled):
    text = profiled[2]
    table = text[text.index("profile: where the time of steps went") :]
    row = re.search(r"optimize +│ generation │ +5 │ +\d\.\d{4} s │ +\d+\.\d %", table)
    assert row and re.search(r"│ evaluation │ +2 │", table) and text.count("a step (median)") == 1


def test_the_report_shows_it_and_is_as_before_without(profiled):
    run, plain, _ = profiled
    page, other = ((d / "report.html").read_text() for d in (run, plain))
    assert re.search(r'rowspan="7">optimize</th><th scope="row">generation</th><td class="n">5</td>', page)
    assert page.count('<td><svg width="150"') == 13
    assert "Where it went" not in other
    bare = run.parent / "bare"
    bare.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (bare / file.name).write_bytes(file.read_bytes())
    lines = [{k: v for k, v in line.items() if k != "phases"} for line in Log(run / "timings.jsonl")]
    (bare / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stripped = re.sub(r"<h3>Where it went.*?</table>\n</div>\n", "", page, flags=re.S)
    assert write_report(bare).read_text() == stripped != page


def test_a_resumed_run_and_a_dry_run_can_be_profiled(project):  # noqa: F811
    (project / "registry.yaml").write_text((project / "registry.yaml").read_text().replace("steps: 5", "steps: 3"))

    class Stopping(Display):
        """Has the run stopped from within, after the second of three steps."""

        def step(self, name, step, total, stats):
            if (name, step) == ("optimize", 2):
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        load().run("tiny", out="run", display=Stopping(quiet=True))
    file = io.StringIO()
    load().run("tiny", out="run", resume=True, profile=True, display=Display(Console(file=file, width=100)))
    lines = list(Log(project / "run" / "timings.jsonl"))
    assert ["phases" in line for line in lines] == [False] * 8 + [True] * 3
    assert "sft" not in file.getvalue().split("profile:")[1]  # it was over when the profile began
    file = io.StringIO()
    load().run("tiny", dry_run=True, profile=True, display=Display(Console(file=file, width=100)))
    assert "│ update" in file.getvalue().split("profile:")[1]


def test_help_and_guide_say_what_each_phase_holds():
    shown = CliRunner().invoke(build_app(), ["run", "--help"], env={"COLUMNS": "200"}).output
    words = " ".join(shown.replace("│", " ").split())
    assert "--profile" in words
    guide = GUIDE.read_text(encoding="utf-8")
    for phase, what in PHASES.items():
        assert f"{phase}: {what}" in words and f"| {phase} | {what} |" in guide


# --- the garbage collector ---


class Knot:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def collecting():
    """The collector on and nothing frozen, as most programs have it, and as it was after the test."""
    was = gc.isenabled()
    gc.enable()
    gc.unfreeze()
    yield
    gc.unfreeze()
    (gc.enable if was else gc.disable)()


def test_no_collection_begins_in_a_step(collecting):
    runs = []

    def told(phase, info):
        runs.append(phase)

    with Collector() as collector:
        with collector.off():
            gc.callbacks.append(told)
            try:
                assert not gc.isenabled()
                kept = [[] for _ in range(10 * gc.get_threshold()[0])]
                assert len(kept) and runs == []
            finally:
                gc.callbacks.remove(told)
        assert gc.isenabled()


def test_cycles_of_steps_do_not_pile_up(collecting):
    alive: list[weakref.ref[Knot]] = []
    with Collector() as collector:
        for _ in range(20):
            with collector.off():
                alive.append(weakref.ref(Knot()))
            assert sum(knot() is not None for knot in alive) == 0


def test_what_outlives_a_step_is_collected_now_and_then(collecting, monkeypatch):
    monkeypatch.setattr(collectors, "FULL_EVERY", 5)
    with Collector() as collector:
        knot = Knot()
        alive = weakref.ref(knot)
        for step in range(1, 6):
            with collector.off():
                if step == 3:
                    del knot  # by now it is as old as the libraries
            assert (alive() is None) == (step == 5)


def test_what_was_there_before_is_frozen_until_the_end(collecting):
    knot = Knot()
    alive = weakref.ref(knot)
    with Collector():
        assert gc.get_freeze_count() > 0
        del knot
        gc.collect()
        assert alive() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert alive() is None


def test_a_clean_start_frees_what_an_earlier_stage_left(collecting):
    gc.disable()  # or it might be collected by chance
    alive = weakref.ref(Knot())
    gc.enable()
    with Collector(clean=True):
        assert alive() is None


def test_the_state_of_the_caller_is_restored_after_an_error(collecting):
    with pytest.raises(ZeroDivisionError), Collector() as collector, collector.off():
        raise ZeroDivisionError
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_a_collector_that_was_off_stays_off(collecting):
    gc.disable()
    alive = weakref.ref(Knot())
    with Collector(clean=True) as collector:
        with collector.off():
            pass
        assert not gc.isenabled() and gc.get_freeze_count() == 0
    assert not gc.isenabled() and alive() is not None


def test_what_the_caller_froze_stays_frozen(collecting):
    gc.freeze()
    count = gc.get_freeze_count()
    with Collector() as collector, collector.off():
        pass
    assert gc.isenabled() and gc.get_freeze_count() == pytest.approx(count, rel=0.01)  # some of it may have died


def test_a_run_has_no_collection_in_its_steps_and_leaves_no_trace(project, collecting):  # noqa: F811
    (project / "rewards.py").write_text(
        (project / "rewards.py").read_text()
        + "import gc\n"
        + "def short(prompts, completions, **columns):\n"
        + "    open('collector', 'w').write(f'{gc.isenabled()} {gc.get_freeze_count() > 0}')\n"
        + "    return [0.0]\n"
    )
    with pytest.raises(RewardError, match="short"):
        load().run("tiny", out="run", overrides=["stages.optimize.rewards={short: 1.0}"], display=Display(quiet=True))
    assert (project / "collector").read_text() == "False True"  # in a step
    assert gc.isenabled() and gc.get_freeze_count() == 0
