"""Distributions that lie outside the workspace, as strangers' would: built, installed from their wheels, and used."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECTS = sorted((ROOT / "examples" / "third-party").iterdir())
make_venv = runpy.run_path(str(ROOT / "core" / "tests" / "venvs.py"))["make_venv"]

REGISTRY = """\
schema_version: 1
requires: ["rlhf-core>=0.1", "rlhf-plugin-gspo>=0.1", "rlhf-plugin-spelling>=0.1"]
components:
  policy:
    lm: {use: causal-lm, config: {fresh: {architecture: llama, sizes:
      {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2,
       max_position_embeddings: 96}, tokenizer: {text: [demonstrations], vocab_size: 260}}}}
  feedback:
    demonstrations: {use: demonstrations, config: {path: demonstrations.jsonl}}
  prompts:
    questions: {use: jsonl, config: {path: questions.jsonl}}
  reward:
    spelling: {use: spelling, config: {known: [RLHF]}}
  optimizer:
    gspo: {use: gspo, config: {prompts_per_step: 2, minibatch_size: 8}}
pipelines:
  both:
    policy: lm
    precision: fp32
    stages:
      - optimize: {optimizer: gspo, prompts: questions, rewards: {spelling: 1.0}, shapers: [kl], steps: 2,
                   sampling: {max_new_tokens: 6}}
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the core and all of them, from wheels."""
    folder = tmp_path_factory.mktemp("wheels")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    sources = [ROOT / "core", *PROJECTS]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), *map(str, sources)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    wheels = sorted(folder.glob("*.whl"))
    assert len(wheels) == len(sources)
    interpreter: Path = make_venv(tmp_path_factory.mktemp("venv"), *wheels)
    return interpreter


def run(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RLHF", "PYTEST"))
    }
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "160", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_they_are_listed(python: Path, tmp_path: Path) -> None:
    listing = json.loads(run(python, "-m", "rlhf_core", "plugins", "--json", "--deep", cwd=tmp_path))
    assert listing["problems"] == []
    found = {plugin["distribution"]: (plugin["status"], plugin["components"]) for plugin in listing["plugins"]}
    assert found.pop("rlhf-core")[0] == "ok"
    assert found == {
        "rlhf-plugin-gspo": ("ok", ["optimizer/gspo"]),
        "rlhf-plugin-spelling": ("ok", ["reward/spelling"]),
    }


def test_their_own_tests_pass(python: Path, tmp_path: Path) -> None:
    """The conformance checks, none skipped for want of an example, and what each tests besides."""
    suites = [str(project / "tests") for project in PROJECTS]
    options = ["-q", "-rA", "--import-mode=importlib", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    report = run(python, "-m", "pytest", *options, *suites, cwd=tmp_path)
    for component in ("optimizer/gspo", "reward/spelling"):
        assert f"[{component}-builds_from_its_examples]" in report
    assert "no example" not in report and "xfail" not in report.lower()


def test_the_registry_snippets_of_their_readmes_are_valid(python: Path, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def short(prompts, completions, **columns): return []\n", encoding="utf-8")
    for project in PROJECTS:
        snippet = (project / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
        (tmp_path / f"{project.name}.yaml").write_text(snippet, encoding="utf-8")
        run(python, "-m", "rlhf_core", "validate", "--registry", f"{project.name}.yaml", cwd=tmp_path)


def test_they_work_together(python: Path, tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(REGISTRY, encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "How?"}\n', encoding="utf-8")
    (tmp_path / "demonstrations.jsonl").write_text('{"prompt": "Why?", "response": "So."}\n', encoding="utf-8")
    run(python, "-m", "rlhf_core", "run", "both", "--out", "out", cwd=tmp_path)
    steps = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert len(steps) == 2
    for step in steps:
        assert 0 <= step["reward/spelling"] <= 1 and step["policy/ratio"] == pytest.approx(1, abs=1e-4)
