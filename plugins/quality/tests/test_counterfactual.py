"""Swapped twins: what changes, what does not, and where spans go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rlhf_core.errors import DataError
from rlhf_core.records import (
    Comparison,
    Demonstration,
    Feedback,
    Message,
    Prompt,
    Rating,
    SpanRating,
    SpanWeight,
    parse_feedback,
)
from rlhf_plugin_quality.config import CounterfactualConfig
from rlhf_plugin_quality.counterfactual import Counterfactual
from rlhf_plugin_quality.swaps import Swapper
from rlhf_plugin_quality.terms import CHINESE, ENGLISH, IRREGULAR, LEAVE

from .toys import Memory, context

BUILT_IN = Swapper([*ENGLISH, *CHINESE], LEAVE, IRREGULAR)


def augmented(*records: Feedback, **config: Any) -> list[Feedback]:
    return list(Counterfactual(CounterfactualConfig(feedback="a", **config), context(records)))


def plain(record: Feedback) -> dict[str, Any]:
    return record.model_dump(exclude_none=True, exclude_defaults=True)


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "swapped"), [
    ("He said she may. HE!", "She said he may. SHE!"),
    ("The theme of heat: then, others, Helen", None),  # no he inside a word
    ("he's a fireman-like man", "she's a fireman-like woman"),
    ("women and men", "men and women"),
    ("my stepfather and my father", "my stepmother and my mother"),
    ("Mr. Lee waits 5 ms; MR and ms", "Ms. Lee waits 5 ms; MR and ms"),  # capitals as they are written
    ("hE", None),
    ("他说她的女儿和其他人的吉他", "她说他的儿子和其他人的吉他"),
    ("男朋友男友", "女朋友女友"),
    ("祖父母", None),
    ("用he写", "用she写"),
    ("兄弟姐妹", "姐妹兄弟"),
    ("", None),
])  # fmt: skip
def test_terms(text: str, swapped: str | None) -> None:
    assert BUILT_IN(text).text == (text if swapped is None else swapped)
    assert BUILT_IN(text).changed == (swapped is not None)


@pytest.mark.parametrize(("text", "swapped", "back"), [
    ("I saw him.", "I saw her.", True),
    ("I gave him the keys", "I gave her the keys", True),
    ("his book", "her book", True),
    ("the book is his, not hers", "the book is hers, not his", True),
    ("Her own car, and HIS", "His own car, and HERS", True),
    ("about her", "about him", True),
    ("her", "him", True),
    ("Mrs Lee", "Mr Lee", False),
    ("I saw him leave", "I saw her leave", False),
    ("I saw her leave", "I saw his leave", True),  # the rule knows no grammar
])  # fmt: skip
def test_english_pronouns_by_what_follows(text: str, swapped: str, back: bool) -> None:
    assert BUILT_IN(text).text == swapped
    assert (BUILT_IN(swapped).text == text) == back


def test_the_longest_term_wins_and_left_words_stay() -> None:
    swap = Swapper([("old man", "old woman"), ("man", "boy")], leave=["man of war"])
    assert swap("old man, man, Man of war, man").text == "old woman, boy, Man of war, boy"
    names = Swapper([("Mark", "Mary"), ("李明", "李红")])
    assert names("Mark will mark it, 李明说").text == "Mary will mark it, 李红说"


def test_no_term_of_the_built_in_pairs_is_there_twice() -> None:
    terms = [term for pair in (*ENGLISH, *CHINESE) for term in pair] + list(IRREGULAR)
    assert sorted(set(terms)) == sorted(terms)
    for a, b in (*ENGLISH, *CHINESE):
        assert (BUILT_IN(a).text, BUILT_IN(b).text) == (b, a)


FILLER = ["the", "Then", "heat", "works", "5", "and", "天气", "很好"]
TERMS = [term for pair in ENGLISH for term in pair]
CASES = st.sampled_from([str, str.upper, str.capitalize])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Words of English, some of them terms, with spaces and punctuation between them."""
    words = draw(st.lists(st.tuples(st.sampled_from([*TERMS, *FILLER]), CASES), max_size=12))
    ends = draw(st.lists(st.sampled_from([" ", ", ", ". ", "-", "\n"]), min_size=len(words), max_size=len(words)))
    return "".join(case(word) + end for (word, case), end in zip(words, ends, strict=True))


CHINESE_PARTS = st.sampled_from([term for pair in CHINESE for term in pair] + ["，", "说", "。", "在", *LEAVE])


