"""Reading rows: the formats, what their cells become, bad input, and memory that does not grow with the file."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError
from rlhf_core.components.config import DemonstrationsConfig, PromptsConfig, RecordsConfig
from rlhf_core.components.demonstrations import Demonstrations
from rlhf_core.components.prompts import Prompts
from rlhf_core.components.records import Records
from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context, Row, SourceConfig, read_rows
from rlhf_core.records import Comparison, Demonstration, Feedback, Keywords, Rating
from rlhf_core.testing.records import example_feedback

TABLE = [
    {"prompt": "Hi\nthere, you", "score": "01", "annotator": "NA"},
    {"prompt": 'a "b"', "score": "2", "annotator": None},
]
CSV = 'prompt,score,annotator\n"Hi\nthere, you",01,NA\n\n"a ""b""",2,\n'
FORMATS = ["rows.jsonl", "rows.jsonl.gz", "rows.txt", "rows.json", "rows.json.gz", "lines.json", "rows.csv", "rows.CSV",
           "rows.csv.gz", "rows [1].csv", "rows.tsv", "rows.tsv.gz", "rows.parquet"]  # fmt: skip


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def table(path: Path) -> Path:
    """A file with the rows of `TABLE`, in the format of its name."""
    lines = "".join(json.dumps(row) + "\n" for row in TABLE)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TABLE), path)
        return path
    if ".csv" in path.name.lower():
        return write(path, CSV)
    if ".tsv" in path.name:
        return write(path, CSV.replace(",", "\t").replace("there\t", "there,"))
    return write(path, json.dumps(TABLE, indent=1) if "rows.json" in path.name and "jsonl" not in path.name else lines)


def rows(path: Path, bad: Any = None, **config: Any) -> list[Row]:
    return list(read_rows(SourceConfig(path=str(path), **config), "feedback 'people'", bad))


