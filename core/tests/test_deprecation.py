"""Fields that were renamed or retired: read for one minor version, from Python, registry files and overrides."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from jsonschema import Draft202012Validator
from pydantic import Field, ValidationError
from rlhf_core import __version__
from rlhf_core.api import Project, load
from rlhf_core.errors import ConfigError, RegistryErrors
from rlhf_core.interfaces import Config, Renamed, Retired
from rlhf_core.interfaces.deprecation import DeprecatedFieldWarning, distribution_of
from rlhf_core.plugins import Plugins, load_plugins
from rlhf_core.registry import Registry, json_schema

MODULE = '''
from typing import ClassVar
import rlhf_core
from pydantic import Field
from rlhf_core.interfaces import Config, Renamed, Retired, Stage, StageConfig, StepStats

class Inner(Config):
    """Nested."""
    deprecated: ClassVar = {"len": Renamed("length", since="0.2")}
    length: int = Field(8, ge=1, description="of it")

class DatedConfig(StageConfig):
    """A stage with a history."""
    deprecated: ClassVar = {
        "cliprange": Renamed("clip", since="0.2"),
        "whiten_rewards": Retired("use the shaper whiten", since="0.2"),
        "inside": Renamed("inner", since="0.2"),
    }
    clip: float = Field(ge=0, description="half the width of the trust region")
    inner: Inner = Field(Inner(), description="settings of a part")
    rest: list[Inner] = Field([], description="more of them")

class Dated(Stage[DatedConfig]):
    total = 1
    def setup(self, run): ...
    def step(self, i): return StepStats()
    def finish(self): return {}
    def components(self): return {}

@rlhf_core.hookimpl
def rlhf_components():
    return [rlhf_core.ComponentSpec("stage", "dated", "dated_plugin:Dated", "dated_plugin:DatedConfig", "old and new")]
'''  # fmt: skip

FILE = """\
schema_version: 1
components:
  policy:
    tiny:
      use: causal-lm
      config:
        fresh:
          architecture: gpt2
          sizes: {n_embd: 8, n_layer: 1, n_head: 1, n_positions: 16}
          tokenizer: {text: [words], vocab_size: 260}
  feedback:
    words: {use: demonstrations, config: {path: words.jsonl}}
pipelines:
  main:
    policy: tiny
    device: cpu
    stages:
      - dated:
          %s
"""
RENAMED = "'cliprange' was renamed to 'clip' in dated-plugin 0.2 and stops loading in 0.3; write 'clip'"
RETIRED = "'whiten_rewards' was retired in dated-plugin 0.2, is ignored and stops loading in 0.3; use the shaper whiten"
STOPPED = "'cliprange' was renamed to 'clip' in dated-plugin 0.2 and stopped loading in 0.3 (0.3.0 is installed); write"
BOTH = "'cliprange' and 'clip' are the same setting and both are given; keep one of them"
PLACE = "registry.yaml:19 pipelines.main.stages.dated"

# --- a distribution that is installed in some version ----------------------------------------------------------------


def install(folder: Path, version: str) -> None:
    """Put the distribution dated-plugin with its module dated_plugin into `folder`, as pip would."""
    info = folder / "dated_plugin-0.dist-info"
    info.mkdir(exist_ok=True)
    (folder / "dated_plugin.py").write_text(MODULE)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dated-plugin\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[rlhf]\ndated = dated_plugin\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture
def dated(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Installs the distribution in a version and gives its module."""
    monkeypatch.syspath_prepend(site)

    def at(version: str) -> ModuleType:
        install(site, version)
        distribution_of.cache_clear()
        return importlib.import_module("dated_plugin")

    yield at
    distribution_of.cache_clear()


@pytest.fixture
def registry(dated: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry]:
    """A registry file whose one stage has these settings, with version 0.2.1 installed."""
    monkeypatch.chdir(tmp_path)

    def load(settings: str, version: str = "0.2.1", override: str = "") -> Registry:
        dated(version)
        (tmp_path / "registry.yaml").write_text(FILE % settings + override)
        return Registry.load("registry.yaml", plugins())

    return load


