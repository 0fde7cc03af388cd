"""The benchmarks that take long or need a GPU: what of them can be seen in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rlhf_core
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    return memory


def test_memory_counts_a_storage_once_for_the_first_role(memory: Any) -> None:
    whole = torch.zeros(2**18)  # a megabyte
    other = torch.zeros(2**17, dtype=torch.float64)
    found = memory.weights([("critic", [whole[:10]]), ("base", [whole, whole.view(2, -1), other])], [other, whole])
    assert (found["critic"], found["base"], found["gradients"], found["reward"]) == (1, 1, 2, 0)


def test_memory_finds_tensors_wherever_a_component_keeps_them(memory: Any) -> None:
    layer = torch.nn.Linear(2, 3)
    layer.kept = {"moments": [(torch.ones(1),)]}  # type: ignore[assignment]
    layer.context = [torch.ones(1)]  # type: ignore[assignment]  # given, not owned
    assert sorted(t.numel() for t in memory.tensors_of(layer)) == [1, 3, 6]


def test_every_memory_variant_is_a_valid_registry(memory: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w2"}\n')
    for name, variant in memory.VARIANTS.items():
        job = {"variant": variant, "model": str(tmp_path)}
        (tmp_path / "registry.yaml").write_text(json.dumps(memory.registry(job, tmp_path)))
        project = rlhf_core.load(tmp_path / "registry.yaml")
        assert not project.validate(), name
        stage = project.resolve("memory").stages[0].config
        assert stage.steps == 2  # AdamW's moments are there from the first update on, before the second peak


def test_memory_table_gives_the_ratio_to_the_median(memory: Any) -> None:
    rest = dict.fromkeys(("imports", *memory.ROLES, "rest", "seconds"), 1.0)
    runs = [{"library": "trl", "peak": peak, **rest} for peak in (2000.0, 1990.0, 2100.0)]
    text = memory.table([*runs, {"library": "ours", "variant": "lora, shared", "peak": 1100.0, **rest}])
    assert "| lora, shared | 1,100 | 0.55 |" in text
    assert text.endswith("TRL's peak over its 3 runs: 1,990 to 2,100 MB.")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.mark.slow
def test_gpu_benchmark_runs_tiny(tmp_path: Path) -> None:
    step = {"seconds": 4.0, "samples_per_second": 16.0}
    earlier = {"steps": [step], "samples_per_second": 16.0, "peak_gb": 21.5, "seconds_to_make": 60.0}
    (tmp_path / "before.json").write_text(json.dumps(earlier))  # as the first version of the script wrote it
    command = [sys.executable, BENCHMARKS / "gpu.py", "--tiny", "--out", tmp_path / "gpu.json",
               "--before", tmp_path / "before.json"]  # fmt: skip
    shown = subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, text=True).stdout
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["skipped"] == {}
    assert found["versions"]["trl"]

    assert [run["side"] for run in found["step"]["runs"]] == ["ours", "TRL"]
    for run in found["step"]["runs"]:
        assert len(run["seconds"]) == 2
        assert 4 < max(run["tokens"]) <= 8  # an end of text has a chance of 1 in 512
    assert len(found["step"]["ratios"]) == 1

    share = found["share"]
    assert share["seconds_of"] == share["phases"][1]  # two steps, the first of them left out
    assert sum(share["seconds_of"].values()) < share["seconds"][1] + 1e-3  # phases are within the step, to 4 digits
    assert share["decoding"] == share["phases"][1]["generation"] / sum(share["phases"][1].values())

    names = {"generate", "refill", "refill, no CUDA graphs", "continuous"}
    cells = found["decoding"]["cells"]
    assert {(cell["engine"], cell["batch"]) for cell in cells} == {(name, batch) for name in names for batch in (4, 8)}
    for cell in cells:
        assert "error" not in cell
        assert cell["batch"] <= cell["tokens"][0] <= 8 * cell["batch"]
    # 2 layers, keys and values, 2 heads of 16 in 2 bytes
    assert found["decoding"]["cache_bytes"] == 256

    assert len(found["qlora"]["steps"]) == 2
    assert found["qlora"]["samples_per_second"] > 0
    weights = found["qlora"]["weights_mb"]
    # 2 x 512 x 64 whole numbers are .25 MB, 73,728 in 4 bits .035 MB and their scales; whole they would be .28 MB more
    assert 0.285 < weights["base"] < 0.32
    # policy, critic and reward have an adapter each, of one size, and the two last a head of 65 numbers
    assert weights["critic"] == weights["reward"] == weights["adapters"] + 65 / 2**18

    assert shown.startswith("cpu, ")
    assert "| ours |" in shown
    assert "| samples/s | 16.00 | " in shown
    assert "| peak, GB (goal 24) | 21.5 | " in shown


def test_gpu_decoding_is_bounded_by_what_is_read(gpu: Any) -> None:
    found = {"weight_bytes": 1000, "cache_bytes": 10, "bytes_per_second": 4300}
    # two tokens: the weights twice, and of each of 3 rows first 2 and then 3 tokens of cache: 2,000 + 150 bytes
    assert gpu.bound(found, 3, {"prompt_tokens": 2, "max_new_tokens": 2}) == pytest.approx(12)


def test_gpu_footprint_leaves_out_what_is_not_read(gpu: Any) -> None:
    from gpu_ours import footprint
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3,
             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    # a layer: 8 x 8 twice and 4 x 8 twice in attention, 8 x 16 three times, two norms of 8
    layers = 3 * (2 * 64 + 2 * 32 + 3 * 128 + 2 * 8)
    for tied in (True, False):
        model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=tied)).to(torch.bfloat16)
        # the last norm, and the output layer, whichever way it is kept
        assert footprint(model) == {"weight_bytes": 2 * (layers + 8 + 80), "cache_bytes": 3 * 2 * 2 * 2 * 2}


def test_gpu_time_is_divided_among_the_parts_that_are_left(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)
    monkeypatch.setattr(gpu.task, "WEIGHTS", {"step": 2, "share": 1, "qlora": 3})
    bench = gpu.Bench(False, 600, tmp_path)
    bench.divide("step", ["share", "qlora"])
    assert bench.part_end == 300
    now = 200.0  # it needed half of that: the rest is for the others
    bench.divide("share", ["qlora"])
    assert bench.part_end == 325
    bench.divide("qlora", [])
    assert bench.part_end == 700
    now = 690.0
    with pytest.raises(gpu.NoTime, match=r"10 s are left for it, and 120 are needed"):
        bench.run("qlora")


def test_gpu_part_that_finds_no_time_is_skipped_and_others_go_on(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(bench: Any) -> Any:
        yield {"runs": []}
        raise gpu.NoTime("3 s are left")

    def none(bench: Any) -> Any:
        raise gpu.NoTime("2 s are left")
        yield

    monkeypatch.setattr(gpu, "PARTS", {"share": half, "decoding": none, "qlora": lambda _: iter([{"steps": []}])})
    monkeypatch.setattr(gpu.Bench, "run", lambda *_, **__: {"card": "a card", "versions": {}})
    options = gpu.argparse.Namespace(parts=["qlora", "decoding", "share"], seconds=9.0, out=tmp_path / "gpu.json")
    found = gpu.measure(options, gpu.Bench(True, 9.0, tmp_path))
    assert found["skipped"] == {"share": "the rest of it: 3 s are left", "decoding": "2 s are left"}
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    text = gpu.tables(found)
    assert "Skipped, decoding: 2 s are left." in text
    assert "| samples/s | ? |" in text


def test_gpu_says_that_there_is_none(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.Bench, "run", lambda *_, **__: {"missing": True})
    options = gpu.argparse.Namespace(parts=["qlora"], seconds=9.0, out=tmp_path / "gpu.json")
    with pytest.raises(SystemExit, match="no GPU that torch can use; --tiny runs the same script"):
        gpu.measure(options, gpu.Bench(False, 9.0, tmp_path))


def test_gpu_job_that_is_stopped_or_fails_keeps_what_it_has(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = """
import json, sys, time
from pathlib import Path
job = json.loads(Path(sys.argv[2]).read_text())
Path(job["out"], "answer.json").write_text('{"seconds": [1.0]}')
time.sleep(job["seed"])
raise SystemExit("it broke")
"""
    (tmp_path / "job.py").write_text(script)
    monkeypatch.setattr(gpu, "HERE", tmp_path / "gpu.py")
    bench = gpu.Bench(True, 600, tmp_path)
    assert bench.run("step", "job.py") == {"seconds": [1.0], "error": "it broke\n"}
    assert "step failed:\nit broke" in capsys.readouterr().err
    bench.part_end = gpu.time.monotonic() + 2
    assert bench.run("step", "job.py", seed=600) == {"seconds": [1.0], "cut": True}
    assert not list(tmp_path.glob("job-*"))
    document = {"card": "a card", "made": "today", "versions": {}, "seconds": 1.0, "skipped": {},
                "step": {"goal": 2.0, "samples": 8, "ratios": [],
                         "runs": [{"side": "TRL", "cut": True}, {"side": "ours", "error": "it broke"}]}}  # fmt: skip
    text = gpu.tables(document)
    assert "Stopped when its time was up: step TRL." in text
    assert "Failed: step ours." in text
    assert gpu.failed(document)
    del document["step"]["runs"][1]
    assert not gpu.failed(document)  # running out of time is no failure


def test_gpu_tables_take_medians_and_say_what_is_reached(gpu: Any) -> None:
    def run(side: str, median: float) -> dict[str, Any]:
        return {"side": side, "median": median, "peak_gb": 10 + median}

    runs = [run("TRL", 8.0), run("ours", 2.0), run("ours", 4.0), run("TRL", 12.0)]
    cell = {"batch": 8, "engine": "refill", "tokens_per_second": 1234.5, "of_bound": 0.25}
    qlora = {"steps": [{"seconds": 9.0}, {"seconds": 8.0}], "samples_per_second": 8.0, "peak_gb": 12.0,
             "seconds_to_make": 30.0}  # fmt: skip
    document = {
        "card": "a card", "memory_gib": 79.2, "cuda": "13.0", "made": "today", "versions": {"torch": "2"},
        "seconds": 500.0, "skipped": {}, "qlora": qlora,
        "step": {"goal": 2.0, "samples": 64, "runs": runs, "ratios": [4.0, 3.0]},
        "share": {"seconds_of": {"generation": 3.0, "update": 1.0}},
        "decoding": {"bytes_per_second": 2e12, "bound": {"8": 5000.0, "64": 40_000.0},
                     "cells": [cell, {"batch": 64, "engine": "continuous", "error": "ImportError: none\nmore"}]},
    }  # fmt: skip
    text = gpu.tables(document, {"qlora": {**qlora, "samples_per_second": 4.0}})
    assert text.startswith("a card, 79 GiB, CUDA 13.0, today; torch 2. It took 500 s.")
    assert "| TRL | 10.00 (8.00 to 12.00) | 6.7 (5.3 to 8.0) | 22.0 |  |  |  |" in text
    assert "| 3.50 (3.00 to 4.00) | 2.00 | reached |" in text
    assert "| generation | 3.000 | 75 % |" in text
    assert "| memory bound | 5,000 | 40,000 |" in text
    assert "| refill | 1,234 (25 %) | ? |" in text
    assert "continuous, batch 64: ImportError: none\n" in text
    assert "| samples/s | 4.00 | 8.00 |" in text
    assert "| s a step, the fastest | 8.0 | 8.0 |" in text
    document["step"]["ratios"] = [1.5]
    assert "| 1.50 | 2.00 | missed |" in gpu.tables(document)


def test_gpu_registries_are_valid_at_full_size(gpu: Any, tmp_path: Path) -> None:
    import gpu_ours
    import gpu_qlora

    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w2"}\n')
    sizes = gpu.task.SIZES["large"]
    job = {"settings": gpu.task.settings(sizes["step"]), "sizes": sizes, "device": "cuda", "seed": 0,
           "start": str(tmp_path), "out": str(tmp_path)}  # fmt: skip
    (tmp_path / "registry.yaml").write_text(json.dumps(gpu_ours.registry(job, tmp_path)))
    project = rlhf_core.load(tmp_path / "registry.yaml")
    assert not project.validate()
    found = project.resolve("peers")
    assert (found.settings.dtype, found.settings.precision, found.settings.device) == ("bfloat16", "bf16", "cuda")
    optimizer = found.components["optimizer", "learner"].config
    assert (optimizer.prompts_per_step, optimizer.samples_per_prompt, optimizer.minibatch_size) == (16, 4, 8)
    assert found.stages[0].config.steps == 3
    (tmp_path / "registry.yaml").write_text(json.dumps(gpu_qlora.registry(sizes["qlora"], 2, tmp_path, "cuda")))
    assert not rlhf_core.load(tmp_path / "registry.yaml").validate()


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import speed

    return speed


@pytest.fixture
def task(speed: Any) -> Any:
    return speed.task


def test_speed_model_ends_with_the_asked_probability_at_every_token(task: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.randint(2, 128, (16, 40), generator=torch.Generator().manual_seed(3))
    for ends in (0.0, 1 / 24):
        task.make_start(tmp_path / f"{ends:.2f}", "toy", ends)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"{ends:.2f}")
        with torch.no_grad():
            found = model(ids).logits.softmax(-1)
        assert found[..., 0].min() == pytest.approx(ends, rel=0.2, abs=1e-12)
        assert found[..., 0].max() == pytest.approx(ends, rel=0.2, abs=1e-12)
        assert found[..., 1].max() < 1e-12  # padding
        assert found[..., 2:].amax(-1).min() < 0.5  # and the rest is open


def test_speed_rule_is_the_same_over_text_and_over_ids(task: Any) -> None:
    assert task.reward(["p", "p", "p"], ["w4 w5 w6 w7", "w8 w8", ""]) == [0.5, 1, 0]
    prompt = [4] * task.PROMPT_TOKENS  # paid words, none of them counts
    rows = torch.tensor([[*prompt, 4, 5, 6, 7, 0], [*prompt, 8, 8, 0, 1, 1]])  # 0 ends a text, 1 pads it
    assert task.judge(rows, rows != 1).tolist() == [0.5, 1]


def test_speed_counts_steps_to_a_mean_of_three(task: Any) -> None:
    assert task.first_reaching([0.9, 0.0, 0.8, 0.8, 0.7, 0.1], 0.75) == 5
    assert task.first_reaching([0.9, 0.9], 0.75) is None


def test_speed_peers_take_turns(task: Any) -> None:
    assert task.shuffled(["ours", "trl"], 0) == task.shuffled(["trl", "ours"], 1) == ["ours", "trl"]
    orders = {tuple(task.shuffled("abc", number)) for number in range(9)}
    assert len(orders) > 2


def test_speed_table_takes_ratios_within_repeats(speed: Any) -> None:
    def record(repeat: int, theirs: float | None, ours: float | None) -> dict[str, Any]:
        return {"part": "ppo", "case": "ppo S fixed", "repeat": repeat, "amount": {"TRL": 32, "separate, fp32": 32},
                "seconds": {"TRL": theirs, "separate, fp32": ours}}  # fmt: skip

    # the machine is twice as slow in the second repeat, for both: each ratio is 1.5, 1.5 and 1.0
    text = speed.table([record(0, 3.0, 2.0), record(1, 6.0, 4.0), record(2, 2.0, 2.0)], "ppo")
    assert "| ppo S fixed | TRL | 10.7 |" in text
    assert "| ppo S fixed | separate, fp32 | 16.0 | 1.50 | 1.00 to 1.50 | 1.35 | reached |" in text
    assert "| 1.20 | 1.20 to 1.20 | 1.35 | missed |" in speed.table([record(0, 1.2, 1.0)], "ppo")
    learning = [{**record(0, None, 2.0), "part": "learn"}, {**record(1, 4.0, None), "part": "learn"}]
    for one in learning:
        del one["amount"]
    text = speed.table(learning, "learn")
    assert "| ppo S fixed | separate, fp32 | 2.0 (1 of 2) | inf | 0.00 to inf |" in text


def test_speed_says_whether_memory_is_flat(speed: Any) -> None:
    def record(value: int, peak: float, rest: float) -> dict[str, Any]:
        kept = {"peak": peak, "imports": 400.0, "rest": rest}
        return {"part": "growth", "axis": "vocabulary", "value": value, "samples": 2, "tokens": 5, "seconds": 1.0,
                "memory": kept}  # fmt: skip

    text = speed.growth_table([record(1024, 500, 50), record(131072, 900, 60)])
    assert "| vocabulary | 131,072 | 1.000 | 500.0 | 100000 | 900 | 440 | 60 |" in text
    assert "grows by 400 MB, the rest by\n10 MB" in text
    assert text.endswith("reached.")
    assert speed.growth_table([record(1024, 500, 50), record(131072, 900, 100)]).endswith("missed.")


def test_every_speed_job_of_ours_is_a_valid_registry(
    speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import speed_ours

    monkeypatch.setattr(speed.Bench, "start", lambda *_: str(tmp_path))
    bench = speed.Bench(None, tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w2"}\n')
    sides = {case[0]: case[-1] for cases in speed.CONTESTS.values() for case in cases}
    for algorithm, names in sides.items():
        for side in (name for name in names if not name.startswith("TRL")):
            job = bench.job(algorithm, "S", "fixed", 3, side)
            (tmp_path / "registry.yaml").write_text(json.dumps(speed_ours.registry({**job, "out": "out"}, tmp_path)))
            project = rlhf_core.load(tmp_path / "registry.yaml")
            assert not project.validate(), (algorithm, side)
            assert project.resolve("peers").stages[0].config.steps == 3
            policy = project.resolve("peers").components["policy", "start"].config
            assert policy.critic == ("shared" if side == "defaults" or algorithm != "ppo" else "separate")


@pytest.mark.slow
def test_speed_benchmark_runs_tiny(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "speed.py", "--toy", "--parts", "overhead", "--out", tmp_path / "o.json"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    records = json.loads((tmp_path / "o.json").read_text())["records"]
    assert [set(record["seconds"]) for record in records] == [{"separate, fp32", "plain loop"}]


def test_speed_plain_loop_does_what_ours_does(speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same samples, two steps move policy and critic alike; the critic's trunk moves from the second on."""
    import speed_ours
    from rlhf_core.interfaces import Sampling
    from rlhf_core.policies.causal_lm import CausalLM
    from speed_plain import PlainPPO

    monkeypatch.setattr(speed.Bench, "start", lambda *_: str(tmp_path / "start"))
    speed.task.make_start(tmp_path / "start", "toy", 1 / 24)
    bench = speed.Bench(None, tmp_path)
    changes = {"prompts": 8, "samples": 16, "max_new_tokens": 12, "minibatch_size": 8, "learning_rate": 1e-3,
               "max_grad_norm": 1e9, "kl_coef": 0.5}  # fmt: skip
    job = bench.job("ppo", "toy", "ragged", 2, "separate, fp32", **changes)
    job.update(out=str(tmp_path), threads=1)
    drawn: list[Any] = []
    generate = CausalLM.generate

    def noted(self: Any, prompts: Any, sampling: Any, *, seed: int, **options: Any) -> Any:
        drawn.append((list(prompts), seed))
        return generate(self, prompts, sampling, seed=seed, **options)

    monkeypatch.setattr(CausalLM, "generate", noted)
    sides: list[Any] = []

    class Watcher:
        @rlhf_core.hookimpl
        def rlhf_run_started(self, run: Any) -> None:
            policy = CausalLM(run.policy.config, run.context.named("policy", "plain"))
            sides.extend([run.policy, PlainPPO(policy, job["settings"], Sampling(max_new_tokens=12))])

    threads = torch.get_num_threads()
    try:
        speed_ours.run(job, Watcher())
    finally:
        torch.set_num_threads(threads)
    ours, plain = sides
    before = {name: tensor.clone() for name, tensor in plain.model.named_parameters()}
    for prompts, plain.taken in drawn[:2]:
        plain.step(prompts)
    pairs = [("policy", dict(ours.network.model.named_parameters()), dict(plain.model.named_parameters())),
             ("critic", dict(ours.network.value_trunk.named_parameters()), dict(plain.critic.named_parameters()))]  # fmt: skip
    for role, mine, theirs in pairs:
        moves, apart = 0.0, 0.0
        for name, tensor in theirs.items():
            start = before[name if role == "policy" else f"model.{name}"]
            moves += float((tensor - start).detach().abs().sum())
            apart += float((tensor - mine[name]).detach().abs().sum())
        assert moves > 0, role
        assert apart < 0.02 * moves, (
            role
        )  # Adam's first step is a sign: where a gradient is all rounding, it may differ
