"""Cutting work into parts: by token budget, and over processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator


Size = int | tuple[int, ...]
"""Tokens of a row; a tuple where its parts are padded apart, such as (prompt, response)."""


PADDING = 256, 8  # tokens that cost less than another pass would, and the share of a run, one in so many


def by_tokens(sizes: Sequence[Size], budget: int, rows: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Cut `rows` into runs of similar length whose padded size stays within `budget`.

    A run also ends where the length of the next row would make too much of it padding.

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
    real = 0
    for row in sorted(range(len(sizes)) if rows is None else rows, key=lambda r: sum(parts[r])):
        wider = tuple(map(max, widest, parts[row])) if run else parts[row]
        padded, filled = sum(wider) * (len(run) + 1), real + sum(parts[row])
        if run and (padded > budget or padded - filled > max(PADDING[0], padded // PADDING[1])):
            yield run
            run, wider, filled = [], parts[row], sum(parts[row])
        run.append(row)
        real = filled
        widest = wider
    if run:
        yield run


def share(count: int, accelerator: Accelerator | None) -> range:
    """The contiguous part of ``range(count)`` that is this process's."""
    if accelerator is None or accelerator.num_processes == 1:
        return range(count)
    return _share(count, accelerator.process_index, accelerator.num_processes)


def _share(count: int, rank: int, size: int) -> range:
    return range(count * rank // size, count * (rank + 1) // size)


def parts(
    sizes: Sequence[Size], budget: int, rows: Sequence[int], accelerator: Accelerator | None
) -> Iterator[tuple[list[int], float]]:
    """This process's share of `rows`, cut by `by_tokens`, in as many parts in every process: those whose weights are
    shared out wait for each other in every layer.

    Where others have more parts, the longest are cut in two. Who has too few rows goes through one again, for nothing.

    Yields:
        row numbers and what their loss and statistics are to be multiplied by: 1, or 0 if they are there for nothing.
    """
    if accelerator is None or accelerator.num_processes == 1:
        yield from ((part, 1.0) for part in by_tokens(sizes, budget, rows))
        return
    size, rank = accelerator.num_processes, accelerator.process_index
    cuts = [list(by_tokens(sizes, budget, [rows[i] for i in _share(len(rows), r, size)])) for r in range(size)]
    mine, most = cuts[rank], max(map(len, cuts))
    while len(mine) < most and any(len(part) > 1 for part in mine):
        place = max(range(len(mine)), key=lambda i: len(mine[i]))
        half = len(mine[place]) // 2
        mine[place : place + 1] = [mine[place][:half], mine[place][half:]]
    yield from ((part, 1.0) for part in mine)
    for _ in range(most - len(mine)):
        yield [rows[0]], 0.0
