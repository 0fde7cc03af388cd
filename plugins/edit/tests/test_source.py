"""The feedback source: what an edit becomes, and what is said of a bad row."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context
from rlhf_core.records import Comparison, Demonstration, Edit, Feedback
from rlhf_plugin_edit.config import EditsConfig
from rlhf_plugin_edit.source import Edits

from .toys import source, write

GIVES = ("edits", "comparisons", "demonstrations", "salt")
ROW = {"prompt": "p", "original": "Stop asking me that", "edited": "Please stop asking me that"}
SMALL = {"prompt": "p", "original": "one two three four five", "edited": "one two 3 four five six"}  # 2 of 6 words
SAME = {"prompt": "p", "original": "one two", "edited": "one two"}
REWRITE = {"prompt": "p", "original": "one two three", "edited": "four five six"}


def read(path: Path, *rows: Any, **config: Any) -> list[Feedback]:
    return list(source(write(path / "rows.jsonl", *rows), **config))


def spans(record: Feedback) -> dict[str, float]:
    assert isinstance(record, Demonstration)
    return {record.response[s.start : s.end]: s.weight for s in record.spans}


def test_entry_point_and_config_import_no_torch() -> None:
    (point,) = entry_points(group="rlhf", name="edit")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


# --- what an edit becomes --------------------------------------------------------------------------------------------


def test_an_edit_as_itself(tmp_path: Path) -> None:
    (record,) = read(tmp_path, SMALL)
    assert record == Edit(prompt="p", original=SMALL["original"], edited=SMALL["edited"])


def test_a_comparison_whose_margin_grows_with_the_share_of_changed_words(tmp_path: Path) -> None:
    one = {**SMALL, "edited": "one two 3 four five"}  # 1 of 5 words
    records = read(tmp_path, one, SMALL, gives="comparisons", margin=3)
    assert all(isinstance(record, Comparison) for record in records)
    assert [(r.responses, r.ranks) for r in records if isinstance(r, Comparison)] == [
        ((row["edited"], row["original"]), (0, 1)) for row in (one, SMALL)
    ]
    assert [r.margin for r in records if isinstance(r, Comparison)] == pytest.approx([3 / 5, 3 * 2 / 6])


def test_a_demonstration_with_more_weight_on_new_words(tmp_path: Path) -> None:
    (record,) = read(tmp_path, SMALL, gives="demonstrations", changed_weight=3)
    assert isinstance(record, Demonstration)
    assert (record.response, spans(record)) == (SMALL["edited"], {" 3": 3.0, " six": 3.0})


def test_salt_avoids_what_was_deleted(tmp_path: Path) -> None:
    original, edited = read(tmp_path, SMALL, gives="salt")
    assert isinstance(original, Demonstration)
    assert isinstance(edited, Demonstration)
    assert (original.response, spans(original)) == (SMALL["original"], {" three": -2.0})
    assert (edited.response, spans(edited)) == (SMALL["edited"], {" 3": 2.0, " six": 2.0})


def test_a_chinese_edit(tmp_path: Path) -> None:
    row = {"prompt": "打印机坏了", "original": "不知道,请清洁打印机。", "edited": "您好,请清洁打印机,谢谢。"}
    original, edited = read(tmp_path, row, gives="salt")
    assert spans(original) == {"不知道": -2.0}
    assert spans(edited) == {"您好": 2.0, ",谢谢": 2.0}
    (comparison,) = read(tmp_path, row, gives="comparisons")
    assert isinstance(comparison, Comparison)
    assert comparison.margin == pytest.approx(6 / 13)  # 3 words by 2, and 3 new ones, of 13


@pytest.mark.parametrize("gives", GIVES)
def test_identical_texts_and_tiny_edits_give_nothing(gives: str, tmp_path: Path) -> None:
    tiny = {"prompt": "p", "original": "a " * 99 + "b", "edited": "a " * 99 + "c"}  # 1 of 100 words
    spaces = {"prompt": "p", "original": "one two", "edited": " one two\n"}
    (only, *rest) = read(tmp_path, SAME, tiny, spaces, SMALL, gives=gives)
    assert only.prompt.text == "p"
    assert len(rest) == (gives == "salt")
    records = read(tmp_path, SAME, tiny, spaces, gives=gives, skip_below=0)
    assert len(records) == (4 if gives == "salt" else 2), "with skip_below 0 identical texts alone give nothing"


@pytest.mark.parametrize("gives", GIVES)
def test_a_rewrite_is_a_demonstration_only(gives: str, tmp_path: Path) -> None:
    first, *rest = read(tmp_path, REWRITE, SMALL, gives=gives)
    if gives == "comparisons":
        assert not rest
        assert isinstance(first, Comparison)
        assert first.responses[0] == SMALL["edited"]
    else:
        assert first == Demonstration(prompt="p", response=REWRITE["edited"])
    assert len(read(tmp_path, REWRITE, gives=gives, rewrite_above=1)) == (2 if gives == "salt" else 1)


def test_columns_annotators_and_fields_are_handed_on(tmp_path: Path) -> None:
    row = {"question": "p", "draft": "a b c d", "final": "a b c", "annotator": 7, "weight": 0.5, "comment": "long",
           "topic": "t"}  # fmt: skip
    columns = {"prompt": "question", "original": "draft", "edited": "final"}
    for gives in GIVES:
        for record in read(tmp_path, row, columns=columns, gives=gives):
            assert (record.annotator, record.weight, record.comment) == ("7", 0.5, "long")
            assert record.prompt.fields == {"topic": "t"}
    chat = [{"role": "user", "content": "Hi"}]
    (record,) = read(tmp_path, {**ROW, "prompt": chat})
    assert record.prompt.messages == chat


# --- complaints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "words"), [
    ({"prompt": "p", "edited": "b"}, r"no column 'original', only 'prompt', 'edited'; expected a column 'original'; map"),
    ({**ROW, "original": None}, "original is null; expected an edit with an original and an edited text; mend the row"),
    ({**ROW, "original": ""}, "original is empty; expected an edit with an original and an edited text; mend the row"),
    ({**ROW, "original": " \n"}, "original is empty; expected an edit with an original and an edited text; mend the row"),
    ({**ROW, "edited": ""}, "edited is empty; expected an edit with an original and an edited text; mend the row"),
    ({**ROW, "edited": ["b"]}, "edited is a list; expected an edit with an original and an edited text; mend the row"),
    ({"original": "a", "edited": "b"}, "no column 'prompt', only 'original', 'edited'"),
    ({**ROW, "prompt": ""}, "a prompt must not be empty"),
    ({**SAME, "prompt": ""}, "a prompt must not be empty"),  # also where the edit would give nothing
    ({**ROW, "time": "yesterday"}, "time: Input should be a valid datetime"),
])  # fmt: skip
def test_a_bad_row_is_named_by_file_and_line_or_counted(row: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW, row, SMALL)
    with pytest.raises(DataError, match=words) as error:
        list(source(path))
    assert str(error.value).startswith(f"{path}:2: ")
    warnings: list[str] = []
    edits = Edits(
        EditsConfig(path=str(path), on_bad_record="skip"), Context("feedback", "people", warn=warnings.append)
    )
    assert len(list(edits)) == 2
    assert edits.skipped == 1
    assert warnings == ["feedback 'people': skipped 1 bad records"]


def test_a_file_in_which_nothing_was_edited(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"rows.jsonl gives no feedback \(0 bad records skipped\); expected at least one"
    ):
        read(tmp_path, SAME, SAME)


@pytest.mark.parametrize(("config", "words"), [
    ({"gives": "pairs"}, "'edits', 'comparisons', 'demonstrations' or 'salt'"),
    ({"skip_below": 0.8}, r"skip_below \(0.8\) exceeds rewrite_above \(0.7\): nothing is left between"),
    ({"rewrite_above": 2}, "less than or equal to 1"),
    ({"changed_weight": 0}, "greater than 0"),
    ({"margin": -1}, "greater than or equal to 0"),
])  # fmt: skip
def test_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EditsConfig(path="x.jsonl", **config)
