"""The command `rlhf feedback check`. Light: what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GROUP = "feedback"


def add_commands(app: typer.Typer) -> None:
    """Add `check` to the group of commands `feedback`, which another plugin may have made already."""
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    group = groups.get(GROUP)
    if group is None:
        group = typer.Typer(no_args_is_help=True, help="Look at human feedback before training on it.")
        app.add_typer(group, name=GROUP)
    group.command("check")(check)


def check(
    file: Annotated[Path, typer.Argument(help="a file of feedback, in any format that a feedback source reads")],
    use: Annotated[
        str | None, typer.Option("--use", help="the feedback source that reads it; by default guessed from its columns")
    ] = None,
    gold: Annotated[
        Path | None, typer.Option("--gold", help="a file with known answers to some of the same items")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="a threshold, such as min_seconds=2, alpha_gain=0.1 or coverage=topic"
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="our name for a column = the file's name for it"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="an option of the source, such as limit=1000"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="write the records that pass, weighted, to this JSONL file")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check a file of human feedback: bad rows, annotators, agreement, biases, prompts.

    Nothing is changed: dropped is what a pipeline with a `quality` source would drop.
    """
    from .checking import run_check

    found = run_check(
        file,
        use=use,
        gold=gold,
        settings=tuple(set_ or ()),
        columns=tuple(column or ()),
        options=tuple(option or ()),
        out=out,
    )
    if as_json:
        import json

        typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        from .tables import print_check

        print_check(found)
