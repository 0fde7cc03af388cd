"""Settings on their way to validation: data as written, which knows where every part of it was written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from pydantic import ValidationError

from ..errors import ConfigError, RLHFError
from ..interfaces.config import Config
from . import environment
from .explain import explain
from .renewal import renewed
from .words import Keys, Problem, dotted, raised, show

Origin: TypeAlias = Callable[[Keys], str]
"""Says where something below the place it stands for was written."""


class Built(NamedTuple):
    """A validated config, and the JSON data that gives it again: defaults filled in, placeholders as written.

    origins: where each value was written, by its dotted path; "default" where it was not.
    """

    config: Any
    written: dict[str, Any]
    origins: dict[str, str]


class Draft:
    """A config before it is one. Overrides go through `set`; `build` validates.

    notices: after `build`, what was written by a deprecated name.
    """

    def __init__(self, data: dict[str, Any], origin: Origin) -> None:
        self.data = copy.deepcopy(data)
        self.origins: dict[Keys, Origin] = {(): origin}
        self.faults: list[Keys] = []
        self.notices: list[str] = []
        self._layers: list[tuple[Keys, Any, Origin]] = [((), data, origin)]

    def where(self, *keys: str | int) -> str:
        """Where `keys` was written, with its path."""
        n = next(n for n in range(len(keys), -1, -1) if keys[:n] in self.origins)
        return self.origins[keys[:n]](keys[n:])

    def _origin(self, keys: Keys) -> str:
        """Where the value at `keys` was written, or "default"."""
        part: Any = self.data
        for key in keys:
            if not isinstance(part, dict) or key not in part:
                return "default"
            part = part[key]
        return self.where(*keys)

    def set(self, path: Sequence[str], value: Any, origin: Origin) -> None:
        """Set ``path`` to `value`; mappings on the way are made, lists are addressed by index.

        Raises `ConfigError` if the path leads through a value that has no such part.
        """
        part: Any = self.data
        keys: list[str | int] = []
        for i, key in enumerate(path):
            if isinstance(part, list):
                if not key.isdecimal() or int(key) >= len(part):
                    raise ConfigError(
                        origin(()),
                        f"{dotted(*path[:i])} is {show(part)}, which has no {key!r}",
                        f"an index from 0 to {len(part) - 1}" if part else "",
                    )
                keys.append(int(key))
            elif isinstance(part, dict):
                keys.append(key)
                if part.get(key) is None:
                    part[key] = {}
            else:
                raise ConfigError(
                    origin(()),
                    f"{dotted(*path[:i])} is {show(part)}, which has no keys",
                    fix=f"set {dotted(*path[:i])} itself",
                )
            if i < len(path) - 1:
                part = part[keys[-1]]
        part[keys[-1]] = copy.deepcopy(value)
        place = tuple(keys)
        self.origins = {k: o for k, o in self.origins.items() if k[: len(place)] != place} | {place: origin}
        self._layers.append((place, value, origin))

    def build(self, model: type[Config], root: Path) -> tuple[Built | None, list[ConfigError]]:
        """Validate as `model`, relative paths from `root`, variables filled in; or all that is wrong.

        Nothing is raised while the value of a variable is in sight, so that no traceback shows one.
        """
        try:
            self._renew(model)
        except ConfigError as error:
            return None, [error]
        values, gaps = environment.lookup(self.data), environment.gaps(self.data)
        problems: list[tuple[Keys, Problem]] = []
        built: Built | None = None
        try:
            config = model.model_validate(environment.substitute(self.data, values), context={"root": str(root)})
            dumped = config.model_dump(mode="json", by_alias=True, round_trip=True)
            problems = [
                (keys, Problem(f"got {show(value)}", "a number"))
                for keys, value in _bools_as_numbers(self.data, dumped)
            ]
            written = environment.as_written(dumped, self.data, values, root)
            origins = {dotted(*keys): self._origin(keys) for keys in leaves(written)}
            built = Built(config, written, origins)
        except ValidationError as error:
            problems = explain(error, model, self.data)
        except RLHFError as error:
            problems = [((), Problem(str(error)))]
        except Exception as error:  # validators are plugins' code
            got = raised(f"the checks of {model.__name__}", error)
            problems = [((), Problem(got, fix="report it to the author of the plugin"))]
        news = [
            (keys, Problem(*(environment.hide(text, values) for text in problem)))
            for keys, problem in problems
            if not any(gap[: len(keys)] == keys for gap, _ in gaps)
        ]
        self.faults = [keys for keys, _ in [*gaps, *news]]
        errors = [ConfigError(self.where(*keys), *problem) for keys, problem in [*gaps, *news]]
        return (None if errors else built), errors

    def _renew(self, model: type[Config]) -> None:
        """Go over to the new names of `model`, layer by layer: an override by one name beats a file by the other.

        Raises `ConfigError` as `set` does.
        """
        layers = [renewed(model, place, value) for place, value, _ in self._layers]
        if not any(layer.notices for layer in layers):
            return
        self.notices = []
        fresh = Draft(layers[0].value, self._layers[0][2])
        for layer, (_, _, origin) in zip(layers, self._layers, strict=True):
            self.notices += [f"{origin(keys)}: {words}" for keys, words in layer.notices]
            if layer.place:
                fresh.set([*map(str, layer.place)], layer.value, origin)
            for keys, written in layer.moved.items():
                fresh.origins[(*(layer.place or ()), *keys)] = _below(origin, written)
        self.data, self.origins = fresh.data, fresh.origins

    def outline(self, model: type[Config]) -> Config | None:
        """`model` with what was written and no checks: enough to follow the references of a config that has faults."""
        blanks = {name: None for name, info in model.model_fields.items() if info.is_required()}
        try:
            return model.model_construct(**{**blanks, **self.data})
        except Exception:  # a plugin's default or post-init; its faults are noted already
            return None

    def locate(self, path: str) -> tuple[Keys, Any]:
        """The keys of ``a.b.0``, as far as the data goes along them, and the value there."""
        keys: list[str | int] = []
        part: Any = self.data
        for key in path.split("."):
            if isinstance(part, list) and key.isdecimal() and int(key) < len(part):
                keys.append(int(key))
            elif isinstance(part, dict) and key in part:
                keys.append(key)
            else:
                return tuple(keys), None
            part = part[keys[-1]]
        return tuple(keys), part


def leaves(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """The keys of every value in nested mappings; a list counts as one value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*keys, key))
    elif keys:
        yield keys


def _below(origin: Origin, keys: Keys) -> Origin:
    return lambda rest: origin((*keys, *rest))


def _bools_as_numbers(raw: Any, built: Any, keys: Keys = ()) -> list[tuple[Keys, bool]]:
    """Where `true` became 1, which pydantic lets pass and nobody means."""
    if isinstance(raw, bool):
        return [] if isinstance(built, (bool, str)) or not isinstance(built, (int, float)) else [(keys, raw)]
    if isinstance(raw, dict) and isinstance(built, dict):
        pairs = [(key, raw[key], built[key]) for key in raw if key in built]
    elif isinstance(raw, list) and isinstance(built, list):
        pairs = [(i, *pair) for i, pair in enumerate(zip(raw, built, strict=False))]
    else:
        return []
    return [found for key, r, b in pairs for found in _bools_as_numbers(r, b, (*keys, key))]
