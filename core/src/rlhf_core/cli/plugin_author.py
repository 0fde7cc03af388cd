"""`rlhf new-plugin` and `rlhf check-plugin`: for those who write plugins."""

from __future__ import annotations

import os
import re
from collections import Counter
from datetime import date
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from .. import API_VERSION, __version__
from ..errors import PluginError, RunError, did_you_mean
from ..plugins import FIRST_PARTY, KNOWN, Plugins

TEMPLATES = Path(__file__).with_name("templates")
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SUMMARIES = {
    "reward": "a reward for responses that come to an end",
    "shaper": "scores relative to their running mean",
    "optimizer": "REINFORCE with the other responses to a prompt as baseline",
    "feedback": "star ratings from JSONL or the hub",
    "prompts": "prompts made of instructions and topics",
    "metric": "share of distinct words in a response",
    "policy": "a causal language model with an instruction before every prompt",
    "engine": "decoding without a cache",
    "environment": "asks the policy for a draft, and for a better one",
    "monitor": "an alarm when a statistic passes a limit",
    "stage": "writes down what the policy answers",
}
"""What the example of each kind does, in one line."""
COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}


def add_author_commands(app: typer.Typer, plugins: Plugins) -> None:
    """Add the two commands to `app`."""

    @app.command("new-plugin")
    def new_plugin(
        name: Annotated[
            str, typer.Argument(help="of the component, such as my-reward; the distribution will be rlhf-plugin-NAME")
        ],
        kind: Annotated[str, typer.Option("--kind", "-k", help=f"what it is: {', '.join(SUMMARIES)}")],
        out: Annotated[Path, typer.Option("--out", "-o", help="the folder to put it in")] = Path(),
        summary: Annotated[
            str | None,
            typer.Option("--summary", "-s", help="what it will do, in one line; by default what the example does"),
        ] = None,
    ) -> None:
        """Write a plugin that works, to be changed into your own: package, tests, README, licence, CI."""
        folder = write_plugin(plugins, name, kind, out, summary)
        typer.echo(f"wrote {folder}\nnext: cd {folder} && pip install -e '.[dev]' && pytest")

    @app.command("check-plugin")
    def check_plugin(
        distribution: Annotated[str, typer.Argument(help="an installed distribution, such as rlhf-plugin-ppo")],
    ) -> None:
        """Run every conformance check on the components of a plugin."""
        if not print_checks(plugins, distribution):
            raise typer.Exit(1)


# --- check-plugin ----------------------------------------------------------------------------------------------------


def print_checks(plugins: Plugins, distribution: str) -> bool:
    """Print a table of all checks and what they found; whether none failed.

    Raises:
        PluginError: no such distribution is installed, or it cannot be used.
    """
    from rich.markup import escape
    from rich.table import Column, Table

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: threads would wait for each other
    from ..testing import run_checks
    from .tables import console

    results = list(run_checks(distribution, plugins))
    table = Table("component", Column("check", no_wrap=True), "result", "reason")
    for result, before in zip(results, [None, *results], strict=False):
        component = "" if before is not None and before.component == result.component else result.component
        outcome = f"[{COLOURS[result.outcome]}]{result.outcome}[/]"
        table.add_row(component, result.check, outcome, escape(result.reason))
    console.print(table)
    counts = Counter[str](result.outcome for result in results)
    console.print(", ".join(f"{counts[outcome]} {outcome}" for outcome in COLOURS))
    return not counts["failed"]


# --- new-plugin ------------------------------------------------------------------------------------------------------


def write_plugin(plugins: Plugins, name: str, kind: str, out: Path, summary: str | None = None) -> Path:
    """Write a complete distribution with one component and return its folder.

    Raises:
        PluginError: the kind is unknown, the name malformed or taken, or the summary more than a line of plain
            text. RunError: the folder is there already.
    """
    _check_kind(kind)
    _check_name(plugins, name, kind)
    summary = SUMMARIES[kind] if summary is None else summary
    if not re.fullmatch(r"[^\n\\\"`]*\w[^\n\\\"`]*", summary):
        raise PluginError(f"--summary {summary!r}", "cannot be used", "one line without quotation marks", "shorten it")
    distribution = f"rlhf-plugin-{name}"
    folder = out / distribution
    if folder.exists():
        raise RunError(
            f"rlhf new-plugin {name}",
            f"{folder} is there already",
            "a new folder",
            "take another name, or --out elsewhere",
        )
    package = distribution.replace("-", "_")
    words = {
        "name": name,
        "kind": kind,
        "Class": class_name(name, kind),
        "distribution": distribution,
        "package": package,
        "summary": summary,
        "core": ".".join(__version__.split(".")[:2]),
        "api_version": str(API_VERSION),
        "year": str(date.today().year),
    }
    words["registry"] = _filled(f"{kind}/registry.yaml", words).rstrip()
    source = f"src/{package}"
    texts = {folder / source / "py.typed": ""}
    for template, target in {
        "common/pyproject.toml": "pyproject.toml",
        "common/README.md": "README.md",
        "common/LICENSE": "LICENSE",
        "common/gitignore": ".gitignore",
        "common/ci.yml": ".github/workflows/ci.yml",
        "common/__init__.py": f"{source}/__init__.py",
        f"{kind}/config.py": f"{source}/config.py",
        f"{kind}/component.py": f"{source}/{kind}.py",
        "common/test_conformance.py": "tests/test_conformance.py",
    }.items():
        texts[folder / target] = _filled(template, words)
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"rlhf new-plugin {name}", f"cannot write to {out}: {error}", "a folder") from error
    return folder


def class_name(name: str, kind: str) -> str:
    """my-first, reward -> MyFirstReward; a kind that the name ends with is not repeated."""
    parts = name.split("-")
    return "".join(part.capitalize() for part in (parts if parts[-1] == kind else [*parts, kind]))


def _filled(template: str, words: dict[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.template").read_text(encoding="utf-8")).substitute(words)


def _check_kind(kind: str) -> None:
    if kind not in SUMMARIES:
        raise PluginError(
            f"--kind {kind!r}",
            "there is no template for it",
            f"one of {', '.join(SUMMARIES)}",
            did_you_mean(kind, SUMMARIES),
        )


def _check_name(plugins: Plugins, name: str, kind: str) -> None:
    from .. import interfaces

    where = f"plugin name {name!r}"
    if name.startswith("rlhf-plugin-"):
        raise PluginError(
            where,
            "begins with rlhf-plugin-, which is put before it anyway",
            "the component's name",
            f"rlhf new-plugin {name.removeprefix('rlhf-plugin-')}",
        )
    if not NAME.fullmatch(name):
        raise PluginError(
            where,
            "cannot be used",
            "lower-case letters, digits and single hyphens, a letter first",
            "for example my-reward",
        )
    if class_name(name, kind) in {*interfaces.__all__, "OnPolicyOptimizer"}:
        raise PluginError(
            where, f"its class would be called {class_name(name, kind)}, as an interface is", "another name"
        )
    distribution = f"rlhf-plugin-{name}"
    if distribution in FIRST_PARTY:
        raise PluginError(where, f"{distribution} is a plugin of rlhf-core's own", "another name")
    owners = {spec.name: plugins.distribution(spec)[0] for spec in plugins.components(kind)}
    owner = owners.get(name) or KNOWN.get((kind, name))
    if owner not in (None, distribution):
        raise PluginError(where, f"{kind} {name!r} belongs to {owner}", "a name that no other plugin has")
