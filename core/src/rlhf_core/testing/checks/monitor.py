"""Monitors: they look on, and say nothing or why they are alarmed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...interfaces import Monitor, Observation
from ..compare import same, through_checkpoint
from ..kit import check_example
from ..subjects import Example
from ..watching import STEPS, watched

CUT = 24
"""The step at which a run is interrupted: things have gone wrong, a window of them is not full."""


@check_example("monitor")
def answers_nothing_or_words(example: Example) -> None:
    """`look` gives None, or the reason of the alarm in one line."""
    monitor = example.build()
    for seen in watched(monitor):
        answer: Any = monitor.look(seen)
        if answer is not None and not (isinstance(answer, str) and answer.strip() and "\n" not in answer):
            example.fail(f"at step {seen.step} it answers {answer!r}", "None, or one line of text", "say why")


@check_example("monitor")
def says_whether_it_wants_samples(example: Example) -> None:
    """`wants_samples` gives True or False, the same when it is asked again."""
    monitor = example.build()
    for step in range(1, STEPS + 1):
        asked = [monitor.wants_samples(step), monitor.wants_samples(step)]
        if asked[0] is not asked[1] or not isinstance(asked[0], bool):
            example.fail(f"wants_samples({step}) is {asked[0]!r}, then {asked[1]!r}", "True or False, twice the same")


@check_example("monitor")
def leaves_its_inputs_alone(example: Example) -> None:
    """Looking changes none of the statistics: they are other monitors' as well."""
    monitor = example.build()
    for seen in watched(monitor):
        before = dict(seen.stats)
        monitor.look(seen)
        if dict(seen.stats) != before:
            example.fail("looking changes the statistics", "statistics left as they are", "copy them: dict(seen.stats)")


@check_example("monitor")
def bears_a_step_without_samples(example: Example) -> None:
    """A step in which every reward abstained has no samples to show; that is no error."""
    monitor = example.build()
    for seen in watched(monitor, last=3):
        _look(example, monitor, replace(seen, samples=(), scores=()))
    for seen in watched(monitor, first=4):
        _look(example, monitor, seen if seen.step % 7 else replace(seen, samples=(), scores=()))


def _look(example: Example, monitor: Monitor[Any], seen: Observation) -> None:
    try:
        monitor.look(seen)
    except Exception as error:
        if seen.samples:
            raise
        example.fail(
            f"at step {seen.step}, without samples, it raises {type(error).__name__}: {error}",
            "no alarm, or one that needs no samples",
            "return None where seen.samples is empty",
        )


@check_example("monitor")
def continues_after_a_checkpoint(example: Example) -> None:
    """A monitor that was saved and loaded raises the same alarms as one that was not."""
    straight, resumed = example.build(), example.build()
    for seen in watched(straight, last=CUT):
        straight.look(seen)
    resumed.load_state_dict(through_checkpoint(straight.state_dict()))
    expected, got = ([monitor.look(seen) for seen in watched(monitor, CUT + 1)] for monitor in (straight, resumed))
    if not same(expected, got):
        step = next(i for i, pair in enumerate(zip(expected, got, strict=True), CUT + 1) if pair[0] != pair[1])
        example.fail(
            f"after loading its state it answers otherwise at step {step}",
            "the same alarms as without the interruption",
            "put everything that changes into state_dict",
        )
