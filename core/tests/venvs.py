"""Throw-away virtual environments with distributions really installed. Self-contained: any test may import it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def make_venv(path: Path, *sources: Path, editable: Sequence[Path] = ()) -> Path:
    """Make a virtual environment at `path`, install the projects at `sources` with pip, and return its Python.

    It sees everything that the running interpreter has installed (torch is not installed twice) but what has "rlhf" in
    its name, so that none of our editable installs leaks in. Needs no network. Raises RuntimeError with pip's words.
    """
    _run(sys.executable, "-m", "venv", "--without-pip", str(path))
    python = path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    beside = path / "beside"
    beside.mkdir()
    for folder in (Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")):
        for item in folder.iterdir():
            if "rlhf" not in item.name and not (beside / item.name).exists():
                (beside / item.name).symlink_to(item)
    site_packages = next(path.glob("[Ll]ib/**/site-packages"))
    (site_packages / "beside.pth").write_text(f"{beside}\n")
    projects = [*map(str, sources), *(word for project in editable for word in ("--editable", str(project)))]
    _run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        *projects,
    )
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
