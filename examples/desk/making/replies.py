"""Replies of mixed quality: put together from an opening, a remedy and a closing, some of them damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from gold import gold

from .world import CLOSINGS, OPENINGS, OTHER, REMEDIES, RIGHT, VAGUE, Weighted

CLOSE = 0.75  # share of pairs drawn to differ in one element,
ELEMENTS = (0, 1, 1, 1, 2)  # which is most often the remedy: the one that takes the prompt to judge
DAMAGED = 0.25  # share of pairs in which one reply is damaged, and of single replies that are
TIES_KEPT = 0.2  # share of pairs of equal gold that are not drawn again

Reply = tuple[str, str, str]  # opening, remedy, closing; "" for none


def draw(rng: Random, choices: Weighted) -> str:
    return rng.choice(rng.choices(list(choices), list(choices.values()))[0])


def other_remedy(rng: Random, topic: str) -> str:
    return rng.choice(REMEDIES[rng.choice([t for t in REMEDIES if t != topic])])


def draw_reply(rng: Random, topic: str) -> Reply:
    """A reply of the past help desk."""
    remedies = {REMEDIES[topic]: RIGHT, (other_remedy(rng, topic),): OTHER, VAGUE: 1 - RIGHT - OTHER}
    return draw(rng, OPENINGS), draw(rng, remedies), draw(rng, CLOSINGS)


def text(reply: Iterable[str]) -> str:
    """The completion: every sentence after a space, also the first."""
    return "".join(" " + sentence for sentence in reply if sentence)


def cut(rng: Random, reply: Reply, topic: str) -> str:
    words = text(reply).split(" ")  # the first is empty: the leading space
    return " ".join(words[: rng.randrange(2, len(words))]).rstrip(".?")


def repeat(rng: Random, reply: Reply, topic: str) -> str:
    at = rng.choice([i for i, sentence in enumerate(reply) if sentence])
    return text(reply[: at + 1] + reply[at:])


def add_remedy(rng: Random, reply: Reply, topic: str) -> str:
    opening, remedy, closing = reply
    return text((opening, remedy, other_remedy(rng, topic), closing))


def mix(rng: Random, reply: Reply, topic: str) -> str:
    start, end = rng.sample([rng.choice(REMEDIES[topic]), other_remedy(rng, topic)], 2)
    mixed = start.split()[:-2] + end.split()[-2:]  # "Please restart the printer tray."
    return text((reply[0], " ".join(mixed), reply[2]))


def drop_space(rng: Random, reply: Reply, topic: str) -> str:
    whole = text(reply)
    at = rng.choice([i for i, character in enumerate(whole) if character == " " and i > 0])
    return whole[:at] + whole[at + 1 :]


DAMAGES: tuple[Callable[[Random, Reply, str], str], ...] = (cut, repeat, add_remedy, mix, drop_space)


def draw_text(rng: Random, topic: str) -> str:
    """A completion, damaged or not."""
    reply = draw_reply(rng, topic)
    return rng.choice(DAMAGES)(rng, reply, topic) if rng.random() < DAMAGED else text(reply)


def draw_pair(rng: Random, topic: str) -> tuple[str, str, float]:
    """Two different completions a and b, in no order of quality, and gold(a) - gold(b)."""
    while True:
        first, second = draw_reply(rng, topic), draw_reply(rng, topic)
        if rng.random() < CLOSE:
            at = rng.choice(ELEMENTS)
            second = (*first[:at], second[at], *first[at + 1 :])  # type: ignore[assignment]
        a, b = text(first), text(second)
        if rng.random() < DAMAGED:
            a = rng.choice(DAMAGES)(rng, rng.choice((first, second)), topic)
        if rng.random() < 0.5:
            a, b = b, a
        gold_a, gold_b = gold(["", ""], [a, b], topic=[topic, topic])
        if a != b and (gold_a != gold_b or rng.random() < TIES_KEPT):
            return a, b, gold_a - gold_b
