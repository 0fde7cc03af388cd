"""Errors a person can act on: where it happened, what was got, what was expected, and the fix.

Everything the framework raises on purpose is an `RLHFError`. The command line prints it without a traceback and
leaves with its `exit_code`; anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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


class MonitorAlarm(RLHFError):
    """A monitor that was told to stop the run has raised its alarm; a checkpoint holds the run as it is."""

    exit_code = 1


class OutOfMemory(RLHFError):
    """A batch does not fit into the memory of a device or of the machine.

    Args:
        where: the component that was at work.
        phase: what it did, such as "update". batch: what with, such as "8 samples x 96 tokens".
        room: how much was asked for and how much there is, where known.
        advice: what to change, the best first; None and what comes after two of them is left out.
        kept: what a run can go on from, if anything.
    """

    exit_code = 1

    def __init__(
        self, where: str, phase: str, batch: str, room: str = "", advice: Iterable[str | None] = (), kept: str = ""
    ) -> None:
        super().__init__(where, f"out of memory in the {phase} of {batch}{f' ({room})' if room else ''}")
        self.phase, self.batch, self.kept = phase, batch, kept
        self.advice: tuple[str, ...] = ()
        self.advise(advice)

    def advise(self, advice: Iterable[str | None]) -> None:
        """Fill up what to change to two settings."""
        for setting in advice if len(self.advice) < 2 else ():
            if setting is not None and setting not in self.advice:
                self.advice = (*self.advice, setting)[:2]
        self.fix = "; ".join(filter(None, (", then ".join(self.advice), self.kept)))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""
