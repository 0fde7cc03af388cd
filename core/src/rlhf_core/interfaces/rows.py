"""Rows of files and datasets, with column names mapped and every complaint saying which row it is about."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, starmap
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ..errors import DataError
from ..records import Feedback, Prompt
from .components import FeedbackSource
from .config import SourceConfig
from .files import Bad, Placed, file_rows, reported, unpacked

S = TypeVar("S", bound=SourceConfig)
T = TypeVar("T")

ABOUT = ("annotator", "time", "source", "comment", "weight")
"""What a row of any kind of feedback may say about itself."""

MEND = "mend the row, or set on_bad_record: skip"


@dataclass(frozen=True)
class Row:
    """One row: where it stands (as `file_rows` says, or ``dataset[split] row n``), and its columns under our names."""

    where: str
    data: dict[str, Any]

    def take(self, name: str) -> Any:
        """The value of column `name`.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.data:
            raise DataError(
                self.where,
                f"no column {name!r}, only {', '.join(map(repr, self.data)) or 'none'}",
                f"a column {name!r}",
                f"map it in the config: columns: {{{name}: <its name in the file>}}",
            )
        return self.data[name]

    def take_list(self, name: str) -> list[Any]:
        """The list in column `name`, or the one whose JSON text stands there, as in a cell of a CSV file.

        Raises:
            DataError: there is no such column, or no list in it.
        """
        value = unpacked(self.take(name))
        if not isinstance(value, list):
            raise self.bad(
                f"{name} is {json.dumps(value, ensure_ascii=False, default=str):.60}",
                'a list, or JSON text of one, such as ["a", "b"]',
            )
        return value

    def response(self) -> str:
        """The response of a row that has one, in column `response` or `completion`.

        Raises:
            DataError: there is no such column, or no text in it.
        """
        return self.text(self.data["response"] if "response" in self.data else self.take("completion"))

    def text(self, response: Any) -> str:
        """A response as text, from text or from a list with one assistant message.

        Raises:
            DataError: it is neither.
        """
        if isinstance(response, str):
            return response
        if isinstance(response, list) and len(response) == 1 and isinstance(response[0], dict):
            content = response[0].get("content")
            if response[0].get("role") == "assistant" and isinstance(content, str):
                return content
        raise self.bad(f"a response that is {described(response)}", "text, or a list with one assistant message")

    def bad(self, got: str, expected: str, fix: str = MEND) -> DataError:
        """The error to raise of a row like this; the source decides whether it ends the reading."""
        return DataError(self.where, got, expected, fix)

    def about(self) -> dict[str, Any]:
        """The columns that every kind of feedback may have (`ABOUT`), where they are there and not null."""
        about = {name: self.data[name] for name in ABOUT if self.data.get(name) is not None}
        if isinstance(about.get("annotator"), (int, float)):
            about["annotator"] = str(about["annotator"])  # annotators are often numbered
        return about

    def prompt(self, value: Any, used: Iterable[str], fields: tuple[str, ...] | None) -> Prompt:
        """A prompt from `value` (text or messages) with the columns `fields` (None: all but `used`) beside it.

        Where the row has a column `system`, the prompt is a chat that begins with that text as its system message.

        Raises:
            DataError: `system` is not text, or stands in the messages as well.
        """
        if fields is None:
            kept = {name: v for name, v in self.data.items() if name not in {"system", *used}}
        else:
            kept = {name: self.take(name) for name in fields}
        return Prompt(text=self._with_system(value) if "system" in self.data else value, fields=kept)

    def _with_system(self, value: Any) -> Any:
        """Text or messages with the system message of the row; text is the user's, also where that cell is empty."""
        system = self.data["system"]
        if not isinstance(system, str) and system is not None:
            raise self.bad(f"system is {described(system)}", "text")
        chat = [{"role": "user", "content": value}] if isinstance(value, str) and value else value
        if not (system or "").strip() or not chat or not isinstance(chat, list):
            return chat
        if any(isinstance(message, dict) and message.get("role") == "system" for message in chat):
            raise self.bad("a system message in the prompt and another in the column `system`", "one of them")
        return [{"role": "system", "content": system}, *chat]


