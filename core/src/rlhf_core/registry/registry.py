"""A registry file, read once; pipelines and components are validated when asked for."""

from __future__ import annotations

import warnings
from pathlib import Path

from ..errors import ConfigError, RegistryErrors, RLHFError
from ..interfaces.deprecation import DeprecatedFieldWarning
from .document import Document, read_document
from .functions import FunctionDecl
from .pipeline import Overrides, PipelineResolver
from .reader import read
from .resolve import Catalogue, Resolver
from .resolved import Declared, ResolvedPipeline
from .words import suggest

MOST_PROBLEMS = 200


class Registry:
    """What a registry file declares, against what is installed.

    Settings by a deprecated name load, with a `FutureWarning` for each.
    """

    def __init__(self, document: Document, catalogue: Catalogue) -> None:
        self._document, self._catalogue = document, catalogue

    @classmethod
    def load(cls, path: str | Path, catalogue: Catalogue) -> Registry:
        """Read a registry file, importing nothing.

        Raises `RegistryErrors` only for what stops reading: no such file, not UTF-8, not YAML, keys written twice, not
        a mapping. All else waits for `resolve` and `problems`.
        """
        return cls(read_document(read(path), list(catalogue.kinds)), catalogue)

    @property
    def path(self) -> Path:
        """The file, absolute."""
        return self._document.source.path

    @property
    def root(self) -> Path:
        """The folder of the file, which its relative paths start from."""
        return self._document.source.root

    @property
    def pipelines(self) -> list[str]:
        """Their names, in the order of the file."""
        return list(self._document.pipelines)

    @property
    def functions(self) -> dict[str, FunctionDecl]:
        """All that the file declares, by name. Raises `RegistryErrors`."""
        resolver = Resolver(self._document, self._catalogue)
        for name in self._document.functions:
            resolver.function(name, self._document.source.where("functions", name))
        if resolver.errors:
            raise RegistryErrors(resolver.errors)
        return resolver.functions

    def resolve(self, pipeline: str, overrides: Overrides = ()) -> ResolvedPipeline:
        """Validate a pipeline and everything it reaches, with `overrides` as in ``--set``.

        Raises `RegistryErrors` with all that is wrong with the file as a whole, the pipeline, and what it reaches;
        nothing else in the file counts.
        """
        document = self._document
        if document.blocked:
            raise RegistryErrors(document.problems)
        if pipeline not in document.pipelines:
            hint = suggest(pipeline, document.pipelines) or "the file declares none"
            missing = ConfigError(document.source.name, f"there is no pipeline {pipeline!r}", fix=hint)
            raise RegistryErrors([*document.problems, missing])
        resolver = PipelineResolver(document, self._catalogue, pipeline)
        resolved = resolver.resolve(overrides)
        _warn(resolver.notices)
        if document.problems or resolved is None:
            raise RegistryErrors(_once([*document.problems, *resolver.errors]))
        return resolved

    def component(self, kind: str, id: str) -> Declared:
        """Validate one component and everything it names; `id` is declared, or registered and means its defaults.

        Raises `RegistryErrors`.
        """
        if self._document.blocked:
            raise RegistryErrors(self._document.problems)
        resolver = Resolver(self._document, self._catalogue)
        resolver.component(kind, id, self._document.source.name)
        _warn(resolver.notices)
        if errors := [*self._document.problems, *resolver.errors]:
            raise RegistryErrors(_once(errors))
        return resolver.components[kind, id]

    def problems(self) -> list[RLHFError]:
        """All that is wrong, over all components, functions and pipelines, each once. Raises nothing."""
        document = self._document
        if document.blocked:
            return document.problems
        resolver = Resolver(document, self._catalogue)
        for kind, ids in document.components.items():
            for id in ids:
                resolver.component(kind, id, document.source.where("components", kind, id))
        for name in document.functions:
            resolver.function(name, document.source.where("functions", name))
        errors, notices = [*document.problems, *document.strays, *resolver.errors], resolver.notices
        for name in document.pipelines:
            if len(errors) > MOST_PROBLEMS:  # a file that is wrong throughout: mend these, and look again
                break
            pipeline = PipelineResolver(document, self._catalogue, name)
            pipeline.resolve()
            errors += pipeline.errors
            notices += pipeline.notices
        _warn(notices)
        return _once(errors)

    validate = problems


def _warn(notices: list[str]) -> None:
    for notice in dict.fromkeys(notices):
        warnings.warn(notice, DeprecatedFieldWarning, stacklevel=3)


def _once(errors: list[RLHFError]) -> list[RLHFError]:
    return list({str(error): error for error in errors}.values())
