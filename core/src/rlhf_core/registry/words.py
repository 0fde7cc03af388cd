"""Words for messages: where a value stands, what it looks like, and what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

from ..errors import ConfigError, did_you_mean

Keys: TypeAlias = tuple[str | int, ...]
"""The keys and list indices that lead to a value."""


class Problem(NamedTuple):
    """What is wrong with a value; where it stands is added by who knows."""

    got: str
    expected: str = ""
    fix: str = ""


ID = re.compile(r"[A-Za-z0-9_-]+")
ID_WORDS = "letters, digits, - and _ only"


def dotted(*keys: str | int) -> str:
    """``stages.optimize.steps``."""
    return ".".join(map(str, keys))


def show(value: Any) -> str:
    """A value as a reader of the file would call it; long ones are cut."""
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return {None: "nothing (null)", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def suggest(word: str, known: Iterable[str]) -> str:
    """``did you mean 'kl'?``; without a likely candidate, the known ones."""
    names = list(dict.fromkeys(known))
    by_folded = {name.lower(): name for name in names}
    if word.lower() in by_folded:
        return f"did you mean {by_folded[word.lower()]!r}?"
    return did_you_mean(word, names) or (f"known: {listed(names)}" if names else "")


def listed(names: Iterable[str], most: int = 16) -> str:
    """``a, b, c``, cut after `most`."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def raised(what: str, error: BaseException) -> str:
    """One line: ``the checks of KLConfig raised KeyError: 'coef'``."""
    return " ".join(f"{what} raised {type(error).__name__}: {error}".split())


def expect_mapping(value: Any, where: str, hint: str = "") -> dict[str, Any]:
    """`value`, with nothing (null) read as an empty mapping. Raises `ConfigError` if it is anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(where, f"got {show(value)}", "a mapping (`key: value`)", hint)
    return value