def read_rows(config: SourceConfig, where: str, bad: Bad = None) -> Iterator[Row]:
    """Stream the rows of a source; reading again starts from the beginning.

    Args:
        config: where they come from.
        where: the component, for messages.
        bad: called with the error of a malformed row, which is then passed over; None: the error is raised.

    Raises:
        DataError: the file or dataset cannot be read, or a row is malformed.
    """
    found = _dataset_rows(config, where) if config.path is None else file_rows(Path(config.path), where, bad)
    for row in starmap(Row, islice(found, config.limit)):
        missing = [pair for pair in config.columns.items() if pair[1] not in row.data]
        if missing:
            ours, theirs = missing[0]
            complaint = DataError(
                row.where,
                f"no column {theirs!r}, only {', '.join(map(repr, row.data)) or 'none'}",
                f"the column that {where} maps to {ours!r}",
                "mend `columns` in its config",
            )
            if bad is None:
                raise complaint
            bad(complaint)
            continue
        taken = set(config.columns.values())
        kept = {name: value for name, value in row.data.items() if name not in taken}
        yield Row(row.where, {**kept, **{ours: row.data[theirs] for ours, theirs in config.columns.items()}})


def _dataset_rows(config: SourceConfig, where: str) -> Placed:
    def failed(reason: str) -> DataError:
        return DataError(
            where,
            f"cannot load dataset {config.dataset!r}: {reason}",
            "a dataset id and split",
            "check the name and the network, or give `path` to a file",
        )

    for number, data in enumerate(reported(_loaded(config), failed)):  # from 0, as the pages of the hub count
        yield f"{config.dataset}[{config.split}] row {number}", data


def _loaded(config: SourceConfig) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    yield from load_dataset(
        str(config.dataset),
        name=config.name,
        split=config.split,
        data_dir=config.data_dir,
        revision=config.revision,
        streaming=True,
    )


def checked(row: Row, build: Callable[[], T]) -> T:
    """``build()``, with what goes wrong in it told as a `DataError` of this row."""
    try:
        return build()
    except ValidationError as error:
        # of a union the branch that came furthest says what is really wrong
        first = max(error.errors(include_url=False), key=lambda problem: len(problem["loc"]))
        place = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
        message = str(first["msg"]).removeprefix("Value error, ")
        raise row.bad(f"{place}: {message}" if place else message, "") from error


def described(value: Any) -> str:
    """What `value` is, in the words of someone who reads JSON."""
    if isinstance(value, list):
        roles = [str(item.get("role", "no role")) for item in value if isinstance(item, dict)]
        return f"a list of {len(value)}" + (f" ({', '.join(roles)})" if roles else "")
    names = {str: "text", dict: "an object", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _is_branch(part: int | str) -> bool:
    """Whether `part` of a pydantic location names a branch of a union rather than a field."""
    return part == "str" or (isinstance(part, str) and "[" in part)


class RowFeedback(FeedbackSource[S]):
    """A feedback source that makes records of rows; a subclass says how in `records`."""

    @abstractmethod
    def records(self, row: Row) -> Iterable[Feedback]:
        """The records of one row; may raise DataError or pydantic's ValidationError if it is a bad one."""

    def rest(self) -> Iterable[Feedback]:
        """Records that waited for a further row; asked for after the last one."""
        return ()

    def readings(self) -> Iterator[tuple[Row | None, list[Feedback] | DataError]]:
        """Every row with its records, or with what is wrong with it; bad ones do not end the reading.

        Without a row come the error of one that cannot even be read, and the records that waited.
        """
        malformed: list[DataError] = []
        for row in read_rows(self.config, self.context.where, malformed.append):
            yield from ((None, error) for error in malformed)
            malformed.clear()
            try:
                records = checked(row, partial(self._list, row))
            except DataError as error:
                yield row, error
            else:
                yield row, records
        yield from ((None, error) for error in malformed)
        yield None, list(self.rest())

    def __iter__(self) -> Iterator[Feedback]:
        self.skipped = 0
        nothing = True
        for _, found in self.readings():
            if isinstance(found, DataError):
                if self.config.on_bad_record != "skip":
                    raise found
                self.skipped += 1
                continue
            nothing = nothing and not found
            yield from found
        if self.skipped:
            self.context.warn(f"{self.context.where}: skipped {self.skipped} bad records")
        if nothing:
            origin = self.config.path or self.config.dataset
            raise DataError(
                self.context.where,
                f"{origin} gives no feedback ({self.skipped} bad records skipped)",
                "at least one record",
                "check the file and the `columns` of the source",
            )

    def _list(self, row: Row) -> list[Feedback]:
        return list(self.records(row))
