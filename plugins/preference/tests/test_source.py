"""The feedback source: every format, every complaint, and the real HH-RLHF transcripts."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context
from rlhf_core.records import Comparison
from rlhf_plugin_preference.config import PreferencesConfig
from rlhf_plugin_preference.source import Preferences

from .toys import source, write

HH = Path(__file__).parents[4] / "shared" / "data" / "hh_rlhf_harmless_1500.jsonl.gz"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(path: Path, *rows: Any, **config: Any) -> list[Comparison]:
    return list(source(write(path / "rows.jsonl", *rows), **config))


def plain(record: Comparison) -> tuple[Any, list[str], list[int]]:
    """Prompt, responses and ranks as plain values; messages as (role, content)."""
    text = record.prompt.text
    prompt = text if isinstance(text, str) else [(m.role, m.content) for m in text]
    return prompt, list(record.responses), list(record.ranks)


# --- formats ---------------------------------------------------------------------------------------------------------

CHAT = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Help")]
FORMATS: dict[str, tuple[dict[str, Any], tuple[Any, list[str], list[int]]]] = {
    "explicit prompt": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        ("The sky is", [" blue.", " green."], [0, 1]),
    ),
    "implicit prompt, as in TRL's documentation": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        ("The sky is", [" blue.", " green."], [0, 1]),
    ),
    "implicit prompt, responses with the same first letters": (
        {"chosen": "The sky is blue.", "rejected": "The sky is blown away."},
        ("The sky is", [" blue.", " blown away."], [0, 1]),
    ),
    "implicit prompt, one text goes on where the other ends": (
        {"chosen": "Count: one two", "rejected": "Count: one"}, ("Count:", [" one two", " one"], [0, 1]),
    ),
    "implicit prompt that ends a line": (
        {"chosen": "Q: why?\nA:\nso", "rejected": "Q: why?\nA:\nno"}, ("Q: why?\nA:\n", ["so", "no"], [0, 1]),
    ),
    "implicit prompt in a script without spaces": (
        {"chosen": "天空是蓝色", "rejected": "天空是绿色"}, ("天空是", ["蓝色", "绿色"], [0, 1]),
    ),
    "explicit prompt, messages": (
        {"prompt": [user("Hi"), assistant("Yes?"), user("Help")], "chosen": [assistant("Sure")],
         "rejected": [assistant("No")]},
        (CHAT, ["Sure", "No"], [0, 1]),
    ),
    "explicit prompt, messages answered by text": (
        {"prompt": [user("Help")], "chosen": "Sure", "rejected": "No"}, ([("user", "Help")], ["Sure", "No"], [0, 1]),
    ),
    "implicit prompt, messages": (
        {"chosen": [user("Hi"), assistant("Yes?"), user("Help"), assistant("Sure")],
         "rejected": [user("Hi"), assistant("Yes?"), user("Help"), assistant("No")]},
        (CHAT, ["Sure", "No"], [0, 1]),
    ),
    "prompt null is implicit": (
        {"prompt": None, "chosen": "a b", "rejected": "a c"}, ("a", [" b", " c"], [0, 1]),
    ),
    "HH-RLHF": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Sure", "rejected": "\n\nHuman: Hi\n\nAssistant: So what"},
        ([("user", "Hi")], ["Sure", "So what"], [0, 1]),
    ),
    "HH-RLHF, several turns with paragraphs": (
        {"chosen": "\n\nHuman: Hi\n\nthere\n\nAssistant: Yes?\n\nHuman: Help\n\nAssistant: Sure\n\nnow",
         "rejected": "\n\nHuman: Hi\n\nthere\n\nAssistant: Yes?\n\nHuman: Help\n\nAssistant: "},
        ([("user", "Hi\n\nthere"), *CHAT[1:]], ["Sure\n\nnow", ""], [0, 1]),
    ),
    "HH-RLHF without the empty lines at the top": (
        {"chosen": "Human: Hi\n\nAssistant: Yes?\n\nHuman: Help\n\nAssistant: Sure",
         "rejected": "Human: Hi\n\nAssistant: Yes?\n\nHuman: Help\n\nAssistant: No"},
        (CHAT, ["Sure", "No"], [0, 1]),
    ),
    "a transcript with a preamble stays as it is": (
        {"chosen": "Be kind.\n\nHuman: Hi\n\nAssistant: I do", "rejected": "Be kind.\n\nHuman: Hi\n\nAssistant: I don't"},
        ("Be kind.\n\nHuman: Hi\n\nAssistant:", [" I do", " I don't"], [0, 1]),
    ),
    "ranking": (
        {"prompt": "p", "responses": ["a", "b", "c", [assistant("d")]], "ranks": [2, 0, 1, 1]},
        ("p", ["a", "b", "c", "d"], [2, 0, 1, 1]),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_formats(row: dict[str, Any], expected: Any, name: str, tmp_path: Path) -> None:
    (record,) = source(write(tmp_path / name, row))
    assert plain(record) == expected


def test_the_same_response_twice_says_nothing(tmp_path: Path) -> None:
    text = {"prompt": "p", "chosen": "same", "rejected": "same"}
    dialogue = {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("a")]}
    (only,) = read(tmp_path, text, dialogue, FORMATS["ranking"][0])
    assert only.responses == ("a", "b", "c", "d")
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*needs different responses, got 'a' twice"):
        read(tmp_path, {"prompt": "p", "responses": ["a", "b", "a"], "ranks": [0, 1, 2]})


def test_ties_say_nothing_about_which_is_better(tmp_path: Path) -> None:
    tie, ranking = read(tmp_path, {"prompt": "p", "responses": ["a", "b"], "ranks": [0, 0]}, FORMATS["ranking"][0])
    assert list(tie.pairs()) == []
    assert sorted(ranking.pairs()) == [("b", "a"), ("b", "c"), ("b", "d"), ("c", "a"), ("d", "a")]


def test_what_rows_say_about_themselves(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1.5, "annotator": "ann", "source": "survey",
           "time": "2024-05-01T10:00:00Z", "comment": "close call", "topic": "sky"}  # fmt: skip
    (record,) = read(tmp_path, row)
    assert (record.margin, record.annotator, record.source, record.comment) == (1.5, "ann", "survey", "close call")
    assert record.time == datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert record.prompt.fields == {"topic": "sky"}, "what has a meaning of its own is no field"
    votes = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [0, 1, 1], "ties_judged": False, "annotator": 7}
    (record,) = read(tmp_path, votes)
    assert (record.ties_judged, record.annotator, record.prompt.fields) == (False, "7", {})


def test_nulls_say_nothing(tmp_path: Path) -> None:
    bare = {"prompt": "p", "chosen": "a", "rejected": "b"}
    first, second = read(tmp_path, bare, {**bare, "annotator": None, "time": None, "margin": None, "ties_judged": None})
    assert first == second
    assert first.id == second.id


def test_columns_are_mapped_and_fields_chosen(tmp_path: Path) -> None:
    row = {"question": "p", "good": "a", "bad": "b", "worker": "w", "answer": 4, "noise": "x"}
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "annotator": "worker"}
    (record,) = read(tmp_path, row, columns=columns)
    assert (*plain(record), record.annotator) == ("p", ["a", "b"], [0, 1], "w")
    assert record.prompt.fields == {"answer": 4, "noise": "x"}
    (record,) = read(tmp_path, row, columns=columns, fields=("answer",))
    assert record.prompt.fields == {"answer": 4}
    (record,) = read(tmp_path, row, columns=columns, fields=())
    assert record.prompt.fields == {}


def test_reading_twice_gives_the_same_records_and_reading_streams(tmp_path: Path) -> None:
    rows = [row for row, _ in FORMATS.values()]
    comparisons = source(write(tmp_path / "rows.jsonl", *rows))
    ids = [record.id for record in comparisons]
    assert ids == [record.id for record in comparisons]
    assert len(ids) == len(rows)
    assert [record.id for record in source(write(tmp_path / "rows.jsonl", *rows, ""), limit=3)] == ids[:3]
    late_trouble = source(write(tmp_path / "rows.jsonl", rows[0], "{"))
    assert next(iter(late_trouble)).id == ids[0], "the second line has not been looked at"


def test_a_local_dataset(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [FORMATS["explicit prompt"][0], {"prompt": "p", "chosen": "a", "rejected": "b"}]
    write(tmp_path / "data" / "train.jsonl", *rows)
    write(tmp_path / "data" / "test.jsonl", rows[1])
    folder = source("", dataset=str(tmp_path / "data"))
    assert [plain(record) for record in folder] == [plain(record) for record in folder]
    assert [plain(record) for record in folder] == [FORMATS["explicit prompt"][1], ("p", ["a", "b"], [0, 1])]
    assert [record.prompt.text for record in source("", dataset=str(tmp_path / "data"), split="test")] == ["p"]
    with pytest.raises(DataError, match=r"data\[train\] row 0: no column 'good', only 'prompt', 'chosen', 'rejected'"):
        list(source("", dataset=str(tmp_path / "data"), columns={"chosen": "good"}))
    with pytest.raises(DataError, match=r"feedback 'people': cannot load dataset '.*data': .*nope"):
        list(source("", dataset=str(tmp_path / "data"), split="nope"))


# --- complaints ------------------------------------------------------------------------------------------------------

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
BAD: list[tuple[Any, str]] = [
    ("{'single': quotes}", "malformed line: Expecting property name .*; expected one JSON object per line"),
    ("[1, 2]", "malformed line: a list, not an object"),
    ({"prompt": "p", "chosen": "a"},
     r"no column 'rejected', only 'prompt', 'chosen'; expected a column 'rejected'; map it in the config: columns: "
     r"\{rejected: <its name in the file>\}"),
    ({"prompt": "p", "responses": ["a", "b"]}, "no column 'ranks', only 'prompt', 'responses'"),
    ({"responses": ["a", "b"], "ranks": [0, 1]}, "no column 'prompt', only 'responses', 'ranks'"),
    ({"prompt": "p", "responses": ["a"], "ranks": [0]}, "a comparison needs at least two responses, got 1"),
    ({"prompt": "p", "responses": ["a", "b"], "ranks": [0]},
     "a comparison needs one rank per response, got 1 ranks for 2 responses"),
    ({"prompt": "p", "responses": "ab", "ranks": [0, 1]}, r'responses is "ab"; expected a list'),
    ({"prompt": "p", "responses": ["a", "b"], "ranks": 1}, "ranks is 1; expected a list"),
    ({"prompt": "p", "responses": ["a", "b"], "ranks": [0, "best"]}, r"ranks\.1: Input should be a valid integer"),
    ({"prompt": "p", "responses": ["a", 5], "ranks": [0, 1]}, "a response that is a number; expected text, or a list"),
    ({"chosen": "red", "rejected": "green"}, "chosen and rejected share no beginning; expected a `prompt`, or respons"),
    ({"chosen": "rad", "rejected": "red"}, "chosen and rejected share no beginning"),
    ({"chosen": [user("q"), assistant("a")], "rejected": [user("other"), assistant("b")]},
     "chosen and rejected share no beginning"),
    ({"chosen": [], "rejected": []}, "chosen and rejected share no beginning"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
     "the transcripts share no beginning that ends with 'Assistant:'; expected two continuations of one dialogue"),
    ({"chosen": "a b", "rejected": [assistant("b")]},
     r"chosen is text and rejected is a list of 1 \(assistant\); expected both text, or both lists of messages"),
    ({"chosen": None, "rejected": "b"}, "chosen is null and rejected is text"),
    ({"prompt": "p", "chosen": {"text": "a"}, "rejected": "b"}, "a response that is an object; expected text"),
    ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, "a response that is a list of 1; expected text"),
    ({"prompt": "p", "chosen": [user("a")], "rejected": "b"}, r"a response that is a list of 1 \(user\)"),
    ({"prompt": "p", "chosen": [{"role": "assistant"}], "rejected": "b"}, r"a response that is a list of 1 \(assistant"),
    ({"chosen": [user("q"), assistant("a"), user("r"), assistant("b")], "rejected": [user("q"), assistant("c")]},
     r"a response that is a list of 3 \(assistant, user, assistant\); expected text, or a list with one assistant"),
    ({**GOOD, "margin": "much"}, "margin: Input should be a valid number"),
    ({**GOOD, "time": "yesterday"}, "time: Input should be a valid datetime"),
    ({**GOOD, "prompt": ""}, "a prompt must not be empty"),
    ({**GOOD, "prompt": 5}, "text.*: Input should be a valid"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "words"), BAD)
def test_a_bad_row_is_named_by_file_and_line_or_counted(row: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, "", row, GOOD)  # an empty line counts as a line
    with pytest.raises(DataError, match=words) as error:
        list(source(path))
    assert str(error.value).startswith(f"{path}:3: ")
    assert "on_bad_record: skip" in str(error.value) or "map it in the config" in str(error.value)

    warnings: list[str] = []
    context = Context("feedback", "people", warn=warnings.append)
    comparisons = Preferences(PreferencesConfig(path=str(path), on_bad_record="skip"), context)
    for _ in range(2):  # counted anew each time
        assert [record.prompt.text for record in comparisons] == ["p", "p"]
        assert comparisons.skipped == 1
    assert set(warnings) == {"feedback 'people': skipped 1 bad records"}


def test_a_missing_column_of_the_config_names_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD)
    with pytest.raises(DataError) as error:
        list(source(path, columns={"chosen": "good"}))
    assert str(error.value) == (
        f"{path}:1: no column 'good', only 'prompt', 'chosen', 'rejected'; expected the column that feedback 'people' "
        "maps to 'chosen'; mend `columns` in its config"
    )
    with pytest.raises(DataError, match=":1: no column 'topic'"):
        list(source(path, fields=("topic",)))


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", text)
    with pytest.raises(DataError) as error:
        list(source(path))
    assert str(error.value) == (
        f"feedback 'people': {path} gives no feedback (0 bad records skipped); expected at least one record; "
        "check the file and the `columns` of the source"
    )


def test_nothing_is_left_after_skipping(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "{", {"prompt": "p"})
    with (
        pytest.raises(DataError, match=r"gives no feedback \(2 bad records skipped\)"),
        pytest.warns(match="skipped 2"),
    ):
        list(source(path, on_bad_record="skip"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"feedback 'people': no file at .*none.jsonl; expected a JSONL file, plain or .gz"
    ):
        list(source(tmp_path / "none.jsonl"))
    whole = write(tmp_path / "rows.jsonl.gz", *[GOOD] * 3)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"cut.jsonl.gz:\d+: cannot be read: .*; expected a readable file"):
        list(source(cut))


def test_config_errors() -> None:
    with pytest.raises(ValidationError, match=r"give `path` \(a file\) or `dataset` \(a hub id\)"):
        PreferencesConfig()
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        PreferencesConfig(path="x.jsonl", pth="y")  # type: ignore[call-arg]


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HH.is_file(), reason="the reference data is not here")
def test_1500_real_transcripts() -> None:
    def words(text: str) -> str:
        return " ".join(text.split())

    with gzip.open(HH, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    records = list(source(HH))
    assert len(records) == len(rows) == 1500
    several_turns = 0
    for record, row in zip(records, rows, strict=True):
        prompt = record.prompt
        assert not isinstance(prompt.text, str)
        assert prompt.text[-1].role == "user"
        several_turns += len(prompt.text) > 1
        for response, name in zip(record.responses, ("chosen", "rejected"), strict=True):
            assert words(prompt.render() + prompt.render_response(response)) == words(row[name])
            assert "\n\nHuman:" not in response
    assert several_turns > 500
