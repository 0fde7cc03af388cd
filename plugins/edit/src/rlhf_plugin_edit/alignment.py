"""Which words an edit changed. Positions are characters.

The alignment is Levenshtein's over words, each edit operation at cost 1 (Needleman and Wunsch, 1970, as in SALT: Yao et
al., 2023, arXiv:2310.05857, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein
from rlhf_core.segmentation import pieces

Range = tuple[int, int]


@dataclass(frozen=True)
class Change:
    """``original[start:end]`` became `text`, which stands at `at` in the edited text; either may be empty."""

    start: int
    end: int
    at: int
    text: str


@dataclass(frozen=True)
class Alignment:
    """The changes from left to right, and how much they change.

    distance: words inserted, deleted or replaced, as a share of the longer text's words; 0 to 1.
    """

    changes: tuple[Change, ...]
    distance: float

    @property
    def deleted(self) -> tuple[Range, ...]:
        """What is gone, as ranges [start, end) of the original."""
        return tuple((c.start, c.end) for c in self.changes if c.end > c.start)

    @property
    def inserted(self) -> tuple[Range, ...]:
        """What is new, as ranges [start, end) of the edited text."""
        return tuple((c.at, c.at + len(c.text)) for c in self.changes if c.text)


def align(original: str, edited: str) -> Alignment:
    """What has to be changed to make `edited` of `original`.

    Words are compared without the white space before them, but a word whose white space differs is changed. Only at the
    beginning and at the end of a text, where white space means nothing, the white space alone is.
    """
    olds, news = _words(original), _words(edited)
    changes: list[Change] = []
    cost = 0

    def change(start: int, end: int, at: int, stop: int) -> None:
        if original[start:end] == edited[at:stop]:
            return
        if changes and changes[-1].end == start and changes[-1].at + len(changes[-1].text) == at:
            last = changes.pop()  # two changes side by side are one
            start, at = last.start, last.at
        changes.append(Change(start, end, at, edited[at:stop]))

    ops = Levenshtein.opcodes([original[a:b].strip() for a, b in olds], [edited[a:b].strip() for a, b in news])
    for op in ops:
        old, new = olds[op.src_start : op.src_end], news[op.dest_start : op.dest_end]
        if op.tag != "equal":
            cost += max(len(old), len(new))
            start, at = _begin(olds, op.src_start), _begin(news, op.dest_start)
            change(start, old[-1][1] if old else start, at, new[-1][1] if new else at)
            continue
        for (start, end), (at, stop) in zip(old, new, strict=True):
            if start == 0 or at == 0:
                size = len(edited[at:stop].lstrip())  # of the word itself
                change(start, end - size, at, stop - size)
            else:
                cost += original[start:end] != edited[at:stop]
                change(start, end, at, stop)
    change(_begin(olds, len(olds)), len(original), _begin(news, len(news)), len(edited))
    # white space that moved counts beside words that did, so a short text may be changed more than once over
    return Alignment(tuple(changes), min(cost / max(len(olds), len(news), 1), 1.0))


def _words(text: str) -> list[Range]:
    """The pieces with a word in them."""
    return pieces(text[: len(text.rstrip())])


def _begin(words: list[Range], i: int) -> int:
    """Where word `i` begins, or where the last one ends."""
    if i < len(words):
        return words[i][0]
    return words[-1][1] if words else 0


def apply(original: str, changes: tuple[Change, ...]) -> str:
    """The edited text: `original` with `changes` made."""
    parts, place = [], 0
    for change in changes:
        parts += [original[place : change.start], change.text]
        place = change.end
    return "".join(parts) + original[place:]
