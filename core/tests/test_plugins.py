"""The plugin loader, on distributions that are really installed, and its words on fakes made in this process."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rlhf_core import API_VERSION, ComponentSpec, KindSpec, __version__, builtin, hookimpl
from rlhf_core.errors import PluginError
from rlhf_core.importing import import_object
from rlhf_core.interfaces import Config, RewardModel
from rlhf_core.plugins import DISABLE, HOOKS, PluginInfo, Plugins, load_plugins, loader

CORE = Path(__file__).parents[1]
make_venv = runpy.run_path(str(Path(__file__).with_name("venvs.py")))["make_venv"]
HERE = __name__
LATER = API_VERSION + 98
KINDS = ", ".join(kind.name for kind in builtin.KINDS)

# --- distributions to install ----------------------------------------------------------------------------------------

HEAD = "from rlhf_core import ComponentSpec, KindSpec, hookimpl\n"


def offering(*offers: str, **options: Any) -> str:
    """A plugin module that offers "kind/name" each."""
    pairs = [offer.split("/") for offer in offers]
    specs = [ComponentSpec(kind, name, "fix:Part", "fix:PartConfig", "a part", **options) for kind, name in pairs]
    return f"{HEAD}\n@hookimpl\ndef rlhf_components():\n    return {specs!r}\n"


PROBE = """
import json, sys
from dataclasses import asdict
from rlhf_core.errors import PluginError
from rlhf_core.plugins import load_plugins
loaded = load_plugins()
errors = {}
for kind, name in [("reward", "echo"), ("reward", "late"), ("reward", "good")]:
    try:
        loaded.find(kind, name)
    except PluginError as error:
        errors[f"{kind}/{name}"] = str(error)
print(json.dumps({
    "plugins": {info.identity: asdict(info) for info in loaded.plugins},
    "rewards": loaded.names("reward"), "kinds": list(loaded.kinds), "errors": errors,
    "modules": {name: getattr(module, "__file__", None) for name, module in sys.modules.items()},
    "path": sys.path, "notified": loaded.notify("rlhf_checkpoint_saved", run=None, path=None),
}))
"""

LISTENER = (
    HEAD
    + """
@hookimpl
def rlhf_checkpoint_saved(path):
    raise ValueError("disk full\\nor so")
"""
)

PARTS = """
from rlhf_core.interfaces import Config, RewardModel
class FineConfig(Config): ...
class Fine(RewardModel[FineConfig]):
    def score(self, samples): raise RuntimeError("never reached")
