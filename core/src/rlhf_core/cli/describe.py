"""What is known of a component, for `rlhf describe` and for its page in the reference.

Classes are read, not imported: docstrings come from the source, so that no torch is loaded.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo

from ..interfaces.config import ModelName, Needs, RefTo, RelativePath
from ..plugins import Plugins
from ..plugins.source import level, source
from .entry import Example, is_a

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
SIZES = {"minLength": "not empty", "minItems": "at least one", "minProperties": "at least one"}


@dataclass(frozen=True)
class Option:
    """One field of a config, in words."""

    name: str
    type: str
    bounds: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Options:
    """All of one config: its name, what its docstring says, and its fields."""

    title: str
    about: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Description:
    """One component: `facts` by name, `about` from its class and module, `tables` of its config and nested ones."""

    kind: str
    name: str
    summary: str
    facts: dict[str, str]
    about: str
    tables: tuple[Options, ...]
    example: str


def describe(plugins: Plugins, kind: str, name: str) -> Description:
    """Look a component up.

    Raises:
        PluginError: there is none of that name (did you mean ...?), or its config cannot be imported or is no Config.
    """
    spec = plugins.find(kind, name)
    config = plugins.import_class(spec, "config")
    distribution, version = plugins.distribution(spec)
    written, module = source(spec.factory)
    example = Example(plugins, kind, name)
    facts = {
        "distribution": f"`{distribution}` {version}",
        "class": f"`{spec.factory}`",
        "config": f"`{spec.config}`",
        "level": level(spec.factory),
        "needs": _needs(config, example.config),
    }
    about = [ast.get_docstring(node) or "" for node in (written, module) if node is not None]
    return Description(
        kind, name, spec.summary, {fact: words for fact, words in facts.items() if words},
        "\n\n".join(_without_sections(text) for text in about if text),
        tuple(tables(config)), str(example),
    )  # fmt: skip


# --- where it comes from ---------------------------------------------------------------------------------------------


def _without_sections(docstring: str) -> str:
    """A docstring up to what it says to those who call the class: arguments and errors."""
    return re.split(r"^(?:Args|Raises):$", docstring, flags=re.M)[0].strip()


def _needs(config: Any, given: dict[str, Any]) -> str:
    """What the component reads of rollouts, beyond what everything does; configured as in the example."""
    try:
        needs, usual = config.model_validate(given).needs, Needs()
    except Exception:  # whatever a plugin's property raises is for its tests, not for its page
        return ""
    found = {f.name: getattr(needs, f.name) for f in fields(Needs) if getattr(needs, f.name) != getattr(usual, f.name)}
    words = {True: "`{}`", False: "no `{}`"}
    return ", ".join(
        words[value].format(name) if isinstance(value, bool) else f"`{name}` {value}" for name, value in found.items()
    )


# --- options ---------------------------------------------------------------------------------------------------------


def tables(config: type[BaseModel]) -> Iterator[Options]:
    """The options of a config, then those of each config inside it, once."""
    found: list[type[BaseModel]] = [config]
    for model in found:
        inside = dict.fromkeys(inner for info in model.model_fields.values() for inner in _models(info.annotation))
        found += [inner for inner in inside if inner not in found]
    for model in found:
        schema = _schema(model)
        options = [_option(name, info, schema.get(name, {})) for name, info in model.model_fields.items()]
        options += [
            Option(name, "", "", "", about.get("description", ""))
            for name, about in schema.items()
            if about.get("deprecated") and name not in model.model_fields
        ]
        yield Options(model.__name__, _without_sections(inspect.cleandoc(model.__doc__ or "")), tuple(options))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    try:
        return dict(model.model_json_schema()["properties"])
    except (PydanticInvalidForJsonSchema, KeyError):
        return {}


def _option(name: str, info: FieldInfo, schema: dict[str, Any]) -> Option:
    bounds = ", ".join(dict.fromkeys(_bounds(schema)))
    return Option(name, type_name(info.annotation, info.metadata), bounds, _default(info), info.description or "")


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    for key, sign in BOUNDS.items():
        if key in schema:
            yield f"{sign} {schema[key]:g}"
    yield from (words for key, words in SIZES.items() if schema.get(key) == 1)
    for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _bounds(branch)


def type_name(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type as a person would write it; `metadata` is what `Annotated` or the field says of it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    kinds = [marker.kind for marker in metadata if isinstance(marker, RefTo)]
    if kinds:
        return f"{kinds[0]} id"
    if origin is Annotated:
        return type_name(arguments[0], [*metadata, *arguments[1:]])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(a, metadata) for a in arguments if a is not types.NoneType)
    if origin is tuple and ... not in arguments:
        return f"[{', '.join(map(type_name, arguments))}]"
    if origin in (list, tuple):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"{type_name(arguments[0])} -> {type_name(arguments[1])}"
    if is_a(RelativePath, list(metadata)):
        return "path"
    if is_a(ModelName, list(metadata)):
        return "path or hub id"
    return str(getattr(annotation, "__name__", annotation))


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "its own"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
