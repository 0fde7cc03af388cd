"""Write docs/reference from the code: components, hooks, checks, commands and the Python API.

`make docs` calls it. With `--check` nothing is written, and pages that are not as they would be are an error.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar, get_origin

import griffe
from rlhf_core.cli.describe import describe, tables, type_name
from rlhf_core.cli.render import cell, markdown, prose, rows
from rlhf_core.interfaces import Config, Hooks
from rlhf_core.plugins import CORE, DISABLE, FIRST_PARTY, HOOKS, Plugins, load_plugins

REFERENCE = Path(__file__).parent / "reference"
# at the end: mkdocs takes the title from the first line
NOTE = "\n<!-- written by `make docs` from the code: edit the docstrings there, not this page -->\n"

INTRODUCTION = """\
Functions of these names, marked with `@hookimpl`, in the module that the entry point names. One may leave out arguments
that it does not use. One that raises is reported, and stops nothing else."""
EXAMPLES = {
    "rlhf_components": """
        return [ComponentSpec("reward", "questions", factory="rlhf_plugin_mine.reward:Questions",
                              config="rlhf_plugin_mine.config:QuestionsConfig", summary="asks back")]
    """,
    "rlhf_kinds": """
        return [KindSpec("monitor", "rlhf_plugin_mine.monitor:Monitor", "watches a run")]
    """,
    "rlhf_commands": """
        @app.command()
        def greet(name: str) -> None:
            \"\"\"Say hello.\"\"\"
            print(f"hello {name}")
    """,
    "rlhf_run_started": """
        print(f"{run.pipeline} writes to {run.directory}")
    """,
    "rlhf_step_finished": """
        if step % 10 == 0:
            print(stage, step, stats.get("reward/score"))
    """,
    "rlhf_checkpoint_saved": """
        print(f"could go on from {path}")
    """,
    "rlhf_run_finished": """
        print(summary["stages"].keys())
    """,
}
WHEN = {
    "rlhf_components": "Whenever plugins are loaded, which every command does; so its module imports nothing heavy.",
    "rlhf_kinds": "Whenever plugins are loaded. Components of the new kind may come from any plugin.",
    "rlhf_commands": "When the command line starts. What a command imports belongs inside it.",
    "rlhf_run_started": "In every process, once the run directory is there and before the first stage is set up; on "
    "`--resume` again.",
    "rlhf_step_finished": "After every step of every stage, in every process, with what is logged of it.",
    "rlhf_checkpoint_saved": "After each checkpoint.",
    "rlhf_run_finished": "At the end of a run that was not stopped, once summary.json is written.",
}

API = {
    "core": ("The package itself", ["rlhf_core", "rlhf_core.api"]),
    "interfaces": ("Interfaces and configuration", ["rlhf_core.interfaces"]),
    "records": ("Records", ["rlhf_core.records"]),
    "rl": ("Optimizers", ["rlhf_core.rl"]),
    "policies": ("Language models", ["rlhf_core.policies"]),
    "functional": ("Tensor functions", ["rlhf_core.functional"]),
    "training": ("Training by gradient", ["rlhf_core.training"]),
    "rewards": ("Bases of rewards", ["rlhf_core.rewards"]),
    "testing": ("Conformance kit", ["rlhf_core.testing"]),
    "errors": ("Errors", ["rlhf_core.errors"]),
    "helpers": (
        "Helpers",
        ["rlhf_core.plugins", "rlhf_core.randomness", "rlhf_core.segmentation", "rlhf_core.terminal"],
    ),
}
"""Page -> its title, and the modules whose public names it holds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not fresh")
    stale = differences(pages())
    if not parser.parse_args().check:
        for path, text in stale.items():
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        return 0
    for path in stale:
        print(f"{path.relative_to(REFERENCE.parent.parent)} is not what the code says: run make docs", file=sys.stderr)
    return 1 if stale else 0


def differences(wanted: dict[Path, str]) -> dict[Path, str | None]:
    """The pages that are missing or differ, with their text, and those that are too many, with None."""
    there = {path: path.read_text(encoding="utf-8") for path in REFERENCE.rglob("*.md")}
    return {path: wanted.get(path) for path in sorted({*there, *wanted}) if there.get(path) != wanted.get(path)}


def pages() -> dict[Path, str]:
    """Every page of the reference; of what this repository holds alone, whatever else is installed."""
    strangers = {info.distribution for info in load_plugins().plugins} - {CORE, *FIRST_PARTY}
    before = os.environ.get(DISABLE)
    os.environ[DISABLE] = ",".join(strangers)
    try:
        plugins = load_plugins()
        found = {"index": index(plugins), "hooks": hooks(), "checks": checks(plugins), "commands": commands()}
    finally:
        os.environ.pop(DISABLE)
        if before is not None:
            os.environ[DISABLE] = before
    for spec in plugins.components():
        found[f"components/{spec.kind}/{spec.name}"] = markdown(describe(plugins, spec.kind, spec.name))
    found |= {f"api/{name}": api(title, modules) for name, (title, modules) in API.items()}
    return {REFERENCE / f"{name}.md": text.rstrip() + "\n" + NOTE for name, text in found.items()}


