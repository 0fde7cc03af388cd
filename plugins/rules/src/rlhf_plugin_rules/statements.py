"""What a text says of given facts: which of them its sentences support or contradict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import regex

from .facts import Fact
from .text import Finder, sentences

# Chinese ones as they stand before a verb: 不 alone is also in 不丹 and 不仅, 非 in 非洲, 无 in 无锡
NEGATION = regex.compile(
    r"(?i)\b(?:not(?!\s+only\b)|no(?!\s+doubt\b)|never|neither|nor|cannot|\p{L}+n['’]t)\b"
    r"|不(?=[是在会能为属叫位再曾应该])|[并从绝]不|没有|[并绝而]非|从未|未[曾能]|无法"
)
CLAUSE_END = regex.compile(
    r"(?i)[,;:，；：、()（）]|\b(?:but|while|whereas|although|though|and)\b|而是|但是|但|然而|而(?!且|非)"
)
QUESTION = regex.compile(r"""[?？][?？!！"'”’»)\]）】」』》]*$""")

NUMBER_BEFORE = regex.compile(r"[0-9][.,]$")
NUMBER_AFTER = regex.compile(r"[.,][0-9]")

Place = tuple[int, int]


@dataclass(frozen=True)
class Hit:
    """A name at the characters [start, end) of a sentence."""

    name: str
    start: int
    end: int

    def meets(self, other: Hit) -> bool:
        return self.start < other.end and other.start < self.end

    def inside(self, others: Iterable[Hit]) -> bool:
        """Whether a longer hit covers this one: the New York in New York State is not the city."""
        return any(o.start <= self.start and self.end <= o.end and o.end - o.start > self.end - self.start
                   for o in others)  # fmt: skip


def _hits(find: Finder, sentence: str) -> list[Hit]:
    """What `find` finds, but no digits that are part of a longer number: there is no 5 million in 3.5 million."""
    return [Hit(name, start, end) for name, start, end in find(sentence)
            if not (name[0].isdigit() and NUMBER_BEFORE.search(sentence, start - 2, start))
            and not (name[-1].isdigit() and NUMBER_AFTER.match(sentence, end))]  # fmt: skip


class Checker:
    """Looks for statements of `facts`. The longest name at a place wins, as in `Finder`."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._about: dict[str, list[Fact]] = defaultdict(list)
        for fact in facts:
            for subject in fact.subjects:
                self._about[subject].append(fact)
        self._subjects = Finder(self._about)
        self._objects = Finder({name for fact in facts for name in fact.objects | fact.rivals})
        phrases = {frozenset(fact.relations) for fact in facts}
        self._relations = {relations: Finder(relations) for relations in phrases}

    def verdicts(self, text: str) -> list[tuple[int, Place]]:
        """For every fact that `text` states: 1 supported, -1 contradicted, 0 neither; and the sentence that says so.

        Of several sentences about a fact a contradiction counts most, and then a support.
        """
        found: dict[int, tuple[int, Place]] = {}
        order = (0, 1, -1)  # from what counts least to what counts most
        for start, end in sentences(text):
            for fact, verdict in self._sentence(text[start:end]):
                known = found.get(id(fact))
                if known is None or order.index(verdict) > order.index(known[0]):
                    found[id(fact)] = verdict, (start, end)
        return list(found.values())

    def _sentence(self, sentence: str) -> Iterator[tuple[Fact, int]]:
        if QUESTION.search(sentence):
            return
        subjects = _hits(self._subjects, sentence)
        if not subjects:
            return
        objects = _hits(self._objects, sentence)
        subjects, objects = ([hit for hit in subjects if not hit.inside(objects)],
                             [hit for hit in objects if not hit.inside(subjects)])  # fmt: skip
        first: dict[int, tuple[Fact, Hit]] = {}
        for hit in subjects:
            for fact in self._about[hit.name]:
                first.setdefault(id(fact), (fact, hit))
        named = [fact for fact, _ in first.values()]
        clauses = _Clauses(sentence, [*subjects, *objects])
        for fact, subject in first.values():
            relations = _hits(self._relations[frozenset(fact.relations)], sentence)
            if relations:
                others = [other for other in named if other is not fact and other.relations & fact.relations]
                apart = [hit for hit in objects if not hit.meets(subject)]
                verdict = _verdict(fact, others, apart, relations, clauses)
                if verdict is not None:
                    yield fact, verdict


def _verdict(fact: Fact, others: Sequence[Fact], objects: Sequence[Hit], relations: Sequence[Hit],
             clauses: _Clauses) -> int | None:  # fmt: skip
    """What a sentence that names the subject and the relation says of `fact`; None: it speaks of other facts.

    Args:
        others: facts of the same relation whose subjects are named too; what is true of them is no error here.
        objects: all that are named, apart from the subject itself.
    """
    theirs = {name for other in others for name in other.objects} - fact.objects
    own = [hit for hit in objects if hit.name in fact.objects | fact.rivals]
    hits = [hit for hit in own if hit.name not in theirs]
    if not hits and own:
        return None
    denied = {hit: clauses.deny(hit, relations, own) for hit in hits}
    right = any(hit.name in fact.objects and denied[hit] is False for hit in hits)
    wrong = any((hit.name in fact.objects) == denied[hit] for hit in hits)  # the truth denied, or an error affirmed
    return int(right) - int(wrong)


class _Clauses:
    """The clauses of a sentence and which of them hold a negation, names aside: there is a No in No. 10,
    and a comma in Washington, D.C."""

    def __init__(self, sentence: str, names: Sequence[Hit]) -> None:
        marks = [Hit(match.group().casefold(), *match.span()) for match in CLAUSE_END.finditer(sentence)]
        marks = [mark for mark in marks if not mark.inside(names)]
        self._ends = [mark.end for mark in marks]
        self._instead = {clause for clause, mark in enumerate(marks, 1) if mark.name in ("but", "而是")}
        negations = (Hit("", *match.span()) for match in NEGATION.finditer(sentence))
        self._negated = {self._of(hit) for hit in negations if not hit.inside(names)}

    def _of(self, hit: Hit) -> int:
        return sum(end <= hit.start for end in self._ends)

    def deny(self, hit: Hit, relations: Sequence[Hit], objects: Sequence[Hit]) -> bool | None:
        """Whether `hit` is said not to stand in the relation; None if that cannot be told.

        A negation in its own clause denies it. One in the clause of the relation does not where it denies another
        object: "Lyon is not the capital, Paris is"; nor where but (而是) follows. Else it may: "Paris is, however, not
        the capital".
        """
        own = self._of(hit)
        places = {self._of(relation) for relation in relations}
        if own in self._negated or own in places:
            return own in self._negated
        if own in self._instead:
            return False
        taken = {self._of(other) for other in objects}
        return None if (places & self._negated) - taken else False
