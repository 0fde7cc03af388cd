"""Whether a response has the form that was asked for: tags, JSON, sentences, list items."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import regex
from rlhf_core.interfaces import Context, RewardModel
from rlhf_core.records import Sample, Scores

from .common import scores
from .config import FormatConfig
from .text import sentences

BULLET = regex.compile(r"^[ \t]*(?:[-*][ \t]+|[•·][ \t]*|\d{1,3}(?:[.)][ \t]+|[、．][ \t]*))(?=\S)", regex.MULTILINE)


class Format(RewardModel[FormatConfig]):
    """``missing + (found - missing) * share``, where share is the part of the checks that a response passes.

    Every check is logged as 0 or 1: `tags`, `json`, `sentences`, `bullets`.
    """

    def __init__(self, config: FormatConfig, context: Context) -> None:
        super().__init__(config, context)
        self._checks: dict[str, Callable[[str], bool]] = {}
        if config.tags:
            self._checks["tags"] = partial(tags_in_order, tags=config.tags, text_around=config.text_around)
        if config.json_keys is not None:
            self._checks["json"] = self._is_json
        if config.sentences is not None:
            self._checks["sentences"] = partial(_within, config.sentences, count_sentences)
        if config.bullets is not None:
            self._checks["bullets"] = partial(_within, config.bullets, count_bullets)

    def score(self, samples: Sequence[Sample]) -> Scores:
        c = self.config
        parts = {name: [float(check(s.response)) for s in samples] for name, check in self._checks.items()}
        shares = [sum(column[row] for column in parts.values()) / len(parts) for row in range(len(samples))]
        return scores([c.missing + (c.found - c.missing) * share for share in shares], self.context, parts=parts)

    def _is_json(self, response: str) -> bool:
        text: str | None = response
        if self.config.json_tag is not None:
            place = inside(response, self.config.json_tag)
            text = response[slice(*place)] if place else None
        return text is not None and has_keys(text, self.config.json_keys or {})


def count_sentences(text: str) -> int:
    return len(sentences(text))


def count_bullets(text: str) -> int:
    return len(BULLET.findall(text))


def _within(ends: tuple[int, int], count: Callable[[str], int], text: str) -> bool:
    return ends[0] <= count(text) <= ends[1]


def inside(text: str, tag: str) -> tuple[int, int] | None:
    """The characters [start, end) between the last ``</tag>`` and the last ``<tag>`` before it."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return (start + len(tag) + 2, end) if start >= 0 else None


def tags_in_order(text: str, tags: Sequence[str], text_around: bool) -> bool:
    """Whether every tag opens once and closes once, one after the other, and whether text stands in between."""
    place = 0
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return False
        start, end = text.find(opening), text.find(closing)
        if not place <= start < end or not (text_around or not text[place:start].strip()):
            return False
        place = end + len(closing)
    return text_around or not text[place:].strip()


def has_keys(text: str, keys: Mapping[str, str]) -> bool:
    """Whether `text` is one JSON object that has `keys`, each of its type; NaN and Infinity are no JSON."""
    try:
        data = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # a thousand open brackets
        return False
    return isinstance(data, dict) and all(key in data and _is(data[key], kind) for key, kind in keys.items())


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _is(value: Any, kind: str) -> bool:
    """Whether `value` is of a type of JSON Schema; true is no number there, and 1.0 is an integer."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or isinstance(value, float)
    return {
        "any": True, "string": isinstance(value, str), "number": number,
        "integer": whole or (number and value.is_integer()),
        "boolean": isinstance(value, bool), "array": isinstance(value, list), "object": isinstance(value, dict),
        "null": value is None,
    }[kind]  # fmt: skip
