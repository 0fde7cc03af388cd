"""The kit as pytest tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from ..errors import PluginError, did_you_mean
from ..plugins import load_plugins
from .kit import checks_of
from .subjects import RawExamples, find_subjects

if TYPE_CHECKING:
    import pytest


def parametrize_components(
    distributions: str | Iterable[str] | None = None,
    kinds: Collection[str] | None = None,
    *,
    xfail: Mapping[tuple[str, str], str] | None = None,
    examples: Mapping[str, RawExamples] | None = None,
) -> pytest.MarkDecorator:
    """A decorator that makes one test per component and check of a test function ``(component, check)``.

    Args:
        distributions: whose components are checked, a name or several; None: of everything that is installed.
        kinds: only components of these kinds.
        xfail: ("kind/name", "check id") -> the reason why that check is known to fail. It is strict: once the check
            passes, the entry has to go.
        examples: "kind/name" -> configs to build the component from, or a function from a folder to them; in place of
            the class's own `conformance_examples`.

    Raises:
        PluginError: a name is unknown, a plugin cannot be used, or an entry of `xfail` has no reason.
    """
    import pytest

    subjects = find_subjects(load_plugins(), distributions, kinds, examples)
    pairs = [(subject, check) for subject in subjects for check in checks_of(subject.spec.kind)]
    reasons = dict(xfail or {})
    ids = [f"{subject.label}-{check.id}" for subject, check in pairs]
    for (component, check_id), reason in reasons.items():
        if f"{component}-{check_id}" not in ids:
            raise PluginError(
                f"xfail {(component, check_id)}",
                "no check of a component that is tested",
                '("kind/name", "check id")',
                did_you_mean(f"{component}-{check_id}", ids),
            )
        if not reason.strip():
            raise PluginError(f"xfail {(component, check_id)}", "no reason", "why it fails, and until when")
    params = []
    for (subject, check), id in zip(pairs, ids, strict=True):
        reason = reasons.get((subject.label, check.id), "")
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        params.append(pytest.param(subject, check, id=id, marks=marks))
    return pytest.mark.parametrize(("component", "check"), params)
