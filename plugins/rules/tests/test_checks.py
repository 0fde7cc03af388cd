"""Rewards `format` and `answer`."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from pydantic import ValidationError
from rlhf_core.errors import RewardError
from rlhf_plugin_rules.answer import Answer
from rlhf_plugin_rules.config import AnswerConfig, FormatConfig
from rlhf_plugin_rules.formats import Format
from rlhf_plugin_rules.numbers import fold, numbers, parse_number

from .toys import credits, score, values

# --- format ----------------------------------------------------------------------------------------------------------

THINK: dict[str, Any] = {"tags": ["think", "answer"]}
KEYS: dict[str, Any] = {"json_keys": {"name": "string", "age": "integer"}}


@pytest.mark.parametrize(("config", "response", "passes"), [
    (THINK, "<think>2 + 2</think>\n<answer>4</answer>\n", True),
    (THINK, "<think></think><answer></answer>", True),
    (THINK, "Well: <think>a</think><answer>b</answer>", False),
    (THINK, "<think>a</think> so <answer>b</answer>", False),
    (THINK, "<think>a</think><answer>b</answer> done", False),
    (THINK | {"text_around": True}, "Well: <think>a</think> so <answer>b</answer> done", True),
    (THINK, "<answer>b</answer><think>a</think>", False),
    (THINK, "<think>a<answer>b</answer></think>", False),
    (THINK, "<think>a</think><think>b</think><answer>c</answer>", False),
    (THINK, "<think>a</think><answer>b", False),
    (THINK, "</think>a<think><answer>b</answer>", False),
    (THINK, "<Think>a</Think><answer>b</answer>", False),
    (THINK, "", False),
    (KEYS, '{"name": "Ann", "age": 7, "more": null}', True),
    (KEYS, ' {"name": "安", "age": 7.0}\n', True),
    (KEYS, '{"name": "Ann"}', False),
    (KEYS, '{"name": "Ann", "age": true}', False),
    (KEYS, '{"name": "Ann", "age": 7.5}', False),
    (KEYS, '{"name": "Ann", "age": 1e999}', False),
    (KEYS, '[{"name": "Ann", "age": 7}]', False),
    (KEYS, '```json\n{"name": "Ann", "age": 7}\n```', False),
    (KEYS, "{'name': 'Ann', 'age': 7}", False),
    ({"json_keys": ["a"]}, '{"a": null}', True),
    ({"json_keys": ["a"]}, '{"a": NaN}', False),
    ({"json_keys": []}, "{}", True),
    ({"json_keys": []}, "[" * 100_000, False),
    ({"json_keys": []}, '{"a": ' + "9" * 5000 + "}", False),
    ({"json_keys": {"a": "number", "b": "array", "c": "object", "d": "boolean", "e": "null"}},
     '{"a": 1.5, "b": [], "c": {}, "d": false, "e": null}', True),
    (KEYS | {"json_tag": "answer"}, 'So: <answer>{"name": "Ann", "age": 7}</answer>.', True),
    (KEYS | {"json_tag": "answer"}, '{"name": "Ann", "age": 7}', False),
    ({"sentences": [1, 2]}, "One. Two, at 3.5!", True),
    ({"sentences": [1, 2]}, "一。二！三？", False),
    ({"sentences": [1, 2]}, "", False),
    ({"bullets": [2, 3]}, "Buy:\n- tea\n  * milk\n\n3. mud", True),
    ({"bullets": [2, 3]}, "---\n-tea\n1.5 litres\n*very*", False),
    ({"bullets": [2, 3]}, "1、茶\n2、奶", True),
    ({"bullets": [0, 0]}, "No list - at all.", True),
])  # fmt: skip
def test_format_checks(config: dict[str, Any], response: str, passes: bool) -> None:
    assert values(Format, response, **config) == [float(passes)]


def test_format_pays_the_share_and_logs_every_check() -> None:
    config = {**THINK, "json_keys": ["a"], "json_tag": "answer", "sentences": (0, 9), "found": 2.0, "missing": -1.0}
    right, wrong = '<think>x</think><answer>{"a": 1}</answer>', 'x <answer>{"b": 1}</answer>'
    scores = score(Format, [right, wrong], **config)
    assert scores.values.tolist() == [2, 0]  # three of three; one of three: -1 + 3 / 3
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "tags": [1, 0], "json": [1, 0], "sentences": [1, 1]
    }  # fmt: skip


@pytest.mark.parametrize(("config", "complaint"), [
    ({}, "nothing to check; give `tags`, `json_keys`, `sentences` or `bullets`"),
    ({"tags": ["a", "a"]}, "got ['a', 'a'], expected each tag once"),
    ({"tags": ["<a>"]}, "String should match pattern"),
    ({"json_keys": ["a"], "text_around": True}, "`text_around` says what may stand around `tags`; give some"),
    ({"tags": ["a"], "json_tag": "a"}, "`json_tag` says where the JSON is; give `json_keys`, empty for any object"),
    ({"json_keys": {"a": "text"}}, "'any', 'string', 'number'"),
    ({"sentences": [3, 1]}, "got [3, 1], expected the fewest first and then the most"),
    ({"bullets": [-1, 1]}, "greater than or equal to 0"),
])  # fmt: skip
def test_format_config_errors(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as error:
        FormatConfig(**config)
    assert complaint in str(error.value)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "value"), [
    ("42", 42), ("-3", -3), ("−3", -3), ("+7", 7), ("1,234,567.5", Fraction(2469135, 2)), (".5", Fraction(1, 2)),
    ("3/4", Fraction(3, 4)), ("-1 1/2", Fraction(-3, 2)), (r"\frac{1}{3}", Fraction(1, 3)), (r"-\dfrac12", Fraction(-1, 2)),
    ("50%", Fraction(1, 2)), (r"50\%", Fraction(1, 2)), ("5 %", Fraction(1, 20)), ("1.2e3", 1200), ("2E-1", Fraction(1, 5)),
    ("1.2×10^3", 1200), (r"1.2 \times 10^{3}", 1200), ("１２．５", Fraction(25, 2)), ("３万", 30000), ("1.5亿", 150_000_000),
    ("$1,000", 1000), ("￥５", 5), (r"\$5", 5), ("x = 42 km", 42), ("大约42个", 42), ("42 = 42.0", 42), (r"\text{42}", 42),
    (r"42^\circ", 42), ("- 5 apples", 5),
    ("12 or 13", None), ("2^3", None), (r"\sqrt{2}", None), ("2x", None), ("2π", None), ("<5", None), ("~5", None),
    ("", None), ("forty", None), ("1/0", None), ("9" * 101, None), ("1e101", None), ("1e99999999999", None), ("3,5", None),
])  # fmt: skip
def test_parse_number(text: str, value: Any) -> None:
    assert parse_number(text) == value


def test_numbers_in_prose() -> None:
    text = fold("GPT4 ate 3-5 of 1,200 apples (12.5%), v1.2.3 said on day 7.")
    assert [text[start:end] for start, end, _ in numbers(text)] == ["3", "5", "1,200", "12.5%", "7"]


# --- answer ----------------------------------------------------------------------------------------------------------


def right(response: str, answer: Any, **config: Any) -> float:
    """1 right, 0 wrong, -1 no answer."""
    (value,) = values(Answer, response, fields={"answer": answer}, missing=-1.0, **config)
    return value


@pytest.mark.parametrize(("extract", "response", "found"), [
    ("boxed", r"so \boxed{1} no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    ("boxed", r"\boxed{ x }", "x"),
    ("boxed", r"\boxed{\frac{1}{2}", None),
    ("boxed", r"\boxed{}", None),
    ("boxed", "42", None),
    ("tag", "<answer>1</answer> <answer>\n two </answer>", "two"),
    ("tag", "<answer>1", None),
    ("tag", "</answer>1<answer>", None),
    ("after", "Answer: no. Final answer:  **Blue**. \nBye", "Blue**."),
    ("after", "Answer:\n\n blue\nBye", "blue"),
    ("after", "答案是：蓝色", "蓝色"),
    ("after", "答案：蓝色", "蓝色"),
    ("after", "The answer is blue", None),
    ("after", "Answer: ", None),
    ("whole", " blue \n", "blue"),
    ("whole", " \n", None),
])  # fmt: skip
def test_where_the_answer_is_found(extract: str, response: str, found: str | None) -> None:
    spans = credits(Answer, response, {"answer": "x"}, extract=extract, wrong=0.5, correct=0.5)
    assert spans == ([] if found is None else [(found, 0.5)])
    parts = score(Answer, [response], {"answer": "x"}, extract=extract).parts
    assert parts["found"].tolist() == [float(found is not None)]


@pytest.mark.parametrize(("response", "answer", "expected"), [
    ("So 3 + 4 = 7.", 7, 1),
    ("So it is 7, not 8", 7, 0),
    ("seven", 7, -1),
    ("a total of 1,234 apples", "1234", 1),
    ("一共是１２个苹果。", 12, 1),
    ("It costs $0.50", Fraction(1, 2).__float__(), 1),
    ("The share is 50%", "1/2", 1),
    ("0.333", "1/3", 0),
    ("0.3333333", "1/3", 1),
    ("7", [6, "7"], 1),
    ("-7", 7, 0),
])  # fmt: skip
def test_the_last_number(response: str, answer: Any, expected: float) -> None:
    assert right(response, answer, extract="last-number", compare="numeric") == expected


@pytest.mark.parametrize(("compare", "response", "answer", "expected"), [
    ("exact", "Paris.", "paris", 1),
    ("exact", "“ＰＡＲＩＳ”", "Paris", 1),
    ("exact", "New\n York", "new york", 1),
    ("exact", "Paris or Lyon", "Paris", 0),
    ("exact", "巴黎。", ["里昂", "巴黎"], 1),
    ("exact", "42.0", 42, 0),
    ("exact", r"\text{Paris}", "Paris", 1),
    ("exact", "...", "Paris", 0),
    ("numeric", "42.0", 42, 1),
    ("numeric", "x = 42 km", 42, 1),
    ("numeric", "12 or 13", 13, 0),
    ("numeric", "no idea", 13, 0),
    ("numeric", "50%", 50, 0),
    ("numeric", "50%", [50, "50%"], 1),
    ("numeric", "0", 0, 1),
    ("numeric", "0.0000001", 0, 0),
    ("choice", "B", "B", 1),
    ("choice", "(b)", "B", 1),
    ("choice", "B. Paris, not A", "B", 1),
    ("choice", "**Ｂ**", "B", 1),
    ("choice", "选B", "B", 1),
    ("choice", "The answer is B", "b", 1),
    ("choice", "A or B", "B", 0),
    ("choice", "Berlin", "B", 0),
    ("choice", "C", ["A", "C"], 1),
])  # fmt: skip
def test_how_answers_are_compared(compare: str, response: str, answer: Any, expected: float) -> None:
    assert right(response, answer, extract="whole", compare=compare) == expected


def test_answers_of_gsm8k_come_after_a_marker() -> None:
    answer = "He has 2 + 3 = <<2+3=5>>5 apples.\n#### 1,005"
    config: dict[str, Any] = {"extract": "last-number", "compare": "numeric", "field_marker": "####"}
    assert [right(response, answer, **config) for response in ("It is 1005.", "5")] == [1, 0]


def test_answer_values_parts_and_tolerance() -> None:
    config: dict[str, Any] = {"extract": "tag", "compare": "numeric", "tolerance": 0.01, "field": "gold"}
    responses = ["<answer>3.15</answer>", "<answer>3.2</answer>", "3.14"]
    scores = score(Answer, responses, {"gold": 3.14}, correct=2.0, wrong=-1.0, missing=-2.0, **config)
    assert scores.values.tolist() == [2, -1, -2]
    assert {name: part.tolist() for name, part in scores.parts.items()} == {"found": [1, 1, 0], "correct": [1, 0, 0]}
    assert [[(s.start, s.end, s.credit) for s in row] for row in scores.spans or ()] == [
        [(8, 12, 2)],
        [(8, 11, -1)],
        [],
    ]


def test_long_text_takes_no_time() -> None:
    for extract, text in (("boxed", r"\boxed{" * 5_000), ("tag", "<answer>" * 5_000), ("after", "Answer:" * 5_000)):
        assert right(text, "x", extract=extract) <= 0
    assert right("7 " * 5_000, 7, extract="whole", compare="numeric") == 1
    assert right("1" * 100_000, 7, extract="last-number", compare="numeric") == -1


@pytest.mark.parametrize(("fields", "config", "complaint"), [
    ({}, {}, "no field 'answer', only none; expected a text, a number, or a list of them, none empty; name the field in "
             "`field`, keep the column in the prompt source, or set on_missing: abstain"),
    ({"answer": "forty"}, {"compare": "numeric"}, "answer 'forty' in field 'answer'; expected a number; mend the field, or "
                                                  "choose another `compare` or `field_marker`"),
    ({"answer": ["A", "Paris and B or C"]}, {"compare": "choice"},
     "answer 'Paris and B or C' in field 'answer'; expected one letter of A-H"),
    ({"answer": "?!"}, {}, "answer '?!' in field 'answer'; expected a text"),
])  # fmt: skip
def test_answers_that_cannot_be_compared(fields: dict[str, Any], config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RewardError) as error:
        score(Answer, ["x"], fields, **config)
    assert f"reward 'rule' prompt 'Hello': {complaint}" in str(error.value)


def test_a_missing_answer_may_be_no_opinion() -> None:
    scores = score(Answer, [r"\boxed{1}"], {}, on_missing="abstain")
    assert scores.abstained is not None
    assert (scores.values.tolist(), scores.abstained.tolist(), scores.spans) == ([0], [True], ((),))


def test_answer_config_errors() -> None:
    with pytest.raises(
        ValidationError, match="`extract: last-number` finds numbers, `compare: exact` takes them as text;"
    ):
        AnswerConfig(extract="last-number")
    with pytest.raises(ValidationError, match="at least 1 item"):
        AnswerConfig(markers=())
