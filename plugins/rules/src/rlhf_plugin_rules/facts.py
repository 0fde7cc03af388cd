"""A file of facts: who, what about them, and what is true of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from rlhf_core.errors import DataError
from rlhf_core.interfaces import Row, SourceConfig, read_rows

FIX = "mend the fact"


@dataclass
class Fact:
    """One thing that is true. All names are casefolded.

    Attributes:
        subjects: what it is about, by all its names.
        relations: phrases that state the relation, such as "capital" or "was founded in".
        objects: what stands in that relation to the subject, by all its names; any of them is right.
        not_objects: what people may wrongly take for it.
        key: the document it belongs to, or None for everywhere.
        rivals: objects that would be wrong here: `not_objects`, and those of other subjects in the same relation.
    """

    subjects: set[str]
    relations: set[str]
    objects: set[str]
    not_objects: set[str]
    key: str | None
    rivals: set[str] = field(default_factory=set)


def read_facts(path: str, where: str) -> list[Fact]:
    """The facts of a JSONL file; rows of the same key that share a subject and a relation are one fact.

    Raises:
        DataError: no file, or a row without subject, relation or object, or with an empty name.
    """
    facts: list[Fact] = []
    known: dict[tuple[str | None, str, str], Fact] = {}
    for row in read_rows(SourceConfig(path=path), where):
        fact = _fact(row)
        places = [(fact.key, *place) for place in product(fact.subjects, fact.relations)]
        if same := next((known[place] for place in places if place in known), None):
            same.subjects |= fact.subjects
            same.relations |= fact.relations
            same.objects |= fact.objects
            same.not_objects |= fact.not_objects
        else:
            facts.append(fact)
        for place in places:
            known.setdefault(place, same or fact)
    if not facts:
        raise DataError(path, "no facts", "at least one", "write one JSON object per line: subject, relation, object")
    for fact in facts:
        if fact.objects & fact.not_objects:
            raise DataError(path, f"{min(fact.objects & fact.not_objects)!r} is an object and a not_object of "
                            f"{min(fact.subjects)!r}", "one of them", FIX)  # fmt: skip
    _find_rivals(facts)
    return facts


def _find_rivals(facts: Iterable[Fact]) -> None:
    objects: dict[tuple[str | None, str], set[str]] = {}
    for fact in facts:
        for relation in fact.relations:
            objects.setdefault((fact.key, relation), set()).update(fact.objects)
    for fact in facts:
        everywhere = [objects.get((key, r), set()) for key, r in product({fact.key, None}, fact.relations)]
        fact.rivals = (fact.not_objects.union(*everywhere)) - fact.objects


def _fact(row: Row) -> Fact:
    if unknown := row.data.keys() - {"subject", "relation", "object", "not_object", "key"}:
        raise DataError(row.where, f"a fact with {min(unknown)!r}",
                        "subject, relation, object, and perhaps not_object and key", FIX)  # fmt: skip
    key = row.data.get("key")
    return Fact(_names(row, "subject"), _names(row, "relation"), _names(row, "object"),
                _names(row, "not_object") if row.data.get("not_object") is not None else set(),
                None if key is None else str(key))  # fmt: skip


def _names(row: Row, column: str) -> set[str]:
    value: Any = row.take(column)
    names = value if isinstance(value, list) else [value]
    found = {" ".join(_text(name).split()).casefold() for name in names}
    if not found or "" in found:
        raise DataError(row.where, f"{column} is {value!r}", "a text or number, or a list of them, none empty", FIX)
    return found


def _text(name: Any) -> str:
    if isinstance(name, str):
        return name
    return str(name) if isinstance(name, (int, float)) and not isinstance(name, bool) else ""
