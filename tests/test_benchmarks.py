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


def test_gpu_benchmark_runs_tiny(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "gpu.py", "--tiny", "--out", tmp_path / "gpu.json"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["steps"]) == 2
    assert found["samples_per_second"] > 0
    # 2 x 512 x 64 whole numbers are .25 MB, 73,728 in 4 bits .035 MB and their scales; whole they would be .28 MB more
    assert 0.285 < found["weights_mb"]["base"] < 0.32
    # policy, critic and reward have an adapter each, of one size, and the two last a head of 65 numbers
    assert (
        found["weights_mb"]["critic"] == found["weights_mb"]["reward"] == found["weights_mb"]["adapters"] + 65 / 2**18
    )
