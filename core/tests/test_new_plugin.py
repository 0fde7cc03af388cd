"""`rlhf new-plugin` and `rlhf check-plugin`, on generated distributions that are really installed."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rlhf_core import testing
from rlhf_core.cli.plugin_author import SUMMARIES, TEMPLATES, class_name, print_checks, write_plugin
from rlhf_core.errors import PluginError, RunError
from rlhf_core.interfaces import Sampling
from rlhf_core.plugins import load_plugins
from rlhf_core.testing import Result, example_prompts, tiny_context, tiny_policy
from rlhf_core.testing.compare import close

CORE = Path(__file__).parents[1]
make_venv = runpy.run_path(str(Path(__file__).with_name("venvs.py")))["make_venv"]
KINDS = list(SUMMARIES)

PIPELINE = """\
schema_version: 1
components:
  policy:
    lm: {use: my-policy, config: {instruction: "Say it. ", max_prompt_tokens: 60, engine: plain, fresh: {
      architecture: llama, sizes: {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
      num_key_value_heads: 2, max_position_embeddings: 96}, tokenizer: {text: [stars], vocab_size: 260}}}}
  feedback:
    stars: {use: my-feedback, config: {path: stars.jsonl}}
  prompts:
    topics: {use: my-prompts}
  reward:
    ends: {use: my-reward}
  shaper:
    relative: {use: my-shaper}
  optimizer:
    mine: {use: my-optimizer, config: {prompts_per_step: 2, minibatch_size: 8}}
  engine:
    plain: {use: my-engine, config: {rows: 3}}
  environment:
    again: {use: my-environment}
  metric:
    variety: {use: my-metric}
pipelines:
  all:
    policy: lm
    stages:
      - optimize: {optimizer: mine, prompts: topics, rewards: {ends: 1}, shapers: [relative], steps: 2,
                   environment: again, sampling: {max_new_tokens: 6}}
      - evaluate: {prompts: topics, metrics: [variety], samples: 0}
      - my-stage: {prompts: topics, sampling: {max_new_tokens: 6}}
"""


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One distribution per kind."""
    folder = tmp_path_factory.mktemp("generated")
    return {kind: write_plugin(load_plugins(disable="all"), f"my-{kind}", kind, folder) for kind in KINDS}


