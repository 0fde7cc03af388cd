"""Running out of memory: in every phase it is said while doing what, with which batch, and which two settings to lower."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_core.cli import main
from rlhf_core.components.config import RewardMetricConfig
from rlhf_core.components.metrics import RewardMetric
from rlhf_core.errors import OutOfMemory
from rlhf_core.interfaces import Config, Context, LossSum, Needs, Outputs, RewardModel, Sampling, SupervisedConfig
from rlhf_core.memory import Part, adapters, checkpointing, is_out_of_memory, kept, lower, room, within_memory
from rlhf_core.plugins import load_plugins
from rlhf_core.policies.config import CausalLMConfig
from rlhf_core.records import Demonstration, Prompt, Rollout, Sample, Scores
from rlhf_core.rl import Batch, OnPolicyConfig, OnPolicyOptimizer
from rlhf_core.rl.data import StageData
from rlhf_core.rl.evaluation import evaluate
from rlhf_core.stages.config import SFTConfig
from rlhf_core.stages.sft import SFT
from rlhf_core.testing import example_data, tiny_context, tiny_policy
from rlhf_core.training import GradientSteps, SupervisedLoop
from torch import Tensor

Ask = Callable[[], Any]


def of_the_cpu() -> None:
    """A real failure: 4 PB are more than a process can address."""
    torch.empty(10**15)


def of_python() -> None:
    """Another real one."""
    bytearray(10**18)


def of_a_gpu() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is "
        "free. Including non-PyTorch memory, this process has 77.84 GiB memory in use."
    )


ROOM = {
    of_the_cpu: r"3\.6 PiB more were asked for, the machine has [\d.]+ [GT]iB",
    of_python: r"the machine has [\d.]+ [GT]iB",
    of_a_gpu: r"20\.50 GiB more were asked for, GPU 0 has 79\.10 GiB, 1\.25 GiB of it free",
}
every_memory = pytest.mark.parametrize("ask", list(ROOM), ids=lambda ask: ask.__name__)


def error_of(act: Callable[[], Any]) -> OutOfMemory:
    with pytest.raises(OutOfMemory) as caught:
        act()
    assert caught.value.exit_code == 1
    return caught.value


# --- the guard --------------------------------------------------------------------------------------------------------


@every_memory
def test_what_was_asked_for_and_what_there_is(ask: Ask) -> None:
    def act() -> None:
        with within_memory(Context(kind="reward", id="r"), "update", Part(1, 5), ["lower `a` (now 2)"]):
            ask()

    pattern = rf"reward 'r': out of memory in the update of 1 sample x 5 tokens \({ROOM[ask]}\); lower `a` \(now 2\)"
    assert re.fullmatch(pattern, str(error_of(act)))


@pytest.mark.parametrize(("error", "words"), [
    (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB, other allocations: 1.00 GiB, max allowed: 9.07 GiB)."
                  " Tried to allocate 256.00 MiB on private pool."),
     "256.00 MiB more were asked for, the device may take 9.07 GiB"),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), ""),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried to allocate "
                  "3221225472 bytes."), r"3.0 GiB more were asked for, the machine has .*"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "the machine has .*"),
])  # fmt: skip
def test_other_ways_to_say_it(error: Exception, words: str) -> None:
    assert is_out_of_memory(error)
    assert re.fullmatch(words, room(error))


@pytest.mark.parametrize("error", [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), FileNotFoundError(2, "gone"),
    RuntimeError("CUDA error: device-side assert triggered"), KeyboardInterrupt(),
], ids=repr)  # fmt: skip
def test_other_errors_pass_as_they_are(error: BaseException) -> None:
    cleared: list[int] = []
    with pytest.raises(type(error)) as caught, within_memory(Context(), "update", "x", clear=lambda: cleared.append(1)):
        raise error
    assert caught.value is error and not cleared


def test_the_innermost_guard_speaks_and_the_others_add_settings() -> None:
    order: list[str] = []

    def named(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    def act() -> None:
        with (
            within_memory(Context(id="outer"), "a", "b", ["one", "three", "four"], named("outer")),
            within_memory(Context(id="inner"), "c", lambda: Part(3, 8, 2), [None, "one"], named("inner")),
        ):
            of_the_cpu()

    error = error_of(act)
    assert order == ["inner", "outer"]
    assert (error.where, error.phase, error.batch) == (
        "component 'inner'", "c", "3 samples x (8 prompt + 2 response tokens)",
    )  # fmt: skip
    assert error.fix == "one, then three"


def test_nothing_is_worked_out_while_there_is_room() -> None:
    def advice() -> Any:
        raise AssertionError("asked for nothing")
        yield

    with within_memory(Context(), "update", lambda: 1 / 0, advice()):
        pass


def test_a_setting_is_named_with_its_value_if_it_can_be_lowered() -> None:
    assert lower("limit", 64, "the stage") == "lower `limit` of the stage (now 64)"
    assert lower("limit", 1, "the stage") is None and lower("limit", None, "the stage") is None
    part = Part(4, 20, 5)
    assert lower("budget", 8192, "x", part) == "lower `budget` of x below 100 (now 8192)"
    assert lower("budget", 8192, "x", Part(1, 20, 5)) is None  # a sample cannot be cut in two


def test_what_a_policy_could_still_do() -> None:
    plain = tiny_policy().config
    assert checkpointing(plain, "policy 'p'") == "set `gradient_checkpointing: true` in policy 'p' (now false)"
    assert adapters(plain, "policy 'p'") == "give `lora` to policy 'p' in a new run (now all its weights are trained)"
    values = {**plain.model_dump(), "gradient_checkpointing": True, "lora": {"r": 8}}
    thrifty = CausalLMConfig.model_validate(values)
    assert checkpointing(thrifty, "policy 'p'") is None
    assert adapters(thrifty, "policy 'p'") == "lower `lora.r` of policy 'p' in a new run (now 8)"
    assert checkpointing(Config(), "p") is adapters(Config(), "p") is None  # another kind of policy


def test_the_last_checkpoint_is_named(tmp_path: Path) -> None:
    assert kept(None) == kept(tmp_path) == ""
    for name in ("000050-optimize-50", "000100-optimize-100", ".000150-optimize-150.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert (
        kept(tmp_path)
        == "checkpoint 000100-optimize-100 is whole: go on from it with --resume, --set and --allow-config-change"
    )


# --- sampling and scoring ---------------------------------------------------------------------------------------------


class NoOptions(Config):
    """Nothing to set."""


class Hungry(RewardModel[Any]):
    """Asks for more than there is."""

    ask: Ask = staticmethod(of_the_cpu)

    def score(self, samples: Sequence[Sample]) -> Scores:
        self.ask()
        raise AssertionError


class NetworkConfig(SupervisedConfig):
    """The two options of a reward that is a network over texts."""

    max_tokens: int = 512


def hungry(ask: Ask, config: Config | None = None) -> Hungry:
    reward = Hungry(config or NoOptions(), Context(kind="reward", id="big"))
    reward.ask = ask
    return reward


def sampling_data(policy: Any, reward: RewardModel[Any] | None = None) -> StageData:
    data = example_data(policy, Needs(reference=True), reward=reward, max_new_tokens=6)
    data.begin(0)
    return data


@every_memory
def test_generation(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    policy.set_reference("stage-start")
    data = sampling_data(policy)
    longest = max(len(policy.codec.encode_prompt(prompt, 0)) for prompt in data.prompts(3))
    data.used = 0
    monkeypatch.setattr(policy, "generate", lambda *a, **k: ask())
    error = error_of(lambda: data.rollout(3, samples_per_prompt=2))
    assert re.fullmatch(
        rf"policy 'tiny': out of memory in the generation of 6 samples x \({longest} prompt \+ up to 6 response tokens\) "
        rf"\({ROOM[ask]}\); lower `prompts_per_step` of the optimizer \(now 3\), then lower `sampling.max_new_tokens` of "
        r"the stage \(now 6\)",
        str(error),
    )
    error = error_of(lambda: data.rollout(1, samples_per_prompt=4))
    assert error.fix.startswith(
        "lower `samples_per_prompt` of the optimizer (now 4), then lower `sampling.max_new_tokens"
    )
    error = error_of(lambda: evaluate(data.sampler, data.prompts(5), {}, Sampling(max_new_tokens=9), seed=0))
    assert error.phase == "evaluation (generation)" and "up to 9 response tokens" in error.batch
    assert error.fix == (
        "lower `limit` of the evaluation's prompts (now 5), then lower `sampling.max_new_tokens` of the stage (now 9)"
    )


@every_memory
@pytest.mark.parametrize("speaker", ["policy", "reference"])
def test_scoring_under_policy_and_reference(ask: Ask, speaker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    policy.set_reference("stage-start")
    data = sampling_data(policy)
    weights = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    forward, calls = policy.forward, {"policy": 0, "reference": 1}[speaker]

    def failing(rollout: Rollout, needs: Needs) -> Outputs:
        nonlocal calls
        calls -= 1
        if calls < 0:
            ask()
        return forward(rollout, needs)

    rollout = data.rollout(3)
    monkeypatch.setattr(policy, "forward", failing)
    error = error_of(lambda: data.rescore(rollout, Needs(reference=True)))
    rows, prompt, response = len(rollout), rollout.prompt_ids.shape[1], rollout.response_ids.shape[1]
    assert re.fullmatch(
        rf"policy 'tiny': out of memory in the scoring under the {speaker} of {rows} samples x \({prompt} prompt \+ "
        rf"{response} response tokens\) \({ROOM[ask]}\); lower `forward_tokens` of the stage below "
        rf"{rows * (prompt + response)} \(now 32768\), then lower `sampling.max_new_tokens` of the stage \(the longest "
        rf"response here has {response} tokens\)",
        str(error),
    )
    for name, parameter in policy.module.named_parameters():  # the reference has left the stage
        assert torch.equal(parameter.detach(), weights[name])


@every_memory
def test_scoring_by_a_reward(ask: Ask) -> None:
    policy = tiny_policy()
    policy.set_reference("stage-start")
    error = error_of(lambda: sampling_data(policy, hungry(ask, NetworkConfig(micro_batch_tokens=4096))).rollout(3))
    assert re.fullmatch(
        r"reward 'big': out of memory in the scoring by the reward of 3 samples x \(up to \d+ prompt \+ \d+ response "
        rf"characters\) \({ROOM[ask]}\); lower `micro_batch_tokens` of reward 'big' \(now 4096\), then lower `max_tokens` of "
        r"reward 'big' \(now 512\)",
        str(error),
    )
    error = error_of(lambda: sampling_data(policy, hungry(ask)).rollout(3))  # a reward without such options
    assert error.where == "reward 'big'"
    assert re.fullmatch(
        r"lower `prompts_per_step` of the optimizer \(now 3\), then lower `sampling.max_new_tokens` of the stage "
        r"\(the longest response here has \d+ tokens\)",
        error.fix,
    )


def test_a_metric_of_an_evaluation() -> None:
    policy = tiny_policy()
    data = example_data(policy)
    reward = hungry(of_the_cpu)
    metric = RewardMetric(
        RewardMetricConfig(reward="big"), Context(id="judged", kind="metric", resolve=lambda k, i: reward)
    )
    error = error_of(
        lambda: evaluate(data.sampler, data.prompts(4), {"judged": metric}, Sampling(max_new_tokens=2), seed=0)
    )
    assert (error.where, error.phase) == ("reward 'big'", "scoring by the reward")
    assert error.fix == (
        "lower `limit` of the evaluation's prompts (now 4), then lower `sampling.max_new_tokens` of the stage (the "
        "longest response here has 2 tokens)"
    )


# --- updates ----------------------------------------------------------------------------------------------------------


class Plain(OnPolicyOptimizer[OnPolicyConfig]):
    """REINFORCE without a baseline; `ask` is called once `after` parts have been through."""

    ask: Ask = staticmethod(lambda: None)
    after = 0

    def prepare(self, rollout: Rollout) -> Mapping[str, Tensor]:
        assert rollout.rewards is not None
        return {"credit": rollout.rewards.sum(1, keepdim=True) * rollout.mask}

    def loss(self, batch: Batch, new: Outputs) -> tuple[Tensor, Mapping[str, Any]]:
        self.after -= 1
        if self.after < 0:
            self.ask()
        return batch.token_mean(-batch.credit * new.logprobs), {}


def bound(policy: Any, **options: Any) -> tuple[Plain, StageData]:
    config = OnPolicyConfig(prompts_per_step=4, minibatch_size=4, **options)
    optimizer = Plain(config, Context(kind="optimizer", id="plain"))
    optimizer.bind(policy, 1)
    data = example_data(policy, config.needs, max_new_tokens=6)
    data.begin(0)
    return optimizer, data


@every_memory
def test_an_update_leaves_weights_and_gradients_as_they_were(ask: Ask) -> None:
    policy = tiny_policy()
    optimizer, data = bound(policy, micro_batch_tokens=40)
    optimizer.ask, optimizer.after = ask, 1  # the first part has left gradients
    weights = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    error = error_of(lambda: optimizer.step(data))
    assert re.fullmatch(
        rf"optimizer 'plain': out of memory in the update of [^;]+ \({ROOM[ask]}\); .*", str(error)
    )  # fmt: skip
    for name, parameter in policy.module.named_parameters():
        assert parameter.grad is None and torch.equal(parameter.detach(), weights[name])
    optimizer.after = 1_000  # and it can go on
    data.begin(1)
    assert optimizer.step(data)["policy/updates"] == 1.0


def test_which_two_settings_to_lower_in_an_update() -> None:
    optimizer, data = bound(tiny_policy(), micro_batch_tokens=8192)
    optimizer.ask = of_the_cpu
    error = error_of(lambda: optimizer.step(data))
    match = re.fullmatch(r"([2-4]) samples x \((\d+) prompt \+ (\d+) response tokens\)", error.batch)
    assert match
    tokens = int(match[1]) * (int(match[2]) + int(match[3]))
    assert error.fix == (
        f"lower `micro_batch_tokens` of optimizer 'plain' below {tokens} (now 8192), then set `gradient_checkpointing: "
        "true` in policy 'tiny' (now false)"
    )
    optimizer, data = bound(tiny_policy(gradient_checkpointing=True), micro_batch_tokens=1)  # a sample at a time
    optimizer.ask = of_the_cpu
    error = error_of(lambda: optimizer.step(data))
    assert error.batch.startswith("1 sample x (")
    assert re.fullmatch(
        r"lower `sampling.max_new_tokens` of the stage \(the longest response here has \d+ tokens\), then give `lora` to "
        r"policy 'tiny' in a new run \(now all its weights are trained\)",
        error.fix,
    )


def test_a_further_term_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    optimizer, data = bound(policy)
    monkeypatch.setattr(optimizer, "backward_more", lambda step: of_the_cpu())
    error = error_of(lambda: optimizer.step(data))
    assert error.batch == "what its loss adds to the samples"
    assert error.fix.startswith("lower `micro_batch_tokens` of optimizer 'plain' (now 8192), then set `gradient_ch")
    assert all(p.grad is None for p in policy.module.parameters())


@every_memory
def test_the_moments_of_adamw(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    optimizer, data = bound(policy)
    monkeypatch.setattr(optimizer.gradient.optimizer, "step", ask)
    count = sum(p.numel() for p in policy.module.parameters())
    error = error_of(lambda: optimizer.step(data))
    assert re.fullmatch(
        rf"optimizer 'plain': out of memory in the AdamW step of {count} weights \({ROOM[ask]}\); set `adamw: 8bit` in "
        r"optimizer 'plain' \(now full\), then give `lora` to policy 'tiny' in a new run \(now all its weights are trained\)",
        str(error),
    )
    assert all(p.grad is None for p in policy.module.parameters())


def test_moments_that_are_small_already(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.zeros(4096))
    steps = GradientSteps([weight], SupervisedConfig(adamw="8bit"), 1, Context(kind="reward", id="r"))
    weight.grad = torch.ones(4096)
    monkeypatch.setattr(steps.optimizer, "step", of_the_cpu)
    assert error_of(steps.step).fix == "" and weight.grad is None


def plugin_s(name: str, policy: Any, **options: Any) -> tuple[Any, StageData]:
    """An optimizer of an installed plugin, bound to `policy`, and data that holds feedback as well."""
    plugins = load_plugins()
    spec = next((s for i in plugins.plugins for s in i.components if (s.kind, s.name) == ("optimizer", name)), None)
    if spec is None:
        pytest.skip(f"no plugin offers {name}")
    config = plugins.import_class(spec, "config").model_validate({"micro_batch_tokens": 4096, **options})
    optimizer = plugins.import_class(spec, "factory")(config, tiny_context("optimizer", name))
    optimizer.bind(policy, 1)
    policy.set_reference("stage-start")
    data = example_data(policy, config.needs)
    data.begin(0)
    return optimizer, data


LOOPS = {
    "acer": {"prompts_per_step": 4},
    "ilql": {"batch_size": 4},
    "ppo": {"prompts_per_step": 4, "minibatch_size": 4},
    "trpo": {"prompts_per_step": 4},
}


@pytest.mark.parametrize("name", LOOPS)
def test_the_loops_of_plugins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    optimizer, data = plugin_s(name, policy, **LOOPS[name])
    weights = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    forward = policy.forward
    monkeypatch.setattr(
        policy, "forward", lambda r, needs: of_the_cpu() if torch.is_grad_enabled() else forward(r, needs)
    )
    error = error_of(lambda: optimizer.step(data))
    assert (error.where, error.phase) == (f"optimizer '{name}'", "update")
    match = re.fullmatch(r"([2-4]) samples x \((\d+) prompt \+ (\d+) response tokens\)", error.batch)
    assert match
    tokens = int(match[1]) * (int(match[2]) + int(match[3]))
    assert error.fix == (
        f"lower `micro_batch_tokens` of optimizer '{name}' below {tokens} (now 4096), then "
        "set `gradient_checkpointing: true` in policy 'tiny' (now false)"
    )
    for key, parameter in policy.module.named_parameters():
        assert parameter.grad is None and torch.equal(parameter.detach(), weights[key])


def test_a_line_search_goes_back_to_where_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    optimizer, data = plugin_s("trpo", policy, **LOOPS["trpo"])
    weights = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    forward, moved = policy.forward, []

    def failing(rollout: Rollout, needs: Needs) -> Outputs:
        there = [not torch.equal(p.detach(), weights[name]) for name, p in policy.module.named_parameters()]
        if any(there):
            moved.append(1)
            of_the_cpu()
        return forward(rollout, needs)

    monkeypatch.setattr(policy, "forward", failing)
    error_of(lambda: optimizer.step(data))
    assert moved
    for name, parameter in policy.module.named_parameters():
        assert torch.equal(parameter.detach(), weights[name])


# --- the supervised loop ----------------------------------------------------------------------------------------------


class Line:
    """One number fitted to examples of sizes (prompt, response); asks for too much at example `at`."""

    def __init__(self, ask: Ask = of_the_cpu, at: int = 2) -> None:
        self.module = torch.nn.Linear(1, 1)
        self.train: Sequence[int] = [0, 1, 2, 3]
        self.held_out: Sequence[int] = [4, 5]
        self.ask, self.at = ask, at

    def size(self, example: int) -> tuple[int, int]:
        return 10 + example, 5

    def count(self, example: int) -> float:
        return 1.0

    def loss(self, examples: Sequence[int]) -> LossSum:
        if self.at in examples:
            self.ask()
        return LossSum(self.module(torch.ones(len(examples), 1)).sum(), len(examples), {})

    def evaluate(self, examples: Sequence[int]) -> dict[str, float]:
        self.ask()
        return {}


def loop(task: Any, **options: Any) -> SupervisedLoop:
    return SupervisedLoop(task, NetworkConfig(batch_size=4, **options), Context(kind="reward", id="fitted"))


@every_memory
def test_a_supervised_step(ask: Ask) -> None:
    task = Line(ask)
    before = [p.detach().clone() for p in task.module.parameters()]
    error = error_of(lambda: loop(task, micro_batch_tokens=36).step(0))
    assert re.fullmatch(
        rf"reward 'fitted': out of memory in the supervised step of 2 examples x 18 tokens \({ROOM[ask]}\); lower "
        r"`micro_batch_tokens` of reward 'fitted' below 36 \(now 36\), then lower `max_tokens` of reward 'fitted' \(now 512\)",
        str(error),
    )
    assert all(p.grad is None for p in task.module.parameters()) and not task.module.training
    for parameter, then in zip(task.module.parameters(), before, strict=True):
        assert torch.equal(parameter.detach(), then)


@every_memory
def test_the_evaluation_of_a_supervised_loop(ask: Ask) -> None:
    error = error_of(loop(Line(ask)).evaluate)
    assert re.fullmatch(
        rf"reward 'fitted': out of memory in the evaluation of 2 held-out examples \({ROOM[ask]}\); lower "
        r"`micro_batch_tokens` of reward 'fitted' \(now 8192\), then lower `max_tokens` of reward 'fitted' \(now 512\)",
        str(error),
    )


def test_supervised_fine_tuning_names_the_policy_s_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    records = [Demonstration(prompt=Prompt(text=f"say {c}:"), response=f" {c}.") for c in "abcdefghijklmnop"]

    class Run:
        def component(self, kind: str, id: str) -> Any:
            return records

    run: Any = Run()
    run.policy = policy
    stage = SFT(SFTConfig(feedback=["demos"], batch_size=4, held_out=0.5), Context(kind="stage", id="sft"))
    stage.setup(run)
    assert stage.evaluate()
    monkeypatch.setattr(type(stage.loop.task), "loss", lambda self, examples: of_the_cpu())
    error = error_of(lambda: stage.step(0))
    assert re.fullmatch(
        r"lower `micro_batch_tokens` of stage 'sft' below \d+ \(now 8192\), then set `gradient_checkpointing: true` in "
        r"policy 'tiny' \(now false\)",
        error.fix,
    )


# --- from the command line --------------------------------------------------------------------------------------------

REGISTRY = """\
schema_version: 1
functions: {hungry: rewards.py:hungry}
components:
  policy:
    lm:
      use: causal-lm
      config:
        fresh:
          architecture: gpt2
          sizes: {n_embd: 16, n_layer: 1, n_head: 2, n_positions: 64}
          tokenizer: {text: [demos], vocab_size: 270}
  feedback:
    demos: {use: demonstrations, config: {path: demos.jsonl}}
  prompts:
    questions: {use: feedback, config: {feedback: demos}}
  reward:
    big: {use: function, config: {function: hungry}}
