"""Demonstrations, comparisons and rankings.

**Demonstrations** are replies of mixed quality, as a past help desk wrote them (`replies.draw_reply`), signed by three
agents who write alike.

**Comparisons** pair two such replies. Three of four pairs are drawn to differ in one element only. In one of four pairs
one of the two is damaged the way an untidy policy damages it: cut mid-sentence, a sentence repeated, a second remedy,
two remedies mixed into one, a missing space; half of these are shown next to their own original. Pairs of equal gold
are mostly drawn again. A person prefers a over b with probability sigmoid((gold(a) - gold(b)) / tau), Bradley-Terry
around the gold rule. Between equals all of them toss a coin.

**Rankings** order four different replies by gold + tau * Gumbel noise: a draw from Plackett-Luce with worths
exp(gold / tau). Neighbours that seem less than `SAME` apart are called a tie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

from gold import gold

from .people import AGENTS, PEOPLE, times
from .replies import draw_pair, draw_reply, draw_text, text
from .world import Row

RANKED = 4  # replies in a ranking
SAME = 0.03  # how far apart two replies must seem to be told apart


def demonstrations(rng: Random, rows: list[Row]) -> Iterator[Row]:
    for row in rows:
        completion = text(draw_reply(rng, row["topic"]))
        yield {**row, "completion": completion, "annotator": rng.choice(AGENTS)}


def comparisons(rng: Random, rows: list[Row]) -> Iterator[Row]:
    time = times(rng)
    for row in rows:
        a, b, gap = draw_pair(rng, row["topic"])
        annotator = rng.choice(list(PEOPLE))
        if rng.random() >= 1 / (1 + math.exp(-gap / PEOPLE[annotator].tau)):
            a, b = b, a
        yield {**row, "chosen": a, "rejected": b, "annotator": annotator, "time": next(time)}


def rankings(rng: Random, rows: list[Row]) -> Iterator[Row]:
    time = times(rng)
    for row in rows:
        annotator = rng.choice(list(PEOPLE))
        ranks: list[int] = []
        while len(set(ranks)) < 2:  # who ties all four has not ranked them
            responses = draw_different(rng, row["topic"], RANKED)
            ranks = rank(rng, gold([""] * RANKED, responses, topic=[row["topic"]] * RANKED), PEOPLE[annotator].tau)
        yield {**row, "responses": responses, "ranks": ranks, "annotator": annotator, "time": next(time)}


def draw_different(rng: Random, topic: str, count: int) -> list[str]:
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[draw_text(rng, topic)] = None
    return list(drawn)


def rank(rng: Random, golds: list[float], tau: float) -> list[int]:
    """The place of each; 0 is best, ties share a place, and no place is left out."""
    seen = [g - tau * math.log(rng.expovariate(1.0)) for g in golds]  # -log of an exponential is Gumbel
    ranks, place, above = [0] * len(golds), 0, math.inf
    for i in sorted(range(len(golds)), key=lambda i: -seen[i]):
        place += above < math.inf and above - seen[i] >= SAME
        ranks[i], above = place, seen[i]
    return ranks