class Abstract(RewardModel[FineConfig]): ...
class Stranger: ...
class Plain: ...
"""


def pieces(*classes: str) -> str:
    """A plugin module that offers the class of `PARTS` of each name as a reward; Plain is one of a Config."""
    specs = []
    for name in classes:
        module = "_broken" if name == "Broken" else "_parts"
        factory, config = (name, "FineConfig") if name != "Plain" else ("Fine", "Plain")
        specs.append(
            ComponentSpec("reward", name.lower(), f"fix_bad.{module}:{factory}", f"fix_bad._parts:{config}", "x")
        )
    return f"{HEAD}\n@hookimpl\ndef rlhf_components():\n    return {specs!r}\n"


DISTRIBUTIONS: dict[str, dict[str, str]] = {
    "fix-good": {"good": offering("reward/good"), "probe": LISTENER},
    "fix-editable": {"editable": offering("reward/editable")},
    "fix-failing": {
        "imports": "raise ImportError('no module for you\\nsecond line')",
        "exits": "raise SystemExit('bye')",
        "explodes": HEAD + "\n@hookimpl\ndef rlhf_components():\n    raise ZeroDivisionError('in the hook')\n",
    },
    "fix-misspelled": {"misspelled": offering("reward/lost").replace("def rlhf_components", "def rlhf_component")},
    "fix-newer": {"newer": offering("reward/late", api_version=LATER)},
    "fix-clash-a": {"twin": offering("reward/echo", "reward/only-a")},
    "fix-clash-b": {"twin": offering("reward/echo", "reward/only-b")},
    "fix-kind": {
        "maker": HEAD + "\n@hookimpl\ndef rlhf_kinds():\n    return [KindSpec('robot', 'fix_parts:Robot')]\n",
        "user": offering("robot/arm"),
        "typo": offering("rewrd/x"),
    },
    "fix-twice": {"first": offering("reward/twice"), "second": offering("reward/twice")},
    "Fix.Off": {"off": offering("reward/off")},
    "fix-bad": {
        "typed": HEAD + "\n@hookimpl\ndef rlhf_components():\n    return [{'kind': 'reward', 'name': 'typed'}]\n",
        "spaced": offering("reward/my reward"),
        "pieces": pieces("Abstract", "Stranger", "Missing", "Broken", "Plain"),
        "_parts": PARTS,
        "_broken": "import no_such_library",
    },
    "fix-later": {"later": "raise SystemExit('imported')", "needs": "rlhf-core>=9"},
}  # fmt: skip


TWICE = "reward 'twice': offered more than once by fix-twice; expected one component of that name; rename one of them"
SPACED = (
    "reward 'my reward': this name cannot be used; expected lower-case letters, digits, '_' and '-'; "
    "call it 'my-reward'"
)
LATER_CORE = f"rlhf-core: {__version__} is installed; expected rlhf-core>=9; pip install -U 'rlhf-core>=9'"


def project(folder: Path, name: str, modules: dict[str, str]) -> Path:
    """Write a project with one package, in which each module is an entry point of group "rlhf", but for "_...".

    "needs" is no module: what the distribution requires.
    """
    modules = dict(modules)
    package, needs = name.lower().replace("-", "_").replace(".", "_"), modules.pop("needs", None)
    points = "\n".join(f'{module} = "{package}.{module}"' for module in modules if module[0] != "_")
    (folder / package).mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "{name}"\nversion = "1.2"\ndependencies = {[needs] if needs else []}\n[project.entry-points.rlhf]\n{points}\n'
        f'[tool.hatch.build.targets.wheel]\npackages = ["{package}"]\n'
    )
    for module, source in {"__init__": "", "main": PROBE, **modules}.items():
        (folder / package / f"{module}.py").write_text(source)
    return folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("projects")
    return {name: project(folder / name, name, modules) for name, modules in DISTRIBUTIONS.items()}


Probe = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def python(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run the Python of an environment in which all of them are installed."""
    installed = [source for name, source in sources.items() if name != "fix-editable"]
    interpreter = make_venv(tmp_path_factory.mktemp("venv"), CORE, *installed, editable=[sources["fix-editable"]])

    def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH", DISABLE)}
        command, env = [str(interpreter), *arguments], clean | environment
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def probe(python: Callable[..., Any]) -> Probe:
    """What the probe found: by default as ``python -c``."""

    def run(*arguments: str, cwd: Path, **environment: str) -> dict[str, Any]:
        done = python(*(arguments or ("-c", PROBE)), cwd=cwd, **environment)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return run


