"""Swapping terms in a text, and where its characters went."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_INSIDE = f"[^\\W{_CJK}]"  # a letter or digit of a script that puts spaces between words


class Segment(NamedTuple):
    """Characters [start, end) of a text became [new_start, new_end) of the swapped one."""

    start: int
    end: int
    new_start: int
    new_end: int


class Swapped(NamedTuple):
    """A text with its terms swapped."""

    text: str
    segments: tuple[Segment, ...]

    @property
    def changed(self) -> bool:
        return bool(self.segments)

    def offset(self, offset: int) -> int:
        """Where the character offset `offset` of the old text lies in the new one; inside a term, in proportion."""
        shift = 0
        for segment in self.segments:
            if offset <= segment.start:
                break
            if offset < segment.end:
                share = (offset - segment.start) / (segment.end - segment.start)
                return segment.new_start + round(share * (segment.new_end - segment.new_start))
            shift = segment.new_end - segment.end
        return offset + shift


def _capitalised(word: str) -> str:
    return word[:1].upper() + word[1:]


def _cases(word: str) -> tuple[Callable[[str], str], ...]:
    """How `word` may be written: he, He and HE; a word that is given with capitals only as it is."""
    return (str, _capitalised, str.upper) if word == word.lower() else (str,)


class Swapper:
    """Swaps terms in texts.

    From left to right the longest term at a place wins, and what it covers is not looked at again. In scripts with
    spaces a term is a whole word. A term in small letters keeps its case: he, He and HE become she, She and SHE; hE is
    left alone. A pair with a capital in it (Mr, a name) is found only as it is written.

    Args:
        pairs: both ways; no term may be in two of them.
        leave: words that stay as they are though a term is in them.
        irregular: term -> what it becomes, given the text behind it.
    """

    def __init__(
        self,
        pairs: Iterable[Sequence[str]],
        leave: Iterable[str] = (),
        irregular: Mapping[str, Callable[[str], str]] | None = None,
    ) -> None:
        self._forms: dict[str, str] = {}
        for a, b in pairs:
            for case in _cases(a + b):
                if case(a) not in self._forms and case(b) not in self._forms:  # one letter: capitalised is all capitals
                    self._forms |= {case(a): case(b), case(b): case(a)}
        self._irregular = {
            case(word): (case, becomes) for word, becomes in (irregular or {}).items() for case in _cases(word)
        }
        left = {case(word) for word in leave for case in _cases(word)}
        self._forms |= {word: word for word in left}
        known = sorted({*self._forms, *self._irregular}, key=len, reverse=True)
        self._pattern = re.compile(_any_of(known)) if known else None

    def __call__(self, text: str) -> Swapped:
        """`text` swapped."""
        pieces, segments, last, length = [], [], 0, 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            start, end = match.span()
            partner = self._forms.get(match.group())
            if partner is None:
                case, becomes = self._irregular[match.group()]
                partner = case(becomes(text[end:]))
            if partner == match.group():
                continue
            new_start = length + start - last
            pieces += [text[last:start], partner]
            last, length = end, new_start + len(partner)
            segments.append(Segment(start, end, new_start, length))
        return Swapped("".join([*pieces, text[last:]]), tuple(segments))


def _any_of(words: Sequence[str]) -> str:
    """A pattern for any of `words`, none of them inside a longer word.

    Next to Chinese or Japanese characters anything may begin and end, so a word with such edges needs no check there.
    """
    whole = [word for word in words if _spaced(word[0]) and _spaced(word[-1])]
    parts = [
        (f"(?<!{_INSIDE})" if _spaced(word[0]) else "")
        + re.escape(word)
        + (f"(?!{_INSIDE})" if _spaced(word[-1]) else "")
        for word in words
        if word not in set(whole)
    ]
    if whole:  # with the edges checked once for all, not once for each
        parts.append(f"(?<!{_INSIDE})(?:{'|'.join(map(re.escape, whole))})(?!{_INSIDE})")
    return "|".join(parts)


def _spaced(character: str) -> bool:
    return re.match(_INSIDE, character) is not None
