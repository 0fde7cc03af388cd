"""YAML 1.2 with the core schema, for files that people write.

Departs from YAML in three ways: a key written twice is an error that names both lines, keys are the text as written
(`1: good` has the key "1"), and there are no tags or merge keys. Every value keeps its line.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from ..errors import ConfigError, RegistryErrors
from .words import Keys, dotted, raised, show

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 500_000, 50, 200_000
MAX_PROBLEMS = 100  # of one file: an alias inside itself gives a hundred thousand

INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
WORDS: dict[str, Any] = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"]),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
    **{sign + word: float(sign + "inf") for sign in ["", "+", "-"] for word in [".inf", ".Inf", ".INF"]},
    **dict.fromkeys([".nan", ".NaN", ".NAN"], float("nan")),
}

PLAIN, TEXT = "plain", "tag:yaml.org,2002:str"
SENTENCES = [
    (r"found character '\\t'", "a tab", "indent with spaces"),
    (r"mapping values are not allowed", "a colon where no key can stand",
     "quote the value if the colon belongs to it, else check the indentation of this line and the one above"),
    (r"could not find expected ':'", "a line that is no `key: value`", "add the colon, or check the indentation"),
    (r"expected <block end>", "the indentation does not fit the lines above", "line keys up, and indent with spaces"),
    (r"unexpected end of stream", "a quote that is never closed", "close it"),
    (r"expected ',' or '([\]}])'", "a bracket that is never closed, or a comma that is missing", "close or add it"),
    (r"cannot start any token", "a character that cannot begin a value", "quote the value"),
    (r"found undefined alias", "an alias without an anchor", "add the `&anchor`, or quote the value"),
    (r"[Dd]epth", "is nested too deeply", f"write at most {MAX_DEPTH} levels"),
    (r"but found another document", "a second document (`---`)", "keep one document per file"),
]  # fmt: skip
"""What ruamel says, what is wrong, what to do."""


@dataclass(frozen=True)
class Source:
    """A registry file as it was read: plain data, and the line of everything in it.

    name: the file as the user called it, for messages. path: absolute.
    """

    name: str
    path: Path
    data: dict[str, Any]
    lines: dict[Keys, int] = field(repr=False)

    @property
    def root(self) -> Path:
        """Its folder."""
        return self.path.parent

    def line(self, keys: Keys) -> int:
        """The line of `keys`, or of the nearest thing around it that is there."""
        return next(self.lines[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.lines)

    def place(self, keys: Keys) -> str:
        """``registry.yaml:12``."""
        return f"{self.name}:{self.line(keys)}"

    def where(self, *keys: str | int) -> str:
        """``registry.yaml:12 components.reward.helpful``."""
        return f"{self.place(keys)} {dotted(*keys)}"


def read(path: str | Path) -> Source:
    """Read a registry file.

    Raises `RegistryErrors` for what stops reading at all: the file is missing, a folder, not UTF-8, empty, not YAML,
    not a mapping, or has keys twice.
    """
    name, absolute = str(path), Path(path).absolute()
    try:
        with absolute.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            last, fix = content.count(b"\n") + 1, "split it into several registry files"
            got = f"goes on beyond {MAX_BYTES:,} bytes"
            raise RegistryErrors([ConfigError(f"{name}:{last}", got, "a smaller file", fix)])
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        failure = ConfigError(name, "there is no such file", fix="write one with `rlhf init`, or name another")
    except IsADirectoryError:
        failure = ConfigError(name, "is a folder", "a registry file", "name the file in it, such as registry.yaml")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        failure = ConfigError(f"{name}:{line}", f"byte 0x{error.object[error.start]:02x} is not UTF-8", "text in UTF-8",
                              "save the file as UTF-8")  # fmt: skip
    except (OSError, ValueError) as error:
        failure = ConfigError(name, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    else:
        data, lines = parse(text, name)
        if data is None:
            failure = ConfigError(f"{name}:1", "is empty", "a registry", "write one with `rlhf init`")
        elif not isinstance(data, dict):
            failure = ConfigError(f"{name}:{lines[()]}", f"the file holds {show(data)}", "a mapping",
                                  "begin with `schema_version: 1`")  # fmt: skip
        else:
            return Source(name, absolute, data, lines)
    raise RegistryErrors([failure])


def parse(text: str, name: str) -> tuple[Any, dict[Keys, int]]:
    """YAML as plain data, and the line of every value. Raises `RegistryErrors`, with `name` for the file."""
    if place := _too_deep(text):
        where = f"{name}:{place}"
        raise RegistryErrors([ConfigError(where, "is nested too deeply", fix=f"write at most {MAX_DEPTH} levels")])
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _Resolver
    yaml.max_depth = 2 * MAX_DEPTH  # before Python's own limit; the builder counts exactly
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML 1.2 lets an anchor be set anew
            node = yaml.compose(text)
    except MarkedYAMLError as error:
        failure = _syntax_error(error, name)
    except ReaderError as error:
        line, character = text.count("\n", 0, error.position) + 1, f"U+{error.character:04X}"
        fix = "remove it, or write it as an escape in double quotes"
        failure = ConfigError(f"{name}:{line}", f"is not YAML: the control character {character}", fix=fix)
    except Exception as error:  # ruamel's own slips on broken input
        failure = ConfigError(name, raised("is not YAML: reading it", error))
    else:
        builder = _Builder(name)
        data = builder.build(node, ()) if node else None
        if builder.errors:
            raise RegistryErrors(builder.errors)
        return data, builder.lines
    raise RegistryErrors([failure])


def _too_deep(text: str) -> int | None:
    """The number of a line that opens far more brackets than it closes: ruamel's time grows with their square."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.count("[") + line.count("{") > 2 * MAX_DEPTH:
            steps = ((c in "[{") - (c in "]}") for c in line)
            if max(accumulate(steps)) > 2 * MAX_DEPTH:
                return number
    return None


