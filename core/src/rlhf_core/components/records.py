"""The framework's own records, one per row, as ``record.model_dump(mode="json")`` writes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from ..interfaces import Row, RowFeedback
from ..interfaces.files import unpacked
from ..records import Feedback, parse_feedback
from .config import RecordsConfig

KINDS = [record.model_fields["kind"].default for record in get_args(get_args(Feedback)[0])]
STRUCTURED = {"aspects", "ranks", "responses", "scale", "spans", "unwanted", "wanted"}
"""Columns that hold a list or an object; in a CSV file, its JSON text."""


class Records(RowFeedback[RecordsConfig]):
    """Yields the record that each row is: its `kind` says which, and a column which that kind lacks is an error.

    Columns that are null count as absent, so that a table of CSV or Parquet can hold several kinds.
    """

    def records(self, row: Row) -> Iterable[Feedback]:
        if row.take("kind") not in KINDS:
            raise row.bad(f"kind {row.data['kind']!r}", f"one of {', '.join(KINDS)}")
        present = {
            name: unpacked(value) if name in STRUCTURED else value
            for name, value in row.data.items()
            if value is not None
        }
        yield parse_feedback(present | row.about())
