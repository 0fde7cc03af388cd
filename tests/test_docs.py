"""The texts for readers: what they show must be so. Commands, links, registry files, Python code, and the two READMEs."""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rlhf_core import __version__
from rlhf_core.api import Project, RunResult, load
from rlhf_core.builtin import COMPONENTS
from rlhf_core.cli.app import build_app
from rlhf_core.cli.starter import write_starter
from rlhf_core.plugins import CORE, FIRST_PARTY, load_plugins
from rlhf_core.registry import PipelineSettings
from rlhf_core.registry.settings import NOT_SETTABLE
from rlhf_core.runs import directory
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE, GUIDE, DESIGN = (
    ROOT / name for name in ("README.md", "README.zh-CN.md", "docs/guide.md", "docs/design.md")
)
TEXTS = sorted(
    path
    for pattern in ("*.md", "core/*.md", "docs/*.md", "docs/tutorial/*.md", "plugins/*/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
HERE = [path for path in TEXTS if not {"tutorial", "third-party"} & set(path.parts)]  # the others have tests of their own
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.S | re.M)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text(path)) if found == language]


def prose(path: Path) -> str:
    """Everything outside code blocks."""
    return FENCE.sub("", text(path))


def all_blocks(language: str) -> list[Any]:
    return [
        pytest.param(path, block, id=f"{name_of(path)}-{i}")
        for path in HERE
        for i, block in enumerate(blocks(path, language))
    ]


# --- registry files ---------------------------------------------------------------------------------------------------


def with_catalogue(block: str) -> str:
    """A plugin's example beside the names of the catalogue at the root, which it may use."""
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 2)
    data, catalogue = reader.load(block), reader.load(text(ROOT / "registry.yaml"))
    for section, entries in catalogue["components"].items():
        data["components"][section] = {**entries, **data["components"].get(section, {})}
    data.setdefault("functions", {}).update({k: str(ROOT / v) for k, v in catalogue["functions"].items()})
    out = io.StringIO()
    reader.dump(data, out)
    return out.getvalue()


@pytest.mark.parametrize(("path", "block"), all_blocks("yaml"))
def test_registry_files_validate(path, block, tmp_path, monkeypatch):
    if "schema_version" not in block:  # a part of one
        assert YAML(typ="safe", pure=True).load(block)
        return
    for variable in re.findall(r"\$\{env:(\w+)\}", block):
        monkeypatch.setenv(variable, "http://127.0.0.1:1/v1")
    for file in re.findall(r"[ {](\w+\.py):\w+", block):
        (tmp_path / file).touch()
    whole = with_catalogue(block) if path.is_relative_to(ROOT / "plugins") else block
    (tmp_path / "registry.yaml").write_text(whole, encoding="utf-8")
    assert [str(problem) for problem in load(tmp_path / "registry.yaml").validate()] == []


# --- commands ---------------------------------------------------------------------------------------------------------


def commands(path: Path) -> list[str]:
    """Every command line in shell blocks and inline code."""
    lines = [line for block in blocks(path, "bash") + blocks(path, "sh") for line in block.splitlines()]
    spans = SPAN.findall(prose(path))
    return [c for c in (*lines, *spans) if re.match(r"(rlhf|make|pip|git|\.venv/bin/\w+) |cd ", c)]


def is_placeholder(word: str) -> bool:
    return word.isupper()


@cache
def typer_command() -> Any:
    import typer

    return typer.main.get_command(build_app())


@cache
def catalogue() -> Project:
    return load(ROOT / "registry.yaml")


