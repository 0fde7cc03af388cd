"""Edits and the replies of experts: what a reply should have been.

**Edits.** A person gets a reply of mixed quality, mostly with something to keep and something to repair (`HALF_GOOD`),
most often with a remedy that is wrong or vague (`ASTRAY`). What is damaged is mended first. Then careful people look at
all three elements, and careless ones at one, a bad one if there is any. In place of a bad element they consider a good
one (a blaming sentence may also be deleted); of a good one none, to be brief, or another topic's remedy. They make the
change with probability sigmoid((gold(after) - gold(before)) / tau), as in the comparisons. Some edits are left undone.
A few people write a good reply anew, without regard to what was there (`REWRITTEN`).

**Expert.** Demonstrations of good agents: a reply of the past help desk, as in the demonstrations, is kept with
probability exp((gold - 1) / BETA), and drawn again if not. So they follow pi_ref(y|x) exp(gold / BETA) / Z(x) without
approximation, where pi_ref is the past help desk: gold is the reward that inverse reinforcement learning looks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

from gold import gold

from .people import PEOPLE, Person, times
from .replies import DAMAGED, DAMAGES, Reply, draw_reply, other_remedy, text
from .world import BLAMING, CURT, OFFERING, POLITE, REMEDIES, Row

HALF_GOOD = 0.9  # share of originals that have one or two of three elements right; the others are as they come
ASTRAY = 0.7  # share of the half good ones that have no right remedy
DELETED = 0.5  # of blaming sentences; the others are turned into good ones
REWRITTEN = 0.03  # share of edits written anew,
FAR = 0.7  # which change more than this share of the words
BETA = 0.15
EXPERTS = ("ivy", "jon", "kim")


def edits(rng: Random, rows: list[Row]) -> Iterator[Row]:
    time = times(rng)
    for row in rows:
        topic, annotator = row["topic"], rng.choice(list(PEOPLE))
        meant = draw_original(rng, topic)
        original = rng.choice(DAMAGES)(rng, meant, topic) if rng.random() < DAMAGED else text(meant)
        if rng.random() < PEOPLE[annotator].left:
            edited = original
        elif rng.random() < REWRITTEN:
            edited = rewrite(rng, original, topic)
        else:
            edited = text(improve(rng, meant, topic, PEOPLE[annotator]))
        yield {**row, "original": original, "edited": edited, "annotator": annotator, "time": next(time)}


def draw_original(rng: Random, topic: str) -> Reply:
    half_good, astray = rng.random() < HALF_GOOD, rng.random() < ASTRAY
    while True:
        reply = draw_reply(rng, topic)
        right = (reply[0] in POLITE) + (reply[1] in REMEDIES[topic]) + (reply[2] in OFFERING)
        if not half_good or (right in (1, 2) and astray == (reply[1] not in REMEDIES[topic])):
            return reply


def improve(rng: Random, reply: Reply, topic: str, person: Person) -> Reply:
    good = POLITE, REMEDIES[topic], OFFERING
    order = sorted(rng.sample(range(3), 3), key=lambda at: reply[at] in good[at])  # what is at fault comes first
    for at in order[: person.looks]:
        changed: Reply = (*reply[:at], consider(rng, reply[at], at, topic), *reply[at + 1 :])  # type: ignore[assignment]
        before, after = gold(["", ""], [text(reply), text(changed)], topic=[topic, topic])
        if rng.random() < 1 / (1 + math.exp((before - after) / person.tau)):
            reply = changed
    return reply


def consider(rng: Random, sentence: str, at: int, topic: str) -> str:
    """What else might be said in place of the opening, remedy or closing."""
    if at == 1:
        return other_remedy(rng, topic) if sentence in REMEDIES[topic] else rng.choice(REMEDIES[topic])
    good, bad = ((POLITE, BLAMING), (OFFERING, CURT))[at // 2]
    return "" if sentence in good or (sentence in bad and rng.random() < DELETED) else rng.choice(good)


def rewrite(rng: Random, original: str, topic: str) -> str:
    """A good reply in words that are far from the original's; the original itself if there are none."""
    written = [text((a, b, c)) for a in POLITE for b in REMEDIES[topic] for c in OFFERING]
    far = [reply for reply in written if distance(original.split(), reply.split()) > FAR]
    return rng.choice(far) if far else original


def distance(a: list[str], b: list[str]) -> float:
    """Levenshtein distance in words, as a share of the longer text."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1] / max(len(a), len(b))


def expert(rng: Random, rows: list[Row]) -> Iterator[Row]:
    for row in rows:
        while True:
            completion = text(draw_reply(rng, row["topic"]))
            if rng.random() < math.exp((gold([""], [completion], topic=[row["topic"]])[0] - 1) / BETA):
                break
        yield {**row, "completion": completion, "annotator": rng.choice(EXPERTS)}
