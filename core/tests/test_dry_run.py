"""The dry run: what it extrapolates, what it counts, what it warns of, and how it looks."""

from __future__ import annotations

import re
import tempfile

import pytest
import torch
from rich.console import Console
from rlhf_core.api import load
from rlhf_core.cli.dry_run import seconds, show_dry_run
from rlhf_core.dry_run import driver, measured
from rlhf_core.dry_run.measured import line
from rlhf_core.dry_run.memory import Meter, MeteredClock, held, libraries_apart, trained_parameters
from rlhf_core.interfaces import Context

from .test_runs import project  # noqa: F401

MIB = 2**20
WORDS = [  # option -> what is warned of
    ("stages.optimize.shapers=[]", r"optimize: nothing holds the policy near its reference \(KL is off\)"),
    ("stages.optimize.rewards={vowels: 100}", r"optimize: scores are around .* add a shaper such as whiten or scale"),
    ("optimizer.ppo.gamma=0.5", r"a discount of 0.5 with the reward at the end of up to 4 tokens"),
    (
        "stages.optimize.sampling.max_new_tokens=4",
        r"100% of the demonstrations that it learns from are longer than max",
    ),
]


def tried(overrides=(), pipeline="tiny"):
    """(stages, summary) of a dry run."""
    summary = load().run(pipeline, dry_run=True, overrides=overrides).summary
    return summary["dry_run"]["stages"], summary


def test_a_line_goes_through_the_last_two_points_and_does_not_fall():
    assert line([(1, 10.0), (2, 13.0)], 5) == 22.0
    assert line([(1, 99.0), (2, 10.0), (4, 16.0)], 8) == 28.0
    assert line([(1, 10.0), (2, 8.0)], 64) == 8.0  # the first was cold
    assert line([(3, 7.0)], 64) == 7.0
    assert line([(4, 7.0), (4, 9.0)], 64) == 9.0  # a budget had been reached at both
    assert line([(2, 6.0), (4, 12.0)], 1) == 3.0


def test_the_meter_sees_the_most_bytes_of_each_phase():
    meter = Meter(torch.device("cpu"))
    clock = MeteredClock(meter)
    outside = torch.ones(256, 1024)  # 1 MiB that is there before
    with meter():
        with clock("scoring"):
            a = outside * 2
            b = a + outside
            del b
            a.add_(1)  # in place
            view = a[:10].view(-1)
        with clock("update"):
            del a
            assert len(view) == 10240  # keeps the whole storage
            del view
            c = outside + 1
            del c
        with clock("shaping"):
            assert outside.sum() > 0
    assert meter.peaks["scoring"] == 2 * MIB and meter.peaks["update"] == MIB
    assert meter.peaks["shaping"] < 100


def test_the_meter_sees_what_is_kept_for_the_backward_pass():
    x, weight = torch.randn(512, 512), torch.nn.Parameter(torch.randn(512, 512))  # 1 MiB each
    meter = Meter(torch.device("cpu"))
    with meter():
        loss = (x @ weight).exp().exp().sum()  # both results of exp are kept, matmul's is not
        meter.note("forward")
        with trained_parameters() as trained:
            loss.backward()
        meter.note("backward")
    assert meter.peaks["forward"] == 2 * MIB + 4
    assert 3 * MIB <= meter.peaks["backward"] <= 5.1 * MIB
    assert [p is weight for p in trained] == [True] and weight.grad is not None


