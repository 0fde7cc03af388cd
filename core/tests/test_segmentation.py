"""Words and pieces of text, in scripts with spaces and without."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlhf_core.segmentation import pieces, words

PLAIN = st.text(alphabet="ab .,'\n你，谢コーサ🙂👍", max_size=30)  # no mark that combines with what is no letter
TEXTS = PLAIN | st.text(max_size=20)


@pytest.mark.parametrize(("text", "expected"), [
    ("Don't panic: well-known, 100%!", ["Don't", "panic", "well", "known", "100"]),
    ("我用AI来写代码，真的！", ["我", "用", "AI", "来", "写", "代", "码", "真", "的"]),
    ("コーヒーを。", ["コ", "ー", "ヒ", "ー", "を"]),
    ("감사합니다 고객님", ["감사합니다", "고객님"]),
    ("किताब cafe\u0301", ["किताब", "cafe\u0301"]),
    (" 🙂 … ", []),
])  # fmt: skip
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("Thanks, don't worry.", ["Thanks", ",", " don't", " worry", "."]),
    (" 10 cats:\n\n- one", [" 10", " cats", ":", "\n\n-", " one"]),
    ("你好吗?谢谢!", ["你", "好", "吗", "?", "谢", "谢", "!"]),
    ("用AI写, 再查", ["用", "AI", "写", ",", " 再", "查"]),
    ("ありがとう 🙂👍🏽", ["あ", "り", "が", "と", "う", " 🙂", "👍🏽"]),
    ("नमस्ते दुनिया", ["नमस्ते", " दुनिया"]),
    ("so e\u0301te\u0301  \n", ["so", " e\u0301te\u0301", "  \n"]),
    ("", []),
])  # fmt: skip
def test_pieces(text: str, expected: list[str]) -> None:
    assert [text[a:b] for a, b in pieces(text)] == expected


@given(TEXTS)
def test_pieces_tile_the_text(text: str) -> None:
    tiles = pieces(text)
    assert "".join(text[a:b] for a, b in tiles) == text
    assert all(a < b for a, b in tiles)


@given(PLAIN)
def test_every_word_ends_a_piece(text: str) -> None:
    """Pieces without white space and without what is no word are the words."""
    found = [text[a:b].lstrip() for a, b in pieces(text)]
    assert [word for piece in found for word in words(piece)] == words(text)
    assert all(len(words(piece)) <= 1 for piece in found)
