"""Edits from rows, as what a reward or sft can learn from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_core.interfaces import ABOUT, Row, RowFeedback
from rlhf_core.records import Comparison, Demonstration, Edit, Feedback, SpanWeight

from .alignment import Range, align
from .config import EditsConfig


class Edits(RowFeedback[EditsConfig]):
    """One or two records per row; none where hardly anything was changed.

    A rewrite says little about the original's words, and its distance is no measure of how bad the original was: it is
    a demonstration, whatever `gives` says, but no comparison.
    """

    def records(self, row: Row) -> Iterable[Feedback]:
        config = self.config
        original, edited = _text(row, "original"), _text(row, "edited")
        prompt = row.prompt(row.take("prompt"), {"prompt", "original", "edited", *ABOUT}, config.fields)
        common: dict[str, Any] = {"prompt": prompt, **row.about()}
        edit = Edit(original=original, edited=edited, **common)
        found = align(original, edited)
        if original == edited or found.distance < config.skip_below:
            return
        if found.distance > config.rewrite_above:
            if config.gives != "comparisons":
                yield Demonstration(response=edited, **common)
        elif config.gives == "edits":
            yield edit
        elif config.gives == "comparisons":
            margin = config.margin * found.distance
            yield Comparison(responses=(edited, original), ranks=(0, 1), margin=margin, **common)
        else:
            if config.gives == "salt":
                yield Demonstration(response=original, spans=_spans(found.deleted, -config.changed_weight), **common)
            yield Demonstration(response=edited, spans=_spans(found.inserted, config.changed_weight), **common)


def _spans(ranges: Iterable[Range], weight: float) -> tuple[SpanWeight, ...]:
    return tuple(SpanWeight(start=start, end=end, weight=weight) for start, end in ranges)


def _text(row: Row, name: str) -> str:
    text = row.take(name)
    if not isinstance(text, str) or not text.strip():
        got = "null" if text is None else "empty" if isinstance(text, str) else f"a {type(text).__name__}"
        raise row.bad(f"{name} is {got}", "an edit with an original and an edited text")
    return text
