"""Answers that can be verified: taken out of the response and compared with the one that the prompt carries."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import regex
from rlhf_core.errors import RewardError
from rlhf_core.interfaces import Context, RewardModel
from rlhf_core.records import Sample, Scores, Span

from .common import scores, texts_of
from .config import AnswerConfig
from .formats import inside
from .numbers import fold, numbers, parse_number, undressed

BOXED = "\\boxed{"
EDGE = " \t\n.,;:!?。、，；：！？\"'“”‘’`*"
"""Marks around an answer that are not part of it."""

LETTERS = "A-H"
_LETTER = regex.compile(rf"(?<![A-Za-z])[{LETTERS}](?![A-Za-z'’])")
_CHOICE = regex.compile(rf"\s*[*(\[（]*([{LETTERS}{LETTERS.lower()}])(?:[*)\]）.:,、。]|\s*$)")


class Answer(RewardModel[AnswerConfig]):
    """`correct` if the answer is one of the accepted ones, `wrong` if not, `missing` if the response gives none.

    The answer in the response is a span that earns the reward. Logged are `found`, whether there is an answer, and
    `correct`, whether it is right.
    """

    def __init__(self, config: AnswerConfig, context: Context) -> None:
        super().__init__(config, context)
        markers = "|".join(regex.escape(fold(marker)) for marker in config.markers)
        self._marker = regex.compile(rf"(?:{markers})[ \t*:]*", regex.IGNORECASE)

    def score(self, samples: Sequence[Sample]) -> Scores:
        c = self.config
        values: list[float | None] = []
        spans: list[list[Span]] = []
        parts: dict[str, list[float]] = {"found": [], "correct": []}
        for sample in samples:
            accepted = self._accepted(sample)
            place = None if accepted is None else self._extract(fold(sample.response))
            right = accepted is not None and place is not None and self._is_right(sample.response[slice(*place)],
                                                                                  accepted)  # fmt: skip
            value = c.missing if place is None else c.correct if right else c.wrong
            values.append(None if accepted is None else value)
            spans.append([Span(*place, value)] if place and value else [])
            parts["found"].append(float(place is not None))
            parts["correct"].append(float(right))
        return scores(values, self.context, spans=spans, parts=parts)

    def _accepted(self, sample: Sample) -> tuple[str, ...] | None:
        """The answers that the prompt accepts; None if it has none and that is allowed."""
        c = self.config
        texts = texts_of(sample, c.field, "field", c.on_missing, self.context.where)
        if texts is None:
            return None
        if c.field_marker is not None:
            texts = tuple(text.rsplit(c.field_marker, 1)[-1] for text in texts)
        for text in texts:
            if self._read(text) is None:
                wanted = {"exact": "a text", "numeric": "a number", "choice": f"one letter of {LETTERS}"}[c.compare]
                raise RewardError(f"{self.context.where} prompt {sample.prompt.render()[-60:]!r}",
                                  f"answer {text[:60]!r} in field {c.field!r}", wanted,
                                  "mend the field, or choose another `compare` or `field_marker`")  # fmt: skip
        return texts

    def _is_right(self, answer: str, accepted: Sequence[str]) -> bool:
        given = self._read(answer)
        for gold in map(self._read, accepted):
            if isinstance(given, Fraction) and isinstance(gold, Fraction):
                if abs(given - gold) <= Fraction(self.config.tolerance) * abs(gold):
                    return True
            elif given is not None and given == gold:
                return True
        return False

    def _read(self, text: str) -> str | Fraction | None:
        """What an answer says, in the form in which answers are compared; None if it is no such thing."""
        if self.config.compare == "numeric":
            return parse_number(text)
        folded = undressed(text)
        if self.config.compare == "exact":
            return " ".join(folded.split()).strip(EDGE).casefold() or None
        if first := _CHOICE.match(folded):
            return str(first[1]).upper()
        letters = set(_LETTER.findall(folded))
        return letters.pop() if len(letters) == 1 else None

    def _extract(self, text: str) -> tuple[int, int] | None:
        """Where the answer stands in folded `text`, without white space around it; None if there is none."""
        how = self.config.extract
        if how == "last-number":
            last = max(numbers(text), default=None)
            return last[:2] if last else None
        if how == "tag":
            place = inside(text, self.config.tag)
        elif how == "boxed":
            place = _boxed(text)
        elif how == "after":
            place = self._after(text)
        else:
            place = 0, len(text)
        if place is None:
            return None
        answer = text[slice(*place)]
        start = place[0] + len(answer) - len(answer.lstrip())
        return (start, start + len(answer.strip())) if answer.strip() else None

    def _after(self, text: str) -> tuple[int, int] | None:
        """The rest of the line behind the last marker, or the next line that is not empty."""
        ends = [match.end() for match in self._marker.finditer(text)]
        if not ends:
            return None
        start = ends[-1] + len(text[ends[-1] :]) - len(text[ends[-1] :].lstrip())
        end = text.find("\n", start)
        return start, end if end >= 0 else len(text)


def _boxed(text: str) -> tuple[int, int] | None:
    """What stands in the braces of the last ``\\boxed{...}``; None if they never close."""
    start = text.rfind(BOXED)
    if start < 0:
        return None
    start += len(BOXED)
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return start, place
    return None
