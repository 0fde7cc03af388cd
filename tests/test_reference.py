"""The reference: fresh, complete by another way than the one it is made, and free of broken links."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pluggy
import pytest
from pydantic import Field
from rlhf_core import load
from rlhf_core.cli.describe import describe
from rlhf_core.cli.render import cell, markdown, prose
from rlhf_core.errors import PluginError
from rlhf_core.interfaces import ComponentSpec, Config, Hooks, KindSpec, Renamed
from rlhf_core.plugins import CORE, FIRST_PARTY, PluginInfo, Plugins, load_plugins
from rlhf_core.testing.kit import checks_of

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
PLUGINS = load_plugins()
OURS = [spec for info in PLUGINS.plugins if info.distribution in (CORE, *FIRST_PARTY) for spec in info.components]


@cache
def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def public() -> list[str]:
    """The names that plugins may rely on, as the snapshot of the public API finds them."""
    api = runpy.run_path(str(ROOT / "tests" / "public_api" / "write.py"))
    return [f"{module}.{name}" for module in api["MODULES"] for name, _ in api["public_names"](module)]


def test_the_pages_are_what_the_code_says():
    """The same as `make check` asks; a page that is too many counts as well."""
    stale = generator().differences(generator().pages())
    assert [str(path.relative_to(ROOT)) for path in stale] == [], "run make docs"


def test_a_page_that_differs_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(generator(), "REFERENCE", tmp_path)
    for name in ("same", "old", "extra"):
        (tmp_path / f"{name}.md").write_text(name)
    wanted = {tmp_path / "same.md": "same", tmp_path / "old.md": "new", tmp_path / "missing.md": "m"}
    assert generator().differences(wanted) == {
        tmp_path / "extra.md": None, tmp_path / "missing.md": "m", tmp_path / "old.md": "new",
    }  # fmt: skip


# --- nothing is missing: asked of the code itself, not of what writes the pages ----------------------------------------


@pytest.mark.parametrize("spec", OURS, ids=lambda spec: f"{spec.kind}/{spec.name}")
def test_every_option_of_every_component_is_on_its_page(spec):
    """By the JSON Schema: the options of the config, and of every config inside it."""
    text = page(f"components/{spec.kind}/{spec.name}")
    assert f"[{spec.name}](components/{spec.kind}/{spec.name}.md)" in page("index")
    schema = PLUGINS.import_class(spec, "config").model_json_schema()
    for model in (schema, *schema.get("$defs", {}).values()):
        for option, about in model.get("properties", {}).items():
            row = re.search(rf"^\| `{option}` \| .+ \|$", text, re.M)
            assert row, f"{option} is not on the page"
            assert about.get("deprecated") or row[0].count(" | ") == 4


@pytest.mark.parametrize("spec", OURS, ids=lambda spec: f"{spec.kind}/{spec.name}")
def test_every_example_is_a_registry_file_without_problems(spec, tmp_path):
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page(f"components/{spec.kind}/{spec.name}"), re.S | re.M)
    assert len(blocks) == 1 and re.search(rf"use: {spec.name}\b|- {spec.name}\b", blocks[0])
    (tmp_path / "registry.yaml").write_text(blocks[0], encoding="utf-8")
    (tmp_path / "my_functions.py").touch()
    registry = load(tmp_path / "registry.yaml", PLUGINS)
    assert [str(problem) for problem in registry.validate()] == []


def test_every_kind_hook_check_and_command_is_there():
    from rlhf_core.cli.app import build_app
    from typer.main import get_command

    for kind in PLUGINS.kinds:
        assert f"\n## {kind}\n" in page("index")
        assert all(f"| `{check.id}` |" in page("checks") for check in checks_of(kind))
    assert all(f"\n## {name}\n" in page("hooks") for name in vars(Hooks) if name.startswith("rlhf_"))
    command: Any = get_command(build_app())
    for name, inner in command.commands.items():
        text = page("commands").partition(f"\n## `rlhf {name}`\n")[2].partition("\n## ")[0]
        assert text, name
        assert all(option in text for p in inner.params for option in p.opts if option.startswith("--")), name


def test_examples_of_hooks_fit_their_signatures():
    """Each is registered like a plugin; pluggy refuses unknown hooks and arguments."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page("hooks"), re.S | re.M)
    assert len(blocks) == sum(name.startswith("rlhf_") for name in vars(Hooks))
    for block in blocks:
        plugin = ModuleType("plugin")
        exec(block, vars(plugin))
        manager = pluggy.PluginManager("rlhf")
        manager.add_hookspecs(Hooks)
        manager.register(plugin)
        manager.check_pending()
        assert manager.get_hookcallers(plugin)


