"""How long one waits before anything happens: `import rlhf_core`, and `rlhf plugins` with twenty plugins installed.

    python benchmarks/imports.py [--repeats 11] [--plugins 20]

Every time is that of a fresh process from start to exit, against an empty Python; the commands take turns, and what
counts is the median. Bytecode is compiled before. Plugins that this environment lacks to the number asked for are made
in a folder on the path, as pip would install them, with two components each. Nothing may import torch on the way.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "transformers", "peft", "accelerate", "datasets", "matplotlib", "pyarrow", "numpy"]

# what is measured -> arguments of Python, and the seconds it may take (None: it is there to compare with)
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "empty Python": (["-c", "pass"], None),
    "`import rlhf_core`": (["-c", "import rlhf_core"], 0.2),
    "`rlhf plugins`": (["-m", "rlhf_core", "plugins"], 0.5),
    "`rlhf --help`": (["-m", "rlhf_core", "--help"], 0.3),
    "`rlhf validate`": (["-m", "rlhf_core", "validate"], None),
}


def make_plugins(folder: Path, count: int) -> None:
    """Write `count` distributions into `folder`, as pip leaves them."""
    for i in range(count):
        info, module = folder / f"made_plugin_{i}-1.0.dist-info", f"made_plugin_{i}"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: made-plugin-{i}\nVersion: 1.0\nRequires-Dist: rlhf-core>=0.1\n\nA plugin.\n"
        )
        (info / "entry_points.txt").write_text(f"[rlhf]\nmade{i} = {module}\n")
        specs = ", ".join(
            f'ComponentSpec("{kind}", "made-{i}", "{module}.part:Part", "{module}.config:PartConfig", "made up")'
            for kind in ("reward", "shaper")
        )
        head = "from rlhf_core import ComponentSpec, hookimpl\n\n@hookimpl\ndef rlhf_components():\n"
        (folder / f"{module}.py").write_text(f"{head}    return [{specs}]\n")


def installed() -> int:
    """How many plugins there are already, besides the core."""
    return sum(1 for point in metadata.entry_points(group="rlhf") if point.dist and point.dist.name != "rlhf-core")


def measure(repeats: int, environment: dict[str, str]) -> dict[str, list[float]]:
    """Seconds of every run of every command."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(repeats + 1):
        for name, (arguments, _) in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True
            )
            if turn:  # the first one compiles and reads from the disk
                times[name].append(time.perf_counter() - started)
    return times


def heavy_modules(arguments: list[str], environment: dict[str, str]) -> list[str]:
    """Which of `HEAVY` a command imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return [name for name in HEAVY if name in imported]


def table(times: dict[str, list[float]], heavy: dict[str, list[str]]) -> str:
    """One row per command, as Markdown."""
    empty = statistics.median(times["empty Python"])
    lines = [
        "| | median | fastest to slowest | over empty Python | asked | heavy imports |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in times.items():
        median, limit = statistics.median(seconds), COMMANDS[name][1]
        spread = f"{min(seconds):.3f} to {max(seconds):.3f} s"
        asked = f"under {limit} s" if limit else ""
        modules = ", ".join(heavy[name]) or "none"
        lines.append(f"| {name} | {median:.3f} s | {spread} | {median - empty:.3f} s | {asked} | {modules} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11, help="runs of each command")
    parser.add_argument("--plugins", type=int, default=20, help="make as many as are missing to this number")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = max(0, args.plugins - installed())
        make_plugins(Path(folder), made)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path}
        times = measure(args.repeats, environment)
        heavy = {name: heavy_modules(arguments, environment) for name, (arguments, _) in COMMANDS.items()}
    print(
        f"{installed()} plugins installed and {made} made; Python {sys.version.split()[0]}, {args.repeats} runs each\n"
    )
    print(table(times, heavy))


if __name__ == "__main__":
    main()
