"""What quality control reads off one record: its hash, what is wrong with it, its answer, and its judgements.

A *judgement* is an answer that others could give to the same *item*: of a rating its score, of a sentiment its label,
of a comparison, for every pair of responses that were compared, which one is better. The other kinds have none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

from rlhf_core.records import Comparison, Demonstration, Edit, Feedback, Keywords, Prompt, Rating, Sentiment

PROBLEMS = (
    "",
    "empty prompt",
    "empty response",
    "responses that differ in white space only",
    "an edit that changes nothing",
    "no order: no two responses were compared",
    "no keywords",
)
"""What can be wrong with a record that its type allows; the first: nothing."""

FEELINGS = {"negative": 0.0, "neutral": 0.5, "positive": 1.0}
UNKNOWN, TIE, NOT_COMPARED = -1, -2, -3
"""Instead of the place of the best response: not known, all as good, and not a comparison."""

# the words of `plain`: a character of a script without spaces, or a run of letters and digits
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


class Judgement(NamedTuple):
    """One answer to one item. measure: what kind of answer, and on which scale; only equal ones can be compared."""

    item: int
    measure: tuple[Any, ...]
    value: float


class Place(NamedTuple):
    """Where the best response was shown. sure: a field of the prompt says so, and not the order of the record alone."""

    best: int
    options: int
    sure: bool


def digest(*parts: Any) -> int:
    """64 bits of a hash that is the same in every run. Among ten million, two agree by chance once in 400,000 runs."""
    return int.from_bytes(blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def prompt_text(prompt: Prompt) -> Any:
    """The prompt without its fields: text, or (role, content) of each message."""
    return prompt.text if isinstance(prompt.text, str) else tuple((m.role, m.content) for m in prompt.text)


def words(prompt: Prompt) -> list[str]:
    """The words of a prompt without case and punctuation; each Chinese or Japanese character is one."""
    text = prompt.text if isinstance(prompt.text, str) else "\n".join(message.content for message in prompt.text)
    return _WORD.findall(text.casefold())


def problem(record: Feedback) -> int:
    """What is wrong with it, as an index of `PROBLEMS`; 0: nothing."""
    prompt = record.prompt.text
    if not (prompt.strip() if isinstance(prompt, str) else any(m.content.strip() for m in prompt)):
        return 1
    match record:
        case Rating() | Sentiment() | Demonstration():
            return 0 if record.response.strip() else 2
        case Comparison():
            if not all(response.strip() for response in record.responses):
                return 2
            if len({" ".join(response.split()) for response in record.responses}) == 1:
                return 3
            return 5 if not record.ties_judged and len(set(record.ranks)) == 1 else 0
        case Edit():
            return 4 if record.original == record.edited else 0
        case Keywords():
            return 0 if record.wanted or record.unwanted else 6


def content(record: Feedback) -> tuple[Any, ...]:
    """What was judged and what the answer is, whoever gave it and whenever: equal for duplicates."""
    prompt = prompt_text(record.prompt)
    match record:
        case Rating():
            spans = tuple((s.start, s.end, s.score) for s in record.spans)
            return prompt, record.response, record.score, record.scale, tuple(sorted(record.aspects.items())), spans
        case Comparison():
            order = tuple(sorted(zip(record.responses, record.ranks, strict=True)))
            return prompt, order, record.ties_judged, record.margin, record.confidence
        case Edit():
            return prompt, record.original, record.edited
        case Demonstration():
            return prompt, record.response, tuple((s.start, s.end, s.weight) for s in record.spans)
        case Keywords():
            return prompt, record.response, record.wanted, record.unwanted
        case Sentiment():
            return prompt, record.response, record.label, record.score


def duplicate_key(record: Feedback) -> int:
    """Equal for duplicates: one annotator's same answer to the same item, at any time.

    Nobody knows whether two equal records without an annotator come from one person, unless time, source and comment
    are equal as well.
    """
    if record.annotator is None:
        return int(record.id, 16)
    return digest(record.kind, record.annotator, content(record))


def answer(record: Feedback) -> int:
    """The answer as such, to whatever item: what a constant annotator repeats.

    0 for comparisons, of which `place` says it, and for keywords: who wants the same words everywhere may well mean it.
    """
    match record:
        case Rating():
            given: Any = (record.score, record.scale)
        case Sentiment():
            given = record.label
        case Edit():
            given = record.edited
        case Demonstration():
            given = record.response
        case Comparison() | Keywords():
            return 0
    return digest(record.kind, given) or 1


def place(record: Feedback, field: str) -> Place:
    """Where a comparison's best response was shown, counted from 0.

    The order of the record is the best guess, and it is none where the chosen response is always written first. The
    prompt field `field` settles it for pairs: the index of the response that was shown first, or chosen or rejected.
    """
    if not isinstance(record, Comparison):
        return Place(NOT_COMPARED, 0, False)
    options, best = len(record.responses), [i for i, rank in enumerate(record.ranks) if rank == min(record.ranks)]
    if len(best) == options:
        return Place(TIE, options, True)
    if len(best) > 1:
        return Place(UNKNOWN, options, False)
    first = record.prompt.fields.get(field)
    if first == "chosen":
        first = best[0]
    elif first == "rejected" and options == 2:
        first = 1 - best[0]
    if type(first) is int and 0 <= first < options:
        if first == best[0]:
            return Place(0, options, True)
        return Place(1, options, True) if options == 2 else Place(UNKNOWN, options, False)
    return Place(min(best[0], 127), options, False)


def judgements(record: Feedback) -> Iterator[Judgement]:
    """Every answer in it that others could give as well; ratings on a scale from 0 to 1."""
    prompt = prompt_text(record.prompt)
    if isinstance(record, Rating):
        low, high = record.scale
        value = (record.score - low) / (high - low)
        yield Judgement(digest("rating", prompt, record.response), ("rating", low, high), value)
    elif isinstance(record, Sentiment):
        yield Judgement(digest("sentiment", prompt, record.response), ("sentiment",), FEELINGS[record.label])
    elif isinstance(record, Comparison):
        # the same way round for everyone, and by a hash: in the order of the alphabet, or of length, one side might win
        # more often whatever the item, and agreement on that would pass for chance
        order = sorted(zip(record.responses, record.ranks, strict=True), key=lambda pair: digest(prompt, pair[0]))
        for i, (first, rank) in enumerate(order):
            for second, other in order[i + 1 :]:
                if rank != other or record.ties_judged:
                    value = float((rank < other) - (rank > other))
                    yield Judgement(digest("comparison", prompt, first, second), ("comparison",), value)


def longer_won(record: Feedback) -> int:
    """1 if the best response of a comparison is longer than the worst, -1 if shorter, 0 if neither or a tie."""
    if not isinstance(record, Comparison) or len(set(record.ranks)) == 1:
        return 0
    best, worst = (record.responses[record.ranks.index(rank)] for rank in (min(record.ranks), max(record.ranks)))
    return (len(best) > len(worst)) - (len(best) < len(worst))


def field_values(prompt: Prompt, fields: tuple[str, ...]) -> tuple[str, ...]:
    """The values of some fields, as text; "(none)" where one is missing."""
    return tuple(_text(prompt.fields.get(name)) for name in fields)


def _text(value: Any) -> str:
    if value is None:
        return "(none)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