@given(texts())
def test_swapping_twice_gives_the_original(text: str) -> None:
    pairs = Swapper(ENGLISH)
    assert pairs(pairs(text).text).text == text
    assert len(pairs(text).segments) == len(pairs(pairs(text).text).segments)


@given(st.lists(CHINESE_PARTS, max_size=12))
def test_swapping_chinese_twice_gives_the_original(parts: list[str]) -> None:
    text = "，".join(parts)  # side by side, two terms may make a third
    assert BUILT_IN(BUILT_IN(text).text).text == text


AFTER = st.sampled_from(["saw", "book", "to", "in", "and", "yesterday.", "!"])


@given(st.lists(st.tuples(st.sampled_from(["him", "his", "her", "hers"]), AFTER), max_size=8))
def test_pronouns_come_back_unless_him_or_hers_stands_before_a_content_word(pairs: list[tuple[str, str]]) -> None:
    usual = [(word, after) for word, after in pairs if word in ("his", "her") or after not in ("saw", "book")]
    text = " ".join(f"{word} {after}" for word, after in usual)
    assert BUILT_IN(BUILT_IN(text).text).text == text


@given(texts())
def test_offsets_follow_their_characters(text: str) -> None:
    swapped = BUILT_IN(text)
    ends = [swapped.offset(i) for i in range(len(text) + 1)]
    assert ends[0] == 0 and ends[-1] == len(swapped.text) and ends == sorted(ends)
    covered = {i for s in swapped.segments for i in range(s.start, s.end)}
    for i in set(range(len(text))) - covered:
        assert swapped.text[ends[i]] == text[i]
    for s in swapped.segments:
        assert (ends[s.start], ends[s.end]) == (s.new_start, s.new_end)
        assert BUILT_IN(swapped.text[s.new_start : s.new_end]).changed


# --- records ----------------------------------------------------------------------------------------------------------

ABOUT = {"annotator": "ann", "source": "survey", "weight": 0.5}
RECORDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": "rating", "prompt": "Is he in?", "response": "Yes, she is.", "score": 4, "scale": (1, 5)},
     {"prompt": "Is she in?", "response": "Yes, he is."}),
    ({"kind": "comparison", "prompt": "p", "responses": ("he", "ok"), "ranks": (1, 0), "margin": 2},
     {"responses": ("she", "ok")}),
    ({"kind": "edit", "prompt": "p", "original": "the man", "edited": "the woman"},
     {"original": "the woman", "edited": "the man"}),
    ({"kind": "demonstration", "prompt": "她好吗", "response": "很好"}, {"prompt": "他好吗"}),
    ({"kind": "keywords", "prompt": "p", "wanted": ("madam", "please"), "unwanted": ("girl",)},
     {"wanted": ("sir", "please"), "unwanted": ("boy",)}),
    ({"kind": "keywords", "prompt": "p", "response": "he", "wanted": ("x",)}, {"response": "she"}),
    ({"kind": "sentiment", "prompt": "p", "response": "He smiles.", "label": "positive", "score": 0.5},
     {"response": "She smiles."}),
]  # fmt: skip


@pytest.mark.parametrize(("data", "changes"), RECORDS, ids=[f"{d['kind']}-{i}" for i, (d, _) in enumerate(RECORDS)])
def test_every_kind_has_a_twin(data: dict[str, Any], changes: dict[str, Any]) -> None:
    record = parse_feedback({**data, **ABOUT})
    original, twin = augmented(record)
    assert original is record
    assert plain(twin) == plain(parse_feedback({**data, **changes, **ABOUT}))
    assert twin.id == parse_feedback({**data, **changes, **ABOUT}).id != record.id
    (alone,) = augmented(record, keep_original=False)
    assert alone == twin
    (back,) = augmented(twin, keep_original=False)
    assert plain(back) == plain(record)


def test_without_a_term_there_is_no_twin() -> None:
    records = [
        Rating(prompt="The theme", response="heat", score=1, scale=(0, 1)),
        Demonstration(prompt=Prompt(text="p", fields={"topic": "his shoes"}), response="r", comment="he was nice"),
    ]
    assert augmented(*records) == augmented(*records, keep_original=False) == records


def test_chats_and_fields_are_swapped() -> None:
    chat = (Message(role="system", content="Be kind, sir."), Message(role="user", content="Where is she?"))
    fields = {"reference": "She is here.", "answers": ["she", {"who": "a girl"}], "level": 2}
    _, twin = augmented(Demonstration(prompt=Prompt(text=chat, fields=fields), response="Here."))
    assert twin.prompt.messages == [
        {"role": "system", "content": "Be kind, madam."}, {"role": "user", "content": "Where is he?"},
    ]  # fmt: skip
    assert twin.prompt.fields == {"reference": "He is here.", "answers": ["he", {"who": "a boy"}], "level": 2}


