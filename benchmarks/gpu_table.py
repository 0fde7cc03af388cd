"""The tables of gpu.py, from its JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

STEP_GOAL = 2.0  # TRL's seconds over ours
PEAK_GOAL = 24.0  # GB, of 10^9 bytes
Record = Mapping[str, Any]


def tables(document: Record, before: Record | None = None) -> str:
    """Markdown: the card, a table per part that is there, and what is missing. `before`: an earlier run's JSON."""
    found = [heading(document)]
    for name, make in (("step", step), ("share", share), ("decoding", decoding)):
        if name in document:
            found.append("\n".join(make(document[name])))
    if "qlora" in document:
        # the first version of the script had nothing else, and no heading over it
        earlier = None if before is None else before.get("qlora", before)
        found.append("\n".join(qlora(document["qlora"], earlier)))
    return "\n\n".join([*found, *missing(document)])


def heading(document: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    memory = f", {document['memory_gib']:.0f} GiB, CUDA {document['cuda']}" if "memory_gib" in document else ""
    return f"{document['card']}{memory}, {document['made']}; {versions}. It took {document['seconds']:.0f} s."


def rows(*cells: Sequence[str]) -> Iterator[str]:
    """Lines of a table, the first of them its head."""
    for number, line in enumerate(cells):
        yield f"| {' | '.join(line)} |"
        if not number:
            yield "|---" * len(line) + "|"


def spread(values: Iterable[float], digits: int = 2) -> str:
    """The median, and the range of several."""
    known = sorted(values)
    if not known:
        return "?"
    shown = f"{statistics.median(known):.{digits}f}"
    return f"{shown} ({known[0]:.{digits}f} to {known[-1]:.{digits}f})" if len(known) > 1 else shown


def step(found: Record) -> Iterator[str]:
    lines = [["1B RLOO", "s a step", "samples/s", "peak, GB", "ratio", "goal", "verdict"]]
    for side in ("TRL", "ours"):
        runs = [run for run in found["runs"] if run["side"] == side]
        medians = [run["median"] for run in runs if "median" in run]
        peaks = [run["peak_gb"] for run in runs if "peak_gb" in run]
        against = ["", "", ""]
        if side == "ours":
            ratios = found["ratios"]
            verdict = "?" if not ratios else "reached" if statistics.median(ratios) >= found["goal"] else "missed"
            against = [spread(ratios), f"{found['goal']:.2f}", verdict]
        rate = spread((found["samples"] / seconds for seconds in medians), 1)
        lines.append([side, spread(medians), rate, f"{max(peaks):.1f}" if peaks else "?", *against])
    yield from rows(*lines)


def share(found: Record) -> Iterator[str]:
    seconds = found.get("seconds_of", {})
    total = sum(seconds.values())
    lines = [[name, f"{value:.3f}", f"{100 * value / total:.0f} %"] for name, value in seconds.items()]
    yield from rows(["where a step goes", "s", "share"], *lines)


def decoding(found: Record) -> Iterator[str]:
    """Tokens per second, and in brackets how much that is of what the memory's bandwidth allows."""
    cells = {(cell["engine"], cell["batch"]): cell for cell in found.get("cells", ())}
    batches = sorted(int(batch) for batch in found["bound"])
    lines = [["tokens/s", *(f"batch {batch}" for batch in batches)],
             ["memory bound", *(f"{found['bound'][str(batch)]:,.0f}" for batch in batches)]]  # fmt: skip
    for engine in dict.fromkeys(name for name, _ in cells):
        lines.append([engine, *(rate(cells.get((engine, batch))) for batch in batches)])
    yield from rows(*lines)
    if "bytes_per_second" in found:
        yield f"\nThe memory copies {found['bytes_per_second'] / 1e9:,.0f} GB/s."
    for (engine, batch), cell in cells.items():
        if "error" in cell:
            yield f"\n{engine}, batch {batch}: {cell['error'].splitlines()[0]}"


def rate(cell: Record | None) -> str:
    if cell is None or "tokens_per_second" not in cell:
        return "?"
    return f"{cell['tokens_per_second']:,.0f} ({100 * cell['of_bound']:.0f} %)"


def qlora(found: Record, before: Record | None) -> Iterator[str]:
    sides = {"now": found} if before is None else {"before": before, "now": found}
    names = {"s a step, the fastest": lambda one: f"{min(step['seconds'] for step in one['steps']):.1f}",
             "samples/s": lambda one: f"{one['samples_per_second']:.2f}",
             f"peak, GB (goal {PEAK_GOAL:.0f})": lambda one: f"{one['peak_gb']:.1f}",
             "s to make": lambda one: f"{one['seconds_to_make']:.0f}"}  # fmt: skip
    lines = [[name, *(shown(one) if one.get("steps") else "?" for one in sides.values())]
             for name, shown in names.items()]  # fmt: skip
    yield from rows(["8B QLoRA PPO", *sides], *lines)


def missing(document: Record) -> Iterator[str]:
    """What was not run, or not to its end."""
    for part, reason in document["skipped"].items():
        yield f"Skipped, {part}: {reason}."
    for part in ("step", "share", "decoding", "qlora"):
        record = document.get(part, {})
        for one in (record, *record.get("runs", ())):
            who = f"{part} {one['side']}" if "side" in one else part
            if one.get("cut"):
                yield f"Stopped when its time was up: {who}."
            if "error" in one:
                yield f"Failed: {who}."