def index(plugins: Plugins) -> str:
    """All components by kind, and the other pages."""
    lines = ["# Reference", "", "Made from the code. `rlhf describe KIND NAME` prints the page of a component.", ""]
    lines += [
        "- [Hooks](hooks.md): what a plugin can answer and listen to",
        "- [Checks](checks.md): what components have to hold to",
        "- [Commands](commands.md): the command line",
        "- Python: " + ", ".join(f"[{title}](api/{name}.md)" for name, (title, _) in API.items()),
    ]
    for kind in plugins.kinds.values():
        lines += ["", f"## {kind.name}", "", f"{kind.summary}; its interface is `{kind.interface}`.", ""]
        lines += ["| name | summary | distribution |", "|---|---|---|"]
        lines += [
            f"| [{s.name}](components/{s.kind}/{s.name}.md) | {cell(s.summary)} | {plugins.distribution(s)[0]} |"
            for s in plugins.components(kind.name)
        ]
    return "\n".join(lines)


def hooks() -> str:
    """Every hook: signature, when it is called, an example."""
    lines = ["# Hooks", INTRODUCTION]
    for name in HOOKS:
        hook = getattr(Hooks, name)
        signature = inspect.signature(hook)
        arguments = [p for p in signature.parameters if p != "self"]
        shown = signature.replace(parameters=[p for n, p in signature.parameters.items() if n != "self"])
        names = ["hookimpl", *re.findall(r"\b(?:ComponentSpec|KindSpec)\b", EXAMPLES[name])[:1]]
        example = (
            f"from rlhf_core import {', '.join(sorted(names))}\n\n\n@hookimpl\ndef {name}({', '.join(arguments)}):\n"
        )
        example += textwrap.indent(textwrap.dedent(EXAMPLES[name]).strip(), "    ")
        lines += [f"## {name}", f"`{name}{str(shown).replace(chr(39), '')}`", hook.__doc__, f"Called: {WHEN[name]}",
                  f"```python\n{example}\n```"]  # fmt: skip
    return "\n\n".join(lines)


def checks(plugins: Plugins) -> str:
    """Every check of the conformance kit, those of all kinds first."""
    from rlhf_core.testing.kit import checks_of

    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for kind in plugins.kinds:
        for check in checks_of(kind):
            groups.setdefault(check.kinds, {})[check.id] = cell(inspect.getdoc(check.function) or "")
    lines = ["# Checks", "What `parametrize_components` and `rlhf check-plugin` hold components to."]
    for kinds in sorted(groups, key=lambda kinds: (kinds != (), len(kinds) == 1, kinds)):
        lines += [f"## {', '.join(kinds) or 'every kind'}"]
        rows = [f"| `{id}` | {wants} |" for id, wants in groups[kinds].items()]
        lines += ["\n".join(["| check | wants |", "|---|---|", *rows])]
    return "\n\n".join(lines)


def commands() -> str:
    """What `--help` says of every command, by typer's own writer."""
    import typer
    from rlhf_core.cli.app import build_app
    from typer.cli import get_docs_for_click

    command = typer.main.get_command(build_app())
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="rlhf")
    text = re.sub(r"\[/?bold\]", "`", text).replace("# `rlhf`", "# Commands", 1)
    for name, words in shortened(command):
        text = re.sub(rf"(?<=^\* `{name}`: ).*\.\.\.$", words.replace("\\", r"\\"), text, flags=re.M)
    return text


def shortened(command: Any) -> Iterator[tuple[str, str]]:
    """Each command inside, with its help, which lists of commands cut short."""
    for name, inner in getattr(command, "commands", {}).items():
        yield name, " ".join((inner.help or "").split())
        yield from shortened(inner)


def api(title: str, modules: list[str]) -> str:
    """The public names of some modules, each with its first line; mkdocstrings puts the rest in their place."""
    lines = [f"# {title}"]
    for name in modules:
        module = importlib.import_module(name)
        lines += [f"## {name}", prose(inspect.getdoc(module) or "")]
        entries = [f"| `{called(public, getattr(module, public))}` | {said} |" for public, said in documented(module)]
        lines += ["\n".join(["| name | what it is |", "|---|---|", *entries])]
        for public, _ in documented(module):
            lines.append(f"::: {name}.{public}")
            value = getattr(module, public)
            if inspect.isclass(value) and issubclass(value, Config) and value.model_fields:
                lines += [f"Options of `{public}`:", rows(next(tables(value)))]
    return "\n\n".join(lines)


def called(name: str, value: object) -> str:
    """A function with its arguments, without their types; anything else by its name."""
    if not inspect.isfunction(value):
        return name
    shown = [p.replace(annotation=p.empty) for p in inspect.signature(value).parameters.values()]
    shown = [p.replace(default=...) if callable(p.default) and p.default is not p.empty else p for p in shown]
    return name + str(inspect.Signature(shown)).replace("Ellipsis", "...")


def documented(module: ModuleType) -> Iterator[tuple[str, str]]:
    """The public names of a module, those of `__all__` or else what it defines, and the first line of each."""
    path = Path(inspect.getfile(module))
    members = griffe.visit(module.__name__, path, path.read_text(encoding="utf-8")).members
    own = [n for n, found in members.items() if not (n.startswith("_") or found.is_alias or found.is_module)]
    own = [n for n in own if not isinstance(getattr(module, n), TypeVar)]
    for name in getattr(module, "__all__", own):
        value = getattr(module, name)
        yield name, cell(told(value))


def told(value: object) -> str:
    """The first paragraph of a docstring, or what kind of value it is."""
    if inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value)):  # type: ignore[arg-type]
        return " ".join(inspect.cleandoc(value.__doc__ or "").split("\n\n")[0].split())
    if get_origin(value) is Annotated:
        return f"type of an option: {type_name(value)}"
    return "type" if get_origin(value) else f"`{type(value).__name__}`"


if __name__ == "__main__":
    raise SystemExit(main())
