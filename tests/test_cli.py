"""The command line: quick answers without torch, errors one can act on, and what a run prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RLHF = [sys.executable, "-m", "rlhf_core"]


def rlhf(
    *arguments: str, cwd: Path = ROOT, code: int | None = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*RLHF, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "160", "HF_HUB_OFFLINE": "1", **environment},
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("arguments", [
    ["--help"], ["plugins"], ["validate"], ["components"], ["describe", "optimizer", "ppo"], ["show", "quickstart"],
    ["schema"], ["run", "--help"], ["--version"],
], ids=" ".join)  # fmt: skip
def test_looking_imports_no_torch(arguments):
    script = (
        "import sys; sys.argv = ['rlhf', *sys.argv[1:]]\n"
        "from rlhf_core.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = [m for m in ('torch', 'transformers', 'peft', 'accelerate', 'datasets') if m in sys.modules]\n"
        "    print('HEAVY', heavy, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr


def test_help_is_not_much_slower_than_python_itself():
    """A ratio in one run: within what importing typer, rich and pydantic costs, several times over."""

    def best(*command: str) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
            times.append(time.perf_counter() - started)
        return min(times)

    libraries = best(sys.executable, "-c", "import typer, rich.console, pydantic, ruamel.yaml, pluggy")
    assert best(*RLHF, "--help") < 5 * libraries


def test_help_lists_the_commands():
    text = rlhf("--help").stdout
    for command in ("init", "run", "validate", "show", "components", "describe", "plugins", "schema"):
        assert re.search(rf"\b{command}\b", text), command


def test_plugins_as_a_table_and_as_json():
    assert "rlhf-plugin-ppo" in rlhf("plugins").stdout
    rows = json.loads(rlhf("plugins", "--json").stdout)["plugins"]
    ppo = next(row for row in rows if row["distribution"] == "rlhf-plugin-ppo")
    assert ppo["status"] == "ok" and ppo["components"] == ["optimizer/ppo"]
    off = json.loads(rlhf("plugins", "--json", RLHF_DISABLE_PLUGINS="rlhf-plugin-ppo").stdout)["plugins"]
    assert next(row for row in off if row["distribution"] == "rlhf-plugin-ppo")["status"] == "disabled"


def test_every_class_imports():
    """Of the core; the conformance kit imports all that is installed."""
    assert "every class imports" in rlhf("plugins", "--deep", RLHF_DISABLE_PLUGINS="all").stdout


def test_describe_shows_every_option_and_an_entry():
    text = rlhf("describe", "reward", "preference").stdout
    for word in ("label_smoothing", "pooling", "last | mean", "policy id", "use: preference"):
        assert word in text, word


def test_show_resolves_and_hides_secrets():
    text = rlhf("show", "quickstart", "--set", "seed=7").stdout
    assert "seed: 7" in text and str(ROOT / "examples") in text
    assert "quickstart" in rlhf("show").stdout


def test_the_schema_in_the_repository_is_fresh():
    assert rlhf("schema").stdout == (ROOT / "registry.schema.json").read_text(encoding="utf-8"), "run make schema"


def test_the_repositorys_registry_has_no_problems():
    assert "no problems" in rlhf("validate").stdout


@pytest.mark.parametrize(("arguments", "words"), [
    (["run", "quikstart"], "there is no pipeline 'quikstart'; did you mean 'quickstart'"),
    (["run", "quickstart", "--set", "stages.optimize.stepss=3"], "did you mean 'steps'"),
    (["run", "quickstart", "--registry", "nowhere.yaml"], "nowhere.yaml"),
    (["describe", "reward", "preferences"], "did you mean 'preference'"),
    (["components", "rewards"], "did you mean 'reward'"),
    (["run", "quickstart", "--resume", "--out", "/nonexistent/run"], "holds no run"),
])  # fmt: skip
def test_bad_input_exits_with_2_and_no_traceback(arguments, words):
    done = rlhf(*arguments, code=2)
    assert words in done.stderr and "Traceback" not in done.stderr and done.stderr.startswith("error: ")


def test_debug_shows_the_traceback():
    done = rlhf("--debug", "run", "quikstart", code=None)
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_all_problems_at_once_with_their_lines(tmp_path):
    text = (ROOT / "registry.yaml").read_text().replace("coef: 0.1", "coeff: 0.1").replace("use: ppo", "use: pppo")
    (tmp_path / "registry.yaml").write_text(text)
    done = rlhf("validate", cwd=tmp_path, code=2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) >= 2 and all(re.match(r"error: registry\.yaml:\d+ ", line) for line in lines[:2]), lines
    assert "coef" in done.stderr and "'ppo'" in done.stderr


def test_init_writes_what_runs(tmp_path):
    done = rlhf("init", "mine", cwd=tmp_path)
    assert "next: cd mine && rlhf run first" in done.stdout
    folder = tmp_path / "mine"
    assert "no problems" in rlhf("validate", cwd=folder).stdout
    refused = rlhf("init", "mine", cwd=tmp_path, code=2)
    assert "is there already" in refused.stderr and "--force" in refused.stderr
    rlhf("init", "mine", "--force", cwd=tmp_path)
    done = rlhf("run", "first", "--out", "run", cwd=folder)
    assert "optimize 20/20" in done.stdout and "report:" in done.stdout
    summary = json.loads((folder / "run" / "summary.json").read_text())
    change = summary["stages"]["evaluate"]["metrics"]["reward"]["change"]
    assert change["mean"] > 0.2
    dry = rlhf("run", "first", "--dry-run", "--set", "stages.optimize.sampling.max_new_tokens=4", cwd=folder)
    assert "dry run of first" in dry.stdout and "memory at most" in dry.stdout and "in all" in dry.stdout
    used = rlhf("run", "first", "--out", "run", cwd=folder, code=2)
    assert "holds a run already" in used.stderr and "--resume" in used.stderr


def test_init_without_an_optimizer_says_what_to_install(tmp_path):
    rlhf("init", cwd=tmp_path, RLHF_DISABLE_PLUGINS="all")
    text = (tmp_path / "registry.yaml").read_text()
    assert "pip install rlhf-plugin-ppo" in text and "optimize" not in text
    assert "no problems" in rlhf("validate", cwd=tmp_path, RLHF_DISABLE_PLUGINS="all").stdout


def test_a_missing_plugin_gives_the_pip_command():
    done = rlhf("run", "quickstart", code=2, RLHF_DISABLE_PLUGINS="rlhf-plugin-ppo")
    assert "rlhf-plugin-ppo" in done.stderr and "disabled" in done.stderr


def test_output_of_models_is_not_markup(tmp_path):
    from rich.console import Console
    from rlhf_core.runs.display import Display

    console = Console(record=True, width=100, force_terminal=False)
    Display(console).samples(
        [{"prompt": "[red]p[/red]", "before": {"response": "[link=x]a"}, "after": {"response": "[/]"}}]
    )
    text = console.export_text()
    assert "[red]p[/red]" in text and "[link=x]a" in text and "[/]" in text
