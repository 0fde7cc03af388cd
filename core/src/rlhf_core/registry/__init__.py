"""registry.yaml: read, validate, resolve, and its JSON Schema. Importing this imports no torch."""

from .functions import FunctionDecl, check_trust, load_function
from .pipeline import Overrides
from .registry import Registry
from .resolve import Catalogue
from .resolved import Declared, ResolvedPipeline, ResolvedStage
from .schema import json_schema
from .settings import PipelineSettings

__all__ = [
    "Catalogue",
    "Declared",
    "FunctionDecl",
    "Overrides",
    "PipelineSettings",
    "Registry",
    "ResolvedPipeline",
    "ResolvedStage",
    "check_trust",
    "json_schema",
    "load_function",
]
