"""The `functions:` of a registry file: Python callables from a file beside it or from an installed module."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConfigError
from . import environment
from .words import raised, show, suggest


@dataclass(frozen=True)
class FunctionDecl:
    """One declared function.

    target: "path/file.py:callable", made absolute, or "package.module:callable".
    kwargs: None if the target is the function; else the target is called with them and returns it.
    where: for messages.
    """

    name: str
    target: str
    kwargs: dict[str, Any] | None = None
    where: str = field(default="function", compare=False)

    @property
    def written(self) -> str | dict[str, Any]:
        """As a registry file says it."""
        return self.target if self.kwargs is None else {"factory": self.target, "kwargs": self.kwargs}


def read_function(name: str, raw: Any, where: str, root: Path) -> FunctionDecl:
    """The declaration of a function. Raises `ConfigError` if it has another form, or its file is missing."""
    kwargs: dict[str, Any] | None = None
    target = raw
    if isinstance(raw, dict):
        if unknown := [key for key in raw if key not in ("factory", "kwargs")]:
            raise ConfigError(where, f"unknown key {unknown[0]!r}", fix=suggest(unknown[0], ["factory", "kwargs"]))
        target, kwargs = raw.get("factory"), raw.get("kwargs") or {}
        if not isinstance(kwargs, dict):
            raise ConfigError(f"{where}.kwargs", f"got {show(kwargs)}", "a mapping")
    module, colon, attribute = target.rpartition(":") if isinstance(target, str) else ("", "", "")
    if not (module and colon and all(part.isidentifier() for part in attribute.split("."))):
        raise ConfigError(
            where,
            f"got {show(target)}",
            "'path/file.py:callable' or 'package.module:callable'",
            "for a factory, write {factory: ..., kwargs: {...}}",
        )
    if module.endswith(".py"):
        path = (root / module).resolve()
        if not path.is_file():
            raise _no_file(where, path)
        target = f"{path}:{attribute}"
    return FunctionDecl(name, target, kwargs, where)


def load_function(decl: FunctionDecl, root: str | Path = ".") -> Callable[..., Any]:
    """Import the function, or call its factory.

    Raises `ConfigError` if its module is missing or raises, has no such callable, or the factory does not give one.
    """
    module_name, _, attribute = decl.target.rpartition(":")
    found: Any = _module(module_name, Path(root), decl.where)
    for name in attribute.split("."):
        if not hasattr(found, name):
            known = [key for key in dir(found) if not key.startswith("_") and callable(getattr(found, key, None))]
            raise ConfigError(decl.where, f"{module_name} has no {attribute!r}", fix=suggest(name, known))
        found = getattr(found, name)
    if decl.kwargs is not None and callable(found):
        found = _call(found, decl)
    if not callable(found):
        what = "" if decl.kwargs is None else " returned by its factory"
        raise ConfigError(decl.where, f"{decl.target}{what} is {show(found)}", "something that can be called")
    return found  # type: ignore[no-any-return]


def check_trust(functions: Mapping[str, FunctionDecl], registry: Path, trusted: bool | None) -> None:
    """Refuse to run the `functions` of a registry file that came from elsewhere.

    Args:
        registry: the file. trusted: True or False says it; None trusts a file in the working directory or below.

    Raises `ConfigError` if there is a function, and the file is not trusted.
    """
    if not functions or trusted or (trusted is None and registry.resolve().is_relative_to(Path.cwd())):
        return
    first, *others = functions.values()
    more = f" and {len(others)} more" if others else ""
    why = "is not trusted" if trusted is False else "lies outside the current directory"
    raise ConfigError(
        first.where,
        f"would run {first.target}{more}, and the registry file {why}",
        fix="read that code, then add --trust-functions (in Python: load(..., trust_functions=True))",
    )


def _module(name: str, root: Path, where: str) -> ModuleType:
    """An installed module, or a file."""
    path = (root / name).resolve() if name.endswith(".py") else None
    if path and not path.is_file():
        raise _no_file(where, path)
    try:
        return _import_file(path) if path else importlib.import_module(name)
    except (Exception, SystemExit) as error:
        lacking = error.name if isinstance(error, ModuleNotFoundError) else None
        fix = f"install what brings {lacking!r}" if lacking else f"import {name} on its own to see more"
        raise ConfigError(where, raised(f"importing {name}", error), fix=fix) from error


def _import_file(path: Path) -> ModuleType:
    """Import a file under a private name; once, as long as it does not change."""
    stamp = hashlib.blake2b(f"{path}\0{path.stat().st_mtime_ns}".encode(), digest_size=6).hexdigest()
    name = f"_rlhf_functions_{path.stem}_{stamp}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _no_file(where: str, path: object) -> ConfigError:
    return ConfigError(where, f"there is no file {path}", fix="paths are relative to the registry file")


def _call(factory: Callable[..., Any], decl: FunctionDecl) -> Any:
    values = environment.lookup(decl.kwargs)
    for _, problem in environment.gaps(decl.kwargs):
        raise ConfigError(decl.where, *problem)
    try:
        return factory(**environment.substitute(decl.kwargs, values))
    except Exception as error:  # a user's code; raised below, out of sight of the values
        got = raised(decl.target, error)
    raise ConfigError(decl.where, environment.hide(got, values), fix="check its kwargs")
