"""What a registry file comes to: immutable, validated, complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..interfaces.config import Config
from ..interfaces.specs import ComponentSpec
from .document import SCHEMA_VERSION
from .functions import FunctionDecl
from .settings import PipelineSettings


@dataclass(frozen=True)
class Declared:
    """A component, ready to be built.

    config: validated, variables filled in, paths absolute; kept out of `repr`, as it may hold secrets.
    load: absolute path to what an earlier run fitted, or None.
    where: "file:line" of the declaration, or of the reference if the component is used by its registered name.
    written: as a registry file says it, defaults filled in and variables as ``${env:NAME}``.
    origins: where each value of `written` comes from ("file:line path", "--set path", "default"), by its dotted path.
    """

    kind: str
    id: str
    use: str
    config: Config = field(repr=False)
    load: str | None = field(repr=False)
    spec: ComponentSpec
    where: str = field(compare=False)
    written: Mapping[str, Any] = field(repr=False, compare=False)
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class ResolvedStage:
    """A stage of a pipeline: `name` is what it uses, `id` what it is called; the rest as in `Declared`."""

    id: str
    name: str
    config: Config = field(repr=False)
    spec: ComponentSpec
    where: str = field(compare=False)
    written: Mapping[str, Any] = field(repr=False, compare=False)
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class ResolvedPipeline:
    """A pipeline with everything it reaches, and nothing else.

    components: by (kind, id). functions: by name. path, root: the registry file and its folder, absolute.
    """

    name: str
    settings: PipelineSettings = field(repr=False)
    stages: tuple[ResolvedStage, ...]
    components: Mapping[tuple[str, str], Declared]
    functions: Mapping[str, FunctionDecl]
    requires: tuple[str, ...]
    root: Path = field(compare=False)
    path: Path = field(compare=False)
    written: Mapping[str, Any] = field(repr=False, compare=False)
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """A registry of this pipeline alone, as JSON data; loaded again, it resolves to the same.

        All defaults are filled in and paths are absolute; variables stay ``${env:NAME}``.
        """
        components: dict[str, dict[str, Any]] = {}
        for (kind, id), declared in self.components.items():
            components.setdefault(kind, {})[id] = dict(declared.written)
        stages = [{stage.name: dict(stage.written)} for stage in self.stages]
        sections = {
            "requires": list(self.requires),
            "functions": {name: decl.written for name, decl in self.functions.items()},
            "components": components,
            "pipelines": {self.name: {**self.written, "stages": stages}},
        }
        return {"schema_version": SCHEMA_VERSION} | {key: section for key, section in sections.items() if section}
