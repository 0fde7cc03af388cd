"""Several processes by `accelerate launch`: the same batch gives the same run as one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from rlhf_core.api import load
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Context, OptimizerSettings
from rlhf_core.policies.config import CausalLMConfig
from rlhf_core.policies.language_model import LanguageModel
from rlhf_core.records import Prompt
from rlhf_core.rl.sampler import Sampler
from rlhf_core.stages.optimize import Optimize
from rlhf_core.training import parts
from rlhf_core.training.adamw import make_adamw
from safetensors.torch import load_file

from . import launched
from .test_runs import REGISTRY, REWARDS, metrics, project  # noqa: F401

pytest.importorskip("rlhf_plugin_ppo")

WITHOUT_DROPOUT = (  # which draws other masks where the batch is cut otherwise
    "policy.tiny.fresh.sizes={n_embd: 32, n_layer: 2, n_head: 4, n_positions: 64, resid_pdrop: 0, embd_pdrop: 0, "
    "attn_pdrop: 0}"
)
SETTINGS = [
    "stages.optimize.steps=2", "stages.optimize.evaluate_every=0", "stages.sft.epochs=1",
    "stages.sft.learning_rate=1e-30",  # the first rollout is of the policy as it was made, in every precision
    "shaper.kl.target=null", "shaper.kl.coef=0.1", WITHOUT_DROPOUT,
]  # fmt: skip
FIRST = 4  # updates before the first rollout has changed anything: three of sft and one
JOBS = {
    # so small parts that one process has more of them than the other
    "ppo": [*SETTINGS, "dtype=float64", "optimizer.ppo.micro_batch_tokens=40"],
    "float32": [*SETTINGS, "optimizer.ppo.micro_batch_tokens=40"],
    "sharded": [*SETTINGS, "dtype=float64", "optimizer.ppo.micro_batch_tokens=40", "policy.tiny.sharded=true"],
    **{
        name: [
            *SETTINGS, "dtype=float64", f"stages.optimize.optimizer={name}", f"optimizer.{name}.prompts_per_step=8",
            f"optimizer.{name}.minibatch_size=8", "stages.optimize.shapers=[scale,kl,whiten]",
        ]
        for name in ("reinforce", "a2c")
    },
}  # fmt: skip


def launch(folder, *arguments, wait=300):
    """`accelerate launch` with two processes, which on CPUs it leaves to torchrun only if told --multi_gpu."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", *map(str, arguments),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=wait)


def words(settings):
    """As the command line takes them."""
    return [word for setting in settings for word in ("--set", setting)]


def distance(mine, theirs):
    """Norm of the difference over the norm, of all tensors together."""
    assert mine.keys() == theirs.keys()
    apart = sum(float((mine[name] - theirs[name]).double().square().sum()) for name in mine)
    return (apart / sum(float(tensor.double().square().sum()) for tensor in mine.values())) ** 0.5


def updates(path):
    """The gradients of each update."""
    tensors, found = load_file(path), {}
    for name, tensor in tensors.items():
        number, parameter = name.split(".")
        found.setdefault(int(number), {})[parameter] = tensor
    return [found[number] for number in sorted(found)]


@pytest.fixture
def one_thread():
    """As the launched processes have it, whatever the test run was given: sums of two threads differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


DEADLY = """

def deadly(prompts, completions, **columns):
    import os, signal
    deadly.calls += 1
    if os.environ.get("RANK") == "1" and deadly.calls == 3 and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return vowels(prompts, completions)

