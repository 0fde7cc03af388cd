"""AI feedback: pairs of another source, with the judge's order."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from rlhf_core.errors import DataError, RewardError
from rlhf_core.records import Comparison, Prompt, Rating

from .toys import Heard, JudgeServer, Memory, Page, polite_judge, source

PROMPT = Prompt(text="Where is my parcel?", fields={"topic": "post"})


def compared(*responses: str, **about: object) -> Comparison:
    """The last response is best, so that whoever copies the order is found out."""
    ranks = tuple(reversed(range(len(responses))))
    return Comparison.model_validate({"prompt": PROMPT, "responses": responses, "ranks": ranks, **about})


def test_the_judge_decides_and_signs(server: JudgeServer) -> None:
    server.answer = polite_judge
    record = compared("thanks", "no", annotator="ann", margin=2, confidence=0.6, weight=0.1, source="shop")
    (judged,) = source(server, [record])
    assert judged == Comparison(
        prompt=PROMPT, responses=("thanks", "no"), ranks=(0, 1), annotator="toy", confidence=1, source="shop"
    )
    shown = sorted((asked.part("reply A"), asked.part("reply B")) for asked in server.asked)
    assert shown == [("no", "thanks"), ("thanks", "no")]
    assert "topic" not in json.dumps([asked.body for asked in server.asked])


def test_of_a_ranking_every_pair_is_judged(server: JudgeServer) -> None:
    server.answer = polite_judge
    records = list(source(server, [compared("thanks", "please", "no")]))
    assert [(r.responses, r.ranks, r.ties_judged, r.confidence) for r in records] == [  # type: ignore[union-attr]
        (("thanks", "please"), (0, 0), True, 1), (("thanks", "no"), (0, 1), True, 1), (("please", "no"), (0, 1), True, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("answers", [{"A"}, {"A", "tie"}])
def test_orders_that_disagree_are_dropped_or_a_tie(server: JudgeServer, answers: set[str]) -> None:
    def answer(asked: object) -> str:
        first = asked.part("reply A") == "fickle"  # type: ignore[attr-defined]
        if "fickle" not in dict(asked.parts).values():  # type: ignore[attr-defined]
            return polite_judge(asked)  # type: ignore[arg-type]
        return json.dumps({"winner": "A" if first or len(answers) == 1 else "tie"})

    server.answer = answer
    warnings = Heard()
    records = [compared("no", "fickle"), compared("no", "thanks")]
    dropping = source(server, records, warnings)
    assert [r.ranks for r in dropping] == [(1, 0)]  # type: ignore[union-attr]
    assert dropping.skipped == 1
    assert warnings == ["feedback 'machine': skipped 1 of 2: 1 x a verdict that changes with the order"]
    tying = source(server, records, warnings, on_disagreement="tie")
    assert [(r.ranks, r.confidence) for r in tying] == [((0, 0), None), ((1, 0), 1)]  # type: ignore[union-attr]
    assert (tying.skipped, len(warnings)) == (0, 1)


def test_what_gives_no_verdict_is_counted(server: JudgeServer) -> None:
    said = {"prose": "The first one.", "error": Page(400, '{"error": "too long"}')}

    def answer(asked: object) -> str | Page:
        names = set(dict(asked.parts).values()) & said.keys()  # type: ignore[attr-defined]
        return said[names.pop()] if names else polite_judge(asked)  # type: ignore[arg-type,return-value]

    server.answer = answer
    warnings = Heard()
    rating = Rating(prompt=PROMPT, response="thanks", score=1, scale=(0, 1))
    records = [compared("thanks", "prose"), rating, compared("no", "thanks"), compared("no", "error")]
    judged = source(server, records, warnings, on_failure="abstain")
    for _ in range(2):
        assert [r.ranks for r in judged] == [(1, 0)]  # type: ignore[union-attr]
        assert judged.skipped == 3
    assert warnings[0].startswith("feedback 'machine': skipped 3 of 4: 1 x ")
    for reason in ("not JSON alone", "HTTP 400: too long", "feedback of kind 'rating'"):
        assert f"1 x {reason}" in warnings[0]
    with pytest.raises(RewardError, match=r"feedback 'machine': .* gave no answer in 1 attempt: HTTP 400: too long"):
        list(source(server, records))


@pytest.mark.parametrize("records", [[], [Rating(prompt=PROMPT, response="a", score=1, scale=(0, 1))], [compared("a", "b")]],
                         ids=["empty", "ratings", "prose"])  # fmt: skip
def test_no_verdict_at_all_is_an_error(server: JudgeServer, records: list[Comparison]) -> None:
    server.script("prose")
    words = (
        rf"feedback 'machine': no pair with a verdict in feedback 'people' \({len(records)} skipped\); expected at le"
    )
    with pytest.raises(DataError, match=words):
        list(source(server, records))


def test_it_streams_and_asks_each_pair_once(server: JudgeServer) -> None:
    server.answer = polite_judge
    people = Memory([compared(f"thanks {i}", f"no {i}") for i in range(50)])
    judged = source(server, people, concurrency=2)
    assert len(list(islice(judged, 3))) == 3
    assert people.read == 8, "four pairs per thread are read ahead"
    assert len(server.asked) == 16
    first = [r.id for r in judged]
    assert (len(first), len(server.asked)) == (50, 100)
    assert [r.id for r in judged] == first
    assert len(server.asked) == 100
    assert [r.ranks for r in judged] == [(0, 1)] * 50  # type: ignore[union-attr]
