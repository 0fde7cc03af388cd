"""Deprecated names in a registry file or override, read as the new ones; what was met is noted with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from ..interfaces.deprecation import OLD_NAMES, OldKey, Renamed, old_keys
from .explain import fields_of, models_at
from .words import Keys


@dataclass
class Layer:
    """Settings by their new names.

    place: where they go; None if that is retired. notices: (keys as written, below the place as written; words).
    moved: keys by the new names, below the new place -> as written, below the old.
    """

    value: Any
    place: Keys | None
    notices: list[tuple[Keys, str]] = field(default_factory=list)
    moved: dict[Keys, Keys] = field(default_factory=dict)


def renewed(model: type[BaseModel], place: Keys, value: Any) -> Layer:
    """`value`, which was written at `place` of the config `model`. What cannot be read any more stays as it is."""
    layer = Layer(value, ())
    keys: Keys = ()
    for key in place:
        old = _old(model, keys, key)
        if old and old.refusal({}) is None:
            layer.notices.append(((), old.words()))
            if not isinstance(old.change, Renamed):
                layer.place = None
                return layer
            key = old.change.to
        keys = (*keys, key)
    layer.place = keys
    layer.value = _renewed(model, layer, value, (), ())
    return layer


def _renewed(model: type[BaseModel], layer: Layer, value: Any, keys: Keys, written: Keys) -> Any:
    if isinstance(value, (list, tuple)):
        return [_renewed(model, layer, item, (*keys, i), (*written, i)) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    result: dict[str, Any] = {}
    for name, item in value.items():
        key, old = name, _old(model, (*(layer.place or ()), *keys), name)
        if old and old.refusal(value) is None:
            layer.notices.append(((*written, name), old.words()))
            if not isinstance(old.change, Renamed):
                continue
            key = old.change.to
            layer.moved[(*keys, key)] = (*written, name)
        result[key] = _renewed(model, layer, item, (*keys, key), (*written, name))
    return result


def _old(model: type[BaseModel], keys: Keys, name: str | int) -> OldKey | None:
    """What is said about `name` at `keys`, unless it is a field of what else may stand there."""
    found = None
    if name not in OLD_NAMES:
        return None
    for parent in models_at(model, keys):
        if name in fields_of(parent):
            return None
        found = found or old_keys(parent).get(str(name))
    return found
