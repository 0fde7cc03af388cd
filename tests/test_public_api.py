"""The plugin interface is frozen: what plugins import from the core, with its signatures, as `public_api/v1.txt` has it.

Only additions pass. The rules are those of `public_api/write.py`.
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
api = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "public_api" / "write.py")))

INSIDE = {"rlhf_core.memory", "rlhf_core.stages.config"}
"""Modules that plugins of this repository may use, as they are released with the core, and others may not."""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="classes keep their annotations elsewhere")
def test_nothing_that_plugins_rely_on_has_changed() -> None:
    breaks, additions = api.compare(api.FILE.read_text().splitlines(), api.surface())
    told = "\n".join(breaks)
    assert not breaks, (
        f"plugins written for api_version {api.API_VERSION} would stop working: keep it, or raise API_VERSION\n{told}"
    )
    told = "\n".join(additions)
    assert not additions, f"new public names: add them with `python tests/public_api/write.py`\n{told}"


def test_the_snapshot_holds_what_the_design_promises() -> None:
    """Its lines do say something: an abstract method, a field with its type, a signature, a hook."""
    lines = api.FILE.read_text().splitlines()
    assert lines == sorted(lines)
    wanted = [
        "rlhf_core.interfaces.RewardModel.score: abstract method (self, samples: Sequence[Sample]) -> Scores",
        "rlhf_core.interfaces.Sampling.max_new_tokens: field int",
        "rlhf_core.ComponentSpec.factory: required field str",
        "rlhf_core.interfaces.ComponentSpec: is rlhf_core.ComponentSpec",
        "rlhf_core.API_VERSION: 1",
        "rlhf_core.interfaces.Hooks.rlhf_commands: method (self, app: Any) -> None",
        "rlhf_core.records.Rollout.response_ids: required field Tensor",
    ]
    assert [line for line in wanted if line not in lines] == []


OLD = ["m.f: function (x: int, *, y: int = 0) -> int", "m.C: class ()", "m.C.go: method (self) -> None"]


@pytest.mark.parametrize(("line", "breaks"), [
    ("m.f: function (x: int, *, y: int = 0, z: str = 'a') -> int", False),
    ("m.f: function (x: int, w: int | None = None, *, y: int = 0) -> int", False),
    ("m.f: function (x: int, w: int, *, y: int = 0) -> int", True),  # calls lack it
    ("m.f: function (w: int = 1, x: int = 1, *, y: int = 0) -> int", True),  # another order
    ("m.f: function (x: int) -> int", True),
    ("m.f: function (x: int, *, y: int = 1) -> int", True),
    ("m.f: function (x: float, *, y: int = 0) -> int", True),
    ("m.f: function (x: int, *, y: int = 0) -> float", True),
    ("m.C.go: method (self, fast: bool = False) -> None", True),  # overrides lack it
    ("m.C.go: property None", True),
    ("m.C.stop: method (self) -> None", False),
    ("m.C.stop: abstract method (self) -> None", True),  # subclasses lack it
    ("m.C.size: field int", False),
    ("m.C.size: required field int", True),
    ("m.D: class ()", False),
    ("m.D.size: required field int", False),  # of a class that is new itself
])  # fmt: skip
def test_an_addition_is_told_from_a_break(line: str, breaks: bool) -> None:
    name = line.partition(":")[0]
    new = [old for old in OLD if not old.startswith(f"{name}:")] + [line]
    if line.startswith("m.D."):
        new.append("m.D: class ()")
    found, additions = api.compare(OLD, new)
    assert (len(found) > 0, len(additions) > 0) == (breaks, not breaks)
    assert all(told.startswith(name) for told in found)


def test_what_is_gone_is_a_break() -> None:
    assert api.compare(OLD, OLD) == ([], [])
    assert api.compare(OLD, OLD[:-1]) == (["m.C.go is gone"], [])


def test_our_plugins_import_what_any_plugin_may() -> None:
    """But for `INSIDE`; a name that is not public is one that a stranger's plugin cannot have."""
    public = {line.partition(": ")[0] for line in api.FILE.read_text().splitlines()}
    strays, used = [], set()
    for file in sorted((ROOT / "plugins").glob("*/src/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "rlhf_core":
                continue
            if node.module in INSIDE:
                used.add(node.module)
                continue
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            strays += [f"{file.relative_to(ROOT)}: {name}" for name in names if name not in {*public, *api.MODULES}]
    assert strays == []
    assert used == INSIDE  # what nobody uses any more has no place there