pipelines:
  short-of-memory:
    policy: lm
    device: cpu
    stages:
      - sft: {feedback: [demos], batch_size: 4, held_out: 0}
      - evaluate: {prompts: questions, metrics: [length, reward], rewards: {big: 1.0}, sampling: {max_new_tokens: 4}}
"""

REWARDS = """\
import torch

def hungry(completions, **columns):
    return torch.empty(10**15) if len(completions) > 4 else [1.0] * len(completions)
"""


def test_the_command_says_it_in_a_line_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "registry.yaml").write_text(REGISTRY)
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"{c}:", "completion": f" {c}."} for c in "abcdefgh"]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_DEBUG", raising=False)

    def rlhf(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["rlhf", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0)

    assert rlhf("run", "short-of-memory", "--out", "run") == 1
    told = capsys.readouterr()
    assert "Traceback" not in told.err + told.out
    (line,) = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(
        r"error: reward 'big': out of memory in the scoring by the reward of 8 samples x \(up to 2 prompt \+ \d+ response "
        r"characters\) \(3\.6 PiB more were asked for, the machine has [\d.]+ [GT]iB\); lower `limit` of the evaluation's "
        r"prompts \(now 8\), then lower `sampling.max_new_tokens` of the stage \(the longest response here has 4 tokens\); "
        r"checkpoint 000002-evaluate-0 is whole: go on from it with --resume, --set and --allow-config-change",
        line,
    )
    again = (
        "run",
        "short-of-memory",
        "--out",
        "run",
        "--resume",
        "--allow-config-change",
        "--set",
        "prompts.questions.limit=4",
    )
    assert rlhf(*again) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stages"]["evaluate"]["metrics"]["reward"]["after"] == {"mean": 1.0, "error": 0.0, "n": 4.0}
