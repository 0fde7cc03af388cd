"""Cutting work into parts: by token budget, and over processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator


Size = int | tuple[int, ...]
"""Tokens of a row; a tuple where its parts are padded apart, such as (prompt, response)."""


def by_tokens(sizes: Sequence[Size], budget: int, rows: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Cut `rows` into runs of similar length whose padded size stays within `budget`.

    Args:
        sizes: tokens of every row, indexed by row number.
        budget: most rows x padded width of a run, every part padded to its longest; a single row may exceed it.
        rows: which; by default all.

    Yields:
        row numbers, shortest rows first; every row once. Ties keep their order, so the cut is deterministic.
    """
    parts = [size if isinstance(size, tuple) else (size,) for size in sizes]
    run: list[int] = []
    widest: tuple[int, ...] = ()
    for row in sorted(range(len(sizes)) if rows is None else rows, key=lambda r: sum(parts[r])):
        wider = tuple(map(max, widest, parts[row])) if run else parts[row]
        if run and sum(wider) * (len(run) + 1) > budget:
            yield run
            run, wider = [], parts[row]
        run.append(row)
        widest = wider
    if run:
        yield run


def share(count: int, accelerator: Accelerator | None) -> range:
    """The contiguous part of ``range(count)`` that is this process's."""
    if accelerator is None or accelerator.num_processes == 1:
        return range(count)
    size, rank = accelerator.num_processes, accelerator.process_index
    return range(count * rank // size, count * (rank + 1) // size)
