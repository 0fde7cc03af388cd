"""Memory and speed of reading feedback, at ten thousand rows and at many.

    python benchmarks/streaming.py [--large 1000000] [--formats jsonl csv parquet] [--folder DIR]

Every file is written, and read, in a process of its own. The reading process first reads a file of one row, so that
the libraries are there, and notes its peak memory; then it goes through all records of the file with the source
`records`. Prints a Markdown table: peak memory before and after, and rows per second. Ten million rows are 1.5 GB of
JSONL, written below --folder (by default that for temporary files) and removed again.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

SMALL = 10_000
FORMATS = ("jsonl", "csv", "parquet")
ROW_GROUP = 100_000
MEGABYTE = 2**20 if sys.platform == "darwin" else 2**10  # in the units of ru_maxrss


def ratings(count: int) -> Iterator[dict[str, Any]]:
    """Ratings of a sentence each, no two of them alike."""
    for n in range(count):
        yield {
            "kind": "rating",
            "prompt": f"What is {n} and {n % 89}?",
            "response": f"It is {n + n % 89}, I should think.",
            "score": n % 5 + 1,
            "scale": [1, 5],
            "annotator": f"worker-{n % 97}",
        }


def write(path: Path, count: int) -> None:
    """A file of `count` ratings, in the format of its suffix, never more than a row group of it in memory."""
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in ratings(count))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(next(ratings(1))))
            writer.writeheader()
            writer.writerows(ratings(count))
    else:
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        rows = ratings(count)
        with ParquetWriter(path, pyarrow.Table.from_pylist(list(ratings(1))).schema) as file:
            while group := list(islice(rows, ROW_GROUP)):
                file.write_table(pyarrow.Table.from_pylist(group))


def read(path: Path, tiny: Path) -> dict[str, float]:
    """Peak memory in MB before and after going through `path`, and the seconds it took."""
    from rlhf_core.components.config import RecordsConfig
    from rlhf_core.components.records import Records
    from rlhf_core.interfaces import Context

    def records(path: Path) -> Records:
        return Records(RecordsConfig(path=str(path)), Context())

    assert len(list(records(tiny))) == 1
    before, start = peak(), time.perf_counter()
    first = 0.0
    for rows, _ in enumerate(records(path), 1):  # noqa: B007
        first = first or time.perf_counter() - start
    seconds = time.perf_counter() - start
    return {"before": before, "after": peak(), "rows": rows, "first": first, "seconds": seconds}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def apart(*arguments: object) -> str:
    """What this script prints when it is run with `arguments`. This process itself imports nothing large: a child's
    peak memory begins with that of its parent."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare(folder: Path, formats: list[str], large: int) -> None:
    print("| format | rows | file | peak before | peak after | growth | first row | rows/s |")
    print("|---|---|---|---|---|---|---|---|")
    for suffix in formats:
        tiny, path = folder / f"tiny.{suffix}", folder / f"ratings.{suffix}"
        apart("--write", tiny, "--rows", 1)
        for count in (SMALL, large):
            apart("--write", path, "--rows", count)
            size = path.stat().st_size / 2**20
            found = json.loads(apart("--read", path, "--tiny", tiny))
            path.unlink()
            assert found["rows"] == count
            cells = [
                suffix,
                f"{count:,}",
                f"{size:,.1f} MB",
                f"{found['before']:.0f} MB",
                f"{found['after']:.0f} MB",
                f"{found['after'] - found['before']:.0f} MB",
                f"{found['first']:.2f} s",
                f"{count / found['seconds']:,.0f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--large", type=int, default=10_000_000, help="rows of the larger file")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--folder", help="where the files are written for a while")
    for inner in ("--write", "--read", "--tiny"):  # what this script asks of itself
        parser.add_argument(inner, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write, options.rows)
    elif options.read:
        print(json.dumps(read(options.read, options.tiny)))
    else:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="rlhf-streaming-") as folder:
            compare(Path(folder), options.formats, options.large)


if __name__ == "__main__":
    main()
