"""What `rlhf feedback check` prints."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rlhf_core.terminal import Console

from .checking import Checked
from .files import Problem
from .findings import CONSTANT, DISAGREES, GOLD, TOO_FAST, Annotator, Findings, Share

MOST_KEPT = 30
"""Annotators listed who were kept; dropped ones are listed all."""
OF_ANNOTATORS = (TOO_FAST, CONSTANT, GOLD, DISAGREES)


def print_check(checked: Checked, console: Console | None = None) -> None:
    """Bad rows, dropped records and annotators, and at the end, where one looks first, the summary."""
    console = console or Console(highlight=False)
    findings = checked.findings
    _print_rows(console, "bad rows", checked.bad, "[bold]bad rows[/bold], which are no records")
    alone = [problem for problem in checked.dropped if problem.reason not in OF_ANNOTATORS]
    _print_rows(console, "records", alone, "[bold]dropped records[/bold]")
    _print_annotators_records(console, [p for p in checked.dropped if p.reason in OF_ANNOTATORS])
    if findings.annotators:
        console.print(_annotators(checked))
    console.print(_summary(checked))
    for note in findings.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
    if checked.written:
        console.print(f"wrote {findings.kept} records to {escape(str(checked.written))}")


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )


def _print_rows(console: Console, what: str, problems: Iterable[Problem], title: str) -> None:
    """One line per row or record."""
    problems = list(problems)
    if not problems:
        return
    table = _table(title)
    table.add_column("where", no_wrap=True)
    table.add_column("annotator")
    table.add_column("reason")
    for problem in problems:
        reason = problem.detail if problem.reason == "bad row" else f"{problem.reason}: {problem.detail}"
        table.add_row(_place(problem.where), escape(problem.annotator or "-"), escape(reason))
    console.print(table)


def _print_annotators_records(console: Console, problems: Iterable[Problem]) -> None:
    """One line per annotator, with all the records that go with them."""
    problems = sorted(problems, key=lambda p: (p.annotator or "", p.reason, p.detail))  # stable: in the file's order
    if not problems:
        return
    table = _table("[bold]dropped with their annotators[/bold]")
    table.add_column("annotator")
    table.add_column("reason", max_width=40)
    table.add_column("records", justify="right")
    table.add_column("where")
    for (annotator, reason, detail), group in groupby(problems, key=lambda p: (p.annotator, p.reason, p.detail)):
        places = [problem.where for problem in group]
        table.add_row(escape(annotator or "-"), f"{reason}: {escape(detail)}", str(len(places)), _places(places))
    console.print(table)


def _place(where: str) -> str:
    """``line 12`` of ``file:12``, ``row 12`` of ``file row 12``."""
    _, colon, line = where.rpartition(":")
    if colon and line.isdigit():
        return f"line {line}"
    _, row, number = where.rpartition(" row ")
    return f"row {number}" if row else escape(where)


def _places(wheres: list[str]) -> str:
    """``lines 3, 7-9, 12``: each number once, runs as ranges."""
    words = [_place(where).split(" ") for where in wheres]
    if not all(len(word) == 2 and word[1].isdigit() for word in words):
        return ", ".join(map(_place, wheres))
    numbers = list(dict.fromkeys(int(number) for _, number in words))
    parts = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        parts.append(str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}")
    return f"{words[0][0]}{'' if len(numbers) == 1 else 's'} {', '.join(parts)}"


# --- annotators -------------------------------------------------------------------------------------------------------


def _annotators(checked: Checked) -> Table:
    """Dropped ones first, then by how many records they gave; columns that nobody has a value in are left out."""
    findings = checked.findings
    order = sorted(findings.annotators, key=lambda a: (a.verdict is None, -a.records, a.name))
    dropped = sum(a.verdict is not None for a in order)
    shown, left = order[: dropped + MOST_KEPT], order[dropped + MOST_KEPT :]
    table = _table("[bold]annotators[/bold]")
    factors = findings.factors()
    columns = {
        "annotator": [escape(a.name) for a in shown],
        "records": [str(a.records) for a in shown],
        "seconds": ["-" if a.seconds is None else f"{a.seconds:.3g}" for a in shown],
        "same answer": ["-" if a.constant is None else f"{a.constant:.0%}" for a in shown],
        "longest run": ["-" if a.run is None else str(a.run) for a in shown],
        "gold": ["-" if a.gold is None else f"{a.gold.count}/{a.gold.of}" for a in shown],
        "95 %": ["-" if a.gold is None else _range(a.gold) for a in shown],
        "alpha without": ["-" if a.alpha_gain is None else f"{a.alpha_gain:+.2f}" for a in shown],
        "accuracy": ["-" if a.accuracy is None else f"{a.accuracy:.0%}" for a in shown],
        "weight": [_weight(a, factors[a.name]) for a in shown],
        "verdict": [_verdict(a) for a in shown],
    }
    text = ("annotator", "verdict")
    kept = {name: cells for name, cells in columns.items() if name in text or set(cells) - {"-"}}
    for name in kept:
        header = name.replace(" ", "\n") if " " in name and name != "95 %" else name
        table.add_column(
            header,
            justify="left" if name in text else "right",
            no_wrap=name != "annotator",
            min_width=min(9, len(max(kept[name], key=len))),
            overflow="fold",
        )
    for row in zip(*kept.values(), strict=True):
        table.add_row(*row)
    captions, least = [], checked.thresholds.min_records
    if any(a.few for a in shown):
        captions.append(f"too few: fewer than {least} records are not judged")
    if any("*" in cell for cell in columns["weight"]):
        captions.append(f"* fewer than {least} answers to shared items: the crowd's mean")
    if left:
        captions.append(f"and {len(left)} more that were kept; --json lists all")
    table.caption, table.caption_justify = "\n".join(captions) or None, "left"
    return table


def _range(share: Share) -> str:
    low, high = share.interval
    return f"{100 * low:.0f}-{100 * high:.0f}%"


def _weight(annotator: Annotator, factor: float) -> str:
    if annotator.verdict is not None or (annotator.reliability is None and factor == 1):
        return "-"
    return f"{factor:.2f}" + ("" if annotator.reliability is not None else "*")


def _verdict(annotator: Annotator) -> str:
    if annotator.verdict is not None:
        return f"[red]{annotator.verdict.reason}[/red]"
    return "[dim]too few[/dim]" if annotator.few else "[green]kept[/green]"


# --- the whole --------------------------------------------------------------------------------------------------------


def _summary(checked: Checked) -> Table:
    findings = checked.findings
    table = _table(f"[bold]{escape(str(checked.file))}[/bold], read as {checked.use!r}")
    table.add_column("what")
    table.add_column("found")
    if checked.bad:
        table.add_row("bad rows", f"[red]{len(checked.bad)}[/red]")
    table.add_row("records", f"{findings.records}")
    for reason, count in findings.dropped.items():
        table.add_row(f"  {reason}", f"[red]{count}[/red]")
    table.add_row("kept", f"[bold]{findings.kept}[/bold] ({findings.kept / max(findings.records, 1):.1%})")
    for agreement in findings.agreement:
        alpha = "not defined" if agreement.alpha is None else f"{agreement.alpha:.3f}{_meaning(agreement.alpha)}"
        table.add_row(
            "agreement", f"alpha {alpha}: {agreement.measure}, {agreement.answers} answers to {agreement.items} items"
        )
    if findings.repeats:
        share = findings.repeats
        table.add_row("repeated items", f"{share.count} of {share.of} answered differently by the same annotator")
    for name, row in _biases(findings):
        table.add_row(name, row)
    prompts = findings.prompts
    table.add_row(
        "prompts",
        f"{prompts.distinct} distinct in {prompts.records} records"
        + (f", {prompts.near} of them equal to another but for case and punctuation" if prompts.near else "")
        + (f"; {prompts.distinct_bigrams:.1%} of word pairs distinct" if prompts.distinct_bigrams is not None else ""),
    )
    if findings.coverage:
        coverage = findings.coverage
        counts = ", ".join(f"{escape(value)} {count}" for value, count in list(coverage.counts.items())[:20])
        more = f", and {len(coverage.counts) - 20} more" if len(coverage.counts) > 20 else ""
        table.add_row(" x ".join(coverage.fields), f"evenness {coverage.evenness:.2f}: {counts}{more}")
        if coverage.missing:
            table.add_row("  missing", f"[red]{escape(', '.join(coverage.missing[:20]))}[/red]")
    return table


def _meaning(alpha: float) -> str:
    """Krippendorff's own reading."""
    return " (good)" if alpha >= 0.8 else " (tentative)" if alpha >= 0.667 else " [red](poor)[/red]"


def _biases(findings: Findings) -> Iterable[tuple[str, str]]:
    position, length, scores = findings.position, findings.length, findings.length_score
    if position:
        yield (
            "position",
            f"the first response won {position.share.value:.1%} {_interval(position.share)} of {position.share.of}, "
            f"fair is {position.expected:.0%}{_flag(position.found)}",
        )
    elif length:
        yield "position", "unknown: the order in which responses were shown is not in the file"
    if length:
        yield (
            "length",
            f"the longer response won {length.share.value:.1%} {_interval(length.share)} of {length.share.of}"
            f"{_flag(length.found)}",
        )
    if scores:
        low, high = scores.interval
        yield (
            "length",
            f"rank correlation with the score {scores.rho:+.2f} ({low:+.2f} to {high:+.2f}){_flag(scores.found)}",
        )


def _interval(share: Share) -> str:
    low, high = share.interval
    return f"({low:.1%} to {high:.1%})"


def _flag(found: bool) -> str:
    return " [yellow]biased[/yellow]" if found else ""
