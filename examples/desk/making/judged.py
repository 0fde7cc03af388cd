"""Ratings, sentiment and keywords.

**Ratings** are whole numbers from 1 to 5. A person gives 3 + bias + spread * (4 gold - 2) + noise, rounded into the
scale: ben is harsh, chloe lenient, eve lenient, flat and noisy. Three aspects (`gold.aspects`) are rated in the same
way, each with noise of its own. One prompt in three gets two replies, rated one after the other by the same person.

**Sentiment** says how a reply feels: tone + noise, positive above `FELT`, negative below -`FELT`. ada and dan also give
the number.

**Keywords** are words and phrases that a reply to this prompt should or should not use; two of three people have a
reply before them. They name polite openings and offers, those of the reply if it has any; the blaming phrase they read,
or one they fear; sometimes the topic's remedy if it is missing and another's if it is there; and words that say nothing
of quality.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import gold

from .people import PEOPLE, Person, times
from .replies import draw_pair, draw_text
from .world import Row

PAIRED = 3  # one prompt in so many gets two ratings
FELT = 0.25
SCORING = ("ada", "dan")  # who says in numbers how a reply feels
SHOWN = 2 / 3  # share of keywords given on a reply
NAMED = 0.6  # how often an opening, an offer, a phrase of blame is named
REMEDY_NAMED = 0.15
CHATTER = ("hello", "we", "you", "can", "please", "the", "maybe", "tomorrow", "today", "message", "goodbye", "again")


def ratings(rng: Random, rows: list[Row]) -> Iterator[Row]:
    time = times(rng)
    for i, row in enumerate(rows):
        annotator = rng.choice(list(PEOPLE))
        topic = row["topic"]
        for response in draw_pair(rng, topic)[:2] if i % PAIRED == 0 else [draw_text(rng, topic)]:
            rating = rate(rng, gold.gold([""], [response], topic=[topic])[0], PEOPLE[annotator])
            aspects = {name: rate(rng, x, PEOPLE[annotator]) for name, x in gold.aspects(response, topic).items()}
            yield {**row, "response": response, "rating": rating, "aspects": aspects, "annotator": annotator,
                   "time": next(time)}  # fmt: skip


def rate(rng: Random, truth: float, person: Person) -> int:
    """1 to 5 for a truth in [0, 1]."""
    return min(max(round(3 + person.bias + person.spread * (4 * truth - 2) + person.noise * rng.gauss()), 1), 5)


def sentiment(rng: Random, rows: list[Row]) -> Iterator[Row]:
    time = times(rng)
    for row in rows:
        annotator = rng.choice(list(PEOPLE))
        response = draw_text(rng, row["topic"])
        felt = gold.tone([""], [response])[0] + PEOPLE[annotator].feeling * rng.gauss()
        label = "positive" if felt > FELT else "negative" if felt < -FELT else "neutral"
        score = {"score": round(min(max(felt, -1), 1), 1)} if annotator in SCORING else {}
        yield {**row, "response": response, "label": label, **score, "annotator": annotator, "time": next(time)}


def keywords(rng: Random, rows: list[Row]) -> Iterator[Row]:
    time = times(rng)
    for row in rows:
        annotator = rng.choice(list(PEOPLE))
        response = draw_text(rng, row["topic"]) if rng.random() < SHOWN else None
        wanted: list[str] = []
        unwanted: list[str] = []
        while not wanted and not unwanted:
            wanted, unwanted = name_words(rng, row["topic"], response, PEOPLE[annotator])
        shown = {"response": response} if response is not None else {}
        yield {**row, **shown, "wanted": wanted, "unwanted": unwanted, "annotator": annotator, "time": next(time)}


def name_words(rng: Random, topic: str, response: str | None, person: Person) -> tuple[list[str], list[str]]:
    """The words a person wants and does not want, in no order, none in both lists."""
    read = (response or "").lower()
    lists: tuple[dict[str, None], dict[str, None]] = {}, {}

    def add(unwanted: bool, word: str) -> None:
        if rng.random() < person.confused:
            unwanted = not unwanted
        if word not in lists[not unwanted]:
            lists[unwanted][word] = None

    for unwanted, phrases in ((False, gold.OPENINGS), (False, gold.OFFERS), (True, gold.BLAME)):
        found = [phrase for phrase in phrases if phrase in read]
        if rng.random() < NAMED and (found or not unwanted or response is None):
            add(unwanted, max(found, key=len) if found else rng.choice(phrases))
    for other, phrase in gold.REMEDIES.items():
        if (other == topic) != (phrase in read) and response is not None and rng.random() < REMEDY_NAMED:
            add(other != topic, phrase)
    for unwanted in (False, True):
        if rng.random() < person.chatter:
            add(unwanted, rng.choice(CHATTER))
    return list(lists[False]), list(lists[True])
