"""What the report says: numbers and untrusted text as they are shown, and the verdict on an evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from ..terminal import plain


def real(value: Any) -> float:
    """`value` as a float if it is a finite number, else nan."""
    try:
        return found if not isinstance(value, str) and math.isfinite(found := float(value)) else math.nan
    except (TypeError, OverflowError):
        return math.nan


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def finite(values: Iterable[float]) -> list[float]:
    """Those of `values` that are finite."""
    return [float(value) for value in values if math.isfinite(value)]


def clean(value: Any) -> Any:
    """Text as `plain` has it; what is HTML already, or no text, stays as it is."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def fixed(value: float, places: int, *, sign: bool = False) -> str:
    """`value` with so many decimals, a true minus, and no minus before zero; empty for nan."""
    if math.isnan(value):
        return ""
    if abs(value) >= 1e12:
        return number(value)
    text = f"{value:{'+' if sign else ''},.{places}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def number(value: Any) -> str:
    """`value` with four significant digits; a dash for nan."""
    value = real(value)
    if math.isnan(value):
        return "–"
    whole = value == int(value) or abs(value) >= 1000
    text = f"{value:,.0f}" if whole and abs(value) < 1e12 else re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.4g}")
    return text.replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s" if seconds < 9.95 else f"{seconds:.0f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def places_of(value: float, digits: int) -> int:
    """Decimals that show so many significant digits of `value`, at most 6."""
    return min(max(digits - 1 - math.floor(math.log10(value)), 0), 6) if value > 0 else digits - 1


def date(text: Any) -> str:
    """A time in ISO format, such as the start of a run, to the minute and in UTC; empty where it is not one."""
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return ""


@dataclass(frozen=True)
class Row:
    """One metric of an evaluation, as text.

    n: prompts it applies to. word: what it did; empty where there is nothing to compare with. before, after, change:
    mean and half the width of its 95 % interval. low, high: bounds of the change.
    """

    name: str
    n: int
    word: str
    before: tuple[str, str]
    after: tuple[str, str]
    change: tuple[str, str]
    low: str = ""
    high: str = ""

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any]) -> Row:
        """A row whose numbers all have as many decimals as its intervals deserve."""
        means = {key: real(mapping(entry.get(key)).get("mean")) for key in ("before", "after", "change")}
        halves = {key: 1.96 * real(mapping(entry.get(key)).get("error")) for key in means}
        widths = [w for key in ("after", "change") if (w := halves[key]) > 0]
        largest = max(map(abs, finite(means.values())), default=0.0)
        places = places_of(min(widths), 2) if widths else places_of(largest, 3)
        shown = {key: (fixed(means[key], places), fixed(halves[key], places)) for key in means}
        n = real(mapping(entry.get("change" if "change" in entry else "after")).get("n"))
        change, half = means["change"], halves["change"]
        word, low, high = "", "", ""
        if math.isnan(change):
            word = "could not be compared" if "before" in entry else ""
        elif math.isnan(half):
            word = "has no interval"
        else:
            word = "rose" if change > half else "fell" if change < -half else "shows no clear change"
            low, high = fixed(change - half, places, sign=True), fixed(change + half, places, sign=True)
        signed = (fixed(change, places, sign=True), shown["change"][1])
        return cls(name, 0 if math.isnan(n) else int(n), word, shown["before"], shown["after"], signed, low, high)

    @property
    def arrow(self) -> str:
        """The word as a sign."""
        return {"rose": "▲", "fell": "▼"}.get(self.word, "●")


@dataclass(frozen=True)
class Table:
    """The metrics of one evaluate stage."""

    stage: str
    rows: Sequence[Row]
    paired: bool

    @classmethod
    def of(cls, stage: str, metrics: Mapping[str, Any]) -> Table:
        rows = [Row.of(name, mapping(entry)) for name, entry in metrics.items()]
        return cls(stage, rows, any("before" in mapping(entry) for entry in metrics.values()))

    @property
    def uneven(self) -> bool:
        """Whether some metric applies to fewer prompts than another."""
        return len({row.n for row in self.rows}) > 1

    @property
    def prompts(self) -> str:
        """How many prompts stand behind the rows."""
        least, most = min(row.n for row in self.rows), max(row.n for row in self.rows)
        return f"{least} to {most} held-out prompts" if self.uneven else f"{most} held-out prompt{'s' * (most != 1)}"