deadly.calls = 0
"""
KILLED = [
    *SETTINGS, "dtype=float64", "checkpoint_every=1", "stages.optimize.steps=4", "stages.sft.learning_rate=3e-3",
    "policy.tiny.sharded=true", "stages.optimize.rewards={deadly: 1.0}",
]  # fmt: skip
DIED = "process 0 of 2 waited in vain for another one, which has died"


@pytest.fixture
def dangerous(project):  # noqa: F811
    """The project with a reward that kills the second process when it is asked for the third time."""
    (project / "rewards.py").write_text(REWARDS + DEADLY)
    text = REGISTRY.replace("functions: {", "functions: {deadly: rewards.py:deadly, ")
    text = text.replace("  reward:\n", "  reward:\n    deadly: {use: function, config: {function: deadly}}\n", 1)
    (project / "registry.yaml").write_text(text)
    return project


def compare(project, names, *more):  # noqa: F811
    """Run `JOBS` in one process and in two, the latter in one launch that ends with runs that fail; `more` of them."""
    alone, two = project / "alone", project / "two"
    (two / "taken").mkdir(parents=True)
    (two / "taken" / "mine.txt").write_text("precious")
    jobs = {name: JOBS[name] for name in names}
    (project / "jobs.json").write_text(
        json.dumps({**jobs, "taken": SETTINGS, **dict.fromkeys(more, JOBS["sharded"]), "dies": KILLED})
    )
    done = launch(project, Path(launched.__file__), two, project / "jobs.json")
    assert (project / "killed").exists() and done.returncode != 0, done.stdout + done.stderr
    assert DIED in (two / "dies.0").read_text() and "rlhf run tiny --resume --out" in (two / "dies.0").read_text()
    for rank in (0, 1):  # what goes wrong in one is told by all
        assert "is not an empty directory" in (two / f"taken.{rank}").read_text()
    assert done.stdout.count("run directory") == len(jobs) + len(more) + 1  # one voice
    for name, settings in jobs.items():
        assert json.loads((two / name / "provenance.json").read_text())["machine"]["processes"] == 2
        launched.run(alone, name, settings)
        assert (two / f"{name}.shared-out").read_text() == ("24" if name == "sharded" else "0")  # 12 of each layer
        single = name == "float32"
        pairs = zip(updates(alone / f"{name}.safetensors"), updates(two / f"{name}.safetensors"), strict=True)
        for number, (mine, theirs) in enumerate(pairs):
            bound = (1e-5 if single else 1e-10) if number < FIRST else (1e-2 if single else 1e-6)
            assert distance(mine, theirs) < bound, (name, number)
        for a, b in zip(metrics(alone / name), metrics(two / name), strict=True):  # one writer
            assert a.keys() == b.keys() and a["step"] == b["step"]
            for key in () if single and a["stage"] == "optimize" else a.keys() - {"stage"}:
                assert b[key] == pytest.approx(a[key], rel=1e-5 if single else 1e-6, abs=1e-7), (name, a["stage"], key)
        if not single:
            exported = [load_file(where / name / "export" / "model.safetensors") for where in (alone, two)]
            assert distance(*exported) < 1e-8, name


@pytest.mark.usefixtures("one_thread")
def test_two_processes_equal_one(dangerous):
    pytest.importorskip("rlhf_plugin_reinforce")
    compare(dangerous, ["sharded", "reinforce"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_every_algorithm_gives_in_two_processes_what_it_gives_in_one(dangerous):
    pytest.importorskip("rlhf_plugin_a2c")
    compare(dangerous, list(JOBS), "nan")
    two = dangerous / "two"  # the loss of the second process is not a number: both end, and one says why
    told = sorted((two / f"nan.{rank}").read_text() for rank in (0, 1))
    assert "NumericalError" in told[0] and "loss nan at step 1" in told[0] and "rlhf replay" in told[0]
    assert told[1] == "SystemExit: 1"
    assert [path.name for path in (two / "nan" / "failures").iterdir()] == ["step-000001-1"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_process_ends_the_run_and_resume_is_exact(dangerous):
    """With as many processes the rest is the same byte for byte, with one it is clean."""
    project = dangerous  # noqa: F811
    begin = [*("-m", "rlhf_core", "run", "tiny"), *words(KILLED), "--out"]
    began = time.monotonic()
    done = launch(project, *begin, "run")
    assert done.returncode != 0 and time.monotonic() - began < 60
    assert done.stderr.count("error: ") == 1 and DIED in done.stderr, done.stderr
    assert "[rank0]" not in done.stderr  # no traceback; the launcher has one of its own
    shutil.copytree(project / "run", project / "one")
    for name, more in {"run": ["--resume"], "whole": []}.items():
        done = launch(project, *begin, name, *more)
        assert done.returncode == 0, done.stderr
    for file in ("metrics.jsonl", "export/model.safetensors"):
        assert (project / "run" / file).read_bytes() == (project / "whole" / file).read_bytes(), file
    load().run("tiny", out=project / "one", resume=True, overrides=KILLED)
    mine, theirs = metrics(project / "one"), metrics(project / "whole")
    assert [(x["stage"], x["step"]) for x in mine] == [(x["stage"], x["step"]) for x in theirs]
    assert distance(*(load_file(project / n / "export" / "model.safetensors") for n in ("one", "whole"))) < 1e-6


def test_fewer_prompts_than_processes_are_an_error():
    context = Context(accelerator=SimpleNamespace(num_processes=2, process_index=0))
    sampler = Sampler(policy=None, environment=None, mix=None, context=context)
    with pytest.raises(ConfigError, match="1 prompts at a time for 2 processes; expected one for each at least"):
        sampler.rollout([Prompt(text="a")], 4, None, None, seed=0)


def test_what_weights_that_are_shared_out_do_not_go_with():
    with pytest.raises(ValueError, match="`sharded` is for full fine-tuning"):
        CausalLMConfig(model="some", lora={}, sharded=True)
    context = Context(accelerator=SimpleNamespace(num_processes=2, process_index=0))
    with mock.patch("rlhf_core.training.adamw.is_shared_out", return_value=True):
        settings = OptimizerSettings(learning_rate=1e-3, adamw="8bit")
        with pytest.raises(ConfigError, match="8bit for weights that are shared out over processes; expected full"):
            make_adamw([[torch.nn.Parameter(torch.zeros(2))]], settings, 1e-3, context)
    policy = SimpleNamespace(config=CausalLMConfig(model="some", sharded=True, compile=True), context=context)
    for coded, words in ((True, "an encoder-decoder over 2 processes"), (False, "`compile` over 2 processes")):
        model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=coded))
        with pytest.raises(ConfigError, match=words):
            LanguageModel._share_out(policy, model)
    stage = SimpleNamespace(optimizer=object(), config=SimpleNamespace(optimizer="trpo"), context=context)
    with pytest.raises(ConfigError, match="'trpo' with a policy whose weights are shared out over processes"):
        Optimize._check(stage, SimpleNamespace(policy=policy, accelerator=context.accelerator))


@pytest.mark.parametrize(("sizes", "counts"), [([9, 9, 9, 1, 1, 1], [3, 3]), ([1], [1, 1]), ([9, 1, 9], [2, 2])])
def test_every_process_has_as_many_parts(sizes, counts):
    """Budget 10. Of six rows the first process gets three long ones, so that the second cuts its one part in three; of
    one row the second process gets it, and the first goes through it for nothing."""
    found = []
    for rank in (0, 1):
        accelerator = SimpleNamespace(num_processes=2, process_index=rank)
        found.append(list(parts(sizes, 10, range(len(sizes)), accelerator)))
    assert [len(mine) for mine in found] == counts
    assert sorted(row for mine in found for rows, weight in mine if weight for row in rows) == [*range(len(sizes))]
