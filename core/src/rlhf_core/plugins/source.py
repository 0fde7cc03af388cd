"""Classes of components as they are written. They are read and not imported, so that no torch is loaded."""

from __future__ import annotations

import ast
from functools import cache


def source(factory: str) -> tuple[ast.ClassDef | None, ast.Module | None]:
    """The class and the module of "package.module:Class" as they are written; None for what cannot be read."""
    from importlib.machinery import PathFinder
    from importlib.util import find_spec

    module, _, name = factory.partition(":")
    first, *rest = module.split(".")
    spec, path = find_spec(first), first
    for part in rest:  # not `find_spec` of the whole: it would import the packages in between
        path = f"{path}.{part}"
        spec = PathFinder.find_spec(path, spec.submodule_search_locations) if spec else None
    try:
        text = getattr(spec.loader, "get_source", lambda _: None)(path) if spec else None
        tree = ast.parse(text or "")
    except (SyntaxError, ImportError):  # of a broken class; what its config says can be shown all the same
        return None, None
    return next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None), tree


@cache
def level(factory: str) -> str:
    """The level of the shaper "package.module:Class", which its class states; empty if it does not state one itself."""
    written, _ = source(factory)
    for line in written.body if written is not None else ():
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "level":
            return ast.unparse(line.value).strip("'")
    return ""
