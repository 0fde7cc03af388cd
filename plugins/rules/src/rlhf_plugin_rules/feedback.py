"""Feedback that is less than a judgement of a whole response: words that people want, and how a text feels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rlhf_core.interfaces import ABOUT, Row, RowFeedback
from rlhf_core.records import Keywords, Sentiment

from .config import KeywordFeedbackConfig, SentimentFeedbackConfig

SEPARATOR = re.compile(r"[,，、;；\n]")

LABELS = {
    "positive": "positive", "pos": "positive", "1": "positive", "+1": "positive",
    "neutral": "neutral", "neu": "neutral", "0": "neutral",
    "negative": "negative", "neg": "negative", "-1": "negative",
}  # fmt: skip
NEUTRAL = 0.05
"""Scores up to here from 0 mean neutral where a row has no label; the custom of VADER (Hutto and Gilbert, 2014)."""


class KeywordFeedback(RowFeedback[KeywordFeedbackConfig]):
    """Yields one `Keywords` per row that names a word; a row that names none gives none."""

    def records(self, row: Row) -> Iterable[Keywords]:
        if "wanted" not in row.data and "unwanted" not in row.data:
            row.take("wanted")
        wanted, unwanted = _words(row, "wanted"), _words(row, "unwanted")
        if both := set(wanted) & set(unwanted):
            raise row.bad(f"{min(both)!r} is wanted and unwanted", "each word on one side")
        if not wanted and not unwanted:
            return
        used = {"prompt", "response", "wanted", "unwanted", *ABOUT}
        yield Keywords(
            prompt=row.prompt(row.take("prompt"), used, self.config.fields),
            response=row.data.get("response"),
            wanted=wanted,
            unwanted=unwanted,
            **row.about(),
        )


def _words(row: Row, name: str) -> tuple[str, ...]:
    """The words of a column, each once: a list, or text with commas (also 、 or ，) or semicolons between them."""
    value: Any = row.data.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = SEPARATOR.split(value)
    elif isinstance(value, str):
        value = row.take_list(name)  # as a cell of a CSV file holds it
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise row.bad(f"{name} is {str(value)[:60]}", "words: a list of text, or text with commas")
    found = [" ".join(word.split()) for word in value]
    if "" in found:
        raise row.bad(f"{name} has an empty word in {str(value)[:60]}", "words that are not empty")
    return tuple(dict.fromkeys(found))


class SentimentFeedback(RowFeedback[SentimentFeedbackConfig]):
    """Yields one `Sentiment` per row; where there is a score only, its sign is the label."""

    def records(self, row: Row) -> Iterable[Sentiment]:
        label, score = row.data.get("label"), row.data.get("score")
        label, score = (None if value == "" else value for value in (label, score))  # as an empty cell of a CSV file
        if label is None and score is None:
            row.take("label")
            raise row.bad("neither a label nor a score", "one of them")
        record = Sentiment(
            prompt=row.prompt(row.take("prompt"), {"prompt", "response", "label", "score", *ABOUT}, self.config.fields),
            response=row.take("response"),
            label="neutral" if label is None else self._label(row, label),
            score=score,
            **row.about(),
        )
        if record.score is not None:
            meant = "neutral" if abs(record.score) <= NEUTRAL else "positive" if record.score > 0 else "negative"
            if label is None:
                record = record.model_copy(update={"label": meant})
            elif {meant, record.label} == {"positive", "negative"}:
                raise row.bad(f"label {record.label!r} with score {record.score:g}", "a label and a score that agree")
        yield record

    def _label(self, row: Row, label: Any) -> Any:
        labels = self.config.labels or LABELS
        name = str(int(label)) if isinstance(label, float) and label.is_integer() else str(label).strip()
        if isinstance(label, bool) or (name not in labels and name.casefold() not in labels):
            raise row.bad(
                f"label {label!r}",
                f"one of {', '.join(labels)}",
                "map it in the config: labels: {<the file's label>: positive}",
            )
        return labels.get(name) or labels[name.casefold()]
