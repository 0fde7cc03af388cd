"""The order of shapers: those of scores come before those of tokens."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ConfigError


def misplaced(where: str, levels: Iterable[tuple[str, str]]) -> ConfigError | None:
    """The error for shapers, as (id, level), of which one of tokens stands before one of scores; None if none does."""
    token = None
    for id, level in levels:
        if level == "token":
            token = id
        elif level == "sequence" and token is not None:
            return ConfigError(
                where,
                f"token shaper {token!r} stands before sequence shaper {id!r}",
                "sequence shapers first: they change scores before these become token rewards",
                f"put {id!r} before {token!r}",
            )
    return None
