"""Sources of feedback and prompts: the same records, as often as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...interfaces import Config, FeedbackSource
from ...records import Feedback, FeedbackRecord, Prompt
from ..answers import texts
from ..kit import check_example
from ..records import example_feedback
from ..subjects import Example, NotApplicable
from ..toys import NoOptions, tiny_context


@check_example("feedback")
def yields_records(example: Example) -> None:
    """Iterating gives feedback records, at least one."""
    records = list(example.build())
    if not records:
        example.fail("no record", "at least one", "give an example with data in it")
    for record in records:
        if not isinstance(record, FeedbackRecord):
            example.fail(
                f"a {type(record).__name__}",
                "records such as Comparison or Rating",
                "make one of rlhf_core.records of it",
            )


def _ids(source: Iterable[Any]) -> list[str]:
    return [str(getattr(record, "id", record)) for record in source]


@check_example("feedback")
def restarts_from_the_beginning(example: Example) -> None:
    """Iterating again, also after stopping in the middle, gives the same records."""
    source = example.build()
    first = _ids(source)
    list(islice(iter(source), 1))
    again = _ids(source)
    if first != again:
        example.fail(
            f"{len(first)} records, then {len(again)} other ones",
            "the same records in the same order",
            "make the iterator in __iter__, not in __init__",
        )


@check_example("feedback")
def ids_are_stable(example: Example) -> None:
    """Two sources built alike give records with the same ids: nothing in a record depends on when it is read."""
    first, second = _ids(example.build()), _ids(example.build())
    if first != second:
        example.fail(
            "two sources built alike give other ids",
            "ids that are the same in every run",
            "leave out clocks and random numbers: ids are hashes of the content",
        )


@check_example("feedback")
def streams(example: Example) -> None:
    """The first record comes before the last row is read, of its file (JSONL) or of the feedback that it names."""
    if not example.subject.component_class.streaming:
        raise NotApplicable("it declares that it reads everything first: streaming = False")
    path = getattr(example.config, "path", None)
    if path is not None and Path(path).suffix == ".jsonl" and Path(path).is_file():
        source = example.with_config(path=type(path)(_broken_at_the_end(Path(path)))).build()
    elif _names_feedback(example.config):
        toys = tiny_context()
        source = example.build(resolve=lambda kind, id: Endless() if kind == "feedback" else toys.component(kind, id))
    else:
        raise NotApplicable("it reads neither a JSONL file nor other feedback")
    try:
        next(iter(source))
    except Exception as error:
        example.fail(
            f"{type(error).__name__} of the last row, before there was a record: {error}",
            "a first record before the last row is read",
            "yield records as they come; or declare streaming = False",
        )


def _broken_at_the_end(path: Path) -> Path:
    """A copy of a JSONL file, many times over, with a last line that is none."""
    text = path.read_text(encoding="utf-8").strip() + "\n"
    copy = path.with_name(f"broken-{path.name}")
    copy.write_text(text * REPEATS + "{\n", encoding="utf-8")
    return copy


REPEATS = 50
"""Somebody may well look a batch ahead."""


def _names_feedback(config: Config) -> bool:
    return any("feedback" in name for name in type(config).model_fields)


class Endless(FeedbackSource[NoOptions]):
    """`example_feedback` many times over, and then an error."""

    def __init__(self) -> None:
        super().__init__(NoOptions(), tiny_context("feedback"))

    def __iter__(self) -> Iterator[Feedback]:
        for _ in range(REPEATS):
            yield from example_feedback()
        raise DataError("feedback 'endless'", "the last record was asked for", "a first record before that")


@check_example("prompts")
def length_and_index_agree(example: Example) -> None:
    """``source[0]`` to ``source[len(source) - 1]`` are prompts, and there is at least one."""
    source = example.build()
    if len(source) < 1:
        example.fail(f"len is {len(source)}", "at least one prompt", "give an example with data in it")
    for i in range(len(source)):
        try:
            prompt = source[i]
        except Exception as error:
            example.fail(
                f"len is {len(source)}, and [{i}] raises {type(error).__name__}: {error}",
                "a prompt at every index below len",
            )
        if not isinstance(prompt, Prompt):
            example.fail(f"[{i}] is a {type(prompt).__name__}", "a Prompt", "wrap it: Prompt(text=...)")


@check_example("prompts")
def index_is_stable(example: Example) -> None:
    """An index names the same prompt whenever it is asked for, and in every source built alike."""
    source, other = example.build(), example.build()
    forth = texts(source, range(len(source)))
    back = texts(source, reversed(range(len(source))))
    if not forth == back == texts(other, range(len(other))):
        example.fail(
            "an index gives different prompts at different times",
            "the same prompt always",
            "leave shuffling to the run, which derives the order from its seed",
        )


@check_example("prompts")
def resumes_anywhere(example: Example) -> None:
    """A source just built gives the prompt at any index, without having been asked for those before it."""
    count = len(whole := example.build())
    expected = texts(whole, range(count))
    for i in sorted({count // 2, count - 1}):
        if (found := texts(example.build(), [i])[i]) != expected[i]:
            example.fail(
                f"asked first, [{i}] is {found!r}, and {expected[i]!r} after those before it",
                "the same prompt always",
                "find each prompt by its index: a resumed run begins in the middle",
            )
