"""What a check is, and running checks without pytest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..plugins import Plugins, load_plugins
from .subjects import ConformanceError, Example, NotApplicable, RawExamples, Subject, find_subjects


@dataclass(frozen=True)
class Check:
    """One thing that components must hold to; calling it with a `Subject` tells whether they do.

    Attributes:
        id: unique among the checks of a kind. kinds: what it is about; empty for every kind.
        on_examples: whether `function` takes an `Example` (and is called for each) or the `Subject`.
    """

    id: str
    kinds: tuple[str, ...]
    on_examples: bool
    function: Callable[[Any], None]

    @property
    def summary(self) -> str:
        """What it wants, in one line."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def __call__(self, subject: Subject) -> None:
        """Apply the check.

        Raises:
            ConformanceError: the component does not hold to it. NotApplicable: there is nothing to check.
        """
        cases = subject.examples if self.on_examples else [subject]
        reasons = []
        for case in cases:
            try:
                self.function(case)
            except NotApplicable as reason:
                reasons.append(reason)
        if len(reasons) == len(cases):
            raise reasons[0]


_CHECKS: list[Check] = []


def check_class(*kinds: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a check of a component's classes, which needs no example; its id is the function's name."""

    def register(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        _CHECKS.append(Check(function.__name__, kinds, False, function))
        return function

    return register


def check_example(*kinds: str) -> Callable[[Callable[[Example], None]], Callable[[Example], None]]:
    """Register a check of a component that is built; its id is the function's name."""

    def register(function: Callable[[Example], None]) -> Callable[[Example], None]:
        _CHECKS.append(Check(function.__name__, kinds, True, function))
        return function

    return register


def checks_of(kind: str) -> list[Check]:
    """The checks that components of `kind` have to pass, in order."""
    from . import checks  # noqa: F401  (importing them registers them)

    return [check for check in _CHECKS if not check.kinds or kind in check.kinds]


@dataclass(frozen=True)
class Result:
    """What a check found: "passed", "failed" or "skipped", and why."""

    component: str
    check: str
    outcome: Literal["passed", "failed", "skipped"]
    reason: str = ""


def run_checks(
    distribution: str | None = None,
    plugins: Plugins | None = None,
    *,
    kinds: Collection[str] | None = None,
    examples: Mapping[str, RawExamples] | None = None,
) -> Iterator[Result]:
    """Run every check of every component of a distribution, without pytest; `examples` as in `parametrize_components`.

    Raises:
        PluginError: there is no such distribution, or it cannot be used.
    """
    for subject in find_subjects(plugins or load_plugins(), distribution, kinds, examples):
        for check in checks_of(subject.spec.kind):
            yield run_check(subject, check)


def run_check(subject: Subject, check: Check) -> Result:
    """Apply one check; whatever it raises becomes its result."""
    try:
        check(subject)
    except NotApplicable as reason:
        return Result(subject.label, check.id, "skipped", str(reason))
    except ConformanceError as error:
        return Result(subject.label, check.id, "failed", str(error))
    except Exception as error:
        return Result(subject.label, check.id, "failed", f"{subject}: raised {type(error).__name__}: {error}")
    return Result(subject.label, check.id, "passed")
