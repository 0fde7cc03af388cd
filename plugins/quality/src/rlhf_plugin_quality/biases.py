"""What the records that are kept look like as a whole: position, length, repeats, prompts and their coverage."""

from __future__ import annotations

from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .agreement import rank_correlation
from .findings import Bias, Correlation, Coverage, Prompts, Share
from .habits import place_known
from .ledger import Ledger

Columns = dict[str, NDArray[Any]]
MOST_MISSING = 100


def position_bias(columns: Columns, kept: NDArray[Any]) -> Bias | None:
    """How often the best response was the one shown first, against 1 / K; None where that is never known."""
    known = kept & place_known(columns) & (columns["best"] >= 0)
    if not known.any():
        return None
    first = int((columns["best"][known] == 0).sum())
    return Bias(Share(first, int(known.sum())), float((1 / columns["options"][known]).mean()))


def length_bias(columns: Columns, kept: NDArray[Any]) -> Bias | None:
    """How often the best response of a comparison is longer than the worst, against one half."""
    longer = columns["longer"][kept]
    different = int((longer != 0).sum())
    return Bias(Share(int((longer > 0).sum()), different), 0.5) if different else None


def length_score(columns: Columns, kept: NDArray[Any]) -> Correlation | None:
    """Rank correlation of the length and the score of rated responses; None without ratings that differ."""
    rated = kept & ~np.isnan(columns["score"])
    rho = rank_correlation(columns["length"][rated], columns["score"][rated]) if rated.sum() > 1 else None
    return None if rho is None else Correlation(rho, int(rated.sum()))


def repeats(columns: Columns, judgements: Columns, kept: NDArray[Any]) -> Share | None:
    """Of the further answers that one annotator gave to one item: how many differ from the first; None without any."""
    record = judgements["record"]
    index = np.flatnonzero(kept[record] & (columns["annotator"][record] >= 0))
    who, item, value = columns["annotator"][record[index]], judgements["item"][index], judgements["value"][index]
    order = np.lexsort((index, item, who))
    who, item, value = who[order], item[order], value[order]
    if not len(item):
        return None
    begins = np.append(True, (item[1:] != item[:-1]) | (who[1:] != who[:-1]))
    first = value[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    again = ~begins
    return Share(int((value[again] != first[again]).sum()), int(again.sum())) if again.any() else None


def prompts(ledger: Ledger, columns: Columns, kept: NDArray[Any]) -> Prompts:
    """How varied the prompts are."""
    distinct, first = np.unique(columns["prompt"][kept], return_index=True)
    plain = np.unique(columns["plain"][kept][first])
    return Prompts(int(kept.sum()), len(distinct), len(distinct) - len(plain), ledger.distinct_bigrams)


def coverage(ledger: Ledger, columns: Columns, kept: NDArray[Any]) -> Coverage | None:
    """How evenly the values of `coverage` fields occur; None where none are named."""
    fields = ledger.config.coverage
    if not fields or not kept.any():
        return None
    counts = np.bincount(columns["cell"][kept], minlength=len(ledger.cells))
    cells = [(cell, int(n)) for cell, n in zip(ledger.cells, counts, strict=True) if n]
    present = {cell for cell, _ in cells}
    values = [list(dict.fromkeys(cell[i] for cell in ledger.cells)) for i in range(len(fields))]
    missing = islice((cell for cell in product(*values) if cell not in present), MOST_MISSING)
    share = np.array([n for _, n in cells]) / sum(n for _, n in cells)
    entropy = float(-(share * np.log(share)).sum())
    possible = int(np.prod([len(v) for v in values]))
    return Coverage(
        fields,
        {" / ".join(cell): n for cell, n in sorted(cells, key=lambda pair: -pair[1])},
        entropy / float(np.log(possible)) if possible > 1 else 1.0,
        tuple(" / ".join(cell) for cell in missing),
    )
