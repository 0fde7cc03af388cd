"""Stages: the runner can drive them, stop them after any step and go on, and what they leave can be written down.

Every example is run by the real runner over toys, see `tiny_run`. A stage that refuses them in `setup` by ConfigError,
because it needs what they are not, cannot be checked: it is skipped, with its words.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from ...errors import ConfigError
from ...interfaces import Context, Run, Stage, StepStats
from ...runs.signals import Interrupted
from ..compare import copied, same
from ..kit import check_example
from ..runs import tiny_run
from ..subjects import Example, NotApplicable, Subject

Recorder: TypeAlias = Callable[..., StepStats]


class Course:
    """One run of a stage, and what was seen of it.

    Attributes:
        totals: `total` after `setup` and after every step. statistics: of every step and evaluation, as they were
            given. result: of `finish`. error: what ended the run before its end. run: the runner.
    """

    def __init__(self, example: Example, folder: Path | None = None, *, resume: bool = False, **options: Any) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(dir=example.subject.folder))
        self.totals: list[Any] = []
        self.statistics: list[dict[str, Any]] = []
        self.result: Any = None
        self.error: Exception | None = None
        self._example = example
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        self.run = tiny_run(self.folder / "run", self._watched, example.config, **options)
        try:
            with chdir(elsewhere):
                self.run.run(resume=resume)
        except Exception as error:
            self.error = error

    def _watched(self, config: Any, context: Context) -> Stage[Any]:
        """The stage; what it gives is noted, and what could not be logged or written is kept from the runner."""
        stage: Any = self._example.subject.component_class(config, context)
        setup, finish = stage.setup, stage.finish

        def noted_setup(run: Run) -> None:
            setup(run)
            self.totals.append(stage.total)

        def noted_finish() -> dict[str, Any]:
            self.result = finish()
            return self.result if _is_json(self.result) else {}

        def noted(method: Recorder) -> Recorder:
            def call(*index: int) -> StepStats:
                statistics = dict(method(*index))
                self.statistics.append(statistics)
                self.totals.append(stage.total)
                return {name: value for name, value in statistics.items() if _is_number(value)}

            return call

        stage.setup, stage.finish = noted_setup, noted_finish
        stage.step, stage.evaluate = noted(stage.step), noted(stage.evaluate)
        self.stage: Stage[Any] = stage
        return stage  # type: ignore[no-any-return]

    @property
    def left(self) -> str:
        """What the stage leaves for others, as JSON that does not say where the run directory is."""
        return json.dumps([self.result, self.run.artefacts], default=str).replace(str(self.run.directory), "RUN")

    @property
    def states(self) -> dict[str, Any]:
        """The policy and whatever else the stage changes."""
        parts = {"the policy": self.run.policy, **self.stage.components()}
        return {name: copied(part.state_dict()) for name, part in parts.items()}

    @property
    def strays(self) -> list[str]:
        """Files and folders in the working directory, and beside the run directory."""
        places = [*self.folder.iterdir(), *(self.folder / "elsewhere").iterdir()]
        return sorted(place.name for place in places if place.name not in ("run", "elsewhere"))


_COURSES: WeakKeyDictionary[Subject, dict[str, Course]] = WeakKeyDictionary()


def _straight(example: Example) -> Course:
    """The example run from beginning to end, once for all checks. Raises NotApplicable if it refuses the toys."""
    courses, key = _COURSES.setdefault(example.subject, {}), example.config.model_dump_json()
    if key not in courses:
        courses[key] = Course(example)
    course = courses[key]
    if not course.totals and isinstance(course.error, ConfigError):
        raise NotApplicable(f"it does not run here: {course.error}")
    return course


def _finished(example: Example) -> Course:
    course = _straight(example)
    if course.error is not None:
        raise NotApplicable("it does not run to its end: see runs_all_its_steps")
    return course


def _is_number(value: Any) -> bool:
    return type(value) in (int, float, bool) and abs(value) < float("inf")


def _is_json(value: Any) -> bool:
    try:
        return isinstance(value, dict) and same(json.loads(json.dumps(value)), value)
    except (TypeError, ValueError):
        return False


@check_example("stage")
def runs_all_its_steps(example: Example) -> None:
    """`total` is a whole number from `setup` on that does not change, and steps 0 to total - 1 can be done."""
    course = _straight(example)
    totals = course.totals
    if totals and (type(totals[0]) is not int or totals[0] < 0):
        example.fail(
            f"after setup `total` is {totals[0]!r}", "a whole number of steps, 0 or more", "count them in setup"
        )
    if course.error is not None:
        done = len(course.statistics)
        place = "setup" if not totals else f"step {done}" if done < totals[0] else "finish"
        example.fail(
            f"{place} raises {type(course.error).__name__}: {course.error}",
            f"{totals[0] if totals else 'all'} steps and an end",
            "make `total` and `step` agree, or mend the example",
        )
    if len(set(totals)) > 1:
        example.fail(f"`total` is {totals[0]} after setup, and later {totals[-1]}", "one number", "count them in setup")


@check_example("stage")
def statistics_are_numbers(example: Example) -> None:
    """Steps and evaluations give plain finite numbers by name, ready to be logged."""
    for statistics in _straight(example).statistics:
        for name, value in statistics.items():
            if not isinstance(name, str) or not _is_number(value):
                example.fail(f"statistic {name!r} is {value!r}", "a finite Python number", "write float(...) around it")


@check_example("stage")
def leaves_json(example: Example) -> None:
    """What `finish` gives and what is put into `run.artefacts` is JSON: it goes into checkpoints and summary.json."""
    course = _finished(example)
    for name, value in {"finish() gives": course.result, "run.artefacts is": course.run.artefacts}.items():
        if not _is_json(value):
            example.fail(
                f"{name} {value!r}",
                "a dict of strings, numbers, lists and dicts with text for keys",
                "write str(...) around paths, float(...) around tensors",
            )


@check_example("stage")
def resumes_bit_for_bit(example: Example) -> None:
    """Stopped after its first step, or its last, and set up anew, it goes on bit for bit as if it had not been."""
    straight = _finished(example)
    total = straight.totals[0]
    if not total:
        raise NotApplicable("it has no steps to be stopped after")
    for stop in sorted({1, total}):
        stopped = Course(example, stop_after=stop)
        resumed = Course(example, stopped.folder, resume=True)
        error = stopped.error if not isinstance(stopped.error, Interrupted) else resumed.error
        if error is not None:
            example.fail(
                f"stopped after step {stop} and resumed, it raises {type(error).__name__}: {error}",
                "a run that goes on",
                "give tensors and JSON in state_dict, and let load_state_dict take them back after setup",
            )
        if changed := _differences(straight, stopped, resumed):
            example.fail(
                f"stopped after step {stop} and resumed, it ends with other {', '.join(changed)}",
                "the same, bit for bit",
                "put what changes into state_dict or components(), and draw from context.stream(step)",
            )


def _differences(straight: Course, stopped: Course, resumed: Course) -> list[str]:
    """What is not as it is without an interruption."""
    changed = [name for name, state in straight.states.items() if not same(state, resumed.states.get(name))]
    if not same(straight.statistics, stopped.statistics + resumed.statistics):
        changed.append("statistics")
    return changed + (["results"] if straight.left != resumed.left else [])


@check_example("stage")
def writes_inside_its_run(example: Example) -> None:
    """What it writes lies in the run directory: nothing appears in the working directory, or beside the run's."""
    if strays := _straight(example).strays:
        example.fail(
            f"it writes {', '.join(strays)} outside of the run directory",
            "files in the run directory alone",
            "write to run.directory / NAME",
        )


@check_example("stage")
def works_in_a_dry_run(example: Example) -> None:
    """A dry run takes one step, or none if there are none, and ends."""
    _finished(example)
    error = Course(example, dry_run=True).error
    if error is not None:
        example.fail(
            f"in a dry run it raises {type(error).__name__}: {error}",
            "an end after one step",
            "let finish() do with the steps that were taken",
        )