@pytest.fixture(scope="session")
def listing(probe: Probe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return probe(cwd=tmp_path_factory.mktemp("elsewhere"))


# --- what became of each ---------------------------------------------------------------------------------------------


def test_everything_installed_is_listed_and_what_is_fine_works(listing: dict[str, Any]) -> None:
    points = {f"{name}:{point}" for name, modules in DISTRIBUTIONS.items() for point in modules
              if point[0] != "_" and point != "needs"}  # fmt: skip
    assert set(listing["plugins"]) == {"rlhf-core", *points}
    assert {"good", "editable", "off", "only-a", "only-b", "function"} <= set(listing["rewards"])
    assert listing["plugins"]["fix-good:good"]["version"] == "1.2"
    assert "torch" not in listing["modules"]


@pytest.mark.parametrize(("identity", "reason"), [
    ("fix-failing:imports", "ImportError: no module for you"),
    ("fix-failing:exits", "SystemExit: bye"),
    ("fix-failing:explodes", "ZeroDivisionError: in the hook"),
    ("fix-misspelled:misspelled", (
        f"hook 'rlhf_component': no hook of this rlhf-core; expected one of {', '.join(HOOKS)}; "
        f"did you mean 'rlhf_components'?")),
    ("fix-newer:newer", (
        f"reward 'late': needs plugin interface {LATER}; this rlhf-core has {API_VERSION}; "
        f"upgrade rlhf-core (pip install -U rlhf-core)")),
    ("fix-kind:typo", (
        f"rewrd 'x': 'rewrd' is no kind of component; expected one of {KINDS}, robot; did you mean 'reward'?")),
    ("fix-twice:first", TWICE),
    ("fix-twice:second", TWICE),
    ("fix-bad:typed", (
        "hook 'rlhf_components': returned a list with dict; expected a list of ComponentSpec; "
        "return [ComponentSpec(...), ...]")),
    ("fix-bad:spaced", SPACED),
    ("fix-later:later", LATER_CORE),
])  # fmt: skip
def test_a_broken_plugin_is_listed_with_its_reason(listing: dict[str, Any], identity: str, reason: str) -> None:
    info = listing["plugins"][identity]
    assert (info["status"], info["reason"]) == ("broken", reason)


def test_the_traceback_of_what_a_plugin_raised_is_kept(listing: dict[str, Any]) -> None:
    trace = listing["plugins"]["fix-failing:imports"]["traceback"]
    assert trace.startswith("Traceback") and trace.endswith("no module for you\nsecond line\n")


def test_a_clash_takes_both_out_and_leaves_the_rest(listing: dict[str, Any]) -> None:
    words = "reward 'echo': offered by fix-clash-a:twin 1.2, fix-clash-b:twin 1.2; expected one distribution; "
    assert listing["errors"]["reward/echo"] == words + "uninstall one, or name it in RLHF_DISABLE_PLUGINS"
    assert {listing["plugins"][f"fix-clash-{x}:twin"]["status"] for x in "ab"} == {"clash"}
    assert "echo" not in listing["rewards"]


def test_turning_one_side_off_ends_a_clash(probe: Probe, tmp_path: Path) -> None:
    found = probe(cwd=tmp_path, RLHF_DISABLE_PLUGINS="fix-clash-b")
    assert found["plugins"]["fix-clash-a:twin"]["status"] == "ok"
    assert {"echo", "only-a"} <= set(found["rewards"])


def test_a_component_of_a_broken_plugin_is_explained(listing: dict[str, Any]) -> None:
    assert "belongs to fix-newer:newer 1.2, which is broken: " in listing["errors"]["reward/late"]
    assert listing["plugins"]["fix-newer:newer"]["components"][0]["name"] == "late"


def test_a_kind_of_one_plugin_serves_another(listing: dict[str, Any]) -> None:
    assert "robot" in listing["kinds"] and listing["plugins"]["fix-kind:user"]["status"] == "ok"


def test_a_kind_goes_with_its_plugin(probe: Probe, tmp_path: Path) -> None:
    found = probe(cwd=tmp_path, RLHF_DISABLE_PLUGINS="maker")
    assert "'robot' is no kind of component" in found["plugins"]["fix-kind:user"]["reason"]


@pytest.mark.parametrize("value", ["fix_off", "OFF", " nobody, fix-off ,", "all"])
def test_a_disabled_plugin_is_listed_and_never_imported(probe: Probe, tmp_path: Path, value: str) -> None:
    found = probe(cwd=tmp_path, RLHF_DISABLE_PLUGINS=value)
    info = found["plugins"]["Fix.Off:off"]
    assert (info["status"], info["reason"]) == ("disabled", "turned off by RLHF_DISABLE_PLUGINS")
    assert "fix_off" not in found["modules"] and "off" not in found["rewards"]
    assert "function" in found["rewards"]  # built-ins stay
    assert ("good" in found["rewards"]) == (value != "all")


def test_a_listener_that_raises_is_reported(listing: dict[str, Any]) -> None:
    assert listing["notified"] == ["plugin fix-good:probe: rlhf_checkpoint_saved failed: ValueError: disk full"]


def test_listing_imports_nothing_heavy(listing: dict[str, Any]) -> None:
    """How long it takes, `benchmarks/imports.py` measures; what would make it long is not there."""
    heavy = {"torch", "transformers", "peft", "accelerate", "datasets", "numpy", "pyarrow", "matplotlib", "ruamel.yaml"}
    unneeded = {"pydantic", "typer", "rich", "jinja2"}  # of commands and configs
    assert not (heavy | unneeded) & set(listing["modules"])


def test_listing_is_quick(probe: Probe, tmp_path: Path) -> None:
    code = ("import json, rlhf_core.plugins as p, time; start = time.process_time(); p.load_plugins(); "
            "print(json.dumps({'seconds': time.process_time() - start}))")  # fmt: skip
    assert min(probe("-c", code, cwd=tmp_path)["seconds"] for _ in range(3)) < 0.1


# --- pipelines that need what is broken ------------------------------------------------------------------------------

DEEP = {
    "abstract": "factory fix_bad._parts:Abstract does not implement score; expected no abstract method left; "
    "implement what is missing",
    "stranger": "factory fix_bad._parts:Stranger is another kind of class; expected a subclass of "
    "rlhf_core.interfaces:RewardModel; derive it from that, or correct its ComponentSpec",
    "missing": "fix_bad._parts has no 'Missing'",
    "broken": "importing fix_bad._broken failed: ModuleNotFoundError: No module named 'no_such_library'; "
    "install what is missing, or upgrade its distribution",
}
PLAIN = (
    "reward 'plain' of fix-bad:pieces 1.2: config fix_bad._parts:Plain is another kind of class; expected a subclass of "
    "rlhf_core.interfaces:Config; derive it from that, or correct its ComponentSpec"
)
BROKEN_REGISTRY = """\
schema_version: 1
components:
  policy: {p: {use: causal-lm, config: {model: no/such-model}}}
  prompts: {q: {use: jsonl, config: {path: no-such-file.jsonl}}}
  reward:
"""


def broken_registry(folder: Path, *rewards: str) -> None:
    """A pipeline for each reward, and one of all; its policy cannot be built either, which nobody gets to see."""
    lines = [f"    r{i}: {{use: {name!r}}}\n" for i, name in enumerate(rewards)]
    stages = "{{policy: p, stages: [{{evaluate: {{prompts: q, rewards: {0}, metrics: [length]}}}}]}}\n"
    pipelines = [f"  need-{i}: {stages.format(f'{{r{i}: 1}}')}" for i in range(len(rewards))]
    every = ", ".join(f"r{i}: 1" for i in range(len(rewards)))
    pipelines.append(f"  need-all: {stages.format(f'{{{every}}}')}")
    (folder / "registry.yaml").write_text(BROKEN_REGISTRY + "".join(lines) + "pipelines:\n" + "".join(pipelines))


def test_a_deep_look_names_what_an_import_shows(python: Callable[..., Any], tmp_path: Path) -> None:
    done = python("-m", "rlhf_core", "plugins", "--deep", "--json", cwd=tmp_path)
    assert done.returncode == 1
    problems = [line for line in json.loads(done.stdout)["problems"] if "fix-bad" in line]
    assert problems == [*(f"reward {name!r} of fix-bad:pieces 1.2: {words}" for name, words in DEEP.items()), PLAIN]


def test_a_pipeline_says_what_is_broken_of_what_it_needs(python: Callable[..., Any], tmp_path: Path) -> None:
    """Without an import of what is not light: `validate` names these, and so does `run`, in the same words."""
    needed = {
        "my reward": f"belongs to fix-bad:spaced 1.2, which is broken: {SPACED}; ",
        "twice": f"belongs to fix-twice:first 1.2, which is broken: {TWICE}; ",
        "typed": "no installed plugin offers it; .*fix-bad:typed 1.2 .broken: hook 'rlhf_components': returned a list with",
        "x": "no installed plugin offers it; .*fix-kind:typo 1.2 .broken: rewrd 'x': 'rewrd' is no kind of component",
        "late": "belongs to fix-newer:newer 1.2, which is broken: .*pip install -U rlhf-core",
        "later": "no installed plugin offers it; .*fix-later:later 1.2 .broken: rlhf-core: .*pip install -U 'rlhf-core>=9'",
        "echo": "offered by fix-clash-a:twin 1.2, fix-clash-b:twin 1.2; .*uninstall one, or name it in",
        "plain": PLAIN.partition(" ")[2].partition(" ")[2],
    }
    broken_registry(tmp_path, *needed)
    told = [python("-m", "rlhf_core", *command, cwd=tmp_path) for command in (["validate"], ["run", "need-all"])]
    for done in told:
        lines = done.stderr.splitlines()
        assert done.returncode == 2 and len(lines) == len(needed), done.stderr
        for i, (name, words) in enumerate(needed.items()):
            assert re.search(
                rf"registry.yaml:{6 + i} components.reward.r{i}.use: reward {name!r}.*{words}", lines[i]
            ), i
    assert told[0].stderr == told[1].stderr


def test_a_pipeline_names_a_class_that_cannot_be_used_before_anything_is_built(
    python: Callable[..., Any], tmp_path: Path
) -> None:
    """Neither the policy, which is nowhere, nor a run directory comes first."""
    broken_registry(tmp_path, *DEEP)
    assert python("-m", "rlhf_core", "validate", cwd=tmp_path).returncode == 0
    done = python("-m", "rlhf_core", "run", "need-all", cwd=tmp_path)
    assert done.returncode == 2
    words = [f"error: reward {name!r} of fix-bad:pieces 1.2: {words}" for name, words in DEEP.items()]
    assert done.stderr.splitlines() == words
    assert not (tmp_path / "runs").exists()


# --- the listing of the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_of_plugins(python: Callable[..., Any], tmp_path: Path, columns: int) -> None:
    """Every row fits, and says status, what is added, and why something cannot be used."""
    done = python("-m", "rlhf_core", "plugins", cwd=tmp_path, COLUMNS=str(columns), RLHF_DISABLE_PLUGINS="fix-off")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= columns
    rows: dict[str, str] = {}
    name = ""
    for line in filter(str.strip, done.stdout.splitlines()[3:]):
        words = line.split()
        name = words[0] if line[1] not in " :" else name
        rows[name] = rows.get(name, "") + " ".join(words) + " "
    assert rows["fix-later"] == f"fix-later 1.2 broken {LATER_CORE} "
    assert rows["Fix.Off"] == "Fix.Off 1.2 disabled turned off by RLHF_DISABLE_PLUGINS "
    assert rows["fix-clash-a"].startswith(
        "fix-clash-a 1.2 clash reward: echo, only-a reward 'echo' is offered by fix-clash-a"
    )
    assert rows["fix-editable"] == "fix-editable 1.2 ok reward: editable "
    assert "fix-good 1.2 ok reward: good :good fix-good 1.2 ok hooks: rlhf_checkpoint_saved :probe " in rows["fix-good"]
    assert "new kinds: robot :maker" in rows["fix-kind"]
    assert rows["rlhf-core"].count("kinds: policy, engine,") == 1


def test_the_table_as_json(python: Callable[..., Any], tmp_path: Path, listing: dict[str, Any]) -> None:
    done = python("-m", "rlhf_core", "plugins", "--json", cwd=tmp_path)
    rows = {f"{row['distribution']}:{row['name']}": row for row in json.loads(done.stdout)["plugins"]}
    for identity, info in listing["plugins"].items():
        row = rows[identity if identity != "rlhf-core" else "rlhf-core:rlhf-core"]
        assert {key: row[key] for key in ("version", "status", "reason")}.items() <= info.items()
        assert row["components"] == [f"{part['kind']}/{part['name']}" for part in info["components"]]
    assert rows["fix-kind:maker"]["kinds"] == ["robot"] and rows["fix-good:probe"]["hooks"] == ["rlhf_checkpoint_saved"]


# --- the working directory -------------------------------------------------------------------------------------------


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """A working directory with a plugin lying in it, and a file that is called like an installed one."""
    (tmp_path / "evil.dist-info").mkdir()
    (tmp_path / "evil.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 6.6.6\n")
    (tmp_path / "evil.dist-info" / "entry_points.txt").write_text("[rlhf]\nevil = evil\n")
    (tmp_path / "evil.py").write_text("raise SystemExit('evil was imported')")
    for name in ("fix_clash_a.py", "fix_editable.py"):
        (tmp_path / name).write_text("raise SystemExit('the working directory was imported')")
    return tmp_path


@pytest.mark.parametrize("arguments", [(), ("-m", "fix_good.main"), ("-P", "-m", "fix_good.main")])
def test_what_lies_in_the_working_directory_is_no_plugin(probe: Probe, loose: Path, arguments: tuple[str, ...]) -> None:
    found = probe(*arguments, cwd=loose)
    assert not any("evil" in name for name in [*found["plugins"], *found["modules"]])
    assert found["plugins"]["fix-clash-a:twin"]["status"] == "clash"
    assert found["plugins"]["fix-editable:editable"]["status"] == "ok"
    if not arguments:
        assert found["path"][0] == ""  # put back


@pytest.mark.parametrize("path", [".", f"{os.pathsep}/nowhere"])
def test_the_working_directory_on_pythonpath_is_not_searched_either(probe: Probe, loose: Path, path: str) -> None:
    found = probe("-m", "fix_good.main", cwd=loose, PYTHONPATH=path)
    assert str(loose) in found["path"][1:]
    assert not any("evil" in name for name in [*found["plugins"], *found["modules"]])


def test_the_evil_plugin_would_be_found_elsewhere(probe: Probe, loose: Path, tmp_path_factory: Any) -> None:
    """The fixture is a plugin as soon as its folder is asked for: the tests above do not pass for want of one."""
    found = probe(cwd=tmp_path_factory.mktemp("other"), PYTHONPATH=str(loose))
    assert found["plugins"]["evil:evil"]["reason"] == "SystemExit: evil was imported"


@pytest.mark.parametrize("metadata", ["", "Name: rlhf-core\nVersion: 9", "Name: Fix_Good\nVersion: 9"])
def test_remains_and_doubles_of_distributions_are_not_loaded(
    probe: Probe, listing: dict[str, Any], tmp_path: Path, metadata: str
) -> None:
    """No METADATA, as after an uninstall that was interrupted; and names that are taken, here later on the path."""
    remains = tmp_path / "later" / "odd-9.dist-info"
    remains.mkdir(parents=True)
    (remains / "entry_points.txt").write_text("[rlhf]\nodd = rlhf_core.builtin\n")
    if metadata:
        (remains / "METADATA").write_text(metadata)
    code = f"import sys; sys.path.append({str(remains.parent)!r})\n"
    assert probe("-c", code + PROBE, cwd=tmp_path)["plugins"] == listing["plugins"]


@pytest.mark.parametrize("arguments", [(), ("-m", "fix_editable.main"), ("-P", "-m", "fix_editable.main")])
@pytest.mark.parametrize("path", ["", "."])
def test_an_editable_plugin_works_from_its_own_folder(
    probe: Probe, sources: dict[str, Path], arguments: tuple[str, ...], path: str
) -> None:
    found = probe(*arguments, cwd=sources["fix-editable"], PYTHONPATH=path)
    assert found["plugins"]["fix-editable:editable"]["status"] == "ok"


def test_site_packages_as_working_directory_is_no_reason_to_find_nothing(probe: Probe, listing: dict[str, Any]) -> None:
    folder = Path(listing["modules"]["rlhf_core"]).parents[1]
    assert probe("-m", "fix_good.main", cwd=folder)["plugins"].keys() == listing["plugins"].keys()


# --- fakes in this process -------------------------------------------------------------------------------------------


def spec(offer: str = "reward/mine", **changes: Any) -> ComponentSpec:
    kind, name = offer.split("/")
    return replace(ComponentSpec(kind, name, f"{HERE}:Fine", f"{HERE}:FineConfig", "a part"), **changes)


def plugin(*specs: Any, **hooks: Any) -> SimpleNamespace:
    """A plugin object with the given components or hooks."""
    answers = {"rlhf_components": lambda: list(specs)} if specs else {}
    return SimpleNamespace(**{name: hookimpl(function) for name, function in (answers | hooks).items()})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plugins]:
    """Load objects as if they were the installed plugins."""

    def load(disable: Any = (), **objects: Any) -> Plugins:
        monkeypatch.setattr(
            loader,
            "_discover",
            lambda: iter([(PluginInfo(name, f"dist-{name}", "1.0"), lambda o=o: o) for name, o in objects.items()]),
        )
        return load_plugins(disable=disable)

    return load