def data(path: Path, **config: Any) -> list[dict[str, Any]]:
    return [row.data for row in rows(path, **config)]


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / name)
    found = rows(path)
    assert [row.data for row in found] == TABLE
    lines = "jsonl" in name or name in ("rows.txt", "lines.json")
    assert [row.where for row in found] == [f"{path}:{n}" if lines else f"{path} row {n}" for n in (1, 2)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_limit_columns_and_fields_work_for_every_format(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / name)
    columns = {"completion": "prompt", "prompt": "score"}
    assert data(path, limit=1, columns=columns) == [{"annotator": "NA", "prompt": "01", "completion": "Hi\nthere, you"}]
    kept = Prompts(PromptsConfig(path=str(path)), Context())
    assert kept[1].text == 'a "b"' and kept[1].fields == {"score": "2", "annotator": None}
    fewer = Prompts(PromptsConfig(path=str(path), fields=("score",)), Context())
    assert [fewer[i].fields for i in range(len(fewer))] == [{"score": "01"}, {"score": "2"}]
    with pytest.raises(DataError, match=r"(:1|row 1): no column 'nope', only 'prompt', 'score', 'annotator'"):
        data(path, columns={"response": "nope"})


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv.gz", "rows.parquet"])
def test_a_source_starts_at_once_and_from_the_beginning_again(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / name)
    source = Demonstrations(DemonstrationsConfig(path=str(path), columns={"completion": "score"}), Context())
    first = next(iter(source))
    again = list(source)
    assert len(again) == 2 and again[0] == first


def test_cells_of_csv_are_text_and_empty_ones_count_as_absent(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv", '\ufeffprompt,completion,annotator,weight\n1.50,true,,\nnull,NaN,7,0.5\n"","", ,\n'
    )
    assert data(path)[:2] == [
        {"prompt": "1.50", "completion": "true", "annotator": None, "weight": None},
        {"prompt": "null", "completion": "NaN", "annotator": "7", "weight": "0.5"},
    ]
    assert data(path)[2] == {"prompt": None, "completion": None, "annotator": " ", "weight": None}
    first, second = Demonstrations(DemonstrationsConfig(path=str(path), limit=2), Context())
    assert (first.prompt.text, first.response, first.annotator, first.weight) == ("1.50", "true", None, 1.0)
    assert (second.annotator, second.weight) == ("7", 0.5)


def test_csv_with_an_index_or_with_short_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",prompt,\n0,x,\n1\n")  # pandas writes its index under no name
    assert data(path) == [{"prompt": "x"}, {"prompt": None}]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    row = {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
        "n": 1,
        "meta": {"a": None},
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert data(tmp_path / "a.parquet") == [row]
    (record,) = Demonstrations(DemonstrationsConfig(path=str(tmp_path / "a.parquet")), Context())
    assert record.response == "Ho" and record.prompt.messages == [{"role": "user", "content": "Hi"}]


def test_files_are_read_without_a_network_and_leave_nothing_in_the_cache(tmp_path: Path) -> None:
    paths = [str(table(tmp_path / name)) for name in ("rows.csv", "rows.parquet")]
    code = """
import socket, sys
calls = []
socket.getaddrinfo = lambda *address, **options: calls.append(address) or []
from rlhf_core.interfaces import SourceConfig, read_rows
print([len(list(read_rows(SourceConfig(path=path), "x"))) for path in sys.argv[1:]], calls)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, *paths]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[2, 2] []"
    assert sum(path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file()) == 0


# --- lists in cells --------------------------------------------------------------------------------------------------


def test_a_list_is_taken_as_it_is_or_from_its_json_text() -> None:
    row = Row(
        "a.csv row 3",
        {"listed": [1, "b"], "text": ' ["x", {"y": 1}]', "no": "a; b", "half": "[1", "object": "{}", "null": None},
    )
    assert row.take_list("listed") == [1, "b"] and row.take_list("text") == ["x", {"y": 1}]
    for name, shown in {"no": '"a; b"', "half": r'"\[1"', "object": "{}", "null": "null"}.items():
        with pytest.raises(DataError, match=rf"a.csv row 3: {name} is {shown}; expected a list, or JSON text of one"):
            row.take_list(name)
    with pytest.raises(DataError, match="no column 'gone'"):
        row.take_list("gone")


def test_messages_of_a_demonstration_may_stand_in_a_cell(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    cell = json.dumps(chat).replace('"', '""')
    path = write(tmp_path / "a.csv", f'messages,prompt,completion\n"{cell}",,\n,Hi,Ho\n')
    first, second = Demonstrations(DemonstrationsConfig(path=str(path)), Context())
    assert first.prompt.messages == second.prompt.messages == chat[:1] and first.response == second.response == "Ho"
    for bad, words in {
        "[]": "a response that is a list of 0;",
        '"[{}, 1]"': "a response that is a list of 1;",
        "hello": 'messages is "hello"',
    }.items():
        with pytest.raises(DataError, match=rf"a.csv row 1: {words}"):
            list(Demonstrations(DemonstrationsConfig(path=str(write(path, f"messages\n{bad}\n"))), Context()))


def test_a_response_is_text_or_one_assistant_message() -> None:
    def response(**data: object) -> str:
        return Row("a.jsonl:3", data).response()

    said = [{"role": "assistant", "content": "Ho"}]
    assert response(response="Hi", completion="no") == "Hi" and response(completion=said) == "Ho"
    for bad, words in {
        "5": "a number",
        "{}": "an object",
        "null": "null",
        '[{"role": "user", "content": "Hi"}]': r"a list of 1 \(user\)",
        '[{"role": "assistant"}]': r"a list of 1 \(assistant\)",
    }.items():
        expected = f"a.jsonl:3: a response that is {words}; expected text, or a list with one assistant message; mend"
        with pytest.raises(DataError, match=expected):
            response(completion=json.loads(bad))
    with pytest.raises(DataError, match=r"a.jsonl:3: no column 'completion', only 'prompt'"):
        response(prompt="p")


def test_readings_tell_of_every_row_and_go_on(tmp_path: Path) -> None:
    good = '{"prompt": "p", "completion": "c"}\n'
    path = write(tmp_path / "a.jsonl", "{\n" + good + '{"prompt": "p"}\n' + good + "}")
    source = Demonstrations(DemonstrationsConfig(path=str(path)), Context())
    found = [
        (row and row.where.rpartition(":")[2], str(made)[-60:] if isinstance(made, DataError) else len(made))
        for row, made in source.readings()
    ]
    (first, malformed), *rest = found
    assert first is None and "on_bad_record: skip" in str(malformed)
    assert [place for place, _ in rest] == ["2", "3", "4", None, None]
    assert [made for _, made in rest if isinstance(made, int)] == [1, 1, 0]  # the last are those that waited: none


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.csv", "", r"a.csv: cannot be read: No columns to parse from file; expected UTF-8 text with a header"),
    ("a.csv", "a,b\n1,2\n1,2,3\n", r"a.csv: cannot be read: .*Expected 2 fields in line 3, saw 3.*mend the file"),
    ("a.csv", "a,b\n1,2,3\n4,5,6\n", r"a.csv: cannot be read: row 1 has more cells than the header; expected UTF-8 text"),
    ("a.csv", 'a,b\n1,"2\n4,5\n', r"a.csv: cannot be read: .*EOF inside string"),
    ("a.csv", "a,b\né,2\n".encode("latin-1"), r"a.csv: cannot be read: 'utf-8' codec can't decode byte 0xe9.*expected UTF-8"),
    ("a.parquet", "", r"a.parquet: cannot be read: Parquet file size is 0 bytes.*expected a Parquet file"),
    ("a.parquet", "hello, world", r"a.parquet: cannot be read: .*expected a Parquet file"),
    ("a.json", '[{"a": 1},\n', r"a.json: cannot be read: Expecting value: line 2 column 1.*one list of JSON objects"),
    ("a.json", '[{"a": 1}, 2]', r"a.json row 2: malformed row: a int, not an object; .*on_bad_record: skip"),
    ("a.json", '{"a": 1}\n{"a"\n', r"a.json:2: malformed line: .*expected one JSON object per line"),
])  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=words):
        rows(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.parquet"])
def test_damaged_and_missing_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03garbage")
    with pytest.raises(DataError, match=rf"{name}(:1)?: cannot be read"):
        rows(tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"feedback 'people': no file at .*{name}; expected a JSONL file, .*\.csv"):
        rows(tmp_path / name)


def test_an_empty_table_gives_no_feedback(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"kind": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", write(tmp_path / "a.csv", "kind,prompt\n"), write(tmp_path / "a.json", "[]")):
        assert rows(path) == []
        with pytest.raises(DataError, match=rf"{path.name} gives no feedback"):
            list(Records(RecordsConfig(path=str(path)), Context()))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_bad_rows_are_skipped_and_counted_in_every_format(tmp_path: Path, name: str) -> None:
    good = {"kind": "sentiment", "prompt": "p", "response": "r", "label": "neutral"}
    records = [good, {**good, "label": "glad"}, {**good, "kind": "smell"}, good]
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif name.endswith("csv"):
        write(path, "\n".join([",".join(good), *(",".join(record.values()) for record in records)]))
    else:
        write(path, json.dumps(records) if name.endswith("json") else "\n".join(map(json.dumps, records)))
    warned: list[str] = []
    source = Records(RecordsConfig(path=str(path), on_bad_record="skip"), Context(warn=warned.append))
    assert len(list(source)) == 2 == source.skipped
    assert warned == ["component 'unnamed': skipped 2 bad records"]
    with pytest.raises(DataError, match=r"(:2|row 2): sentiment.label: Input should be 'positive'"):
        list(Records(RecordsConfig(path=str(path)), Context()))


def test_malformed_rows_of_a_json_list_are_told_one_by_one(tmp_path: Path) -> None:
    bad: list[DataError] = []
    path = write(tmp_path / "a.json", '\ufeff\n [{"a": 1}, null, [], {"a": 2}]')
    assert [row.data["a"] for row in rows(path, bad.append)] == [1, 2]
    assert [error.where for error in bad] == [f"{path} row 2", f"{path} row 3"]


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    def lines(count: int) -> Iterator[dict[str, Any]]:
        return ({"prompt": f"What is {n}?", "completion": f"{n} is a number. " * 20} for n in range(count))

    def peak(count: int) -> int:
        path = tmp_path / f"{count}{name}"
        if name.endswith("parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(lines(count))), path)
        elif name.endswith("csv"):
            write(
                path, "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in lines(count))
            )
        else:
            write(path, "".join(json.dumps(row) + "\n" for row in lines(count)))
        source = Demonstrations(DemonstrationsConfig(path=str(path)), Context())
        next(iter(source))  # imports are none of the file's memory
        tracemalloc.start()
        assert sum(1 for _ in source) == count
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(20_000) - peak(2_000) < 2_000_000  # the text of 18,000 rows alone would be 8 MB


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_records_of_every_kind_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    about = {"annotator": "ann", "time": "2026-11-21T10:00:00Z", "source": "page", "comment": "好", "weight": 0.5}
    extras: dict[str, dict[str, Any]] = {
        "rating": {"aspects": {"tone": 2.0}, "spans": [{"start": 0, "end": 2, "score": 5.0}]},
        "comparison": {"ties_judged": False, "margin": 0.5, "confidence": 0.9},
        "demonstration": {"spans": [{"start": 0, "end": 2, "weight": -1.0}]},
    }
    plain = example_feedback()
    full = [
        type(record).model_validate({**record.model_dump(), **about, **extras.get(record.kind, {})}) for record in plain
    ]
    records: list[Feedback] = [*plain, *full]
    assert len({record.kind for record in records}) == 6
    dumped = [record.model_dump(mode="json") for record in records]
    if name.endswith("parquet"):
        for record in dumped:
            record["prompt"] = record["prompt"]["text"]  # one type per column: no empty objects
            record.pop("aspects", None)
            record.pop("spans", None)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_alike(dumped)), tmp_path / name)
        records = [
            record.model_copy(update={"aspects": {}, "spans": ()} if hasattr(record, "spans") else {})
            for record in records
        ]
    else:
        write(tmp_path / name, json.dumps(dumped) if name.endswith("json") else "\n".join(map(json.dumps, dumped)))
    found = list(Records(RecordsConfig(path=str(tmp_path / name)), Context()))
    assert [record.model_dump() for record in found] == [record.model_dump() for record in records]
    assert [record.id for record in found] == [
        type(record).model_validate(record.model_dump()).id for record in records
    ]


def _alike(dumped: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that all have every column, null where it is none of theirs."""
    names = dict.fromkeys(name for row in dumped for name in row)
    return [{name: row.get(name) for name in names} for row in dumped]


def test_records_of_several_kinds_in_one_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "\n".join([
        "kind,prompt,response,score,scale,responses,ranks,ties_judged,wanted,annotator",
        'rating,[1],Ho,4,"[1, 5]",,,,,7',
        'comparison,Hi,,,,"[""a"", ""b""]","[1, 0]",false,,',
        'keywords,Hi,,,,,,,"[""thanks""]",',
    ]))  # fmt: skip
    rating, comparison, keywords = Records(RecordsConfig(path=str(path)), Context())
    assert isinstance(rating, Rating) and (rating.prompt.text, rating.score, rating.scale) == ("[1]", 4.0, (1.0, 5.0))
    assert rating.annotator == "7"
    assert isinstance(comparison, Comparison) and comparison.best == "b" and not comparison.ties_judged
    assert isinstance(keywords, Keywords) and keywords.wanted == ("thanks",) and keywords.response is None