@pytest.mark.parametrize(("path", "line"), [
    pytest.param(path, line, id=f"{name_of(path)}-{line}") for path in HERE for line in dict.fromkeys(commands(path))
])  # fmt: skip
def test_commands_exist(path, line):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert all(re.search(rf"^{word}:", text(ROOT / "Makefile"), re.M) for word in words[1:])
    elif words[:2] == ["pip", "install"]:
        ours = {CORE, *FIRST_PARTY}
        for word in (w for w in words[2:] if not w.startswith("-") and "NAME" not in w and w != ".[dev]"):
            assert (ROOT / word / "pyproject.toml").is_file() or re.split(r"[\[>=]", word)[0] in ours, word
    elif words[0] == "rlhf":
        arguments = [word for word in words[1:] if word != "--debug"]
        if arguments[0] not in ("--help", "--version"):
            check_command(arguments, in_prose=f"`{line}`" in prose(path))


def check_command(arguments: list[str], *, in_prose: bool) -> None:
    command = typer_command().commands[arguments[0]]
    if in_prose and len(arguments) == 1:
        return  # named, not shown
    parameters = command.make_context(arguments[0], arguments[1:]).params  # fails on unknown options
    if arguments[0] in ("run", "show") and (pipeline := parameters["pipeline"]):
        if pipeline != "first" and not is_placeholder(pipeline):
            catalogue().resolve(pipeline, parameters["set_"] or [])
    elif arguments[0] in ("describe", "components") and not is_placeholder(arguments[1]):
        kind, name = parameters["kind"], parameters.get("name")
        assert kind in load_plugins().kinds
        assert name is None or load_plugins().find(kind, name)


# --- links and files --------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors that a forge makes of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_and_files_exist(path):
    for target in LINK.findall(prose(path)):
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target
    for span in SPAN.findall(prose(path)):
        if re.fullmatch(r"(core|plugins|examples|tests|docs)/[\w./*-]*", span):
            assert list(ROOT.glob(span.rstrip("/"))), span


# --- Python -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "block"), all_blocks("python"))
def test_python_runs(path, block, tmp_path, monkeypatch, capsys):
    """Every block runs beside the files of `rlhf init`; a run itself is not made. Output in comments is true."""
    import rlhf_core.testing as kit

    assert callable(kit.parametrize_components)
    monkeypatch.setattr(kit, "parametrize_components", lambda *_: lambda test: test, raising=False)
    monkeypatch.setattr(Project, "run", fake_run)
    monkeypatch.chdir(tmp_path)
    write_starter(tmp_path, load_plugins(), force=False)
    names: dict[str, Any] = {"__name__": "snippet"}
    raises = any(isinstance(statement, ast.Raise) for statement in ast.parse(block).body)
    try:
        exec(compile(block, name_of(path), "exec"), names)
    except Exception as error:
        assert raises, error
        assert f"# {error}\n" in block
    else:
        assert not raises
    printed = capsys.readouterr().out.splitlines()
    for line, shown in zip(printed, re.findall(r"^print\(.*\)  # (.*)$", block, re.M), strict=False):
        assert line == shown


def fake_run(self: Project, pipeline: str, **arguments: Any) -> RunResult:
    """Takes what `Project.run` takes, and resolves the pipeline without running it."""
    assert arguments.keys() <= REAL_RUN.__annotations__.keys()
    self.resolve(pipeline, arguments.get("overrides", ()))
    summary = {"stages": {"evaluate": {"metrics": {"reward": {}}}}}
    return RunResult(directory=Path("run"), summary=summary, report=Path("run/report.html"))


REAL_RUN = Project.run


def defined(path: Path, name: str) -> str:
    """The Python block of `path` that defines the class `name`."""
    return next(block for block in blocks(path, "python") if f"class {name}(" in block)


def test_the_gspo_example_improves_a_policy():
    """One step of what the README prints."""
    import torch
    from rlhf_core.testing import example_data, tiny_context, tiny_policy

    names: dict[str, Any] = {"__name__": "snippet"}
    exec(defined(ENGLISH, "GSPO"), names)
    config = names["GSPOConfig"](samples_per_prompt=4, prompts_per_step=2, minibatch_size=8, learning_rate=1e-2)
    policy = tiny_policy()
    optimizer = names["GSPO"](config, tiny_context("optimizer", "gspo"))
    optimizer.bind(policy, 1)
    before = [p.detach().clone() for p in policy.module.parameters()]
    stats = optimizer.step(example_data(policy))
    assert stats["policy/updates"] == 1.0
    assert stats["policy/ratio"] == pytest.approx(1, abs=1e-4)  # nothing has moved before the first update
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.module.parameters(), strict=True))