def reason(loaded: Plugins) -> str:
    (info,) = [info for info in loaded.plugins if info.status != "ok"]
    assert info.status == "broken"
    return info.reason


@pytest.mark.parametrize(("fake", "words"), [
    (plugin(rlhf_components=lambda: None), "'rlhf_components': returned NoneType; expected a list of ComponentSpec"),
    (plugin(rlhf_components=spec), "'rlhf_components': returned ComponentSpec; expected a list of ComponentSpec"),
    (plugin(spec(), "x"), "hook 'rlhf_components': returned a list with str; expected a list of ComponentSpec"),
    (plugin(rlhf_kinds=lambda: [spec()]), "returned a list with ComponentSpec; expected a list of KindSpec"),
    (plugin(spec("reward/My Reward")), "reward 'My Reward': this name cannot be used; expected lower-case letters"),
    (plugin(spec("reward/-x")), "reward '-x': this name cannot be used"),
    (plugin(spec(name=3)), "reward 3: name is of type int; expected str"),
    (plugin(spec(api_version="1")), "reward 'mine': api_version is of type str; expected int"),
    (plugin(spec(api_version=0)), f"'mine': needs plugin interface 0; this rlhf-core has {API_VERSION}; upgrade dist"),
    (plugin(spec(factory="a.b.C")), "reward 'mine': reference 'a.b.C'; expected the form 'package.module:Name'"),
    (plugin(spec(config="a.b:")), "reward 'mine': reference 'a.b:'; expected the form 'package.module:Name'"),
    (plugin(rlhf_kinds=lambda: [KindSpec("robot", "robots")]), "kind 'robot': reference 'robots'; expected the form"),
    (plugin(rlhf_kinds=lambda: [KindSpec("reward", "a:B")]),
     f"kind 'reward': rlhf-core {__version__} declares it with another interface; expected one interface per kind"),
    (plugin(spec(), spec()), "reward 'mine': offered more than once by dist-fake; expected one component of that name"),
    (SimpleNamespace(rlhf_components=list), "hook 'rlhf_components': not marked; decorate it with @rlhf_core.hookimpl"),
    (None, "entry point: loads None, which implements no hook; expected one of rlhf_components"),
    (plugin(rlhf_commands=lambda application: None), "Argument(s) {'application'} are declared in the hookimpl but"),
    (SimpleNamespace(rlhf_run_started=hookimpl(wrapper=True)(lambda run: (yield))),
     "hook 'rlhf_run_started': a wrapper; expected a plain function; leave out wrapper=True"),
    (builtin, "entry point: loads the same object as rlhf-core; remove one"),
])  # fmt: skip
def test_what_breaks_a_plugin(installed: Callable[..., Plugins], fake: Any, words: str) -> None:
    loaded = installed(fake=fake)
    assert words in reason(loaded)
    assert [info.status for info in loaded.plugins] == ["ok", "broken"]
    assert loaded.find("reward", "function")
    assert not loaded.manager.has_plugin("dist-fake:fake")


