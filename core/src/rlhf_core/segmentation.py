r"""What a word is, in scripts that put spaces between words and in scripts that do not.

The patterns are for the `regex` package, in its version 1 syntax, which a pattern made of them opens with ``(?V1)``:
``--`` is set difference, ``&&`` intersection, and ``\w`` holds combining marks, so that a Devanagari word or a
decomposed é stays in one piece.
"""

from __future__ import annotations

import regex

NO_SPACES = r"[\p{Han}\p{Hiragana}\p{scx=Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""A character of a script that is written without spaces: Chinese, Japanese, Thai, Lao, Khmer or Burmese."""

SPACED = rf"[\w--{NO_SPACES}]"
"""A character of a word in a script with spaces."""

UNSPACED = rf"[\w&&{NO_SPACES}]"
"""A character that is a word by itself."""

WORD = rf"(?:{UNSPACED}\p{{M}}*|{SPACED}+(?:['\u2019]{SPACED}+)*)"

_WORD = regex.compile(rf"(?V1){WORD}")
_PIECE = regex.compile(rf"(?V1)\s*+(?:{WORD}|\X)|\s+")


def words(text: str) -> list[str]:
    """The words of `text`, as they stand.

    A word is a run of letters, digits and apostrophes between them; in scripts without spaces every character is one,
    so that n-grams of words are n-grams of characters there. Punctuation and emoji are none.
    """
    return list(_WORD.findall(text))


def pieces(text: str) -> list[tuple[int, int]]:
    """Words with the white space before them, as ranges [start, end) that tile `text`.

    Here every punctuation mark and every emoji is a word too. White space at the end of a text is a piece without one.
    """
    return [match.span() for match in _PIECE.finditer(text)]
