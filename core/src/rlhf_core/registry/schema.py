"""JSON Schema of registry.yaml for what is installed, so that editors complete and check it."""

from __future__ import annotations

from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from ..errors import PluginError
from ..interfaces.config import Config
from .document import SCHEMA_VERSION
from .resolve import Catalogue
from .settings import PipelineSettings
from .words import ID

Schema: TypeAlias = dict[str, Any]

VARIABLE: Schema = {"type": "string", "pattern": r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}"}
NULL: Schema = {"type": "null"}
IDS: Schema = {"pattern": f"^{ID.pattern}$"}


def json_schema(catalogue: Catalogue) -> Schema:
    """The schema (2020-12) of a registry file: sections, settings, and the config of every installed component."""
    kinds = sorted(kind for kind in catalogue.kinds if kind != "stage")
    definitions: Schema = {"env": VARIABLE}
    components = {kind: _kind(catalogue, kind, definitions) for kind in kinds}
    pipeline = _pipeline(catalogue, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "registry.yaml",
        "description": "Named components and ready pipelines for rlhf.",
        "type": "object",
        "required": ["schema_version"],
        "additionalProperties": False,
        "properties": {
            "schema_version": {"const": SCHEMA_VERSION, "description": "version of this format"},
            "requires": {
                "description": "distributions this file needs, checked before anything is imported",
                "type": ["array", "null"],
                "items": {"type": "string", "description": "a requirement such as rlhf-plugin-ppo>=0.1"},
            },
            "functions": _named("Python functions by name, for rewards and the like", _function()),
            "components": {
                "description": "kind -> id -> {use, config, load}",
                "type": ["object", "null"],
                "additionalProperties": False,
                "properties": components,
            },
            "pipelines": _named("name -> settings and stages", pipeline),
        },
        "$defs": dict(sorted(definitions.items())),
    }


def _named(description: str, item: Schema) -> Schema:
    return {"description": description, "type": ["object", "null"], "propertyNames": IDS, "additionalProperties": item}


def _function() -> Schema:
    forms = "path/file.py:callable or module:callable"
    target = {"type": "string", "pattern": r".:[A-Za-z_][\w.]*$", "description": forms}
    kwargs = {"type": ["object", "null"], "description": "arguments of the factory"}
    factory = {
        "type": "object",
        "required": ["factory"],
        "additionalProperties": False,
        "properties": {"factory": target, "kwargs": kwargs},
    }
    return {"anyOf": [target, factory]}


def _kind(catalogue: Catalogue, kind: str, definitions: Schema) -> Schema:
    """id -> declaration; which config is allowed depends on `use`."""
    names = sorted(catalogue.names(kind))
    declaration: Schema = {
        "type": "object",
        "required": ["use"],
        "additionalProperties": False,
        "properties": {
            "use": {"enum": names, "enumDescriptions": [catalogue.find(kind, name).summary for name in names]},
            "config": {"type": ["object", "null"], "description": "settings of the component"},
            "load": {"type": "string", "description": "reuse what an earlier run fitted"},
        },
        "allOf": [_if_used(catalogue, kind, name, definitions) for name in names],
    }
    return _named(catalogue.kinds[kind].summary, declaration)


def _if_used(catalogue: Catalogue, kind: str, name: str, definitions: Schema) -> Schema:
    config, required = _config(catalogue, kind, name, definitions)
    then: Schema = {"properties": {"config": config}} | ({"required": ["config"]} if required else {})
    return {"if": {"properties": {"use": {"const": name}}}, "then": then}


def _config(catalogue: Catalogue, kind: str, name: str, definitions: Schema) -> tuple[Schema, bool]:
    """What to write for the config of a component, and whether it has to be there."""
    key = f"{kind}.{name}"
    try:
        schema = _model(catalogue.import_class(catalogue.find(kind, name), "config"), key)
    except (PluginError, AttributeError, PydanticInvalidForJsonSchema):
        return {"type": ["object", "null"]}, False  # it cannot be described; `rlhf plugins --deep` says why
    definitions[key] = schema
    required = bool(schema.get("required") or schema.get("allOf"))  # allOf: by its new or its old name
    reference = {"$ref": f"#/$defs/{key}"}
    return (reference if required else {"anyOf": [reference, NULL]}), required


def _pipeline(catalogue: Catalogue, definitions: Schema) -> Schema:
    schema = _model(PipelineSettings, "pipeline")
    schema.pop("required", None)
    names = sorted(catalogue.names("stage")) if "stage" in catalogue.kinds else []
    stages: list[Schema] = []
    bare: list[str] = []
    for name in names:
        config, required = _config(catalogue, "stage", name, definitions)
        summary = catalogue.find("stage", name).summary
        stages.append(
            {
                "type": "object",
                "required": [name],
                "additionalProperties": False,
                "properties": {name: {"description": summary, **config}},
            }
        )
        bare += [] if required else [name]
    schema["properties"]["stages"] |= {"items": {"anyOf": [*stages, {"enum": bare}]}, "minItems": 1}
    schema["properties"]["override"] |= {"type": ["object", "null"]}
    schema["anyOf"] = [{"required": ["extends"]}, {"required": ["policy", "stages"]}]
    definitions["pipeline"] = schema
    return {"$ref": "#/$defs/pipeline"}


def _model(model: type[BaseModel], key: str) -> Schema:
    """The schema of a config, its own definitions inside."""
    schema: Schema = _plain(model.model_json_schema(ref_template=f"#/$defs/{key}/$defs/{{model}}"))
    if model.__doc__ is Config.__doc__:
        schema.pop("description", None)
    return schema


def _plain(schema: Any) -> Any:
    """Without titles, and with ``${env:NAME}`` allowed wherever something other than any text is wanted."""
    if not isinstance(schema, dict):
        return schema
    result: Schema = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            result[key] = {name: _plain(item) for name, item in value.items()}
        elif key in ("items", "additionalProperties"):
            result[key] = _plain(value)
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            result[key] = [_plain(item) for item in value]
        elif key not in ("title", "discriminator"):
            result[key] = value
    return _or_variable(result)


def _or_variable(schema: Schema) -> Schema:
    narrow = {"pattern", "format", "minLength", "maxLength", "enum"} & schema.keys()
    if not (narrow or schema.get("type") in ("integer", "number", "boolean")):
        return schema
    about: Schema = {
        key: schema.pop(key) for key in ("description", "default", "examples", "deprecated") if key in schema
    }
    return {"anyOf": [schema, {"$ref": "#/$defs/env"}], **about}
