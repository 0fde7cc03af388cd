"""What pydantic says about a config, in the words of the person who wrote it."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .words import Keys, Problem, show, suggest

TYPES = {
    "int": "a whole number", "float": "a number", "finite_number": "a finite number", "bool": "true or false",
    "string": "text", "list": "a list", "tuple": "a list", "set": "a list", "frozen_set": "a list",
    "iterable": "a list", "dict": "a mapping", "mapping": "a mapping", "model": "a mapping",
    "model_attributes": "a mapping", "dataclass": "a mapping", "none_required": "nothing (null)",
}  # fmt: skip
BOUNDS = {
    "greater_than": "a number above {gt}", "greater_than_equal": "{ge} or more",
    "less_than": "a number below {lt}", "less_than_equal": "{le} or less", "multiple_of": "a multiple of {multiple_of}",
    "too_short": "{min_length} or more items", "too_long": "{max_length} or fewer items",
    "string_too_short": "{min_length} or more characters", "string_too_long": "{max_length} or fewer characters",
    "string_pattern_mismatch": "text of the form {pattern}", "literal_error": "{expected}", "enum": "{expected}",
    "union_tag_invalid": "{discriminator} among {expected_tags}", "union_tag_not_found": "the key {discriminator}",
}  # fmt: skip


def explain(error: ValidationError, model: type[BaseModel], raw: Any) -> list[tuple[Keys, Problem]]:
    """One problem per wrong value, with the place of that value in `raw`.

    Args:
        error: what `model` raised.
        raw: the data as written, placeholders in place; the only values that are shown, but for what validators say.
    """
    found: dict[Keys, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        found.setdefault(_keys(detail, raw), []).append(detail)
    leaves = [keys for keys in found if not any(keys != other and other[: len(keys)] == keys for other in found)]
    # a union reports every branch it tried: one problem per value, at the deepest value that a branch got to
    return [(keys, _explain(found[keys], keys, model, raw)) for keys in leaves]


def _explain(details: list[ErrorDetails], keys: Keys, model: type[BaseModel], raw: Any) -> Problem:
    detail, kind = details[0], details[0]["type"]
    field = field_at(model, keys)
    about = f" ({field.description})" if field and field.description else ""
    if kind == "missing":
        return Problem("is missing", fix=f"add `{keys[-1]}`{about}" if keys else "")
    if kind == "extra_forbidden":
        known = [name for parent in models_at(model, keys[:-1]) for name in fields_of(parent)]
        return Problem(f"unknown key {str(keys[-1])!r}", fix=suggest(str(keys[-1]), known))
    if kind in ("value_error", "assertion_error"):
        return Problem(str(detail.get("ctx", {}).get("error") or detail["msg"]), fix=about.strip(" ()"))
    value = raw
    for key in keys:
        value = value[key]
    expected = " or ".join(dict.fromkeys(map(_expected, details)))
    return Problem(f"got {show(value)}", expected + about, _fix(kind, value, expected))


def _expected(detail: ErrorDetails) -> str:
    kind, context = detail["type"], {key: _round(value) for key, value in detail.get("ctx", {}).items()}
    name = re.sub(r"_(type|parsing|parsing_size|from_float|sub_type)$", "", kind)
    if name in TYPES:
        return TYPES[name]
    if kind in BOUNDS:
        return BOUNDS[kind].format(**context)
    return re.sub(r"^(Value|Input) should (be )?(a valid )?|^Value error, ", "", detail["msg"])


def _round(bound: Any) -> Any:
    """1.0 as 1."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _fix(kind: str, value: Any, expected: str) -> str:
    if isinstance(value, str) and "${env:" in value:
        return "check the environment variable; its value is not shown"
    if kind == "string_type" and isinstance(value, (int, float)):
        return f'write "{str(value).lower() if isinstance(value, bool) else value}", with the quotes'
    if kind in ("literal_error", "enum") and isinstance(value, str):
        hint = suggest(value, re.findall(r"'([^']*)'", expected))
        return hint if hint.startswith("did") else ""
    if kind.startswith(("list", "tuple", "set", "frozen_set")) and isinstance(value, str):
        return f"write [{value}]" if len(value) < 40 else "put it in [ ]"
    return ""


def _keys(detail: ErrorDetails, raw: Any) -> Keys:
    """The place in `raw` that an error is about; what pydantic adds for branches of unions is left out."""
    keys: list[str | int] = []
    for i, item in enumerate(detail["loc"]):
        if (isinstance(raw, dict) and item in raw) or (isinstance(raw, (list, tuple)) and item in range(len(raw))):
            keys.append(item)
            raw = raw[item]  # type: ignore[index]
        elif i == len(detail["loc"]) - 1 and detail["type"] == "missing":
            keys.append(item)
    return tuple(keys)


# --- along the types of a model --------------------------------------------------------------------------------------


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by the name that files use: the alias where there is one."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def models_at(annotation: Any, keys: Keys) -> Iterator[type[BaseModel]]:
    """The models that the value at `keys` below `annotation` may be."""
    annotation = getattr(annotation, "__value__", annotation)  # type X = ...
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from models_at(arguments[0], keys)
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from models_at(argument, keys)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not keys:
            yield annotation
        elif info := fields_of(annotation).get(str(keys[0])):
            yield from models_at(info.annotation, keys[1:])
    elif keys and arguments and origin is not Literal:
        item = arguments[-1] if arguments[-1] is not Ellipsis else arguments[0]  # of a mapping, list or tuple
        yield from models_at(item, keys[1:])


def field_at(model: type[BaseModel], keys: Keys) -> FieldInfo | None:
    """The field that the value at `keys` belongs to, itself or as an item of it."""
    for n in range(len(keys), 0, -1):
        for parent in models_at(model, keys[: n - 1]):
            if info := fields_of(parent).get(str(keys[n - 1])):
                return info
    return None