@pytest.mark.parametrize(("row", "words"), [
    ({"kind": "smell", "prompt": "p"}, "kind 'smell'; expected one of rating, comparison, edit, demonstration, keywords, sentiment"),
    ({"prompt": "p"}, "no column 'kind', only 'prompt'"),
    ({"kind": ["rating"], "prompt": "p"}, r"kind \['rating'\]; expected one of"),
    ({"kind": "edit", "prompt": "p", "original": "a", "edited": "b", "colour": "red"}, "edit.colour: Extra inputs are not permitted"),
    ({"kind": "demonstration", "prompt": "p", "response": None}, "demonstration.response: Field required"),
    ({"kind": "rating", "prompt": "p", "response": "r", "score": 9, "scale": [1, 5]}, "rating: score is 9.0, outside its scale 1.0 to 5.0"),
])  # fmt: skip
def test_records_are_exact(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    with pytest.raises(DataError, match=rf"a.jsonl:1: {words}"):
        list(Records(RecordsConfig(path=str(path)), Context()))


def test_records_have_their_fields_inside_the_prompt(tmp_path: Path) -> None:
    record = Demonstration(prompt={"text": "p", "fields": {"answer": "42"}}, response="r")
    path = write(tmp_path / "a.jsonl", record.model_dump_json())
    (found,) = Records(RecordsConfig(path=str(path), columns={"response": "response"}), Context())
    assert found == record and found.prompt.fields == {"answer": "42"}
    with pytest.raises(ValidationError, match="records keep their fields inside `prompt`"):
        RecordsConfig(path=str(path), fields=("answer",))