@pytest.fixture(scope="session")
def python(generated: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the core and all of them are installed."""
    interpreter: Path = make_venv(tmp_path_factory.mktemp("venv"), CORE, *generated.values())
    return interpreter


def run(python: Path, *arguments: str, cwd: Path, code: int = 0) -> str:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RLHF", "PYTEST"))
    }
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


# --- what is generated works -----------------------------------------------------------------------------------------


def test_generated_plugins_are_listed(python: Path, tmp_path: Path) -> None:
    listing = json.loads(run(python, "-m", "rlhf_core", "plugins", "--json", cwd=tmp_path))["plugins"]
    found = {plugin["distribution"]: (plugin["status"], plugin["components"]) for plugin in listing}
    assert found.pop("rlhf-core")[0] == "ok"
    assert found == {f"rlhf-plugin-my-{kind}": ("ok", [f"{kind}/my-{kind}"]) for kind in KINDS}


def test_their_own_tests_pass(python: Path, generated: dict[str, Path], tmp_path: Path) -> None:
    suites = [str(folder / "tests") for folder in generated.values()]
    options = ["-q", "-rA", "--import-mode=importlib", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    report = run(python, "-m", "pytest", *options, *suites, cwd=tmp_path)
    for kind in KINDS:
        assert re.search(rf"^PASSED .*\[{kind}/my-{kind}-builds_from_its_examples\]$", report, flags=re.M)
    assert "no example" not in report and "failed" not in report
    # nothing is skipped but what cannot apply
    assert set(re.findall(r"^SKIPPED .*: (.*)$", report, flags=re.M)) <= {
        "a stage has state only inside a run",
        "a sequence shaper has no positions",
        "it does not ask for the reference",
        "it gives no spans for the samples of the kit",
        "it does not declare zero_stays_zero",
        "it has no state, and learns from no feedback",
        "it records no values",
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_their_own_tests_pass_from_their_own_folder(python: Path, generated: dict[str, Path], kind: str) -> None:
    assert "passed" in run(python, "-m", "pytest", "-p", "no:cacheprovider", cwd=generated[kind])


def test_the_registry_snippets_of_their_readmes_are_valid(
    python: Path, generated: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "rewards.py").write_text("def short(prompts, completions, **columns): return []\n")
    for kind, folder in generated.items():
        snippet = (folder / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
        (tmp_path / f"{kind}.yaml").write_text(snippet, encoding="utf-8")
    code = f"import rlhf_core; print([str(e) for k in {KINDS} for e in rlhf_core.load(k + '.yaml').validate()])"
    assert run(python, "-c", code, cwd=tmp_path).strip() == "[]"


def test_a_pipeline_of_generated_components_runs(python: Path, tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(PIPELINE, encoding="utf-8")
    row = {"prompt": "Say it.", "response": " It is said.", "stars": 4}
    (tmp_path / "stars.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    run(python, "-m", "rlhf_core", "run", "all", "--out", "out", cwd=tmp_path)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["stages"]["evaluate"]["metrics"]["variety"]["after"]["n"] > 0
    assert summary["stages"]["my-stage"] == {"responses": 6, "path": "my-stage.jsonl"}
    lines = (tmp_path / "out" / "my-stage.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["prompt"] == "Explain rain in one sentence."


@pytest.mark.parametrize("sampling", [
    {}, {"temperature": 0.7, "top_k": 5}, {"temperature": 0, "min_new_tokens": 3}, {"top_p": 0.5, "stop": ["a"]},
])  # fmt: skip
def test_the_generated_engine_draws_what_the_core_draws(
    generated: dict[str, Path], monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    monkeypatch.syspath_prepend(str(generated["engine"] / "src"))
    package = importlib.import_module("rlhf_plugin_my_engine.engine")
    monkeypatch.setattr(policy := tiny_policy(), "engine", package.MyEngine(package.MyEngineConfig(), tiny_context()))
    wanted = Sampling(max_new_tokens=8, **sampling)
    mine, ours = (p.generate(example_prompts(), wanted, seed=3) for p in (policy, tiny_policy()))
    assert [s.response_ids for s in mine.samples] == [s.response_ids for s in ours.samples]
    for name, tensor in ours.tensors().items():
        assert close(mine.tensors()[name].double(), tensor.double(), 1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_generated_files_are_complete(generated: dict[str, Path], kind: str) -> None:
    folder = generated[kind]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    package = f"src/rlhf_plugin_my_{kind}"
    assert files == {
        "pyproject.toml", "README.md", "LICENSE", ".gitignore", ".github/workflows/ci.yml", f"{package}/__init__.py",
        f"{package}/config.py", f"{package}/{kind}.py", f"{package}/py.typed", "tests/test_conformance.py",
    }  # fmt: skip
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert max((len(line) for line in text.splitlines()), default=0) <= 120, path
            assert "$" not in text.replace("${{ matrix.python }}", ""), path


def test_generated_code_is_formatted_and_linted(generated: dict[str, Path]) -> None:
    settings = str(CORE.parent / "pyproject.toml")
    folders = [str(folder) for folder in generated.values()]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", settings, *folders],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_the_command_of_an_installed_core_writes_the_same(
    python: Path, generated: dict[str, Path], tmp_path: Path
) -> None:
    """So the templates are part of what is installed."""
    words = run(python, "-m", "rlhf_core", "new-plugin", "my-stage", "-k", "stage", "--out", "here", cwd=tmp_path)
    folder = tmp_path / "here" / "rlhf-plugin-my-stage"
    assert "wrote here/rlhf-plugin-my-stage\nnext: cd here/rlhf-plugin-my-stage && pip install" in words

    def contents(folder: Path) -> dict[Path, str]:
        return {p.relative_to(folder): p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.is_file()}

    assert contents(folder) == contents(generated["stage"])


# --- check-plugin ----------------------------------------------------------------------------------------------------


def test_check_plugin_prints_a_table_and_leaves_with_1_if_a_check_fails(python: Path, tmp_path: Path) -> None:
    """The generated shaper, spoilt where it is installed: it forgets its state."""
    code = "import rlhf_plugin_my_shaper.shaper as m; print(m.__file__)"
    path = Path(run(python, "-c", code, cwd=tmp_path).strip())
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace('return {"mean": self.mean}', 'return {"mean": None}'), encoding="utf-8")
    try:
        table = run(python, "-m", "rlhf_core", "check-plugin", "rlhf_plugin_my_shaper", cwd=tmp_path, code=1)
    finally:
        path.write_text(right, encoding="utf-8")
    assert re.search(r"shaper/my-shaper +│ \w+ +│ passed", table)
    assert re.search(r"masked_positions_stay_zero +│ skipped │ a sequence shaper has no positions", table)
    assert re.search(
        r"continues_after_a_checkpoint +│ failed +│ shaper 'my-shaper' of rlhf-plugin-my-shaper: after", table
    )
    assert re.search(r"^\d+ passed, 1 failed, \d+ skipped$", table, flags=re.M)


@pytest.mark.parametrize(("outcome", "fine"), [("passed", True), ("skipped", True), ("failed", False)])
def test_what_is_not_failed_is_fine(monkeypatch: pytest.MonkeyPatch, outcome: Any, fine: bool) -> None:
    monkeypatch.setattr(testing, "run_checks", lambda name, plugins: [Result("metric/x", "a", outcome, "[why]")])
    assert print_checks(load_plugins(disable="all"), "rlhf-core") is fine


def test_check_plugin_of_an_unknown_distribution() -> None:
    with pytest.raises(PluginError, match=r"distribution 'rlhf-coer': no plugin .* did you mean 'rlhf-core'"):
        print_checks(load_plugins(disable="all"), "rlhf-coer")


# --- what new-plugin refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "words"), [
    ("x", "rewrd", "--kind 'rewrd': there is no template for it; expected one of reward, .*; did you mean 'reward'"),
    ("9x", "reward", "plugin name '9x': cannot be used; expected lower-case letters"),
    ("My-Reward", "reward", "plugin name 'My-Reward': cannot be used"),
    ("a--b", "reward", "plugin name 'a--b': cannot be used"),
    ("../x", "reward", "plugin name '../x': cannot be used"),
    ("rlhf-plugin-x", "reward", "which is put before it anyway; expected the component's name; rlhf new-plugin x"),
    ("reward", "shaper", "its class would be called RewardShaper, as an interface is; expected another name"),
    ("kl", "shaper", "shaper 'kl' belongs to rlhf-core; expected a name that no other plugin has"),
    ("whiten", "shaper", "shaper 'whiten' belongs to rlhf-plugin-shaping"),
    ("ppo", "shaper", "rlhf-plugin-ppo is a plugin of rlhf-core's own; expected another name"),
])  # fmt: skip
def test_names_and_kinds_that_cannot_be_used(tmp_path: Path, name: str, kind: str, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        write_plugin(load_plugins(disable="all"), name, kind, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_summary_of_its_own(tmp_path: Path) -> None:
    folder = write_plugin(load_plugins(disable="all"), "calm", "reward", tmp_path, "less for every exclamation mark")
    for file in ("pyproject.toml", "README.md", "src/rlhf_plugin_calm/__init__.py"):
        assert "less for every exclamation mark" in (folder / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("summary", ["", "two\nlines", 'a "word"', "back\\slash"])
def test_a_summary_that_cannot_stand_in_every_file(tmp_path: Path, summary: str) -> None:
    with pytest.raises(PluginError, match=r"--summary .* cannot be used; expected one line without quotation marks"):
        write_plugin(load_plugins(disable="all"), "calm", "reward", tmp_path, summary)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    plugins = load_plugins(disable="all")
    folder = write_plugin(plugins, "mine", "reward", tmp_path / "new" / "place")
    assert folder == tmp_path / "new" / "place" / "rlhf-plugin-mine"
    (folder / "README.md").write_text("mine")
    with pytest.raises(RunError, match="rlhf-plugin-mine is there already; expected a new folder"):
        write_plugin(plugins, "mine", "metric", tmp_path / "new" / "place")
    assert (folder / "README.md").read_text() == "mine"


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"rlhf new-plugin mine: cannot write to .*file: .*; expected a folder"):
        write_plugin(load_plugins(disable="all"), "mine", "reward", tmp_path / "file")


def test_class_names() -> None:
    assert class_name("my-first", "reward") == "MyFirstReward"
    assert class_name("my-reward", "reward") == "MyReward"
    assert class_name("e2e", "stage") == "E2eStage"


def test_every_kind_has_its_templates() -> None:
    assert set(KINDS) == set(load_plugins(disable="all").kinds)
    assert {path.name for path in TEMPLATES.iterdir()} == {"common", *KINDS}
    for kind in KINDS:
        assert {path.name for path in (TEMPLATES / kind).iterdir()} == {
            "component.py.template", "config.py.template", "registry.yaml.template",
        }  # fmt: skip
