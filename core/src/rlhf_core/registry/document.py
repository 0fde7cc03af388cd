"""The sections of a registry file, and what is wrong with the file as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, RLHFError
from .reader import Source
from .requirements import check_requirement
from .words import ID, ID_WORDS, expect_mapping, show, suggest

SECTIONS = ["schema_version", "requires", "functions", "components", "pipelines"]
SCHEMA_VERSION = 1


@dataclass
class Document:
    """A registry file by sections, each a mapping whatever was written.

    problems: with the file as a whole; nothing can be resolved while there are any.
    strays: kinds of component that nobody offers; they hurt only who needs them.
    blocked: a requirement is not met, so nothing is to be imported.
    """

    source: Source
    functions: dict[str, Any] = field(default_factory=dict)
    components: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, Any] = field(default_factory=dict)
    requires: list[str] = field(default_factory=list)
    problems: list[RLHFError] = field(default_factory=list)
    strays: list[RLHFError] = field(default_factory=list)
    blocked: bool = False


def read_document(source: Source, kinds: list[str]) -> Document:
    """Sort a file into sections. Raises nothing: all that is wrong is in `problems` and `strays`."""
    document = Document(source)
    for key in source.data:
        if key not in SECTIONS:
            document.problems.append(ConfigError(source.where(key), f"unknown key {key!r}", fix=suggest(key, SECTIONS)))
    _check_version(document)
    _check_requirements(document)
    document.functions = _section(document, "functions")
    document.pipelines = _section(document, "pipelines")
    for kind in _section(document, "components", are_ids=False):
        if kind in kinds and kind != "stage":
            document.components[kind] = _section(document, "components", kind)
        else:
            _unknown_kind(document, kind, [known for known in kinds if known != "stage"])
    return document


def _section(document: Document, *keys: str, are_ids: bool = True) -> dict[str, Any]:
    """The mapping at `keys`, empty if there is none."""
    source = document.source
    value: Any = source.data
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    try:
        section = expect_mapping(value, source.where(*keys))
    except ConfigError as error:
        document.problems.append(error)
        return {}
    for key in section if are_ids else ():
        if not ID.fullmatch(key):
            document.problems.append(ConfigError(source.where(*keys, key), f"{key!r} cannot be a name", ID_WORDS))
    return section


def _check_version(document: Document) -> None:
    source, problems = document.source, document.problems
    version = source.data.get("schema_version")
    if "schema_version" not in source.data:
        fix = f"add `schema_version: {SCHEMA_VERSION}`"
        problems.append(ConfigError(f"{source.place(())} schema_version", "is missing", fix=fix))
    elif version != SCHEMA_VERSION or isinstance(version, bool):
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        fix = "pip install -U rlhf-core" if newer else f"write `schema_version: {SCHEMA_VERSION}`"
        problems.append(ConfigError(source.where("schema_version"), f"got {show(version)}", str(SCHEMA_VERSION), fix))


def _check_requirements(document: Document) -> None:
    source, requires = document.source, document.source.data.get("requires")
    if requires is None:
        return
    if not isinstance(requires, list):
        got = f"got {show(requires)}"
        document.problems.append(ConfigError(source.where("requires"), got, "a list of requirements"))
        return
    errors = [check_requirement(text, source.where("requires", i)) for i, text in enumerate(requires)]
    document.problems += [error for error in errors if error]
    document.requires, document.blocked = requires, any(errors)


def _unknown_kind(document: Document, kind: str, kinds: list[str]) -> None:
    """A likely slip is the file's fault; another kind may belong to a plugin that only some pipelines need."""
    where, hint = document.source.where("components", kind), suggest(kind, kinds)
    if kind == "stage":
        hint = "stages are written under pipelines.NAME.stages"
    error = ConfigError(where, f"{kind!r} is no kind of component that is installed", fix=hint)
    (document.problems if kind == "stage" or hint.startswith("did") else document.strays).append(error)
