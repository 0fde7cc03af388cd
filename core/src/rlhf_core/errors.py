"""Errors a person can act on: where it happened, what was got, what was expected, and the fix.

Everything the framework raises on purpose is an `RLHFError`. The command line prints it without a traceback and
leaves with its `exit_code`; anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class RLHFError(Exception):
    """An error with its four parts.

    Args:
        where: the component, file or key it is about, e.g. ``reward 'helpful'`` or ``feedback.jsonl:12``.
        got: what was found.
        expected: what should have been there (may be empty).
        fix: what to do about it (may be empty).
    """

    exit_code = 2

    def __init__(self, where: str, got: str, expected: str = "", fix: str = "") -> None:
        super().__init__(where, got, expected, fix)
        self.where, self.got, self.expected, self.fix = where, got, expected, fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.got}"
        if self.expected:
            text += f"; expected {self.expected}"
        if self.fix:
            text += f"; {self.fix}"
        return text


class ConfigError(RLHFError):
    """A value in a registry file, an override or a component's configuration is wrong."""


class RegistryErrors(RLHFError):
    """Every problem of a registry file, collected: `errors` holds one `RLHFError` per problem."""

    def __init__(self, errors: Sequence[RLHFError]) -> None:
        self.errors = tuple(errors)
        count = len(self.errors)
        super().__init__("registry", f"{count} problem{'' if count == 1 else 's'}")

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class PluginError(RLHFError):
    """A plugin that a pipeline needs is missing, broken, or clashes with another."""


class DataError(RLHFError):
    """A record of feedback or a prompt cannot be used; `where` is ``file:line`` when it came from a file."""


class RewardError(RLHFError):
    """A reward returned something that is not one finite score per sample."""


class RunError(RLHFError):
    """The run directory, a checkpoint or the machine does not allow what was asked."""


class NumericalError(RLHFError):
    """A loss or gradient stopped being finite."""

    exit_code = 1