def test_contributing_s_component_counts_question_marks():
    from rlhf_core.interfaces import Context
    from rlhf_core.records import Prompt, Sample

    block = defined(ROOT / "CONTRIBUTING.md", "Questions")
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(block, names)
    reward = names["Questions"](names["QuestionsConfig"](weight=0.5), Context())
    samples = [Sample(Prompt(text="a"), "why? what?"), Sample(Prompt(text="a"), "no")]
    assert reward.score(samples).values.tolist() == [1.0, 0.0]


# --- the two READMEs --------------------------------------------------------------------------------------------------


def without_comments(block: str) -> str:
    return "\n".join(re.sub(r"\s+# .*$", "", line) for line in block.splitlines())


def test_both_readmes_have_the_same_sections_and_code():
    levels = [re.findall(r"^(#+) ", prose(path), re.M) for path in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]
    code = [
        [(kind, without_comments(block)) for kind, block in FENCE.findall(text(path))] for path in (ENGLISH, CHINESE)
    ]
    assert code[0] == code[1]


@pytest.mark.parametrize("found", [
    lambda path: SPAN.findall(prose(path)),
    lambda path: [link for link in LINK.findall(prose(path)) if not link.startswith("README")],
    lambda path: re.findall(r"\d+(?:\.\d+)?", LINK.sub("", prose(path)).replace("September", "9")),
    lambda path: re.findall(r"<!-- .* -->", text(path)),
], ids=["commands and names", "links", "numbers", "markers"])  # fmt: skip
def test_both_readmes_say_the_same(found):
    english, chinese = Counter(found(ENGLISH)), Counter(found(CHINESE))
    assert english - chinese == Counter() and chinese - english == Counter()


OPTIONS = re.compile(r"^\| `(\w+)` \| (.+?) \|", re.M)


def documented() -> list[Any]:
    plugins = load_plugins()
    return [
        pytest.param(info, spec, id=f"{spec.kind}/{spec.name}")
        for info in plugins.plugins
        for spec in info.components
        if info.distribution in FIRST_PARTY and spec.kind in ("optimizer", "shaper", "stage")
    ]


@pytest.mark.parametrize(("info", "spec"), documented())
def test_a_readme_lists_every_option_with_its_default(info, spec):
    """In the table under the component's own heading, or in a README that is about one component, anywhere."""
    readme = text(ROOT / "plugins" / info.distribution.removeprefix("rlhf-plugin-") / "README.md")
    parts = re.split(r"^## (.+)$", readme, flags=re.M)
    own = dict(zip(parts[1::2], parts[2::2], strict=True)).get(spec.name, readme)
    config = load_plugins().import_class(spec, "config")
    rows = {name: default for name, default in OPTIONS.findall(own) if name in config.model_fields}
    assert rows.keys() == config.model_fields.keys()
    for name, field in config.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        default = {} if hasattr(default, "model_dump") else default  # its own defaults
        shown = "required" if field.is_required() else "none" if default is None else json.dumps(default)
        number = isinstance(default, float) and re.fullmatch(r"[\d.e-]+", rows[name])
        assert rows[name] == shown or (number and float(rows[name]) == default), f"{name}: {rows[name]}, not {shown}"


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=name_of)
def test_the_table_of_components_is_complete(path):
    rows = re.findall(r"^\| (\w+) \| `([\w-]+)` \| .+ \| ([\w-]+) \|$", text(path), re.M)
    here = {
        (spec.kind, spec.name, info.distribution)
        for info in load_plugins().plugins
        if info.distribution in {CORE, *FIRST_PARTY}
        for spec in info.components
    }
    assert set(rows) == here and len(rows) == len(here)


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=name_of)
def test_the_numbers_of_the_quickstart_are_those_of_its_data(path):
    for file in ("demonstrations", "comparisons", "prompts", "held_out"):
        count = len(text(ROOT / "examples" / "desk" / "data" / f"{file}.jsonl").splitlines())
        assert re.search(rf"\b{count}\b", prose(path), re.A), (file, count)
    annotators = {line.split('"annotator": "')[1].split('"')[0] for line in
                  text(ROOT / "examples" / "desk" / "data" / "comparisons.jsonl").splitlines()}  # fmt: skip
    assert re.search(rf"\b{len(annotators)}\s(annotators|位标注者)", prose(path), re.A)


