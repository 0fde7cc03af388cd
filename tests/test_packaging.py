"""Core and PPO alone: from the source folders, from built wheels, and into a really empty environment."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
make_venv = runpy.run_path(str(ROOT / "core" / "tests" / "venvs.py"))["make_venv"]
DISTRIBUTIONS = [ROOT / "core", ROOT / "plugins" / "ppo"]


def init_and_run(python: Path, folder: Path) -> None:
    """What a newcomer does: look, init, run; with nothing of this repository on the path."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    environment.pop("PYTHONPATH", None)

    def rlhf(*arguments: str) -> str:
        done = subprocess.run(
            [python.parent / "rlhf", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    rows = json.loads(rlhf("plugins", "--json"))["plugins"]
    assert {row["distribution"]: row["status"] for row in rows} == {"rlhf-core": "ok", "rlhf-plugin-ppo": "ok"}
    rlhf("init")
    assert "no problems" in rlhf("validate")
    assert "report:" in rlhf("run", "first", "--out", "run", "--set", "stages.optimize.steps=2")
    assert (folder / "run" / "report.html").stat().st_size > 10_000
    assert (folder / "run" / "export" / "model.safetensors").is_file()


@pytest.mark.slow
def test_source_folders(tmp_path):
    python = make_venv(tmp_path / "venv", *DISTRIBUTIONS)
    (tmp_path / "work").mkdir()
    init_and_run(python, tmp_path / "work")


def test_built_wheels(tmp_path):
    for source in DISTRIBUTIONS:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    wheels = sorted(tmp_path.glob("*.whl"))
    assert [w.name.split("-")[0] for w in wheels] == ["rlhf_core", "rlhf_plugin_ppo"]
    python = make_venv(tmp_path / "venv", *wheels)
    (tmp_path / "work").mkdir()
    init_and_run(python, tmp_path / "work")


@pytest.mark.slow
def test_an_empty_environment(tmp_path):
    """`pip install ./core ./plugins/ppo` resolves and downloads every dependency itself."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *DISTRIBUTIONS]
    subprocess.run(pip, check=True, timeout=900)
    (tmp_path / "work").mkdir()
    init_and_run(python, tmp_path / "work")


def test_every_distribution_is_listed_where_it_must_be():
    """The Makefile finds plugins by folder; their metadata, hints and constraints must not lag behind."""
    import tomllib

    from rlhf_core.plugins import FIRST_PARTY

    for folder in sorted((ROOT / "plugins").iterdir()):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["name"] == f"rlhf-plugin-{folder.name}"
        assert project["name"] in FIRST_PARTY
        assert project["entry-points"]["rlhf"]
        assert any(d.startswith("rlhf-core>=") and "<" not in d for d in project["dependencies"])
        assert (folder / "README.md").stat().st_size > 200
    pins = (ROOT / "constraints.txt").read_text()
    assert "torch==2.13.0\n" in pins