def test_every_public_name_is_asked_of_mkdocstrings():
    text = "\n".join(path.read_text(encoding="utf-8") for path in REFERENCE.glob("api/*.md"))
    assert len(public()) > 150
    assert [name for name in public() if f"\n::: {name}\n" not in f"{text}\n"] == []


# --- one component ----------------------------------------------------------------------------------------------------


def test_a_description_says_type_bounds_default_and_meaning():
    found = describe(PLUGINS, "optimizer", "ppo")
    rows = {option.name: option for option in found.tables[0].options}
    assert (rows["clip"].type, rows["clip"].bounds, rows["clip"].default) == ("float | Schedule", "> 0, < 1", "0.2")
    assert (rows["critic_from"].type, rows["critic_from"].default) == ("reward id", "none")
    assert rows["betas"].type == "[float, float]"
    assert [table.title for table in found.tables] == ["PPOConfig", "Schedule"]
    assert found.facts["needs"] == "`values`" and "arXiv:1707.06347" in found.about
    assert describe(PLUGINS, "shaper", "kl").facts["level"] == "token"
    source = {option.name: option for option in describe(PLUGINS, "feedback", "preference").tables[0].options}
    assert source["path"].type == "path" and source["columns"].type == "str -> str"


def test_the_example_gives_what_the_config_asks_for():
    assert "{use: ppo}" in describe(PLUGINS, "optimizer", "ppo").example
    assert "my-mix: {use: mix, config: {rewards: {my-reward: 1.0}}}" in describe(PLUGINS, "reward", "mix").example
    stage = describe(PLUGINS, "stage", "optimize").example  # `prompts` and `rewards` by the words of its errors
    assert "optimize: {optimizer: ppo, steps: 100, prompts: my-prompts, rewards: {my-reward: 1.0}}" in stage
    assert (
        "my-dataset: {use: dataset, config: {dataset: my-dataset}}" in describe(PLUGINS, "prompts", "dataset").example
    )


class ToyConfig(Config):
    deprecated: ClassVar = {"oldness": Renamed("age", since="0.1")}
    age: int = Field(default=1, description="how old")


def toy(monkeypatch, **about: str) -> Plugins:
    """An installation with one metric whose class cannot be read."""
    module = ModuleType("toy_of_the_reference")
    module.ToyConfig = ToyConfig
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = ComponentSpec("metric", "toy", factory="nowhere.to:BeFound", summary="a toy",
                         config=about.get("config", f"{module.__name__}:ToyConfig"))  # fmt: skip
    kind = KindSpec("metric", "rlhf_core.interfaces:Metric")
    return Plugins(pluggy.PluginManager("rlhf"), [PluginInfo("toy", "toy", "1.0", components=(spec,), kinds=(kind,))])


def test_a_component_is_described_without_the_source_of_its_class(monkeypatch):
    text = markdown(describe(toy(monkeypatch), "metric", "toy"))
    assert "| `age` | int |  | `1` | how old |" in text and "my-toy: {use: toy}" in text
    assert re.search(r"^\| `oldness` \|  \|  \|  \| deprecated: write 'age' \|$", text, re.M)


def test_a_config_that_is_no_config_is_an_error(monkeypatch):
    with pytest.raises(
        PluginError, match=r"metric 'toy' .*rlhf_core.errors:RLHFError is another kind of class; expected a subclass"
    ):
        describe(toy(monkeypatch, config="rlhf_core.errors:RLHFError"), "metric", "toy")


def test_docstrings_become_markdown():
    assert prose("a < b [1], `x < y[0]`, arXiv:1707.06347.") == (
        r"a &lt; b \[1], `x < y[0]`, [arXiv:1707.06347](https://arxiv.org/abs/1707.06347)."
    )
    assert cell("p | q of ``|w| < 1``\n  and `c`") == r"p \| q of <code>&#124;w&#124; &lt; 1</code> and `c`"


def test_describe_prints_the_page():
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_core", "describe", "shaper", "kl", "--markdown"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == markdown(describe(PLUGINS, "shaper", "kl"))
    assert page("components/shaper/kl").startswith(done.stdout)


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link_and_holds_every_name(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=280, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    html = "\n".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site/reference/api").glob("*.html"))
    assert [name for name in public() if f'id="{name}"' not in html] == []
    assert (tmp_path / "site/index.html").exists() and "components/stage/optimize.html" in html, "the nav"