def parse_value(text: str, name: str) -> Any:
    """What stands after ``=`` in ``--set``: a flow collection, a quoted string, or a scalar.

    Raises `RegistryErrors`.
    """
    text = text.strip()
    return parse(text, name)[0] if text[:1] in ("[", "{", '"', "'") else scalar(text)


def scalar(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2: ``3e-6`` is a number, ``no`` and ``2026-01-01`` are strings."""
    if text in WORDS:
        return WORDS[text]
    try:
        if INT.fullmatch(text):
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if FLOAT.fullmatch(text):
            return float(text)
    except ValueError:  # more digits than Python takes
        pass
    return text


class _Resolver(VersionedResolver):  # type: ignore[misc]
    """Leaves plain scalars to `scalar`, so that what is left with a tag was tagged by hand."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        return Tag(suffix=PLAIN) if kind is ScalarNode and implicit[0] else super().resolve(kind, value, (False, True))


class _Builder:
    """Turns nodes into plain data, collecting lines and errors."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.lines: dict[Keys, int] = {}
        self.errors: list[ConfigError] = []

    def build(self, node: Node, keys: Keys) -> Any:
        self.lines[keys] = node.start_mark.line + 1
        self.count += 1
        if len(keys) > MAX_DEPTH:
            return self.refuse(node, keys[:5], "is nested too deeply", f"at most {MAX_DEPTH} levels")
        if len(self.errors) >= MAX_PROBLEMS:
            return None
        if self.count > MAX_VALUES:  # aliases of aliases
            return None if self.errors else self.refuse(node, (), f"has more than {MAX_VALUES} values", "fewer aliases")
        if isinstance(node, MappingNode):
            return self.mapping(node, keys)
        if isinstance(node, SequenceNode):
            return [self.build(item, (*keys, i)) for i, item in enumerate(node.value)]
        if str(node.tag) not in (PLAIN, TEXT):
            return self.refuse(node, keys, f"has the tag {node.tag}", "plain YAML", "remove the tag")
        return scalar(node.value) if str(node.tag) == PLAIN else self.text(node, keys)

    def mapping(self, node: MappingNode, keys: Keys) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self.refuse(key_node, keys, "has a collection as a key", "text", "quote keys that begin with [ or {")
                continue
            key = self.text(key_node, keys)
            if key == "<<" and str(key_node.tag) == PLAIN:
                fix = "write the settings out; pipelines share theirs with `extends` and `override`"
                self.refuse(key_node, (*keys, key), "merge keys are not part of YAML 1.2", fix=fix)
            elif key in first:
                got = f"is written twice, on line {first[key]} and on line {line}"
                self.refuse(key_node, (*keys, key), got, fix="keep one")
            else:
                first[key] = line
                result[key] = self.build(value_node, (*keys, key))
                self.lines[*keys, key] = line
        return result

    def text(self, node: Node, keys: Keys) -> str:
        """A quoted string; JSON writes characters beyond the 16-bit plane as two escapes, which YAML leaves apart."""
        try:
            return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self.refuse(node, keys, "holds half of a surrogate pair", "whole characters")
            return ""

    def refuse(self, node: Node, keys: Keys, got: str, expected: str = "", fix: str = "") -> None:
        where = f"{self.name}:{node.start_mark.line + 1} {dotted(*keys)}".rstrip()
        self.errors.append(ConfigError(where, got, expected, fix))


def _syntax_error(error: MarkedYAMLError, name: str) -> ConfigError:
    mark, start = error.problem_mark or error.context_mark, error.context_mark
    where = f"{name}:{mark.line + 1}" if mark else name
    begun = f", in what begins on line {start.line + 1}" if mark and start and start.line != mark.line else ""
    problem = str(error.problem or error.context or error)
    for pattern, got, fix in SENTENCES:
        if re.search(pattern, problem):
            return ConfigError(where, f"{got}{begun}", fix=fix)
    return ConfigError(where, f"is not YAML: {problem}{begun}")
