"""Feedback sources `keywords` and `sentiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rlhf_core.errors import DataError
from rlhf_core.records import Feedback
from rlhf_plugin_rules.feedback import KeywordFeedback, SentimentFeedback

from .toys import Rows, build, write


def read(source: Any, path: Path, rows: Rows, **config: Any) -> list[Feedback]:
    return list(build(source, "feedback", path=write(path / "rows.jsonl", rows), **config))


def words(path: Path, *rows: dict[str, Any], **config: Any) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    found = read(KeywordFeedback, path, [{"prompt": "Hello", **row} for row in rows], **config)
    return [(record.wanted, record.unwanted) for record in found]  # type: ignore[union-attr]


def test_words_come_as_lists_or_as_text_with_commas_of_any_script(tmp_path: Path) -> None:
    assert words(
        tmp_path,
        {"wanted": ["tea", " two  cups "], "unwanted": None},
        {"wanted": "tea, milk;sugar", "unwanted": ""},
        {"wanted": "茶、牛奶，糖；水", "unwanted": ["咖啡"]},
        {"unwanted": "mud"},
        {"wanted": '["tea, hot", "tea"]'},
        {"wanted": "tea,tea"},
    ) == [
        (("tea", "two cups"), ()),
        (("tea", "milk", "sugar"), ()),
        (("茶", "牛奶", "糖", "水"), ("咖啡",)),
        ((), ("mud",)),
        (("tea, hot", "tea"), ()),
        (("tea",), ()),
    ]


def test_a_keyword_row_says_more_about_itself(tmp_path: Path) -> None:
    row = {"prompt": "Tea?", "response": "No.", "good": "tea", "annotator": 7, "weight": 0.5, "comment": "rude",
           "topic": "drinks"}  # fmt: skip
    (record,) = read(KeywordFeedback, tmp_path, [row], columns={"wanted": "good"})
    data = record.model_dump(exclude_defaults=True)
    assert data == {"prompt": {"text": "Tea?", "fields": {"topic": "drinks"}}, "response": "No.", "wanted": ("tea",),
                    "annotator": "7", "weight": 0.5, "comment": "rude"}  # fmt: skip


def test_a_row_that_names_no_word_gives_nothing(tmp_path: Path) -> None:
    assert words(tmp_path, {"wanted": [], "unwanted": None}, {"wanted": "tea"}) == [(("tea",), ())]


@pytest.mark.parametrize(("row", "complaint"), [
    ({"wanted": ["tea", " "]}, "wanted has an empty word in ['tea', ' ']; expected words that are not empty; mend the row,"),
    ({"unwanted": "tea,,milk"}, "unwanted has an empty word in ['tea', '', 'milk']"),
    ({"wanted": "茶、"}, "wanted has an empty word in ['茶', '']"),
    ({"wanted": ["tea", 24]}, "wanted is ['tea', 24]; expected words: a list of text, or text with commas"),
    ({"wanted": {"tea": 1}}, "wanted is {'tea': 1}; expected words"),
    ({"wanted": ["tea"], "unwanted": "milk, tea"}, "'tea' is wanted and unwanted; expected each word on one side"),
    ({"want": ["tea"]}, "no column 'wanted', only 'prompt', 'want'; expected a column 'wanted'; map it in the config"),
])  # fmt: skip
def test_bad_keyword_rows_say_where_or_are_counted(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    rows: Rows = [{"prompt": "Hello", "wanted": "tea"}, {"prompt": "Hello", **row}]
    with pytest.raises(DataError) as error:
        read(KeywordFeedback, tmp_path, rows)
    assert f"rows.jsonl:2: {complaint}" in str(error.value)
    source = build(KeywordFeedback, "feedback", path=write(tmp_path / "rows.jsonl", rows), on_bad_record="skip")
    with pytest.warns(UserWarning, match="skipped 1 bad records"):
        assert len(list(source)) == 1
    assert source.skipped == 1


def moods(path: Path, *rows: dict[str, Any], **config: Any) -> list[tuple[str, float | None]]:
    found = read(SentimentFeedback, path, [{"prompt": "Hello", "response": "Hi", **row} for row in rows], **config)
    return [(record.label, record.score) for record in found]  # type: ignore[union-attr]


def test_labels_are_words_or_signs(tmp_path: Path) -> None:
    labels = ["positive", "POS", 1, "1", 1.0, "neutral", 0, "neg", -1, " Negative "]
    expected = ["positive"] * 5 + ["neutral"] * 2 + ["negative"] * 3
    assert [label for label, _ in moods(tmp_path, *({"label": label} for label in labels))] == expected


def test_a_score_alone_gives_the_label(tmp_path: Path) -> None:
    scores = [1, 0.06, 0.05, 0, -0.05, -0.06, "-0.5"]
    found = moods(tmp_path, *({"score": score, "label": None} for score in scores))
    assert [label for label, _ in found] == ["positive"] * 2 + ["neutral"] * 3 + ["negative"] * 2
    assert [score for _, score in found] == [1, 0.06, 0.05, 0, -0.05, -0.06, -0.5]
    assert moods(tmp_path, {"label": "neutral", "score": 0.3}, {"label": "pos", "score": ""}) == [
        ("neutral", 0.3), ("positive", None)
    ]  # fmt: skip


def test_labels_of_a_file_can_be_mapped(tmp_path: Path) -> None:
    labels = {"0": "negative", "1": "positive", "好评": "positive"}
    rows = [{"label": 0}, {"label": "1"}, {"label": "好评"}]
    assert [label for label, _ in moods(tmp_path, *rows, labels=labels)] == ["negative", "positive", "positive"]


def test_a_sentiment_row_says_more_about_itself(tmp_path: Path) -> None:
    row = {"prompt": "Tea?", "text": "Gladly!", "label": "pos", "annotator": "ann", "weight": 2, "topic": "drinks"}
    (record,) = read(SentimentFeedback, tmp_path, [row], columns={"response": "text"})
    assert record.model_dump(exclude_defaults=True) == {
        "prompt": {"text": "Tea?", "fields": {"topic": "drinks"}}, "response": "Gladly!", "label": "positive",
        "annotator": "ann", "weight": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(("row", "complaint"), [
    ({"label": "great"}, "label 'great'; expected one of positive, pos, 1, +1, neutral, neu, 0, negative, neg, -1; map it"),
    ({"label": True}, "label True; expected one of positive"),
    ({"label": 5}, "label 5; expected one of"),
    ({"label": None}, "neither a label nor a score; expected one of them"),
    ({}, "no column 'label', only 'prompt', 'response'"),
    ({"score": 3}, "score: Input should be less than or equal to 1"),
    ({"label": "positive", "score": -0.8}, "label 'positive' with score -0.8; expected a label and a score that agree"),
])  # fmt: skip
def test_bad_sentiment_rows_say_where(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError) as error:
        moods(tmp_path, {"label": 1}, row)
    assert f"rows.jsonl:2: {complaint}" in str(error.value)
