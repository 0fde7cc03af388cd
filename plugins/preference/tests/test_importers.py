"""Comparisons in the forms of public data sets and annotation tools; every text here is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rlhf_core.errors import DataError
from rlhf_core.records import Comparison

from .toys import source, write


def read(folder: Path, *rows: dict[str, Any], **config: Any) -> list[Comparison]:
    return list(source(write(folder / "rows.jsonl", *rows), **config))  # type: ignore[arg-type]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


OPENAI = {
    "info": {"id": "t1", "post": "My tap drips.", "title": "Tap", "subreddit": "help"},
    "summaries": [{"text": " A tap.", "policy": "ref", "note": "short"}, {"text": " It drips.", "policy": "sup2", "note": None}],
    "choice": 1, "worker": "w7", "batch": "b", "split": "train", "extra": {"confidence": 7},
}  # fmt: skip
ULTRA = {"prompt": "Hi?", "prompt_id": "x", "chosen": [user("Hi?"), assistant("Hello.")],
         "rejected": [user("Hi?"), assistant("No.")], "score_chosen": 8.5, "score_rejected": 6.0}  # fmt: skip
TREE = {
    "message_tree_id": "m0", "tree_state": "ready_for_export",
    "prompt": {"message_id": "m0", "role": "prompter", "text": "Q1", "lang": "en", "replies": [
        {"message_id": "m1", "role": "assistant", "text": "B", "rank": 1, "replies": []},
        {"message_id": "m2", "role": "assistant", "text": "A", "rank": 0, "replies": [
            {"message_id": "m3", "role": "prompter", "text": "Q2", "lang": "en", "replies": [
                {"message_id": "m4", "role": "assistant", "text": "D", "rank": 0, "replies": []},
                {"message_id": "m5", "role": "assistant", "text": "E", "rank": 1, "replies": []},
                {"message_id": "m6", "role": "assistant", "text": "F", "rank": 2, "deleted": True, "replies": []}]}]},
        {"message_id": "m7", "role": "assistant", "text": "C", "rank": None, "replies": []}]},
}  # fmt: skip
VOTE = {"question_id": "q", "model_a": "m1", "model_b": "m2", "winner": "model_b", "judge": "u3", "language": "English",
        "conversation_a": [user("Q"), assistant("A")], "conversation_b": [user("Q"), assistant("B")],
        "tstamp": 1700000000.5}  # fmt: skip
PAIRWISE = {
    "id": 1, "data": {"prompt": "Q", "answer1": "L", "answer2": "R"},
    "annotations": [
        {"completed_by": 4, "lead_time": 3.5, "result": [{"type": "pairwise", "value": {"selected": "right"}}]},
        {"completed_by": {"id": 5, "email": "e@x"}, "result": [{"type": "pairwise", "value": {"selected": "left"}}]},
        {"completed_by": 6, "result": [{"type": "choices", "value": {"choices": ["tie"]}}]},
        {"completed_by": 7, "was_cancelled": True, "result": [{"type": "pairwise", "value": {"selected": "left"}}]},
        {"completed_by": 8, "result": [{"type": "textarea", "value": {"text": ["why"]}}]},
    ],
}  # fmt: skip
RANKER = {
    "id": 2, "data": {"prompt": "Q", "items": [{"id": "x", "body": "X"}, {"id": "y", "body": "Y"}, {"id": "z", "title": "Z"}]},
    "annotations": [
        {"completed_by": 1, "result": [{"type": "ranker", "value": {"ranker": ["z", "x", "y"]}}]},
        {"completed_by": 2, "result": [{"type": "ranker", "value": {"ranker": {"rank": ["y", "x"]}}}]},
    ],
}  # fmt: skip
ARGILLA = {"prompt": "Q", "response-1": "A", "response-2": "B", "better.responses": ["response-2", "tie", "response-1"],
           "better.responses.users": ["u1", "u2", "u3"],
           "better.responses.status": ["submitted", "submitted", "draft"]}  # fmt: skip
ARGILLA_RANKING = {
    "prompt": "Q", "response_1": "A", "response_2": "B", "response_3": "C",
    "order.responses": [[{"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 1}, {"value": "response-3", "rank": 2}]],
}  # fmt: skip


def told(records: list[Comparison]) -> list[tuple[Any, tuple[str, ...], tuple[int, ...]]]:
    return [(r.prompt.text if isinstance(r.prompt.text, str) else [m.content for m in r.prompt.text], r.responses, r.ranks)
            for r in records]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), [
    (OPENAI, [("SUBREDDIT: r/help\n\nTITLE: Tap\n\nPOST: My tap drips.\n\nTL;DR:", (" A tap.", " It drips."), (1, 0))]),
    (ULTRA, [(["Hi?"], ("Hello.", "No."), (0, 1))]),
    ({**ULTRA, "score_rejected": 8.5}, [(["Hi?"], ("Hello.", "No."), (0, 0))]),
    ({**ULTRA, "score_rejected": 9.0}, [(["Hi?"], ("Hello.", "No."), (1, 0))]),
    (TREE, [(["Q1"], ("B", "A"), (1, 0)), (["Q1", "A", "Q2"], ("D", "E"), (0, 1))]),
    (VOTE, [(["Q"], ("A", "B"), (1, 0))]),
    ({**VOTE, "winner": "tie (bothbad)"}, [(["Q"], ("A", "B"), (0, 0))]),
    (PAIRWISE, [("Q", ("L", "R"), (1, 0)), ("Q", ("L", "R"), (0, 1)), ("Q", ("L", "R"), (0, 0))]),
    (RANKER, [("Q", ("Z", "X", "Y"), (0, 1, 2)), ("Q", ("Y", "X"), (0, 1))]),
    (ARGILLA, [("Q", ("A", "B"), (1, 0)), ("Q", ("A", "B"), (0, 0))]),
    (ARGILLA_RANKING, [("Q", ("A", "B", "C"), (1, 0, 1))]),
], ids=["openai", "ultrafeedback", "equal scores", "the rejected scored higher", "openassistant", "arena", "both bad",
        "label studio pairs", "label studio ranker", "argilla", "argilla ranking"])  # fmt: skip
def test_forms(tmp_path: Path, row: dict[str, Any], expected: list[Any]) -> None:
    assert told(read(tmp_path, row)) == expected


def test_who_said_it_and_what_goes_along(tmp_path: Path) -> None:
    openai, ultra, vote, both_bad, first, second, third = read(
        tmp_path, OPENAI, ULTRA, VOTE, {**VOTE, "winner": "tie (bothbad)"}, PAIRWISE)  # fmt: skip
    assert (openai.annotator, openai.comment) == ("w7", "short")
    assert openai.prompt.fields == {"id": "t1", "policies": ["ref", "sup2"], "split": "train"}
    assert (ultra.margin, ultra.prompt.fields) == (2.5, {"id": "x"})
    assert (vote.annotator, vote.prompt.fields["models"], vote.comment) == ("u3", ["m1", "m2"], None)
    assert vote.time is not None and vote.time.year == 2023
    assert both_bad.comment == "both bad"
    assert [r.annotator for r in (first, second, third)] == ["4", "e@x", "6"]
    assert first.prompt.fields == {"lead_time": 3.5}


def test_the_best_of_three_says_nothing_of_the_others(tmp_path: Path) -> None:
    three = {"prompt": "Q", "response1": "A", "response2": "B", "response3": "C", "best.responses": ["response2"]}
    (vote,) = read(tmp_path, three)
    assert (vote.ranks, vote.ties_judged) == ((1, 0, 1), False)
    (ranking,) = read(tmp_path, ARGILLA_RANKING)
    assert ranking.ties_judged


def test_a_whole_export_is_one_json_list(tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    path.write_text(json.dumps([PAIRWISE, RANKER], indent=1), encoding="utf-8")
    assert len(list(source(path))) == 5


def test_thumbs_of_one_prompt_are_gathered(tmp_path: Path) -> None:
    rows = [
        *[{"prompt": "P", "completion": c, "label": up} for c, up in (("a", True), ("b", False), ("c", True), ("d", True), ("d", False))],
        {"prompt": "lonely", "completion": "x", "label": True},
        *[{"prompt": "Q", "response": c, "label": up, "annotator": "ann"} for c, up in (("e", False), ("f", True))],
    ]  # fmt: skip
    first, last = read(tmp_path, *rows)
    assert told([first, last]) == [("P", ("a", "b", "c"), (0, 1, 0)), ("Q", ("e", "f"), (1, 0))]
    assert sorted(first.pairs()) == [("a", "b"), ("c", "b")] and not first.ties_judged
    assert last.annotator == "ann", "the last prompt's thumbs are not lost"
    thumbs = source(tmp_path / "rows.jsonl")
    assert [r.id for r in thumbs] == [r.id for r in thumbs] == [first.id, last.id]


@pytest.mark.parametrize(("row", "words"), [
    ({**OPENAI, "choice": 2}, r"choice is 2; expected the place of one of 2 summaries"),
    ({**VOTE, "winner": "me"}, "winner 'me'; expected model_a, model_b, tie"),
    ({**VOTE, "conversation_a": [user("Q"), assistant("1"), user("Q2"), assistant("A")],
      "conversation_b": [user("Q"), assistant("2"), user("Q2"), assistant("B")]}, "part before their last replies"),
    ({**PAIRWISE, "data": {"prompt": "Q", "answer1": "L"}}, "only prompt, answer1; expected one of right, answer2"),
    ({**RANKER, "annotations": [{"result": [{"value": {"ranker": ["x", "w"]}}]}]}, "a ranking of the unknown item 'w'"),
    ({**RANKER, "annotations": [{"result": [{"value": {"ranker": ["x", "x"]}}]}]}, "needs different responses, got 'X' twice"),
    ({**ARGILLA, "better.responses": ["response-9", None, None]}, "the answer 'response-9'; expected tie, or one of"),
    ({"prompt": "Q", "response-1": "A", "q.responses": []}, "expected at least response-1 and response-2"),
    ({**TREE, "prompt": {**TREE["prompt"], "role": "system"}}, "a message of role 'system'; expected prompter or"),  # type: ignore[dict-item]
    ({"prompt": "Q", "completion": "A", "label": "nice"}, "label is 'nice'; expected true or false"),
])  # fmt: skip
def test_bad_rows_are_told_or_counted(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:1: .*{words}"):
        read(tmp_path, row)
    with pytest.warns(UserWarning, match="skipped 1 bad records"):
        assert len(read(tmp_path, row, ULTRA, on_bad_record="skip")) == 1
