"""Reading files row by row, in memory that does not grow with them: JSONL, JSON, CSV, TSV and Parquet.

Every reader yields (where the row stands, its columns). CSV goes through `datasets`, as hub ids do. JSONL and Parquet
have readers of their own. Of JSONL, `datasets` makes up one type per column over thousands of lines, which breaks rows
whose columns differ, and it no longer knows the line that an error is about. Of Parquet it holds a whole row group in
memory, which as most libraries write them is a million rows; `pyarrow` below it can do with a page.
"""

from __future__ import annotations

import glob
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

from ..errors import DataError

FORMATS = "a JSONL file, plain or .gz, or one that ends in .json, .csv, .tsv (each also .gz) or .parquet"
BATCH = 1000  # rows that are decoded at once: so many are in memory
MAX_DEPTH = 50  # of lists and objects inside each other, as in a registry file
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"

T = TypeVar("T")
Placed: TypeAlias = Iterator[tuple[str, dict[str, Any]]]
Bad: TypeAlias = Callable[[DataError], None] | None
"""Called with the error of a malformed row, which is then passed over; None: the error is raised."""
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
UNREADABLE = (OSError, EOFError, zlib.error)


def file_rows(path: Path, where: str, bad: Bad) -> Placed:
    """The rows of a file, read as its suffix says; any other suffix than those of `FORMATS` is read as JSONL.

    A row stands at ``file:line`` in JSONL, and at ``file row n`` elsewhere: n counts from 1, and neither the header
    nor empty lines of a CSV file count.

    Args:
        where: the component, for messages.

    Raises:
        DataError: there is no such file, it cannot be read, or a row is malformed and `bad` is None.
    """
    if not path.is_file():
        raise DataError(where, f"no file at {path}", FORMATS, "check `path`; relative paths start at the registry file")
    match Path(path.name.removesuffix(".gz")).suffix.lower():
        case ".csv":
            return _csv_rows(path, ",")
        case ".tsv":
            return _csv_rows(path, "\t")
        case ".parquet":
            return _parquet_rows(path)
        case ".json":
            return _json_rows(path, bad)
        case _:
            return _jsonl_rows(path, bad)


def reported(rows: Iterator[T], failed: Callable[[str], DataError]) -> Iterator[T]:
    """`rows`; if anything is raised while they come, `failed` makes the error of its reason."""
    try:
        yield from rows
    except Exception as error:  # `datasets` and what is below it raise many kinds
        lines = str(error).strip().splitlines()
        raise failed(lines[0] if lines else type(error).__name__) from error


def unpacked(value: Any) -> Any:
    """A list or object from its JSON text, as a CSV cell holds it; anything else stays as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError):
            return _json(value.encode())
    return value


def _csv_rows(path: Path, separator: str) -> Placed:
    """Cells are text ("01" stays "01", "NA" stays "NA"), and an empty one is None. Columns without a name are left out.

    A row with too few cells ends in empty ones. One with too many ends the reading even where bad rows are to be
    skipped: the parser does not go on behind it.
    """
    from datasets import Features, Value

    failed = partial(_unreadable, path, "UTF-8 text with a header, and no row with more cells than it")
    # without types named beforehand "01" is 1: names first, with the first row, whose types do not matter
    first = next(reported(_cells(path, separator, nrows=1), failed), {})
    if any(name.startswith("__index_level_") for name in first):  # what the parser makes of surplus cells in front
        raise failed("row 1 has more cells than the header")
    names = [name for name in first if not name.startswith("Unnamed: ")]
    if not names:
        return
    rows = _cells(path, separator, features=Features({name: Value("string") for name in names}))
    for number, row in enumerate(reported(rows, failed), 1):
        yield f"{path} row {number}", {name: cell or None for name, cell in row.items()}


def _cells(path: Path, separator: str, **options: Any) -> Iterator[dict[str, Any]]:
    """Streams without a copy: lock files of 0 bytes in the cache of `datasets` are all that is written."""
    from datasets.packaged_modules.csv.csv import Csv  # `load_dataset` would count its use on a server

    files = [glob.escape(str(path.absolute()))]  # it would take [1] in a name for a pattern
    builder = Csv(data_files=files, sep=separator, keep_default_na=False, chunksize=BATCH, **options)
    # table by table, which is three times as fast as row by row
    for table in builder.as_streaming_dataset(split="train").with_format("arrow").iter(BATCH):
        yield from table.to_pylist()


def _parquet_rows(path: Path) -> Placed:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        # buffered, a page at a time; by default the columns of a row group are read whole, and ahead
        with ParquetFile(path, buffer_size=1 << 16, pre_buffer=False) as file:
            batches = file.iter_batches(BATCH, use_threads=False)
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield f"{path} row {number}", row
    except (ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, "a Parquet file", str(error)) from error


def _json_rows(path: Path, bad: Bad) -> Placed:
    """One list of objects, which is in memory as a whole; or one object per line after all."""
    try:
        with _open(path) as file:
            start = file.read(1024)
            listed = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["  # behind a byte order mark and white space
            items = _json(start + file.read()) if listed else []
    except (*UNREADABLE, ValueError) as error:
        raise _unreadable(path, "one list of JSON objects, or one object per line", str(error)) from error
    if not listed:
        yield from _jsonl_rows(path, bad)
    for number, item in enumerate(items, 1):
        place = f"{path} row {number}"
        if isinstance(item, dict):
            yield place, item
        else:
            _malformed(place, f"malformed row: a {type(item).__name__}, not an object", "a list of objects", bad)


def _jsonl_rows(path: Path, bad: Bad) -> Placed:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                place = f"{path}:{number}"
                try:
                    data = _json(line)
                    if not isinstance(data, dict):
                        raise ValueError(f"a {type(data).__name__}, not an object")
                except ValueError as error:
                    if isinstance(error, json.JSONDecodeError):  # its own words count lines within this one
                        error = ValueError(f"{error.msg.removesuffix(' at')} at character {error.pos + 1}")
                    _malformed(place, f"malformed line: {error}", "one JSON object per line", bad)
                    continue
                yield place, data
    except UNREADABLE as error:  # behind the last line that was whole
        raise DataError(f"{path}:{number + 1}", f"cannot be read: {error}", "a readable file, plain or gzip") from error


def _json(text: bytes) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is not JSON or not UTF-8, or nothing could write it down again: it is nested too deeply, or has
            half of a surrogate pair.
    """
    try:
        data = json.loads(text.decode("utf-8-sig"), parse_constant=_refuse)
        if text.count(b"[") + text.count(b"{") > MAX_DEPTH:
            _check_depth(data)
        if SURROGATE.search(text):
            json.dumps(data, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte 0x{error.object[error.start]:02x} at {error.start} is not UTF-8") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a surrogate pair (\\u{ord(error.object[error.start]):04x})") from None
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON: write null")


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        nested = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [item for items in nested for item in items]
    if level:
        raise ValueError(TOO_DEEP)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _malformed(place: str, got: str, expected: str, bad: Bad) -> None:
    complaint = DataError(place, got, expected, "mend it, or set on_bad_record: skip")
    if bad is None:
        raise complaint
    bad(complaint)


def _unreadable(path: Path, expected: str, reason: str) -> DataError:
    return DataError(str(path), f"cannot be read: {reason}", expected, "mend the file, or save it anew")
