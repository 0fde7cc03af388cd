"""Functions that registry files declare: from a file beside them, from a module, from a factory."""

from __future__ import annotations

import math
import pickle
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

import pytest
from rlhf_core.errors import ConfigError
from rlhf_core.registry import FunctionDecl, load_function
from rlhf_core.registry.functions import read_function

CODE = """
    from dataclasses import dataclass

    LOADED = []

    def score(prompt, response):
        return len(response)

    def make(factor=1, key=""):
        return lambda prompt, response: factor * len(response)

    def give_nothing():
        return 3

    def fail(key):
        raise RuntimeError(f"refused {key}")

    class Scorer:
        @staticmethod
        def score(prompt, response):
            return 7

    constant = 5
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "rewards.py").write_text(textwrap.dedent(CODE))
    return tmp_path


def load(raw: Any, root: Path) -> Any:
    return load_function(read_function("mine", raw, "registry.yaml:3 functions.mine", root), root)


def refusal(raw: Any, root: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(raw, root)
    return str(caught.value)


def test_a_function_of_a_file(root: Path) -> None:
    assert load("rewards.py:score", root)("hi", "four") == 4
    assert load("rewards.py:Scorer.score", root)("hi", "four") == 7


def test_paths_are_made_absolute(root: Path) -> None:
    decl = read_function("mine", "rewards.py:score", "here", root)
    assert decl == FunctionDecl("mine", f"{root}/rewards.py:score")
    assert decl.written == f"{root}/rewards.py:score"
    assert load_function(FunctionDecl("mine", "rewards.py:score"), root)("", "ab") == 2


def test_a_function_of_a_module(root: Path) -> None:
    assert load("math:sqrt", root) is math.sqrt


def test_a_factory_gets_its_kwargs(root: Path) -> None:
    raw = {"factory": "rewards.py:make", "kwargs": {"factor": 10}}
    assert load(raw, root)("hi", "four") == 40
    assert load({"factory": "rewards.py:make"}, root)("hi", "four") == 4
    assert read_function("mine", raw, "", root).written == {
        "factory": f"{root}/rewards.py:make",
        "kwargs": {"factor": 10},
    }


def test_a_file_is_imported_once_under_a_private_name(root: Path) -> None:
    first, second = load("rewards.py:LOADED.append", root), load("rewards.py:score", root)
    assert first.__self__ is sys.modules[second.__module__].LOADED
    assert second.__module__.startswith("_rlhf_functions_rewards_")
    assert "rewards" not in sys.modules
    assert pickle.loads(pickle.dumps(second)) is second


def test_a_file_that_changed_is_imported_again(root: Path) -> None:
    assert load("rewards.py:score", root)("", "ab") == 2
    path = root / "rewards.py"
    path.write_text("def score(prompt, response):\n    return -1\n")
    assert load("rewards.py:score", root)("", "ab") == -1


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("reward.py:score", "registry.yaml:3 functions.mine: there is no file "),
        ("rewards.py:scor", "has no 'scor'; did you mean 'score'?"),
        ("rewards.py:zzz", "has no 'zzz'; known: Scorer, dataclass, fail, give_nothing, make, score"),
        ("rewards.py:constant", "rewards.py:constant is 5; expected something that can be called"),
        ("math:sqr", "functions.mine: math has no 'sqr'; did you mean 'sqrt'?"),
        ("math:pi.real.x", "math has no 'pi.real.x'"),
        ("no_such_module_at_all:f", "ModuleNotFoundError: No module named 'no_such_module_at_all'; "
                                    "install what brings 'no_such_module_at_all'"),
        ("rewards.py", "got 'rewards.py'; expected 'path/file.py:callable' or 'package.module:callable'"),
        ("rewards.py:", "got 'rewards.py:'; expected"),
        ("rewards.py:a b", "got 'rewards.py:a b'; expected"),
        (3, "got 3; expected 'path/file.py:callable'"),
        (None, "got nothing (null); expected"),
        ({}, "got nothing (null); expected"),
        ({"factory": "rewards.py:make", "kwarg": {}}, "unknown key 'kwarg'; did you mean 'kwargs'?"),
        ({"factory": "rewards.py:make", "kwargs": [1]}, "functions.mine.kwargs: got a list of 1; expected a mapping"),
        ({"factory": "rewards.py:make", "kwargs": {"facto": 1}}, "raised TypeError: make() got an unexpected keyword"),
        ({"factory": "rewards.py:give_nothing"}, "give_nothing returned by its factory is 3; expected something that"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_said(root: Path, raw: Any, message: str) -> None:
    assert message in refusal(raw, root)


@pytest.mark.parametrize(("code", "message"), [("1 / 0", "raised ZeroDivisionError: division by zero"),
                                               ("import sys; sys.exit(3)", "raised SystemExit: 3"),
                                               ("def f(:", "raised SyntaxError: invalid syntax"),
                                               ("open('gone')", "raised FileNotFoundError")])  # fmt: skip
def test_a_file_that_raises_is_said(root: Path, code: str, message: str) -> None:
    (root / "broken.py").write_text(code)
    assert message in refusal("broken.py:f", root)
    assert not [name for name in sys.modules if name.startswith("_rlhf_functions_broken_")]


def test_variables_in_kwargs_are_filled_in_and_never_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {"factory": "rewards.py:fail", "kwargs": {"key": "${env:PLANTED}"}}
    assert "functions.mine: the environment variable PLANTED is not set; export PLANTED=..." in refusal(raw, root)
    monkeypatch.setenv("PLANTED", "s3cret-value")
    with pytest.raises(
        ConfigError, match=r"raised RuntimeError: refused \$\{env:PLANTED\}; check its kwargs"
    ) as caught:
        load(raw, root)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in repr(read_function("mine", raw, "", root))
