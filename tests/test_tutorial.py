"""The tutorial: its files are written, its commands run, and what they print is what it shows.

Each part runs by itself, in an environment where the core and some plugins are really installed. A block with a title
is a file; with mode="add" its entries go into the one that is there. `sh` blocks run, and leave with `status`; every
line of a `text` block stands in what the block before it printed, in that order.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
PARTS = sorted((ROOT / "docs" / "tutorial").glob("[1-9]*.md"))
THIRD_PARTY = ROOT / "examples" / "third-party"
INSTALLED = [ROOT / "core", *(ROOT / "plugins" / name for name in ("ppo", "rating"))]
make_venv = runpy.run_path(str(ROOT / "core" / "tests" / "venvs.py"))["make_venv"]


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    title: str = ""
    mode: str = ""
    status: str = "0"


def blocks(part: Path) -> Iterator[Block]:
    for language, options, body in re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", part.read_text("utf-8"), re.S | re.M):
        yield Block(language, body, **dict(re.findall(r'(\w+)="([^"]*)"', options)))


def merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merged(old.get(key), value) for key, value in new.items()}
    return new


def write(block: Block, file: Path) -> None:
    if block.mode == "add":
        yaml = YAML()
        data = merged(yaml.load(file), yaml.load(block.body))
        yaml.dump(data, file)
    else:
        assert file.parent.is_dir(), f"{file.parent} is not there yet"
        file.write_text(block.body, encoding="utf-8")


def scripts(python: Path) -> None:
    """Commands that a person's environment has, and ours borrows from the one that runs the tests."""
    for name, module in {"pip": "pip", "pytest": "pytest"}.items():
        script = python.with_name(name)
        script.write_text(f"#!/bin/sh\nexec '{python}' -m {module} \"$@\"\n", encoding="utf-8")
        script.chmod(0o755)


@pytest.mark.parametrize(
    "part", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem[0] > "2" else []) for p in PARTS]
)
def test_a_part_of_the_tutorial(part: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv", *INSTALLED)
    scripts(python)
    desk = tmp_path / "desk"
    desk.mkdir()
    for name in re.findall(r"<!-- begins with: (\S+) -->", part.read_text("utf-8")):
        shutil.copytree(THIRD_PARTY / name, desk / name)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RLHF", "PYTEST", "PIP"))
    }
    environment |= {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "160",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        # everything is there already, the tools to build with too
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # read by pip as: no isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    printed = ""
    for block in blocks(part):
        if block.title:
            write(block, desk / block.title)
        elif block.language in ("sh", "python"):
            command = ["bash", "-ec", block.body] if block.language == "sh" else [str(python), "-c", block.body]
            done = subprocess.run(
                command, cwd=desk, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            printed = done.stdout
            assert done.returncode == int(block.status), f"{block.body}{printed}"
        elif block.language == "text":
            flat = re.sub(r"[\s│]+", " ", printed)
            place = 0
            for line in block.body.splitlines():
                found = flat.find(line, place)
                assert found >= 0, f"{line!r} is not in, or not in this order:\n{printed}"
                place = found + len(line)
        else:
            raise AssertionError(f"a block of {block.language} that is neither file, command nor output")


def test_part_two_makes_the_plugin_that_lies_in_the_examples() -> None:
    for block in blocks(ROOT / "docs" / "tutorial" / "2-optimizer.md"):
        if block.title.startswith("rlhf-plugin-gspo"):
            assert (THIRD_PARTY / block.title).read_text(encoding="utf-8") == block.body


def test_the_reward_of_part_one_has_eight_lines() -> None:
    (reward,) = [block for block in blocks(PARTS[0]) if block.title.endswith("reward.py")]
    assert len([line for line in reward.body.splitlines() if line.strip()]) == 8
