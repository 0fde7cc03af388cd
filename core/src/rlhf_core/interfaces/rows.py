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
            raise DataError(
                self.where,
                f"{name} is {json.dumps(value, ensure_ascii=False, default=str):.60}",
                'a list, or JSON text of one, such as ["a", "b"]',
                "mend the row, or set on_bad_record: skip",
            )
        return value

    def about(self) -> dict[str, Any]:
        """The columns that every kind of feedback may have (`ABOUT`), where they are there and not null."""
        about = {name: self.data[name] for name in ABOUT if self.data.get(name) is not None}
        if isinstance(about.get("annotator"), (int, float)):
            about["annotator"] = str(about["annotator"])  # annotators are often numbered
        return about

    def prompt(self, value: Any, used: Iterable[str], fields: tuple[str, ...] | None) -> Prompt:
        """A prompt from `value` (text or messages) with the columns `fields` (None: all but `used`) beside it."""
        if fields is None:
            kept = {name: v for name, v in self.data.items() if name not in set(used)}
        else:
            kept = {name: self.take(name) for name in fields}
        return Prompt(text=value, fields=kept)


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
        raise DataError(
            row.where, f"{place}: {message}" if place else message, "", "mend the row, or set on_bad_record: skip"
        ) from error


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

    def __iter__(self) -> Iterator[Feedback]:
        self.skipped = 0
        found = False
        for row in read_rows(self.config, self.context.where, self._bad if self._skips else None):
            try:
                records = checked(row, partial(self._list, row))
            except DataError as error:
                if not self._skips:
                    raise
                self._bad(error)
                continue
            found = found or bool(records)
            yield from records
        rest = list(self.rest())
        yield from rest
        found = found or bool(rest)
        if self.skipped:
            self.context.warn(f"{self.context.where}: skipped {self.skipped} bad records")
        if not found:
            origin = self.config.path or self.config.dataset
            raise DataError(
                self.context.where,
                f"{origin} gives no feedback ({self.skipped} bad records skipped)",
                "at least one record",
                "check the file and the `columns` of the source",
            )

    def _list(self, row: Row) -> list[Feedback]:
        return list(self.records(row))

    @property
    def _skips(self) -> bool:
        return self.config.on_bad_record == "skip"

    def _bad(self, error: DataError) -> None:
        self.skipped += 1
