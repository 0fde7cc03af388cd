"""Alignments: by hand, and as a property of any two texts."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_core.segmentation import pieces
from rlhf_plugin_edit.alignment import Change, align, apply

GOLDEN = Path(os.environ.get("RLHF_GOLDEN") or Path(__file__).resolve().parents[3] / "../shared/golden/golden.json")
# texts that share words, in scripts with and without spaces, with white space and marks of every kind
TEXTS = st.lists(
    st.sampled_from(
        [
            "the",
            "cat",
            "don't",
            "Cat",
            "谢谢",
            "你",
            "好",
            "。",
            "สวัสดี",
            "नमस्ते",
            "e\u0301",
            "🙂👍🏽",
            ".",
            "...",
            "a-b",
            "3.5",
        ]
        + [" ", " ", " ", "  ", "\n", "\u3000", "\t"]
    ),
    max_size=12,
).map("".join)


def told(original: str, edited: str) -> tuple[list[str], list[str]]:
    """The deleted and the inserted stretches as text."""
    found = align(original, edited)
    return [original[a:b] for a, b in found.deleted], [edited[a:b] for a, b in found.inserted]


@settings(deadline=None, max_examples=300)
@given(TEXTS | st.text(max_size=20), TEXTS | st.text(max_size=20))
def test_applying_the_changes_gives_the_edited_text(original: str, edited: str) -> None:
    found = align(original, edited)
    assert apply(original, found.changes) == edited
    assert 0 <= found.distance <= 1
    back = align(edited, original)
    assert apply(edited, back.changes) == original
    # what stands outside the changes is the same in both texts, and nothing is changed into itself
    assert all(original[c.start : c.end] != c.text for c in found.changes)
    kept = [len(original) - sum(b - a for a, b in found.deleted), len(edited) - sum(b - a for a, b in found.inserted)]
    assert kept[0] == kept[1]
    # changes come in order and do not touch
    assert all(a.end < b.start or a.at + len(a.text) < b.at for a, b in pairwise(found.changes))


@given(TEXTS | st.text(max_size=20))
def test_nothing_changes_in_the_same_text(text: str) -> None:
    found = align(text, text)
    assert (found.changes, found.distance) == ((), 0.0)


@pytest.mark.parametrize(("original", "edited", "deleted", "inserted", "distance"), [
    # a word replaced by two, and one deleted: 3 of the 5 words of the longer text
    ("use the wrong link now", "use a better link", [" the wrong", " now"], [" a better"], 3 / 5),
    ("Restart it.", "Restart it, please.", [], [", please"], 2 / 5),
    ("Please use it.", "Hello. Please use it.", [], ["Hello. "], 2 / 6),  # the space in front of Please is no change
    ("Hello. Please use it.", "Please use it.", ["Hello. "], [], 2 / 6),
    (" a b", "a b", [" "], [], 0.0),
    ("a b", "a b\n", [], ["\n"], 0.0),
    ("router.Can we", "router. Can we", ["Can"], [" Can"], 1 / 4),  # here a missing space is a fault of the word
    ("a  b c", "a b c", ["  b"], [" b"], 1 / 3),
    ("你好,请重启。", "您好,请重启,谢谢。", ["你"], ["您", ",谢谢"], 4 / 10),
    ("one two", "three four five", ["one two"], ["three four five"], 1.0),
    ("a", "a a", [], [" a"], 1 / 2),
    ("a", "the ", ["a"], ["the "], 1.0),
    ("", " ", [], [" "], 0.0),
])  # fmt: skip
def test_by_hand(original: str, edited: str, deleted: list[str], inserted: list[str], distance: float) -> None:
    assert told(original, edited) == (deleted, inserted)
    assert align(original, edited).distance == pytest.approx(distance)


def test_neighbouring_changes_are_one() -> None:
    assert align("a b c d", "a x y d").changes == (Change(1, 5, 1, " x y"),)


def test_no_text_is_changed_by_more_than_all_of_it() -> None:
    assert align("the 你the", "谢谢你").distance == 1


def test_long_texts() -> None:
    """Ten thousand words, every hundredth replaced, take no longer than a moment."""
    words = [f"w{i}" for i in range(10_000)]
    edited = ["new" if i % 100 == 50 else word for i, word in enumerate(words)]
    found = align(" ".join(words), " ".join(edited))
    assert len(found.changes) == 100
    assert found.distance == 0.01


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no reference data at {GOLDEN} (set RLHF_GOLDEN)")
def test_golden_salt_alignment() -> None:
    cases = {entry["id"]: entry for entry in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]}
    case = cases["edit/salt_alignment"]
    words = case["inputs"]["original"], case["inputs"]["edited"]
    original, edited = (" ".join(own) for own in words)
    found = align(original, edited)
    for text, ranges, name in (
        (original, found.deleted, "original_changed"),
        (edited, found.inserted, "edited_changed"),
    ):
        changed = [int(any(a < end <= b for a, b in ranges)) for _, end in pieces(text)]
        assert changed == case["expected"][name]
    assert found.distance * max(len(own) for own in words) == pytest.approx(case["expected"]["levenshtein_words"])
