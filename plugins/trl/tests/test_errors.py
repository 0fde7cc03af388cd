"""Bad input, each with what to do about it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.errors import ConfigError, DataError, NumericalError, RegistryErrors
from rlhf_core.interfaces import Context
from rlhf_core.records import Comparison
from rlhf_plugin_trl import config as module
from rlhf_plugin_trl.arguments import build_arguments
from rlhf_plugin_trl.config import TRLConfig
from rlhf_plugin_trl.stage import _own_policy

from .toys import LEARNS, policy_of, project, run, trl


def make(trainer: str, **options: Any) -> TRLConfig:
    return TRLConfig.model_validate({"trainer": trainer, "steps": 1, **LEARNS.get(trainer, {}), **options})


@pytest.mark.parametrize(("trainer", "options", "words"), [
    ("ppo", {"feedback": ["x"]}, "Input should be 'rloo', 'grpo', 'dpo', 'kto' or 'sft'"),
    ("rloo", {"prompts": None}, "trainer 'rloo' samples responses and needs `prompts` to sample for"),
    ("grpo", {"rewards": {}}, r"trainer 'grpo' samples responses and needs `rewards`, such as {helpful: 1.0}"),
    ("rloo", {"feedback": ["x"]}, "trainer 'rloo' learns from rewards alone; leave out `feedback`"),
    ("dpo", {"feedback": []}, "trainer 'dpo' learns from records and needs `feedback`"),
    ("kto", {"prompts": "x"}, "trainer 'kto' samples nothing; leave out `prompts`"),
    ("rloo", {"rewards": {"score": 1}}, "a reward called 'score' would be logged over the statistic reward/score"),
    ("rloo", {"arguments": {"num_generations": 1}}, "rloo compares responses to one prompt; give 2 or more"),
    ("grpo", {"arguments": {"num_generations": 1}}, "grpo compares responses to one prompt; give 2 or more"),
    ("sft", {"arguments": {"max_steps": 5}}, r"arguments.max_steps belongs to the stage \(set by `steps`\); leave it out"),
    ("sft", {"arguments": {"output_dir": "x"}}, r"arguments.output_dir belongs to the stage \(everything is written into"),
    ("sft", {"arguments": {"seed": 1}}, r"arguments.seed belongs to the stage \(derived from the run's seed\)"),
    ("sft", {"arguments": {"report_to": "wandb"}}, r"belongs to the stage \(set by the pipeline's `trackers`\)"),
    ("sft", {"arguments": {"save_steps": 1}}, r"arguments.save_steps belongs to the stage \(the run takes its own"),
    ("sft", {"arguments": {"push_to_hub": True}}, r"arguments.push_to_hub belongs .*an `export` stage writes the model"),
    ("sft", {"arguments": {"bf16": True}}, r"arguments.bf16 belongs to the stage \(set by the pipeline's `precision`\)"),
    ("rloo", {"arguments": {"temperature": 0.5}}, r"arguments.temperature belongs to the stage \(set by `sampling`\)"),
    ("rloo", {"sampling": {"temperature": 0}}, "sampling.temperature: TRL's trainers take one number above 0"),
    ("rloo", {"sampling": {"temperature": {"schedule": "linear", "start": 1, "end": 0.5}}}, "take one number above 0"),
    ("rloo", {"sampling": {"stop": ["\n"]}}, "sampling.stop: TRL's trainers end a response at end of text only"),
    ("dpo", {"evaluate_every": 1}, "`evaluate_every` needs `evaluation:"),
])  # fmt: skip
def test_a_config_that_cannot_work(trainer: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make(trainer, **options)


def test_trl_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", missing)
    with pytest.raises(RegistryErrors, match=r"registry.yaml:\d+.*trl is not installed; pip install 'trl>=1.16'"):
        project(tmp_path, trl("sft")).resolve("toy")
    monkeypatch.setattr(module, "version", lambda name: "1.9.1")
    with pytest.raises(ValidationError, match=r"trl 1.9.1 is installed, too old; pip install --upgrade 'trl>=1.16'"):
        make("sft")


@pytest.mark.parametrize(("stage", "error", "words"), [
    (trl("dpo", arguments={"betta": 1}), ConfigError,
     "stage 'trl' arguments.betta: DPOConfig has no such field; .* did you mean 'beta'?"),
    (trl("dpo", arguments={"beta": "much"}), ConfigError,
     "stage 'trl' arguments.beta: 'much': Input should be a valid number.*; expected float"),
    (trl("dpo", arguments={"lr_scheduler_type": "zigzag"}), ConfigError, "stage 'trl' arguments.*zigzag"),
    (trl("rloo", arguments={"num_generations": 3}), ConfigError,
     r"stage 'trl' arguments: RLOOConfig refuses them: generation_batch_size \(4\) must be divisible by num_generations"),
    (trl("kto", arguments={"per_device_train_batch_size": 1}), ConfigError,
     r"arguments: KTOConfig refuses them: .*batch size must be > 1"),
    (trl("rloo", arguments={"per_device_train_batch_size": 32}), ConfigError,
     "stage 'trl' prompts: 6 prompts; expected at least 16: generation_batch_size 32 / num_generations 2; give more"),
    (trl("dpo", feedback=["ties"]), DataError,
     "stage 'trl': no usable record in ties; expected for dpo: comparisons that are not all ties, or edits"),
    (trl("kto", feedback=["told"]), DataError, "stage 'trl': no usable record in told; expected for kto: ratings, "),
    (trl("sft", feedback=["one"], held_out=0.99), DataError,
     "no usable record in one outside the held-out share of 0.99; .*; give more records, or a smaller held_out"),
    (trl("dpo", arguments={"learning_rate": 1e30}), NumericalError,
     "stage 'trl' step 2: the gradient of .* is not finite; .*; lower arguments.learning_rate"),
], ids=["unknown", "type", "value", "groups", "kto batch", "few prompts", "ties", "kto", "held out", "numbers"])  # fmt: skip
def test_what_only_the_run_can_tell(stage: dict[str, Any], error: type[Exception], words: str, tmp_path: Path) -> None:
    one = Comparison(prompt="Ask: 0", responses=("a", "b"), ranks=(0, 1))
    made = project(tmp_path, stage, feedback={"one": [one]})
    with pytest.raises(error, match=words):
        run(made, tmp_path / "run")


def test_a_policy_that_trl_cannot_train(tmp_path: Path) -> None:
    class Run:
        policy: Any
        accelerator: Any

    class Other:
        context = policy_of(project(tmp_path, trl("sft"))).context

    asked: Any = Run()
    asked.policy = Other()
    with pytest.raises(ConfigError, match="stage 'trl': policy 'lm' is a Other; expected a causal-lm; TRL trains"):
        _own_policy(asked, "stage 'trl'")
    from rlhf_core.interfaces import Needs

    asked.policy = policy_of(project(tmp_path, trl("sft")))
    asked.policy.prepare(Needs(heads=1))
    asked.policy.steering = 2.0
    with pytest.raises(ConfigError, match="policy 'lm' is steered by action values; expected a policy that is its"):
        _own_policy(asked, "stage 'trl'")
    asked.policy.steering = 0.0
    asked.accelerator = type("Two", (), {"num_processes": 2})
    with pytest.raises(ConfigError, match="stage 'trl': 2 processes; expected one process; start the run without"):
        _own_policy(asked, "stage 'trl'")


def test_a_device_that_trl_would_not_use(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # what a run in this process may have left
    accelerator = Accelerator(cpu=True)
    context = Context("stage", "trl", device="meta", accelerator=accelerator)
    with pytest.raises(
        ConfigError, match=r"stage 'trl': the policy is on meta, and TRL trains on .*CUDA_VISIBLE_DEVICES"
    ):
        build_arguments(make("sft"), context, tmp_path)


def test_the_seed_of_the_trainer_is_the_runs(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # what a run in this process may have left
    contexts = [Context("stage", "trl", seed=seed, accelerator=Accelerator(cpu=True)) for seed in (0, 0, 1)]
    one, again, other = (build_arguments(make("sft"), context, tmp_path).seed for context in contexts)
    assert one == again != other


def test_weights_are_as_they_were_before_a_step_into_nowhere(tmp_path: Path) -> None:
    """The reporter raises between backward and the optimizer's step."""
    from rlhf_plugin_trl.trainer import Reporter

    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.tensor([[1.0, float("nan")]])
    state = type("State", (), {"global_step": 4})
    with pytest.raises(NumericalError, match="stage 'x' step 5: the gradient of weight is not finite"):
        Reporter(lambda stats: True, "stage 'x'").on_pre_optimizer_step(None, state, None, model=layer)


def test_importing_the_plugin_and_its_config_is_light() -> None:
    code = "import sys, rlhf_plugin_trl.config; print(sorted({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
