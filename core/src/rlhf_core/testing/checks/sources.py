"""Sources of feedback and prompts: the same records, as often as they are read."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from ...records import FeedbackRecord, Prompt
from ..kit import check_example
from ..subjects import Example


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


def _texts(source: Any, indices: Iterable[int]) -> dict[int, Any]:
    """What stands at each index, or the kind of error that is raised there."""
    found: dict[int, Any] = {}
    for i in indices:
        try:
            found[i] = getattr(source[i], "text", None)
        except Exception as error:
            found[i] = type(error)
    return found


@check_example("prompts")
def index_is_stable(example: Example) -> None:
    """An index names the same prompt whenever it is asked for, and in every source built alike."""
    source, other = example.build(), example.build()
    forth = _texts(source, range(len(source)))
    back = _texts(source, reversed(range(len(source))))
    if not forth == back == _texts(other, range(len(other))):
        example.fail(
            "an index gives different prompts at different times",
            "the same prompt always",
            "leave shuffling to the run, which derives the order from its seed",
        )
