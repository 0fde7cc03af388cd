"""`rlhf trace` and `rlhf diff`: where an artefact comes from, and what differs between two runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError

if TYPE_CHECKING:
    from rich.tree import Tree

    from ..runs.difference import Change, Difference
    from ..runs.lineage import Dependent, Node

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def add_trace_commands(app: typer.Typer) -> None:
    """Add the two commands to `app`."""

    @app.command()
    def trace(
        path: Annotated[
            Path | None, typer.Argument(help="a run directory, an exported model, or components/NAME of a run")
        ] = None,
        remove: Annotated[
            str | None,
            typer.Option("--remove", metavar="ANNOTATOR", help="list what depends on this annotator's records instead"),
        ] = None,
        among: Annotated[
            Path, typer.Option("--in", metavar="DIR", help="the folder of the runs that are looked through")
        ] = Path("runs"),
        as_json: AsJson = False,
    ) -> None:
        """Follow a policy or a reward back to the feedback records and annotators that made it."""
        from ..runs import lineage

        if (path is None) == (remove is None):
            raise ConfigError("rlhf trace", "got both or neither", "a PATH, or --remove ANNOTATOR")
        if path is not None:
            node = lineage.trace(path, among)
            _print_json(node.to_dict()) if as_json else _show_tree(node)
        elif remove is not None:
            found = lineage.dependents(remove, among)
            _print_json([asdict(one) for one in found]) if as_json else _show_dependents(remove, found)

    @app.command()
    def diff(
        run_a: Annotated[Path, typer.Argument(help="a run directory")],
        run_b: Annotated[Path, typer.Argument(help="another")],
        as_json: AsJson = False,
    ) -> None:
        """Show what differs between two runs: settings, data, versions and results."""
        from ..runs.difference import difference

        found = difference(run_a, run_b)
        _print_json(asdict(found)) if as_json else _show_difference(found, run_a, run_b)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _show_tree(node: Node) -> None:
    from rich.markup import escape
    from rich.tree import Tree

    from .tables import console

    def add(tree: Tree, nodes: list[Node]) -> None:
        for child in nodes:
            add(tree.add(escape(child.text)), child.made_from)

    root = Tree(f"[bold]{escape(node.text)}[/bold]")
    add(root, node.made_from)
    console.print(root)


def _show_dependents(annotator: str, found: list[Dependent]) -> None:
    from rich.markup import escape
    from rich.tree import Tree

    from .tables import console

    total = len({id for one in found for ids in one.records.values() for id in ids})
    root = Tree(f"[bold]{total} records of {escape(annotator)!r} went into[/bold]")
    runs: dict[Path, Tree] = {}
    for one in found:
        branch = runs.setdefault(one.run, root.add(escape(str(one.run)))) if one.run not in runs else runs[one.run]
        why = [f"read {len(ids)} of {source}" for source, ids in one.records.items()]
        why += [f"builds on {name}" for name in dict.fromkeys(one.through)]
        stage = branch.add(escape(f"stage {one.stage}: {', '.join(why)}"))
        for artefact in one.artefacts:
            inside = artefact.relative_to(one.run) if artefact.is_relative_to(one.run) else artefact
            stage.add(escape(str(inside)))
    console.print(root)
    console.print("To be rid of them: take the records out of the feedback files, delete these artefacts, run again.")


def _show_difference(found: Difference, a: Path, b: Path) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from .tables import console

    console.print(f"A: {escape(str(a))}\nB: {escape(str(b))}")
    for name, changes in (("settings", found.config), ("data", found.data), ("versions", found.versions)):
        if not changes:
            console.print(f"[bold]{name}[/bold]: the same")
            continue
        table = Table(name, "A", "B", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for change in changes:
            table.add_row(escape(change.what), *(_cell(change, i) for i in (0, 1)))
        console.print(table)
    for run in found.unfinished:
        console.print(f"{escape(run)} is not finished: it has no results yet", soft_wrap=True)
    if found.results:
        table = Table("results", "A", "B", "B - A, 95 % interval", "pairs", box=SIMPLE_HEAD, pad_edge=False)
        for one in found.results:
            interval = f"{one.change:+.3g} ({one.low:.3g} to {one.high:.3g})"
            interval = f"[bold]{interval}[/bold]" if one.clear else f"[dim]{interval}[/dim]"
            name = escape(f"{one.stage} {one.metric}")
            table.add_row(name, f"{one.a:.4g}", f"{one.b:.4g}", interval, str(one.paired or "not paired"))
        console.print(table)
    elif not found.unfinished:
        console.print("[bold]results[/bold]: no metric that both runs have evaluated")


def _cell(change: Change, side: int) -> str:
    """The value in one run, and below it where it was written."""
    from rich.markup import escape

    value = (change.a, change.b)[side]
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if "sha256:" in text:
        head, _, digest = text.partition("sha256:")
        text = f"{head}sha256 {digest[:12]}"
    origin = change.origins[side]
    place = origin.split(" ")[0] if not origin.startswith("--set") else "--set"
    return escape(text) + (f"\n[dim]{escape(place)}[/dim]" if origin else "")
