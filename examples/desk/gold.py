"""The gold rule of the help desk: how good is a reply, in [0, 1], read off its words.

The simulated annotators of `make_data.py` judge replies by this rule, with noise. Nothing else in the example may read
it but an evaluation: a reward model sees what annotators said. `gold` has the signature of a TRL reward function. A
reply is scored in tenths, by a sum of parts:

    +5  remedy      names the remedy of the customer's topic, and no remedy of another topic
    +2  opening     its first sentence begins with thanks or with being sorry
    +2  offer       its last sentence, which is not its first, offers further help
    +1  form        at most 30 words, a space after every sentence, ends with a full stop or a question mark
    -4  blame       holds a curt or blaming phrase
    -3  repetition  for every sentence that was said before in the same reply

clipped to [0, 10] and divided by 10. An empty reply is 0. Case does not matter. A phrase must match as whole words, so
a missing space inside it loses it; a remedy or an offer in a sentence with a "not" does not count. Naming every remedy
earns none, and saying a good thing twice earns it once. The rule does not read grammar: words outside the phrases below
neither earn nor cost anything, but for the length.

Two rules beside it say what people mean who are asked for less than the whole:

- `tone`, in [-1, 1], is how a reply feels: +0.5 opening, +0.5 offer, -1 blame, clipped. It is the truth behind the
  sentiment labels and the keywords, which cannot know the right remedy.
- `aspects`, each in [0, 1], is what raters are asked for one by one: `quality` is remedy, `politeness` is tone brought
  to [0, 1], and `form` is form, less one half for every repetition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

REMEDIES: dict[str, str] = {  # topic -> the phrase its right remedy is recognised by
    "password": "use the password link",
    "printer": "clean the printer tray",
    "wifi": "restart the wifi router",
    "screen": "check the screen cable",
    "login": "unlock the login",
    "invoice": "send a corrected invoice",
    "delivery": "follow the delivery online",
    "refund": "pay the refund",
}
OPENINGS = ("thanks", "thank you", "sorry", "i am sorry", "we are sorry")
OFFERS = ("anything else", "more help", "happy to help")
BLAME = ("your own fault", "not our problem", "you broke it", "read the manual", "stop asking", "do not write again")
MAX_WORDS = 30

TENTHS = {"remedy": 5, "opening": 2, "offer": 2, "form": 1, "blame": -4, "repetition": -3}
TONE = {"opening": 0.5, "offer": 0.5, "blame": -1.0}


def _has(text: str, phrases: Iterable[str], start: bool = False) -> bool:
    """Whether `text` holds (or starts with) one of `phrases` as whole words."""
    return re.search(rf"{'^' if start else ''}\b(?:{'|'.join(phrases)})\b", text) is not None


def _negated(sentence: str) -> bool:
    return re.search(r"\b(?:no|not|never|cannot)\b|n't\b", sentence) is not None


def _read(reply: str) -> tuple[str, list[str]]:
    """The whole reply in lower case with single spaces, and its sentences."""
    text = " ".join(reply.lower().split())
    return text, [s.strip() for s in re.split(r"[.?!]", text) if s.strip()]


def parts(reply: str, topic: str) -> dict[str, int]:
    """How often each part of the rule holds for a reply: 0 or 1, and for `repetition` a count."""
    if topic not in REMEDIES:
        raise ValueError(f"gold: got topic {topic!r}, expected one of {', '.join(REMEDIES)}; fix the topic column")
    text, said = _read(reply)
    if not said:
        return dict.fromkeys(TENTHS, 0)
    named = {t for t, phrase in REMEDIES.items() if _has(text, [phrase])}
    meant = any(_has(s, [REMEDIES[topic]]) and not _negated(s) for s in said)
    return {
        "remedy": int(meant and named == {topic}),
        "form": int(len(text.split()) <= MAX_WORDS and text[-1] in ".?" and not re.search(r"[.?!]\w", text)),
        "repetition": len(said) - len(set(said)),
        **manners(reply),
    }


def manners(reply: str) -> dict[str, int]:
    """The parts that take no topic to judge: opening, offer and blame, each 0 or 1."""
    text, said = _read(reply)
    if not said:
        return dict.fromkeys(TONE, 0)
    return {
        "opening": int(_has(said[0], OPENINGS, start=True)),
        "offer": int(len(said) > 1 and _has(said[-1], OFFERS) and not _negated(said[-1])),
        "blame": int(_has(text, BLAME)),
    }


def gold(prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[str]) -> list[float]:
    """Score replies; `columns["topic"]` names the topic of each prompt (the prompt's text itself is not read)."""
    if "topic" not in columns:
        raise ValueError("gold: got no column topic, expected one topic per prompt; keep the prompts' field topic")
    topics = columns["topic"]
    if not len(prompts) == len(completions) == len(topics):
        got = f"{len(prompts)} prompts, {len(completions)} completions, {len(topics)} topics"
        raise ValueError(f"gold: got {got}, expected as many of each; pass lists of equal length")
    tenths = [
        sum(TENTHS[part] * times for part, times in parts(reply, topic).items())
        for reply, topic in zip(completions, topics, strict=True)
    ]
    return [min(max(t, 0), 10) / 10 for t in tenths]


def tone(prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[str]) -> list[float]:
    """How replies feel to the customer, in [-1, 1]; neither the prompts nor the columns are read."""
    felt = [sum(TONE[part] * held for part, held in manners(reply).items()) for reply in completions]
    return [min(max(f, -1.0), 1.0) for f in felt]


def aspects(reply: str, topic: str) -> dict[str, float]:
    """How good a reply is in one respect after the other, each in [0, 1]."""
    found = parts(reply, topic)
    return {
        "quality": float(found["remedy"]),
        "politeness": (tone([""], [reply])[0] + 1) / 2,
        "form": max(found["form"] - found["repetition"] / 2, 0.0),
    }
