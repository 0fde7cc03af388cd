"""Reward `factual`: what a text says of given facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rlhf_core.errors import ConfigError, DataError, RewardError
from rlhf_core.records import Prompt, Sample
from rlhf_plugin_rules.factual import Factual

from .toys import Rows, build, credits, score, values, write

FACTS: Rows = [
    {"subject": ["France", "法国"], "relation": ["capital", "首都"], "object": ["Paris", "巴黎"], "not_object": ["Lyon", "里昂"]},
    {"subject": ["Germany", "德国"], "relation": ["capital", "首都"], "object": ["Berlin", "柏林"]},
    {"subject": "Luxembourg", "relation": "capital", "object": "Luxembourg"},
    {"subject": ["the tower", "铁塔"], "relation": ["completed in", "建成"], "object": 1889},
    {"subject": "the firm", "relation": "lost", "object": "5 million"},
    {"subject": "France", "relation": "borders", "object": "Spain"},
    {"subject": "France", "relation": "borders", "object": "Italy"},
    {"subject": "Poland", "relation": "borders", "object": "Ukraine"},
    {"subject": "the office", "relation": "address", "object": "No. 10, High Street"},
    {"subject": "New York State", "relation": "capital", "object": "Albany", "not_object": "New York"},
]  # fmt: skip


@pytest.fixture
def facts(tmp_path: Path) -> str:
    return write(tmp_path / "facts.jsonl", FACTS)


@pytest.mark.parametrize(("response", "verdict"), [
    # what is said
    ("Paris is the capital of France.", 1),
    ("The CAPITAL of france is paris", 1),
    ("The capital of France is Lyon.", -1),
    ("The capital of France is Berlin.", -1),
    ("The capital of France is Marseille.", 0),
    ("The capital of France is lovely.", 0),
    ("Paris or Lyon is the capital of France.", 0),
    ("France is large. Paris is lovely.", 0),
    ("", 0),
    # negation
    ("The capital of France is not Paris.", -1),
    ("Paris isn’t the capital of France.", -1),
    ("The capital of France is not Lyon.", 0),
    ("Paris is the capital of France, not Lyon.", 1),
    ("Lyon is not the capital of France, Paris is.", 1),
    ("Nantes is not the capital of France, but Paris is.", 1),
    ("Not Paris but Lyon is the capital of France.", -1),
    ("Paris is, however, not the capital of France.", 0),
    ("Paris is the capital of France and is not in Germany.", 1),
    ("There is no doubt that Paris is the capital of France.", 1),
    ("Paris is not only the capital of France.", 1),
    # other subjects
    ("Unlike Berlin, the capital of Germany, Paris is the capital of France.", 1),
    ("Germany's capital Berlin is nearer than France.", 1),
    ("Paris and Berlin are the capitals; one capital is in France, one capital in Germany.", 1),
    ("Luxembourg is the capital of Luxembourg.", 1),
    ("The capital of Luxembourg is small.", 0),
    ("New York State has its capital in Albany.", 1),
    ("New York State has its capital in New York.", -1),
    ("New York State has a capital.", 0),
    # several objects, numbers, marks
    ("France borders Spain. France borders Italy.", 1),
    ("France borders Ukraine.", -1),
    ("The tower was completed in 1889.", 1),
    ("The tower was completed in 18890.", 0),
    ("The firm lost 5 million.", 1),
    ("The firm lost 3.5 million.", 0),
    ("The firm lost 5 million, not 3.5 million.", 1),
    ("The office has the address No. 10, High Street.", 1),
    ("Is Paris the capital of France?", 0),
    # Chinese
    ("法国的首都是巴黎。", 1),
    ("众所周知，巴黎是法国的首都！", 1),
    ("法国的首都是柏林。", -1),
    ("法国的首都不是巴黎。", -1),
    ("法国的首都是巴黎，不是里昂。", 1),
    ("法国的首都并非里昂，而是巴黎。", 1),
    ("法国的首都是里昂吗？", 0),
    ("铁塔于1889年建成。", 1),
    ("铁塔没有在1889年建成。", -1),
    ("不仅如此，法国的首都非常大，就是巴黎。", 1),
])  # fmt: skip
def test_a_statement_is_supported_contradicted_or_neither(facts: str, response: str, verdict: int) -> None:
    assert values(Factual, response, path=facts) == [verdict]


def test_the_score_is_a_share_of_the_facts_that_are_stated(facts: str) -> None:
    text = "The capital of France is Paris. The capital of Germany is Lyon! The tower was completed in May. Bye."
    scores = score(Factual, [text, "Hello."], path=facts)
    assert scores.values.tolist() == pytest.approx([1 / 3, 0])  # Lyon is in nobody's list for Germany
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "supported": [1, 0], "contradicted": [0, 0], "checked": [3, 0]
    }  # fmt: skip
    wrong = text.replace("Lyon", "Paris")
    assert values(Factual, wrong, path=facts) == [0]
    assert credits(Factual, wrong, path=facts) == [
        ("The capital of France is Paris.", pytest.approx(1 / 3)), ("The capital of Germany is Paris!", pytest.approx(-1 / 3))
    ]  # fmt: skip


def test_neither_repetition_nor_saying_both_pays(facts: str) -> None:
    true, false = "Paris is the capital of France. ", "Berlin is the capital of France. "
    other = "The firm lost 5 million. "
    assert values(Factual, true * 5 + other, true * 5, path=facts) == [1, 1]
    assert values(Factual, true * 9 + false, false + true * 9, path=facts) == [-1, -1]
    assert values(Factual, false + other * 9, path=facts) == [0]
    assert credits(Factual, true + false, path=facts) == [(false.strip(), -1)]
    assert credits(Factual, "The capital of France is big. " + true * 2, path=facts) == [(true.strip(), 1)]


def test_without_a_statement_the_score_is_zero_or_no_opinion(facts: str) -> None:
    scores = score(Factual, ["Hello.", "Paris is the capital of France."], path=facts, on_unchecked="abstain")
    assert scores.abstained is not None
    assert (scores.values.tolist(), scores.abstained.tolist()) == ([0, 1], [True, False])
    assert score(Factual, ["Hello."], path=facts).abstained is None


def test_facts_may_belong_to_a_document(tmp_path: Path) -> None:
    path = write(tmp_path / "facts.jsonl", [
        {"subject": "the firm", "relation": "lost", "object": "5 million", "key": "a"},
        {"subject": "the firm", "relation": "lost", "object": "6 million", "key": 2},
        {"subject": "the firm", "relation": "lost", "object": "faith", "key": "c"},
        {"subject": "the bank", "relation": "lost", "object": "7 million"},
    ])  # fmt: skip
    model = build(Factual, path=path, key_field="article")

    def said(key: Any, response: str) -> float:
        prompt = Prompt(text="Hello", fields={"article": key})
        return float(model.score([Sample(prompt, response)]).values)

    assert [said(key, "The firm lost 5 million.") for key in ("a", 2, "b")] == [1, 0, 0]
    assert said("a", "The firm lost 7 million.") == -1  # a wrong object from the facts that hold everywhere
    assert said("b", "The bank lost 7 million.") == 1
    assert said("b", "The bank lost 5 million.") == 0  # what article a says of others is unknown here
    assert said(["a", 2], "The firm lost 6 million.") == 0.5  # one fact each, and 6 is not what a says

    with pytest.raises(
        RewardError, match=r"prompt 'Hello': no field 'article', only none; .*; name the field in `key_field`"
    ):
        model.score([Sample(Prompt(text="Hello"), "x")])
    silent = score(Factual, ["The bank lost 7 million."], path=path, key_field="article", on_missing="abstain")
    assert silent.abstained is not None
    assert silent.abstained.tolist() == [True]
    with pytest.raises(ConfigError) as error:
        build(Factual, path=path)
    assert str(error.value) == (
        f"reward 'rule': facts with a `key`, such as '2', in {path}; expected the field of the prompt that chooses them; "
        "set key_field"
    )


@pytest.mark.parametrize(("row", "complaint"), [
    ({"object": None}, "object is None; expected a text or number, or a list of them, none empty; mend the fact"),
    ({"subject": ["France", " "]}, "subject is ['France', ' ']"),
    ({"relation": []}, "relation is []"),
    ({"object": True}, "object is True"),
    ({"objects": "x"}, "a fact with 'objects'; expected subject, relation, object, and perhaps not_object and key"),
])  # fmt: skip
def test_bad_facts_say_where(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    path = write(tmp_path / "facts.jsonl", [FACTS[0], {"subject": "a", "relation": "b", "object": "c", **row}])
    with pytest.raises(DataError) as error:
        build(Factual, path=path)
    assert f"facts.jsonl:2: {complaint}" in str(error.value)


def test_files_of_facts_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'object', only 'subject', 'relation'"):
        build(Factual, path=write(tmp_path / "a.jsonl", [{"subject": "a", "relation": "b"}]))
    with pytest.raises(DataError, match="no facts; expected at least one; write one JSON object per line"):
        build(Factual, path=write(tmp_path / "b.jsonl", []))
    with pytest.raises(DataError, match="'c' is an object and a not_object of 'a'; expected one of them"):
        build(Factual, path=write(tmp_path / "c.jsonl", [
            {"subject": "a", "relation": "b", "object": "C", "not_object": "c"}
        ]))  # fmt: skip
    with pytest.raises(DataError, match="no file at"):
        build(Factual, path=str(tmp_path / "nowhere.jsonl"))