def test_a_hook_of_a_later_core_may_be_optional(installed: Callable[..., Plugins]) -> None:
    later = SimpleNamespace(rlhf_later=hookimpl(optionalhook=True)(lambda: None))
    assert installed(later=later).plugins[1].status == "ok"


def test_an_interrupt_while_loading_goes_through(installed: Callable[..., Plugins]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        installed(fake=plugin(rlhf_components=interrupted))


def test_a_broken_plugin_takes_its_kinds_along(installed: Callable[..., Plugins]) -> None:
    def robots() -> list[KindSpec]:
        return [KindSpec("robot", f"{HERE}:Fine")]

    loaded = installed(maker=plugin(spec("rewrd/x"), rlhf_kinds=robots), user=plugin(spec("robot/arm")))
    assert [info.status for info in loaded.plugins] == ["ok", "broken", "broken"]
    assert "dist-maker:maker 1.0 declares it, but is broken: rewrd 'x':" in loaded.plugins[2].reason
    with pytest.raises(PluginError, match=r"kind 'robot': no installed .* dist-maker:maker 1.0 .broken: rewrd 'x'"):
        loaded.find("robot", "arm")


def test_two_plugins_may_declare_one_kind_alike(installed: Callable[..., Plugins]) -> None:
    def kinds(interface: str) -> SimpleNamespace:
        return plugin(rlhf_kinds=lambda: [KindSpec("robot", interface)])

    assert [p.status for p in installed(a=kinds("a:A"), b=kinds("a:A")).plugins] == ["ok"] * 3
    assert [p.status for p in installed(a=kinds("a:A"), b=kinds("b:B")).plugins] == ["ok", "broken", "broken"]


def test_a_clash_with_a_built_in_takes_it_out_too(installed: Callable[..., Plugins]) -> None:
    loaded = installed(mine=plugin(spec("reward/function")))
    with pytest.raises(PluginError, match=r"offered by rlhf-core \S+, dist-mine:mine 1.0; .*RLHF_DISABLE_PLUGINS"):
        loaded.find("reward", "function")
    assert [info.status for info in loaded.plugins] == ["clash", "clash"]
    assert loaded.find("metric", "kl").name == "kl"


@pytest.mark.parametrize(("kind", "name", "words"), [
    ("rewrd", "function", "kind 'rewrd': no installed plugin declares it; expected one of .*; did you mean 'reward'"),
    ("reward", "functoin", r"no installed plugin offers it; expected one of .*mine.*; did you mean 'function'\?"),
    ("reward", "keywrds", r"did you mean 'keywords'\?"),
    ("reward", "zzz", r"or it belongs to a plugin that cannot be used: dist-off:off 1.0 \(disabled: .*\), dist-sick:"),
    ("optimizer", "ppo", "'ppo': belongs to rlhf-plugin-ppo, which is not installed; pip install -U rlhf-plugin-ppo$"),
    ("shaper", "missing-eos", "pip install -U rlhf-plugin-shaping$"),
    ("metric", "function", "no installed plugin offers it; .*; 'function' is a component of kind reward;"),
    ("metric", "divergence", r"; look at metric 'kl' \(divergence from the reference per response, in nats\)"),
])  # fmt: skip
def test_find_says_why_there_is_none(installed: Callable[..., Plugins], kind: str, name: str, words: str) -> None:
    loaded = installed(["off"], mine=plugin(spec()), sick=plugin(rlhf_components=lambda: None), off=None)
    with pytest.raises(PluginError, match=words):
        loaded.find(kind, name)


@pytest.mark.parametrize(("status", "words"), [
    ("ok", "belongs to rlhf-plugin-ppo, of which 0.0 is installed, without it; pip install -U rlhf-plugin-ppo"),
    ("disabled", "belongs to rlhf_plugin_ppo:ppo 0.0, which is disabled: why; repair or enable it"),
    ("broken", "belongs to rlhf_plugin_ppo:ppo 0.0, which is broken: why; repair or enable it"),
])  # fmt: skip
def test_find_knows_a_first_party_plugin_that_is_there(status: Any, words: str) -> None:
    core = load_plugins(disable="all")
    loaded = Plugins(core.manager, [core.plugins[0], PluginInfo("ppo", "rlhf_plugin_ppo", "0.0", status, "why")])
    with pytest.raises(PluginError, match=words):
        loaded.find("optimizer", "ppo")


def test_the_catalogue(installed: Callable[..., Plugins]) -> None:
    core, loaded = installed(), installed(mine=plugin(spec("reward/b"), spec("reward/a"), spec("policy/z")))
    assert loaded.names("reward") == sorted(["a", "b", *core.names("reward")])
    assert [s.name for s in loaded.components("policy")] == ["causal-lm", "seq2seq-lm", "z"]
    assert loaded.components()[2].name == "z" and loaded.names("optimizer") == core.names("optimizer")
    assert loaded.distribution(loaded.find("reward", "b")) == ("dist-mine", "1.0")
    assert loaded.find("reward", "b").summary == "a part"
    with pytest.raises(PluginError, match="reward 'other': a spec of no installed plugin; expected one that `find`"):
        loaded.distribution(spec("reward/other"))
    with pytest.raises(PluginError, match=r"kind 'rewards': no installed plugin declares it.*did you mean 'reward'"):
        loaded.names("rewards")


def test_notify_calls_each_listener_on_its_own(installed: Callable[..., Plugins]) -> None:
    heard: list[int] = []

    def listener(step: int) -> None:
        heard.append(step)

    def leaves(stage: str) -> None:
        raise SystemExit(stage)

    def interrupted() -> None:
        raise KeyboardInterrupt

    loaded = installed(a=plugin(rlhf_step_finished=listener), b=plugin(rlhf_step_finished=leaves),
                       c=plugin(rlhf_step_finished=lambda step, stats: heard.append(step + 1)),
                       d=plugin(rlhf_run_finished=interrupted))  # fmt: skip
    told = loaded.notify("rlhf_step_finished", run=None, stage="sft", step=3, stats={})
    assert told == ["plugin dist-b:b: rlhf_step_finished failed: SystemExit: sft"]
    assert sorted(heard) == [3, 4]
    with pytest.raises(KeyboardInterrupt):
        loaded.notify("rlhf_run_finished", run=None, summary={})


# --- classes ---------------------------------------------------------------------------------------------------------


class FineConfig(Config):
    pass


class OtherConfig(Config):
    pass


class Abstract(RewardModel[FineConfig]):
    pass


class Fine(RewardModel[FineConfig]):
    def score(self, samples: Any) -> Any: ...


class Stranger: ...


def test_check_deep_passes_what_is_fine(installed: Callable[..., Plugins]) -> None:
    loaded = installed(mine=plugin(spec()))
    assert [error for error in loaded.check_deep() if "mine" in error.where] == []
    assert loaded.import_class(loaded.find("reward", "mine"), "config") is FineConfig


@pytest.mark.parametrize(("changes", "words"), [
    ({"factory": f"{HERE}:Abstract"}, f"factory {HERE}:Abstract does not implement score; expected no abstract method"),
    ({"factory": f"{HERE}:Stranger"}, "another kind of class; expected a subclass of rlhf_core.interfaces:RewardModel"),
    ({"factory": f"{HERE}:spec"}, f"factory {HERE}:spec is of type function; expected a class"),
    ({"factory": f"{HERE}:Fin"}, f"{HERE} has no 'Fin'; did you mean 'Fine'?"),
    ({"factory": "nowhere.x:Fine"}, "importing nowhere.x failed: ModuleNotFoundError: No module named 'nowhere'"),
    ({"config": f"{HERE}:Stranger"}, "is another kind of class; expected a subclass of rlhf_core.interfaces:Config"),
    ({"config": f"{HERE}:OtherConfig"}, f"{HERE}:Fine is configured by FineConfig; expected {HERE}:OtherConfig"),
])  # fmt: skip
def test_check_deep_names_what_is_wrong(installed: Callable[..., Plugins], changes: Any, words: str) -> None:
    loaded = installed(x=plugin(spec(**changes)))
    (error,) = [error for error in loaded.check_deep() if "mine" in error.where]
    assert error.where == "reward 'mine' of dist-x:x 1.0"
    assert words in str(error)
    (info,) = [info for info in loaded.examined().plugins if info.name == "x"]
    assert info.status == "broken" and words in info.reason


def test_check_deep_names_both_when_both_are_wrong(installed: Callable[..., Plugins]) -> None:
    loaded = installed(x=plugin(spec(factory="nowhere:A", config="nowhere:B")))
    assert len([error for error in loaded.check_deep() if "mine" in error.where]) == 2


# --- importing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "fix_exits.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    yield "fix_exits:X"
    sys.modules.pop("fix_exits", None)


def test_import_object(failing: str) -> None:
    assert import_object("os.path:join") is os.path.join
    assert import_object("collections:OrderedDict.fromkeys") == __import__("collections").OrderedDict.fromkeys
    with pytest.raises(PluginError, match=r"^here: reference 'os.path.join'; expected the form 'package.module:Name'$"):
        import_object("os.path.join", "here")
    with pytest.raises(PluginError, match=r"^import: os.path has no 'joyn'; did you mean 'join'\?$"):
        import_object("os.path:joyn")
    with pytest.raises(PluginError, match=r"importing fix_exits failed: SystemExit: 3; install what is missing"):
        import_object(failing)


def test_disabling_from_python(installed: Callable[..., Plugins], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE, "all")
    assert [info.status for info in installed((), a=plugin(spec())).plugins] == ["ok", "ok"]
    assert [info.status for info in installed(None, a=plugin(spec())).plugins] == ["ok", "disabled"]
    assert [info.status for info in installed("rlhf-core, dist.A", a=plugin(spec())).plugins] == ["ok", "disabled"]
