"""A file of feedback, read through the feedback source that fits it, with its bad rows collected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from rlhf_core.errors import ConfigError, DataError, did_you_mean
from rlhf_core.interfaces import Config, Context, FeedbackSource, Row, RowFeedback, SourceConfig, read_rows
from rlhf_core.plugins import Plugins
from rlhf_core.records import Feedback

C = TypeVar("C", bound=Config)

GUESSES = (
    ("records", ["kind"]),
    ("preference", ["chosen", "rejected"]),
    ("preference", ["responses", "ranks"]),
    ("edit", ["original", "edited"]),
    ("keywords", ["wanted"]),
    ("keywords", ["unwanted"]),
    ("rating", ["rating"]),
    ("rating", ["score"]),
    ("rating", ["aspects"]),
    ("rating", ["event"]),
    ("rating", ["label"]),
    ("demonstrations", ["completion"]),
    ("demonstrations", ["messages"]),
    ("demonstrations", ["response"]),
)
"""Name of a feedback source, and columns that together tell it; the first that fits is taken."""
FEELINGS = ("positive", "negative", "neutral")


@dataclass(frozen=True)
class Problem:
    """A row that gives no record (reason "bad row"), or a record that is dropped."""

    where: str
    annotator: str | None
    reason: str
    detail: str


class FeedbackFile:
    """(where, record) of a file; `bad` holds the rows of the last reading that give no record.

    Args:
        path: the file, in any format that sources read.
        use: name of the feedback source; None: guessed from the columns of the first row.
        columns: our names for columns -> the file's.
        options: further options of the source, such as ``scale``.

    Raises:
        DataError: the file is not there, or its columns tell no source. PluginError: the source is not installed.
        ConfigError: the source has no such option.
    """

    def __init__(
        self, path: Path, plugins: Plugins, use: str | None, columns: Mapping[str, str], options: Mapping[str, Any]
    ) -> None:
        self.path, self.bad = path, list[Problem]()
        if not path.is_file():
            raise DataError(str(path), "there is no such file", "a file of feedback", "check the name")
        columns = dict(columns)
        self.use = use or self._guess(columns)
        spec = plugins.find("feedback", self.use)
        config_class: type[Config] = plugins.import_class(spec, "config")
        values: dict[str, Any] = {"path": str(path)}
        values |= {"columns": columns} if columns else {}
        values |= {"on_bad_record": "skip"} if "on_bad_record" in config_class.model_fields else {}
        config = validated(config_class, values | dict(options), f"feedback {self.use!r}")
        context = Context("feedback", path.name, warn=lambda message: None)
        self.source: FeedbackSource[Any] = plugins.import_class(spec, "factory")(config, context)

    def _guess(self, columns: dict[str, str]) -> str:
        """The name of a source; a `score` becomes the rating that `rating` reads."""
        config = SourceConfig(path=str(self.path), columns=columns)
        row = next(read_rows(config, str(self.path), lambda error: None), None)
        if row is None:
            raise DataError(str(self.path), "no row in it can be read", "at least one record", "check the file")
        present = {name for name, value in row.data.items() if value is not None}
        if row.data.get("label") in FEELINGS and "rating" not in present:
            return "sentiment"
        for name, wanted in GUESSES:
            if present.issuperset(wanted):
                if wanted == ["score"]:
                    columns["rating"] = columns.pop("score", "score")
                return name
        raise DataError(
            row.where,
            f"columns {', '.join(map(repr, row.data)) or 'none'}, which are those of no kind of feedback",
            "columns such as chosen and rejected, rating, or original and edited",
            "name the source with --use, or map columns with --column OURS=THEIRS",
        )

    def __iter__(self) -> Iterator[tuple[str, Feedback]]:
        self.bad = []
        if not isinstance(self.source, RowFeedback):
            yield from ((f"record {number}", record) for number, record in enumerate(self.source, 1))
            return
        # thumbs may wait for others of their prompt, so a row of them that gives nothing need not be a bad one
        waits = type(self.source).rest is not RowFeedback.rest
        where = str(self.path)
        for row, found in self.source.readings():
            where = where if row is None else row.where
            if isinstance(found, DataError):
                self._add(row, found.where, found.got + (f"; expected {found.expected}" if found.expected else ""))
            elif row is not None and not found and not (waits and "label" in row.data):
                self._add(row, where, f"the source {self.use!r} makes no record of it, since it says nothing")
            else:
                yield from ((where, record) for record in found)

    def _add(self, row: Row | None, where: str, detail: str) -> None:
        annotator = None if row is None else row.data.get("annotator")
        self.bad.append(Problem(where, None if annotator is None else str(annotator), "bad row", detail))


def validated(config: type[C], values: Mapping[str, Any], where: str) -> C:
    """`config` of `values`; what is wrong first as a `ConfigError`."""
    try:
        return config.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        known = list(config.model_fields)
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(name, known) or f"known: {', '.join(known)}"
            raise ConfigError(f"{where} {name}", "there is no such option", fix=hint) from error
        got = f"{str(first['msg']).removeprefix('Value error, ')}, got {first['input']!r}"
        raise ConfigError(f"{where} {name}".strip(), got) from error
