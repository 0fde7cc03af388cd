"""Fields of a Config that were renamed or retired: they load for one minor version, with a warning, then no more.

    class PPOConfig(OnPolicyConfig):
        deprecated: ClassVar = {
            "cliprange": Renamed("clip", since="0.2"),
            "whiten_rewards": Retired("use the shaper whiten", since="0.2"),
        }

With any 0.2.x of the distribution that holds this class, `cliprange: 0.1` is read as `clip: 0.1` and `whiten_rewards`
is left out; from 0.3 on either is an error with the same words. The version is looked up only when an old key is met.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from ..errors import ConfigError


@dataclass(frozen=True)
class Renamed:
    """The field is now called `to`; `since` is the first minor version ("0.2") that has the new name."""

    to: str
    since: str


@dataclass(frozen=True)
class Retired:
    """The field is gone. message: what to do instead. since: the first minor version ("0.2") without it."""

    message: str
    since: str


Deprecation: TypeAlias = Renamed | Retired


class DeprecatedFieldWarning(FutureWarning):
    """A setting that still loads was written by its old name."""


class OldKey(NamedTuple):
    """A deprecated key of a model; package: of the class that says so, whose version counts."""

    name: str
    change: Deprecation
    package: str

    @property
    def fix(self) -> str:
        return f"write {self.change.to!r}" if isinstance(self.change, Renamed) else self.change.message

    @property
    def loads(self) -> bool:
        """Whether the installed version still reads it; a class that is in no distribution always does."""
        version = distribution_of(self.package)[1]
        return version is None or _minor(version) <= _minor(self.change.since)

    def words(self) -> str:
        """What became of it, and until when it loads."""
        name, version = distribution_of(self.package)
        major, minor = _minor(self.change.since)
        end = f"{major}.{minor + 1}"
        if isinstance(self.change, Renamed):
            became = f"{self.name!r} was renamed to {self.change.to!r} in {name} {self.change.since}"
        else:
            became = f"{self.name!r} was retired in {name} {self.change.since}"
        if not self.loads:
            return f"{became} and stopped loading in {end} ({version} is installed); {self.fix}"
        ignored = "" if isinstance(self.change, Renamed) else ", is ignored"
        return f"{became}{ignored} and stops loading in {end}; {self.fix}"

    def refusal(self, data: Mapping[str, Any]) -> str | None:
        """Why it cannot be read from `data`, if it cannot."""
        if isinstance(self.change, Renamed) and self.change.to in data:
            return f"{self.name!r} and {self.change.to!r} are the same setting and both are given; keep one of them"
        return None if self.loads else self.words()


OLD_NAMES: set[str] = set()
"""The deprecated keys of all models there are: what is not among them needs no closer look."""


@cache
def old_keys(model: type[BaseModel]) -> dict[str, OldKey]:
    """The deprecated keys of a model, its parents' included; not what is a field of it once more."""
    found: dict[str, OldKey] = {}
    for parent in reversed(model.__mro__):
        for name, change in vars(parent).get("deprecated", {}).items():
            found[name] = OldKey(name, change, parent.__module__.partition(".")[0])
    return {name: old for name, old in found.items() if name not in _keys(model)}


def check_deprecated(model: type[BaseModel]) -> None:
    """Raises `ConfigError` for a `deprecated` of `model` that cannot be meant."""
    known = _keys(model)
    if "deprecated" in known:
        raise ConfigError(f"{model.__qualname__}.deprecated", "is a field", fix="write `deprecated: ClassVar = {...}`")
    for name, change in vars(model).get("deprecated", {}).items():
        where = f"{model.__qualname__}.deprecated[{name!r}]"
        if not isinstance(change, (Renamed, Retired)):
            raise ConfigError(where, f"got {change!r}", "Renamed(to, since=...) or Retired(message, since=...)")
        if not re.fullmatch(r"\d+\.\d+", change.since):
            raise ConfigError(where, f"since is {change.since!r}", "a minor version such as '0.2'")
        if name in known:
            raise ConfigError(where, f"{name!r} is still a field", fix="take the field out, or this entry")
        if isinstance(change, Renamed) and change.to not in known:
            raise ConfigError(where, f"there is no field {change.to!r} to rename to", f"one of {', '.join(known)}")
        OLD_NAMES.add(name)


def read_old_keys(model: type[BaseModel], data: Any) -> Any:
    """What `model` is given, by its new names. Registry files do this themselves, as they know the line.

    Raises `ValidationError`, which says where in a larger config it is, for keys that cannot be read.
    """
    met = [old for name, old in old_keys(model).items() if name in data] if isinstance(data, dict) else []
    refused = [
        InitErrorDetails(
            type=PydanticCustomError("value_error", "{error}", {"error": words}), loc=(old.name,), input=data[old.name]
        )
        for old in met
        if (words := old.refusal(data))
    ]
    if refused:
        raise ValidationError.from_exception_data(model.__name__, refused)
    for old in met:
        warnings.warn(f"{model.__name__}: {old.words()}", DeprecatedFieldWarning, stacklevel=4)  # who builds the config
        value = data[old.name]
        data = {key: item for key, item in data.items() if key != old.name}
        if isinstance(old.change, Renamed):
            data[old.change.to] = value
    return data


def add_to_schema(model: type[BaseModel], schema: dict[str, Any]) -> None:
    """Add the old keys of a model to its JSON Schema, marked as deprecated."""
    properties = schema.get("properties", {})
    for old in old_keys(model).values():
        about: dict[str, Any] = {"deprecated": True, "description": f"deprecated: {old.fix}"}
        if isinstance(old.change, Renamed):
            about = {**properties[old.change.to], **about}
            about.pop("default", None)
            if old.change.to in schema.get("required", []):  # either name gives the value
                schema["required"].remove(old.change.to)
                either: dict[str, Any] = {"anyOf": [{"required": [old.change.to]}, {"required": [old.name]}]}
                schema.setdefault("allOf", []).append(either)
        schema.setdefault("properties", properties)[old.name] = about


@cache
def distribution_of(package: str) -> tuple[str, str | None]:
    """Name and version of the distribution that a top-level package belongs to; its own name and None if to none."""
    from importlib import metadata

    try:
        found = metadata.distribution(package)  # most are called alike; asking for the others reads all metadata
    except (metadata.PackageNotFoundError, ValueError):
        owners = metadata.packages_distributions().get(package)
        if not owners:
            return package, None
        found = metadata.distribution(owners[0])
    return found.metadata["Name"], found.version


def _keys(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _minor(version: str) -> tuple[int, int]:
    from packaging.version import Version

    parsed = Version(version)
    return parsed.major, parsed.minor
