"""What plugins may rely on: every public name with its signature, one line each, in `v1.txt` beside this file.

    python tests/public_api/write.py        # take new names in; refuses what would break plugins

The number in the file's name is `API_VERSION`. What is compared is text as it stands in the source (annotations are not
evaluated), so the version of Python does not matter.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_origin

from rlhf_core import API_VERSION

FILE = Path(__file__).with_name(f"v{API_VERSION}.txt")
MODULES = [
    "rlhf_core", "rlhf_core.errors", "rlhf_core.functional", "rlhf_core.interfaces", "rlhf_core.plugins",
    "rlhf_core.policies", "rlhf_core.randomness", "rlhf_core.records", "rlhf_core.rewards",
    "rlhf_core.rl", "rlhf_core.segmentation", "rlhf_core.terminal", "rlhf_core.testing", "rlhf_core.training",
]  # fmt: skip
SPECIAL = ["__init__", "__call__"]  # besides those that are abstract


class Text:
    """Prints as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


# --- what there is ---------------------------------------------------------------------------------------------------


def surface() -> list[str]:
    """The lines, sorted: ``rlhf_core.functional.masked_mean: function (values: Tensor, ...) -> Tensor``."""
    found = [(f"{module}.{name}", value) for module in MODULES for name, value in public_names(module)]
    found.sort(key=lambda item: (item[0].count("."), item[0]))
    first: dict[int, str] = {}
    for path, value in found:
        if isinstance(value, (type, types.FunctionType)):
            first.setdefault(id(value), path)
    lines = []
    for path, value in found:
        told = first.get(id(value), path)
        lines += [f"{path}: is {told}"] if told != path else list(describe(path, value, set(first)))
    return sorted(lines)


def public_names(module: str) -> Iterator[tuple[str, Any]]:
    """The names of a module: those of `__all__`, else what it defines without an underscore."""
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None)
    if names is None:
        names = [name for name, value in vars(found).items() if getattr(value, "__module__", None) == module]
        names += [
            target.id
            for node in ast.parse(inspect.getsource(found)).body
            for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
            if isinstance(target, ast.Name)
        ]
    for name in dict.fromkeys(names):
        value = getattr(found, name)
        if not isinstance(value, TypeVar) and (name[0] != "_" or name == "__version__"):
            yield name, value


def describe(path: str, value: Any, public: set[int]) -> Iterator[str]:
    if isinstance(value, type):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"{path}: class ({bases})"
        hidden = [c for c in value.__mro__[1:] if c.__module__.startswith("rlhf_core") and id(c) not in public]
        members: dict[str, str] = {}
        for owner in (value, *hidden):
            for name, text in described_members(owner):
                members.setdefault(name, text)
        yield from (f"{path}.{name}: {text}" for name, text in members.items())
    elif isinstance(inspect.unwrap(value) if callable(value) else value, types.FunctionType):
        yield f"{path}: function {signature(value)}"
    elif isinstance(value, int) and path.endswith("API_VERSION"):
        yield f"{path}: {value}"
    else:
        text = repr(value) if get_origin(value) is not None else type(value).__name__  # a type, such as Literal[...]
        yield f"{path}: value {'...' if ' at 0x' in text or 'FieldInfo' in text else text}"


def described_members(owner: type) -> Iterator[tuple[str, str]]:
    """The fields, then the methods and properties that a class itself defines."""
    fields = dict(getattr(owner, "model_fields", {}))
    if dataclasses.is_dataclass(owner):
        fields = {field.name: field for field in dataclasses.fields(owner)}
    for name, annotation in vars(owner).get("__annotations__", {}).items():
        if name[0] != "_" and (name in fields or not text_of(annotation).startswith("ClassVar")):
            what = ("field" if optional(fields[name]) else "required field") if name in fields else "attribute"
            yield name, f"{what} {text_of(annotation)}"
    abstract = getattr(owner, "__abstractmethods__", frozenset())
    for name, value in vars(owner).items():
        if name[0] == "_" and name not in abstract and not (name in SPECIAL and not fields):
            continue
        prefix = "abstract " if name in abstract else ""
        if isinstance(value, (property, functools.cached_property)):
            getter = value.fget if isinstance(value, property) else value.func
            yield name, f"{prefix}property {text_of(inspect.signature(getter).return_annotation)}"
        elif isinstance(value, (staticmethod, classmethod)):
            yield name, f"{prefix}{type(value).__name__} {signature(value.__func__)}"
        elif isinstance(value, types.FunctionType) and value.__module__.startswith("rlhf_core"):
            yield name, f"{prefix}method {signature(value)}"