def test_what_is_held_is_counted_once_and_by_role(project):  # noqa: F811
    from rlhf_core.interfaces import Needs

    with libraries_apart():
        policy = load().build("policy", "tiny", Context())
        policy.prepare(Needs(values=True))
        policy.set_reference("stage-start")
        parameters = list(policy.module.parameters())
        whole = sum(p.numel() for p in parameters)
        critic = sum(p.numel() for p in policy.value_parameters)
        found = held(policy, [policy])
        optimizer = torch.optim.AdamW(parameters)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        again = held(policy, [policy])
    assert critic == 33 and found["critic"] == 4 * critic
    assert 4 * (whole - critic) == found["reference"]
    assert found["policy"] - found["reference"] == sum(b.nbytes for b in policy.module.buffers())
    assert again["optimizer"] == sum(2 * 4 * p.numel() + 4 for p in parameters)  # and a step each


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dry run of the tiny pipeline whose steps grow until they are whole; the folders it saw."""
    from .test_runs import write_project

    folder = tmp_path_factory.mktemp("whole")
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        scratch = folder / "scratch"
        scratch.mkdir()
        patch.setattr(tempfile, "tempdir", str(scratch))
        patch.setattr(measured, "PATIENCE", 1e9)
        patch.setattr(measured, "PATIENCE_BY_CLOCK", 1e9)
        stages, summary = tried()
        left = sorted(path.name for path in [*folder.iterdir(), *scratch.iterdir()])
    return stages, summary, left


def test_every_stage_says_what_a_step_takes(whole):
    stages, summary, left = whole
    assert list(stages) == ["sft", "optimize", "evaluate", "export"] == list(summary["steps"])
    assert summary["steps"] == {"sft": 6, "optimize": 5, "evaluate": 1, "export": 1}
    parts = stages["optimize"]["parts"]
    longest = max(parts["units"].values()) // 8
    assert (stages["optimize"]["whole"], parts["samples"], parts["accumulation"]) == (8, 8, 1)
    assert parts["updates"] == 2 * 2  # two epochs over two minibatches of 4
    assert parts["longest"] == longest and parts["units"]["update"] == 4 * longest
    assert stages["sft"]["whole"] == 8 and stages["sft"]["what"] == "examples"
    assert stages["evaluate"]["whole"] == stages["evaluate"]["tried"] == 6 and stages["export"]["whole"] == 0
    weights = stages["optimize"]["memory"]
    assert weights["gradients"] == 4 * stages["optimize"]["trained"] == 4 * summary["trainable"]
    assert 0 <= weights["optimizer"] - 8 * summary["trainable"] < 1000
    for stage in stages.values():
        assert stage["peak"] == sum(stage["memory"].values())  # on a CPU; elsewhere less the smaller one on top
    known = ["demos.jsonl", "prompts.jsonl", "registry.yaml", "rewards.py", "scratch"]
    assert [name for name in left if name != "__pycache__"] == known, "nothing is written that stays"
    assert summary["warnings"] == [w for w in summary["warnings"] if "demonstrations" in w]


def test_small_steps_foretell_the_memory_of_whole_ones(whole, project, monkeypatch):  # noqa: F811
    monkeypatch.setattr(measured, "PATIENCE", 0.0)
    monkeypatch.setattr(measured, "PATIENCE_BY_CLOCK", 0.0)
    seen = []

    class Heard:
        def notify(self, hook, **arguments):
            seen.append(hook)
            return []

    loaded = load()
    monkeypatch.setattr(type(loaded.plugins), "notify", Heard.notify)
    stages = loaded.run("tiny", dry_run=True).summary["dry_run"]["stages"]
    assert not seen, "listeners are told of runs alone"
    for name in ("sft", "optimize", "evaluate"):
        small, true = stages[name], whole[0][name]
        assert small["tried"] == 2 < true["tried"]
        for part in ("activations", "cache"):
            assert small["memory"][part] == pytest.approx(true["memory"][part], rel=0.25, abs=50_000), (name, part)


def test_it_warns_of_what_goes_wrong_later(project, monkeypatch):  # noqa: F811
    monkeypatch.setattr(measured, "PATIENCE", 0.0)
    monkeypatch.setattr(measured, "PATIENCE_BY_CLOCK", 0.0)
    (project / "rewards.py").write_text(
        "def vowels(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n"
    )
    _, summary = tried([option for option, _ in WORDS])
    text = "\n".join(summary["warnings"])
    for _, words in WORDS:
        assert re.search(words, text), text


def test_it_warns_of_one_sample_of_truncation_and_of_memory(project, monkeypatch):  # noqa: F811
    monkeypatch.setattr(measured, "PATIENCE", 0.0)
    monkeypatch.setattr(driver.DryRun, "room", lambda self: 2**20)
    text = (project / "registry.yaml").read_text()
    first, last = text.index("      - sft:"), text.index("      - optimize:")
    (project / "registry.yaml").write_text(text[:first] + text[last:])
    one = ["optimizer.ppo.prompts_per_step=1", "optimizer.ppo.minibatch_size=1"]
    stages, summary = tried(one)
    warnings = "\n".join(summary["warnings"])
    assert "optimize: a step has one sample, a group of one" in warnings
    assert "of the responses to 6 prompts are cut at max_new_tokens (8)" in warnings
    assert "optimize: needs about" in warnings and "and there are 0.0 GiB: lower micro_batch_tokens" in warnings
    assert stages["optimize"]["tried"] == 1


def test_the_table_fits_a_narrow_and_a_wide_terminal(whole):
    for width in (60, 80, 120):
        console = Console(width=width, record=True, highlight=False, quiet=False, file=open("/dev/null", "w"))
        show_dry_run(whole[1], console)
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        for words in ("Python and libraries", "optimizer states", "weights trained", "accumulation", "8 prompts"):
            assert words in text
        assert "…" not in text
    assert "sft -> optimize -> evaluate -> export" in text and "parameters" in text


def test_the_whole_time_is_steps_and_what_is_around_them():
    stage = {"steps": 10, "step_seconds": 2.0, "setup_seconds": 1.0, "evaluation_seconds": 3.0, "finish_seconds": 0.5}
    assert seconds(stage) == 24.5
