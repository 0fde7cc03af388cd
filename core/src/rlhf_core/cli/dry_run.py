"""What `rlhf run --dry-run` prints: a column for every stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..terminal import Console

ROLES = {
    "process": "Python and libraries", "policy": "policy", "reference": "reference", "critic": "critic",
    "rewards": "rewards", "optimizer": "optimizer states", "other": "other tensors", "gradients": "gradients",
    "activations": "activations", "cache": "cache of decoding",
}  # fmt: skip
WIDTHS = 20, 12  # of the names of rows, and of a stage with the space before it

Stages = Sequence[tuple[str, Mapping[str, Any]]]


def show_dry_run(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Tables of what each stage takes, as many stages side by side as there is room for; then sums and warnings."""
    console = console or Console(highlight=False)
    found, stages = summary["dry_run"], list(summary["dry_run"]["stages"].items())
    processes = f"{found['processes']} process" + ("es" if found["processes"] > 1 else "")
    console.print(f"dry run of [bold]{escape(summary['pipeline'])}[/bold] on {found['device']}, {processes}: "
                  f"{escape(' -> '.join(id for id, _ in stages))}")  # fmt: skip
    beside = max(1, (console.width - WIDTHS[0]) // WIDTHS[1])
    for first in range(0, len(stages), beside):
        console.print(_table(stages[first : first + beside]))
    top = max(stages, key=lambda stage: stage[1]["peak"], default=None)
    console.print(f"policy: {summary['parameters']:,} parameters, {summary['trainable']:,} of them trainable")
    if top is not None:
        per = " of each process" if found["processes"] > 1 else ""
        console.print(f"memory{per}: about {_size(top[1]['peak'])} at most, in {escape(top[0])}")
    console.print(f"time: about {_time(sum(seconds(stage) for _, stage in stages))} in all")
    for warning in summary["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    if not summary["warnings"]:
        console.print("no warnings")


def seconds(stage: Mapping[str, Any]) -> float:
    """Of the whole stage: all steps, setting up, evaluations."""
    return float(stage["steps"] * stage["step_seconds"] + _around(stage))


def _around(stage: Mapping[str, Any]) -> float:
    return float(stage["setup_seconds"] + stage["evaluation_seconds"] + stage["finish_seconds"])


def _table(stages: Stages) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("", no_wrap=True)
    for id, _ in stages:
        table.add_column(escape(id), justify="right", overflow="fold", max_width=WIDTHS[1])

    def row(name: str, cell: Callable[[Mapping[str, Any]], str], *, always: bool = False, style: str = "") -> None:
        cells = [cell(stage) for _, stage in stages]
        if always or any(cells):
            table.add_row(name, *(text or "-" for text in cells), style=style)

    def part(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda stage: f"{stage['parts'][key]:,}" if stage["parts"] and stage["parts"][key] else ""

    row("steps", lambda s: f"{s['steps']:,}", always=True)
    table.add_row("[bold]a step[/bold]")
    row("  prompts", lambda s: f"{s['whole']:,}" if s["what"] == "prompts" else "")
    row("  examples", lambda s: f"{s['whole']:,}" if s["what"] == "examples" else "")
    row("  samples", lambda s: part("samples")(s) if s["what"] == "prompts" else "")
    row("  longest, tokens", part("longest"))
    row(
        "  tokens at most", lambda s: f"{s['parts']['samples'] * s['parts']['longest']:,}" if part("longest")(s) else ""
    )
    row("  minibatches", part("updates"))
    row("  accumulation", lambda s: part("accumulation")(s) if s["trained"] else "")
    row("  weights trained", lambda s: _count(s["trained"]) if s["trained"] else "")
    table.add_row("[bold]memory at most[/bold]")
    for role, name in ROLES.items():
        row(f"  {name}", lambda s, role=role: _size(s["memory"].get(role, 0)))  # type: ignore[misc]
    row("  peak", lambda s: _size(s["peak"]), always=True, style="bold")
    table.add_row("[bold]time[/bold]")
    row("  tried with", lambda s: f"{s['tried']:,} {s['what']}" if s["whole"] else "a step")
    row("  took", lambda s: _time(s["tried_seconds"]))
    row("  a step", lambda s: _time(s["step_seconds"]))
    row("  all steps", lambda s: _time(s["steps"] * s["step_seconds"]))
    row("  around them", lambda s: _time(_around(s)))
    row("  in all", lambda s: _time(seconds(s)), style="bold")
    return table


def _size(size: float) -> str:
    """Nothing for no bytes."""
    if size < 1:
        return ""
    if size < 2**20:
        return "<1 MB"
    return f"{size / 2**20:,.0f} MB" if size < 10 * 2**30 else f"{size / 2**30:,.1f} GB"


def _count(number: int) -> str:
    for power, name in ((9, "B"), (6, "M"), (3, "K")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {name}"
    return str(number)


def _time(taken: float) -> str:
    if taken < 0.005:
        return ""
    if taken < 120:
        return f"{taken:.{2 if taken < 0.995 else 1 if taken < 9.95 else 0}f} s"
    minutes = round(taken / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
