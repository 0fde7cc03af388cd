"""What a word is, in scripts that put spaces between words and in scripts that do not.

The patterns are for the `regex` package, in its version 1 syntax: ``--`` is set difference, ``&&`` intersection, and
``\\w`` holds combining marks, so that a Devanagari word or a decomposed é stays in one piece.
"""

from __future__ import annotations

import regex

_NO_SPACES = r"[\p{Han}\p{Hiragana}\p{scx=Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_UNSPACED = rf"[\w&&{_NO_SPACES}]"
_SPACED = rf"[\w--{_NO_SPACES}]"
_WORD = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|{_SPACED}+(?:['\u2019]{_SPACED}+)*")

BOUNDARY = rf"(?:(?<!{_SPACED})|(?!{_SPACED}))"
"""Where a match may begin or end: anywhere but between two word characters of a script with spaces.

Unlike ``\\b`` this is also true between 用 and A in 用AI, and between any two Chinese or Japanese characters.
"""


def words(text: str) -> list[str]:
    """The words of `text`, as they stand.

    A word is a run of letters, digits and apostrophes between them; in scripts without spaces (Chinese, Japanese, Thai,
    Lao, Khmer, Burmese) every character is one. Punctuation and emoji are none.
    """
    return list(_WORD.findall(text))