def test_spans_go_where_their_characters_go() -> None:
    response = "He and the woman know."
    spans = [(0, 2), (3, 6), (11, 16), (17, 21), (1, 2)]
    rating = Rating(
        prompt="p", response=response, score=1, scale=(0, 1),
        spans=tuple(SpanRating(start=a, end=b, score=i / 5) for i, (a, b) in enumerate(spans)),
    )  # fmt: skip
    _, twin = augmented(rating)
    assert isinstance(twin, Rating) and twin.response == "She and the man know."
    cut = [(twin.response[s.start : s.end], s.score) for s in twin.spans]
    assert cut == [("She", 0.0), ("and", 0.2), ("man", 0.4), ("know", 0.6), ("e", 0.8)]

    demonstration = Demonstration(
        prompt="p",
        response="grandmothers",
        spans=(SpanWeight(start=0, end=1, weight=1), SpanWeight(start=5, end=12, weight=-1)),
    )
    _, twin = augmented(demonstration, swaps=[["grandmothers", "x"]])
    assert isinstance(twin, Demonstration)
    assert [(s.start, s.end, s.weight) for s in twin.spans] == [(0, 1, -1.0)], "the first letter has no room left"


def test_a_twin_is_held_out_where_its_prompt_is() -> None:
    records = [Demonstration(prompt=f"Question {i}: is he in?", response="Yes.") for i in range(200)]
    found = augmented(*records)
    sides = [(a.prompt.in_share(0.3), b.prompt.in_share(0.3)) for a, b in zip(found[::2], found[1::2], strict=True)]
    assert all(a == b for a, b in sides) and {a for a, _ in sides} == {True, False}
    apart = [Prompt(text=record.prompt.text).in_share(0.3) for record in found[1::2]]
    assert apart != [b for _, b in sides], "by its own text it would leak"
    (again,) = augmented(found[1], keep_original=False)
    assert again.prompt.in_share(0.3) == records[0].prompt.in_share(0.3)


def test_responses_that_would_become_one_have_no_twin() -> None:
    record = Comparison(prompt="p", responses=("saw him eat", "saw his eat"), ranks=(0, 1))
    assert augmented(record) == augmented(record, keep_original=False) == [record]


def test_languages_and_pairs_of_ones_own() -> None:
    record = Demonstration(prompt="p", response="he 他 Anna")

    def responses(**config: Any) -> list[str]:
        return [r.response for r in augmented(record, **config) if isinstance(r, Demonstration)]

    assert responses() == ["he 他 Anna", "she 她 Anna"]
    assert responses(language="en") == ["he 他 Anna", "she 他 Anna"]
    assert responses(language="zh", keep_original=False) == ["he 她 Anna"]
    assert responses(swaps=[["Anna", "Aisha"]]) == ["he 他 Anna", "he 他 Aisha"]
    assert responses(leave=["he"], language="en") == ["he 他 Anna"]


def test_it_streams() -> None:
    source = Memory([Demonstration(prompt="p", response="he")] * 2)
    augment = Counterfactual(CounterfactualConfig(feedback=["a", "a"]), context(source))
    assert [r.response for r in augment] == ["he", "she"] * 4  # type: ignore[union-attr]
    assert [r.id for r in augment] == [r.id for r in augment]


# --- complaints -------------------------------------------------------------------------------------------------------


def test_nothing_to_augment() -> None:
    with pytest.raises(DataError, match="feedback 'clean': a gives no feedback; expected at least one record"):
        augmented()


@pytest.mark.parametrize(("config", "words"), [
    ({"feedback": []}, "name at least one feedback source"),
    ({"swaps": []}, "an empty list swaps nothing; leave `swaps` out for the built-in pairs"),
    ({"swaps": [["he", " "]]}, r"the pair \['he', ' '\] has an empty term"),
    ({"swaps": [["her", "him"], ["Her", "his"]]}, "'Her' is there twice, so what it is swapped with is not clear"),
    ({"swaps": [["he", "she", "they"]]}, "at most 2 items"),
    ({"leave": [""]}, "`leave` has an empty word"),
    ({"language": "fr"}, "'en', 'zh' or 'both'"),
])  # fmt: skip
def test_wrong_options(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        CounterfactualConfig(**{"feedback": "a", **config})