def test_the_error_in_the_readme_is_the_one_that_comes(tmp_path):
    """The line number is that of the starter's registry file."""
    from rlhf_core.errors import RegistryErrors

    write_starter(tmp_path, load_plugins(), force=False)
    file = tmp_path / "registry.yaml"
    file.write_text(file.read_text().replace("coef: ", "coeff: "))
    problem = str(RegistryErrors(load(file).validate())).replace(f"{tmp_path}/", "")
    assert f"`error: {problem}`" in text(ENGLISH)


# --- guide, design, contributing, changelog ---------------------------------------------------------------------------


def test_the_guide_names_every_setting_file_and_stage():
    spans = set(SPAN.findall(prose(GUIDE)))
    assert set(PipelineSettings.model_fields) - set(NOT_SETTABLE) <= spans
    assert set(NOT_SETTABLE) <= spans
    files = {value for name, value in vars(directory).items() if name.isupper() and isinstance(value, str)}
    assert {f for f in files if "." in f} | {f"{f}/" for f in files if "." not in f} <= spans
    assert {spec.name for spec in COMPONENTS if spec.kind == "stage"} <= spans


def contracts() -> dict[str, Any]:
    """What import-linter is told, by the contracts' ids, and its root packages."""
    told = tomllib.loads(text(ROOT / "pyproject.toml"))["tool"]["importlinter"]
    return {"packages": told["root_packages"], **{contract["id"]: contract for contract in told["contracts"]}}


def test_imports_keep_the_contracts():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout


def test_the_contracts_are_those_of_the_design_page_and_of_all_plugins():
    table = re.search(r"^\| floor \| holds \|\n\|---\|---\|\n(.*?)\n\n", text(DESIGN), re.S | re.M)
    assert table
    floors = [re.findall(r"`(\w+)(?:\.py)?`", row.split("|")[1]) for row in table[1].splitlines()]
    layers = [re.findall(r"\w+", layer) for layer in contracts()["floors"]["layers"]]
    assert floors == [layer for layer in layers if layer != ["testing"]]
    plugins = [f"rlhf_plugin_{path.name}" for path in sorted((ROOT / "plugins").iterdir()) if path.is_dir()]
    assert contracts()["packages"] == ["rlhf_core", *plugins] and contracts()["plugins"]["modules"] == plugins
    assert contracts()["light"]["source_modules"] == ["rlhf_core.**.config", *(f"{plugin}.config" for plugin in plugins)]


def test_versions_agree():
    for folder in (ROOT / "core", *(ROOT / "plugins").iterdir()):
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert folder.name != "core" or project["version"] == __version__
        assert project["license"] == "Apache-2.0"
    assert re.search(rf"## \[{__version__}\]|first release will be {__version__}", text(ROOT / "CHANGELOG.md"))
    assert "Version 2.0, January 2004" in text(ROOT / "LICENSE")


@pytest.mark.parametrize("path", [p for p in TEXTS if p.parent == ROOT or "docs" in p.parts], ids=name_of)
def test_lines_are_not_too_long(path):
    long = [line for line in text(path).splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long, textwrap.indent("\n".join(long), "  ")