@cache
def plugins() -> Plugins:
    installed = load_plugins()
    assert next(p for p in installed.plugins if p.distribution == "dated-plugin").status == "ok"
    return installed


def resolved(registry: Registry, *overrides: str) -> tuple[dict[str, Any], list[str]]:
    """The settings of the stage as a run directory holds them, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline = registry.resolve("main", overrides)
    assert all(issubclass(w.category, FutureWarning) for w in caught)
    return pipeline.to_dict()["pipelines"]["main"]["stages"][0]["dated"], [str(w.message) for w in caught]


# --- from Python -----------------------------------------------------------------------------------------------------


def test_an_old_name_gives_its_value_to_the_new_field(dated: Callable[..., Any]) -> None:
    config = dated("0.2.0").DatedConfig
    with pytest.warns(FutureWarning) as caught:
        made = config(cliprange=0.1, whiten_rewards=True)
    assert made == config(clip=0.1)
    assert [str(w.message) for w in caught] == [f"DatedConfig: {RENAMED}", f"DatedConfig: {RETIRED}"]
    assert {w.filename for w in caught} == {__file__}  # where the old name was written
    assert config.model_validate(made.model_dump()) == made and "cliprange" not in made.model_dump()


def test_what_is_handed_in_stays_as_it_was(dated: Callable[..., Any]) -> None:
    given = {"cliprange": 0.1}
    with pytest.warns(FutureWarning):
        dated("0.2.0").DatedConfig.model_validate(given)
    assert given == {"cliprange": 0.1}


@pytest.mark.parametrize(("version", "loads"), [
    ("0.1.5", True), ("0.2.0", True), ("0.2.9", True), ("0.3.0", False), ("0.3.0.dev1", False), ("1.0", False),
])  # fmt: skip
def test_it_loads_for_one_minor_version(dated: Callable[..., Any], version: str, loads: bool) -> None:
    config = dated(version).DatedConfig
    if loads:
        with pytest.warns(FutureWarning, match="stops loading in 0.3"):
            assert config(cliprange=0.1).clip == 0.1
        return
    with pytest.raises(ValidationError, match=rf"stopped loading in 0.3 \({version} is installed\); write 'clip'"):
        config(cliprange=0.1)
    with pytest.raises(
        ValidationError, match=r"retired in dated-plugin 0.2 and stopped loading.*use the shaper whiten"
    ):
        config(clip=0.1, whiten_rewards=True)


def test_old_and_new_at_once(dated: Callable[..., Any]) -> None:
    with pytest.raises(ValidationError, match=BOTH):
        dated("0.2.0").DatedConfig(cliprange=0.1, clip=0.2)


class Parent(Config):
    deprecated: ClassVar = {"size": Renamed("width", since="0.2"), "shape": Retired("nothing", since="0.2")}
    width: int = Field(1, description="of it")


class Child(Parent):
    deprecated: ClassVar = {"tall": Renamed("height", since="1.0")}
    height: int = Field(1, description="of it")
    shape: str = Field("round", description="this one is back")


def test_a_config_inherits_the_history_of_its_parents() -> None:
    """And in a class of no distribution, as in a notebook, an old name always loads."""
    with pytest.warns(FutureWarning, match=r"^Child: '(size|tall)' was renamed"):
        child = Child(size=3, tall=4, shape="square")
    assert (child.width, child.height, child.shape) == (3, 4, "square")


def test_the_version_is_looked_up_only_when_an_old_key_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_core.interfaces.deprecation.distribution_of", lambda package: 1 / 0)
    Child(width=3)
    Child.model_json_schema()
    with pytest.raises(ZeroDivisionError):
        Child(size=3)


def test_the_distribution_of_a_package_may_be_called_otherwise() -> None:
    assert distribution_of("_pytest") == ("pytest", pytest.__version__)
    assert distribution_of("rlhf_core") == ("rlhf-core", __version__)
    assert distribution_of("__main__") == ("__main__", None)


@pytest.mark.parametrize(("entries", "words"), [
    ({"old": Renamed("nwe", since="0.2")}, r"deprecated\['old'\]: there is no field 'nwe' to rename to; expected one of new"),
    ({"new": Retired("gone", since="0.2")}, "'new' is still a field; take the field out, or this entry"),
    ({"old": Renamed("new", since="2")}, "since is '2'; expected a minor version such as '0.2'"),
    ({"old": "new"}, r"got 'new'; expected Renamed\(to, since=...\) or Retired"),
])  # fmt: skip
def test_a_history_that_cannot_be_is_an_error_of_the_class(entries: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        type("Wrong", (Config,), {"deprecated": entries, "__annotations__": {"deprecated": ClassVar, "new": int}})


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
def test_a_history_is_no_field() -> None:
    with pytest.raises(ConfigError, match=r"Wrong.deprecated: is a field; write `deprecated: ClassVar = "):
        type("Wrong", (Config,), {"deprecated": {}, "__annotations__": {"deprecated": dict}})


# --- from a registry file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "place", "settings"), [
    ("cliprange: 0.1", ".cliprange: " + RENAMED, {"clip": 0.1}),
    ("{clip: 0.1, whiten_rewards: true}", ".whiten_rewards: " + RETIRED, {"clip": 0.1}),
    ("{clip: 0.1, inner: {len: 3}}", ".inner.len: 'len' was renamed to 'length' in dated", {"inner": {"length": 3}}),
    ("{clip: 0.1, rest: [{}, {len: 3}]}", ".rest.1.len: 'len' was", {"rest": [{"length": 8}, {"length": 3}]}),
])  # fmt: skip
def test_an_old_name_loads_with_one_warning_that_names_its_line(
    registry: Callable[..., Registry], written: str, place: str, settings: dict[str, Any]
) -> None:
    stage, (warning,) = resolved(registry(written))
    assert warning.startswith(PLACE + place)
    assert settings.items() <= stage.items()
    assert not {"cliprange", "whiten_rewards", "inside", "len"} & set(stage)  # new names only


def test_a_name_below_an_old_name(registry: Callable[..., Registry]) -> None:
    stage, told = resolved(registry("{clip: 0.1, inside: {len: 3}}"))
    assert stage["inner"] == {"length": 3}
    assert [line.split(": ")[0] for line in told] == [f"{PLACE}.inside", f"{PLACE}.inside.len"]


OLD_PATHS = [
    ("clip: 0.1", "stages.dated.cliprange=0.5", {"clip": 0.5}),
    ("cliprange: 0.1", "stages.dated.clip=0.5", {"clip": 0.5}),
    ("cliprange: 0.1", "stages.dated.cliprange=0.5", {"clip": 0.5}),
    ("clip: 0.5", "stages.dated.whiten_rewards=false", {"clip": 0.5}),
    ("clip: 0.1", "stages.dated.inside.len=5", {"inner": {"length": 5}}),
    ("{clip: 0.1, inside: {}}", "stages.dated.inner={len: 5}", {"inner": {"length": 5}}),
    ("{clip: 0.1, rest: [{len: 2}]}", "stages.dated.rest.0.len=5", {"rest": [{"length": 5}]}),
]


@pytest.mark.parametrize(("written", "setting", "settings"), OLD_PATHS)
def test_overrides_work_by_either_name(
    registry: Callable[..., Registry], written: str, setting: str, settings: dict[str, Any]
) -> None:
    """The override counts, whichever name the file and it use; the same in the file and on the command line."""
    stage, told = resolved(registry(written), setting)
    assert settings.items() <= stage.items()
    path, _, value = setting.partition("=")
    again, also_told = resolved(registry(written, override=f"    override: {{{path}: {value}}}\n"))
    assert again == stage and len(told) == len(also_told) > 0
    if "clip" not in path.split("."):
        return
    assert told[-1].startswith("registry.yaml:19" if "cliprange" in written else "--set stages.dated.cliprange: 'cl")


def test_the_last_of_several_overrides_counts(registry: Callable[..., Registry]) -> None:
    file = registry("clip: 0.1")
    assert resolved(file, "stages.dated.cliprange=0.5", "stages.dated.clip=0.6")[0]["clip"] == 0.6
    stage, (warning,) = resolved(file, "stages.dated.clip=0.6", "stages.dated.cliprange=0.5")
    assert stage["clip"] == 0.5 and warning == f"--set stages.dated.cliprange: {RENAMED}"


@pytest.mark.parametrize(("written", "version", "words"), [
    ("cliprange: 0.1", "0.3.0", f"{PLACE}.cliprange: {STOPPED} 'clip'"),
    ("{clip: 0.1, cliprange: 0.2}", "0.2.1", f"{PLACE}.cliprange: {BOTH}"),
    ("cliprange: -1", "0.2.1", f"{PLACE}.cliprange: got -1; expected 0 or more"),
    ("{clip: 0.1, inside: {len: 0}}", "0.2.1", f"{PLACE}.inside.len: got 0; expected 1 or more"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_wrong_is_named_as_it_was_written(
    registry: Callable[..., Registry], written: str, version: str, words: str
) -> None:
    with pytest.raises(RegistryErrors) as caught:
        registry(written, version).resolve("main")
    (error,) = caught.value.errors
    assert str(error).startswith(words)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_override_through_a_value(registry: Callable[..., Registry]) -> None:
    with pytest.raises(RegistryErrors, match=r"--set stages.dated.inside.len: inner is 3, which has no keys"):
        registry("{clip: 0.1, inner: 3}").resolve("main", ["stages.dated.inside.len=2"])


def test_validate_tells_each_once_and_finds_no_problem(registry: Callable[..., Registry]) -> None:
    file = registry("cliprange: 0.1", override="  second: {extends: main}\n")
    with pytest.warns(FutureWarning) as caught:
        assert file.problems() == []
    assert [str(w.message) for w in caught] == [f"{PLACE}.cliprange: {RENAMED}"]


def test_editors_strike_old_names_out(registry: Callable[..., Registry]) -> None:
    registry("clip: 0.1")
    schema = json_schema(plugins())
    stage = schema["$defs"]["stage.dated"]
    old = {name: item for name, item in stage["properties"].items() if item.get("deprecated")}
    assert set(old) == {"cliprange", "whiten_rewards", "inside"}
    assert old["cliprange"]["description"] == "deprecated: write 'clip'"
    assert stage["$defs"]["Inner"]["properties"]["len"]["deprecated"] is True
    valid = Draft202012Validator({"$ref": "#/$defs/stage.dated", "$defs": schema["$defs"]}).is_valid
    assert valid({"clip": 0.1}) and valid({"cliprange": 0.1, "whiten_rewards": 1, "inside": {"len": 3}})
    assert not valid({}) and not valid({"cliprange": -1}) and not valid({"cliprage": 1})


# --- on the command line ---------------------------------------------------------------------------------------------


def test_validate_prints_one_line_and_exits_with_0(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    install(tmp_path / "site", "0.2.1")
    (tmp_path / "registry.yaml").write_text(FILE % "cliprange: 0.1")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-m", "rlhf_core", "validate"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, f"warning: {PLACE}.cliprange: {RENAMED}\n")


def test_a_run_warns_and_its_directory_holds_the_new_name(registry: Callable[..., Registry], tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text(json.dumps({"prompt": "say", "completion": "so"}) + "\n")
    project = Project(registry("cliprange: 0.1"), plugins())
    with pytest.warns(FutureWarning) as caught:
        directory = project.run("main", out="out").directory
    assert [str(w.message) for w in caught if w.category is DeprecatedFieldWarning] == [f"{PLACE}.cliprange: {RENAMED}"]
    written = (directory / "registry.yaml").read_text()
    assert "clip: 0.1" in written and "cliprange" not in written
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecatedFieldWarning)
        load(directory / "registry.yaml", plugins()).resolve("main")  # what `--resume` reads