def optional(field: Any) -> bool:
    if isinstance(field, dataclasses.Field):
        return not (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
    return not field.is_required()


def signature(function: Any) -> str:
    """As in the source; a default that is no plain value is ``...``."""
    found = inspect.signature(function)
    parameters = [
        p.replace(
            annotation=p.annotation if p.annotation is p.empty else Text(text_of(p.annotation)),
            default=p.default if p.default is p.empty or plain(p.default) else Text("..."),
        )
        for p in found.parameters.values()
    ]
    result = found.return_annotation
    return str(found.replace(
        parameters=parameters, return_annotation=result if result is found.empty else Text(text_of(result))
    ))  # fmt: skip


def plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str)) or value == ()


def text_of(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


# --- what became of it -----------------------------------------------------------------------------------------------


def compare(old: list[str], new: list[str]) -> tuple[list[str], list[str]]:
    """(what breaks plugins, what is merely new), from the lines of two times."""
    before, now = (dict(line.split(": ", 1) for line in lines) for lines in (old, new))
    breaks, additions = [], []
    for name, text in before.items():
        if name not in now:
            breaks.append(f"{name} is gone")
        elif text != now[name]:
            grown = grows(text, now[name])
            (additions if grown else breaks).append(f"{name} was {text!r}, is {now[name]!r}")
    for name, text in now.items():
        if name not in before:
            asked = text.startswith(("abstract", "required")) and name.rpartition(".")[0] in before
            (breaks if asked else additions).append(f"{name}: {text}" + (", which classes and calls lack" * asked))
    return breaks, additions


def grows(old: str, new: str) -> bool:
    """Whether whoever called a function may go on doing so: it only has further optional parameters.

    Of functions only: methods are there to be overridden, and an override does not know them.
    """
    if not (old.startswith("function ") and new.startswith("function ")):
        return False
    was, is_ = (ast.parse(f"def f{text.removeprefix('function ')}: ...").body[0] for text in (old, new))
    assert isinstance(was, ast.FunctionDef) and isinstance(is_, ast.FunctionDef)
    (old_plain, old_named), (new_plain, new_named) = parameters(was), parameters(is_)
    further = [*new_plain[len(old_plain) :], *(p for p in new_named if p not in old_named)]
    same = new_plain[: len(old_plain)] == old_plain and set(old_named) <= set(new_named)
    return same and all(default for _, default in further) and rest(was) == rest(is_)


def parameters(node: ast.FunctionDef) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name and type, default) of those that may be given by position, and of those that may not."""
    positional = [*node.args.posonlyargs, *node.args.args]
    missing: list[Any] = [None] * (len(positional) - len(node.args.defaults))
    pairs = zip(positional, [*missing, *node.args.defaults], strict=True)
    named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return [(ast.unparse(a), ast.unparse(d) if d else "") for a, d in pairs], [
        (ast.unparse(a), ast.unparse(d) if d else "") for a, d in named
    ]


def rest(node: ast.FunctionDef) -> list[str]:
    return [ast.unparse(part) if part else "" for part in (node.args.vararg, node.args.kwarg, node.returns)]


def main() -> int:
    old = FILE.read_text().splitlines() if FILE.exists() else []
    breaks, additions = compare(old, surface())
    for line in breaks:
        print(f"breaks plugins: {line}", file=sys.stderr)
    if breaks:
        print(
            f"keep them, or raise API_VERSION; nothing was written (delete {FILE.name} to begin anew)", file=sys.stderr
        )
        return 1
    FILE.write_text("\n".join(surface()) + "\n")
    print(f"{FILE.name}: {len(additions)} lines new or longer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
