"""Sentences, the script of a text, and phrases found in it, in scripts with and without spaces between words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import regex
from rlhf_core.segmentation import NO_SPACES, SPACED, UNSPACED, words

_IS_UNSPACED = regex.compile(rf"(?V1){UNSPACED}")
_IS_HAN = regex.compile(r"\p{Han}")

BOUNDARY = rf"(?:(?<!{SPACED})|(?!{SPACED}))"
"""Where a match may begin or end: anywhere but between two word characters of a script with spaces.

Unlike ``\\b`` this is also true between 用 and A in 用AI, and between any two Chinese or Japanese characters.
"""

_CLOSERS = r"""["'”’»)\]）】」』》]*"""
# a full stop ends a sentence before white space only, so not in 3.5; and not after an initial or a usual abbreviation,
# nor in No. 10
_SENTENCE_END = regex.compile(
    rf"(?V1)[。！？｡]+{_CLOSERS}"
    rf"|[!?]+{_CLOSERS}(?=\s|\Z|{NO_SPACES})"
    rf"|(?!(?<=\bNo)\.\s?[0-9])(?<!\b(?:\p{{Lu}}|Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e))\.+{_CLOSERS}(?=\s|\Z|{NO_SPACES})"
    r"|\n+"
)


def script(text: str) -> Literal["spaced", "chinese", "unspaced"]:
    """How most of `text` is written: with spaces between words, in Chinese, or in another script without spaces."""
    found = words(text)
    unspaced = [word for word in found if _IS_UNSPACED.match(word)]
    if 2 * len(unspaced) < len(found) or not unspaced:
        return "spaced"
    return "chinese" if all(_IS_HAN.match(word) for word in unspaced) else "unspaced"


def sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of `text` as character ranges [start, end), end mark included, outer white space not.

    A sentence ends at 。！？, at a line end, and at . ! ? before white space (or before a script without spaces), with
    the quotes and brackets that close there.
    """
    cuts = [match.end() for match in _SENTENCE_END.finditer(text)]
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        sentence = text[start:end]
        if words(sentence):  # a lone mark is no sentence
            start += len(sentence) - len(sentence.lstrip())
            found.append((start, start + len(sentence.strip())))
    return found


class Finder:
    """Finds words and phrases: from left to right, the longest at a place wins, and what it covers belongs to it alone.

    Args:
        phrases: none of them empty; a space in one matches any white space.
        ignore_case: whether Please is also please.
        whole_words: no hits inside longer words, in scripts that put spaces between them.
    """

    def __init__(self, phrases: Iterable[str], *, ignore_case: bool = True, whole_words: bool = True) -> None:
        self.phrases = sorted(phrases, key=len, reverse=True)
        options = "|".join(rf"({regex.escape(phrase)})".replace(r"\ ", r"\s+") for phrase in self.phrases)
        edge = BOUNDARY if whole_words else ""
        pattern = f"(?V1){edge}(?:{options}){edge}" if self.phrases else r"(?!)"  # no phrase is found nowhere
        self._pattern = regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)

    def __call__(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Each hit as (phrase as it was given, start, end)."""
        for match in self._pattern.finditer(text):
            yield self.phrases[match.lastindex - 1], match.start(), match.end()  # each phrase is one group
