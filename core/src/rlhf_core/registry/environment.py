"""``${env:NAME}``, the only interpolation: filled in when configs are built, and never written out.

Secrets come this way, so whatever leaves the process (error messages, the resolved registry) goes through `hide` or
`as_written`, which put the placeholder back.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .words import Keys, Problem

PLACEHOLDER = re.compile(r"\$\{env:([^}]*)\}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def placeholders(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Every variable named inside `value`, and where: mapping values and list items, not keys."""
    if isinstance(value, str):
        for match in PLACEHOLDER.finditer(value):
            yield keys, match[1]
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from placeholders(item, (*keys, key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from placeholders(item, (*keys, i))


def lookup(value: Any) -> dict[str, str]:
    """The variables that `value` names and that are set."""
    return {name: os.environ[name] for _, name in placeholders(value) if NAME.fullmatch(name) and name in os.environ}


def gaps(value: Any) -> list[tuple[Keys, Problem]]:
    """The variables that `value` names and that cannot be filled in."""
    found = []
    for keys, name in placeholders(value):
        if not NAME.fullmatch(name):
            got = f"{name!r} cannot be the name of an environment variable"
            found.append((keys, Problem(got, "letters, digits and _", "write ${env:NAME}")))
        elif name not in os.environ:
            found.append((keys, Problem(f"the environment variable {name} is not set", fix=f"export {name}=...")))
    return found


def substitute(value: Any, values: Mapping[str, str]) -> Any:
    """`value` with the variables of `values` filled in; placeholders of others stay."""
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), value)
    if isinstance(value, dict):
        return {key: substitute(item, values) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [substitute(item, values) for item in value]
    return value


def hide(text: str, values: Mapping[str, str]) -> str:
    """`text` with the placeholder wherever the value of a variable shows, whatever its case or number format."""
    forms = {form.lower(): name for name, value in values.items() for form in _forms(value)}
    if not forms:
        return text
    longest_first = sorted(forms, key=len, reverse=True)
    pattern = re.compile("|".join([PLACEHOLDER.pattern, *map(_pattern, longest_first)]), re.IGNORECASE)

    def cover(match: re.Match[str]) -> str:
        return match[0] if match[0].startswith("${env:") else f"${{env:{forms.get(match[0].lower(), '...')}}}"

    return pattern.sub(cover, text)


def _forms(value: str) -> set[str]:
    """What a value may look like in a message."""
    return {value, value.strip(), repr(value)[1:-1], *_numbers(value)} - {""}


def _pattern(form: str) -> str:
    """Short values hide as whole words only, or a `1` would take half of every number."""
    escaped = re.escape(form)
    return escaped if len(form) > 3 else rf"(?<![\w.]){escaped}(?![\w.])"


def _numbers(value: str) -> Iterator[str]:
    for kind in (int, float):
        with contextlib.suppress(ValueError, OverflowError):
            yield str(kind(value))


def as_written(built: Any, raw: Any, values: Mapping[str, str], root: Path) -> Any:
    """`built` (a config as JSON data, defaults included) with the placeholders of `raw`, the data it was built from.

    A placeholder in a path that was made absolute keeps its folder. What validation derived from a variable and put
    elsewhere is hidden too.
    """
    if not values:
        return built
    if isinstance(raw, str) and PLACEHOLDER.search(raw):
        filled = substitute(raw, values)
        moved = built != filled and built == str(Path(root, filled).resolve())
        return str(root / raw) if moved and not Path(filled).is_absolute() else raw
    if isinstance(built, dict):
        known = raw if isinstance(raw, dict) else {}
        return {hide(key, values): as_written(item, known.get(key), values, root) for key, item in built.items()}
    if isinstance(built, list):
        items = raw if isinstance(raw, (list, tuple)) and len(raw) == len(built) else [None] * len(built)
        return [as_written(item, items[i], values, root) for i, item in enumerate(built)]
    return hide(built, values) if isinstance(built, str) and built != raw else built
