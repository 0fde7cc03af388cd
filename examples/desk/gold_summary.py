"""The gold rule of the ticket summaries: how good is a summary, in [0, 1], read off its words and its ticket.

A ticket says who wrote, when, and what is wrong, who answered with which remedy, and how it ended. A good summary says
so in three sentences:

    Customer Anna wrote on Monday that the printer is slow. Then agent Gus said to clean the printer tray. Now the
    ticket is closed.

It is scored in tenths, by a sum of parts:

    +1  customer    who wrote                      \\
    +1  day         on which day                    > the sentence "X wrote on D that the T is S"
    +1  problem     what is wrong: thing and state /
    +1  agent       who answered                   \\  the sentence "X said to R", or promised
    +2  remedy      with which remedy              /
    +1  outcome     the sentence "the ticket is O": closed, open or waiting
    +2  order       all three sentences are there, in this order
    +1  form        at most 30 words, ends with a full stop
    -1  wrong       for each of these that differs from the ticket
    -3  repetition  for every sentence of a kind that was there before

clipped to [0, 10] and divided by 10. Case does not matter; "reported" is as good as "wrote", "Then" and "Now" may be
left out. Other sentences earn nothing and cost nothing but their length. Of a kind that is told twice the first counts.
The outcome is not said in the ticket; it follows from the customer's last words (`LAST_WORDS`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LAST_WORDS = {
    "closed": ("that helped", "all is well now"),
    "open": ("that did not help", "nothing changed"),
    "waiting": ("i will try it later", "i will tell you soon"),
}
MAX_WORDS = 30
WORTH = {"customer": 1, "day": 1, "problem": 1, "agent": 1, "remedy": 2, "outcome": 1}
ORDER, FORM, WRONG, REPETITION = 2, 1, -1, -3

TICKET = re.compile(
    r"Customer (?P<customer>\w+), (?P<day>\w+):.*?the (?P<problem>\w+ is \w+)\..*"
    r"\nAgent (?P<agent>\w+):.*?(?:please|we will) (?P<remedy>[^.]+)\..*\nCustomer: (?P<last>.+)\nSummary:"
)
SENTENCES = (
    re.compile(r"customer (?P<customer>\w+) (?:wrote|reported) on (?P<day>\w+) that the (?P<problem>\w+ is \w+)"),
    re.compile(r"(?:then )?agent (?P<agent>\w+) (?:said|promised) to (?P<remedy>.+)"),
    re.compile(r"(?:now )?the ticket is (?P<outcome>\w+)"),
)


def facts(ticket: str) -> dict[str, str]:
    """What a ticket says, in lower case: one entry for each of `WORTH`."""
    found = TICKET.fullmatch(ticket)
    ended = [o for o, words in LAST_WORDS.items() if found and any(w in found["last"] for w in words)]
    if found is None or len(ended) != 1:
        raise ValueError(
            f"summary_gold: got the prompt {ticket[:60]!r}, expected a ticket of the help desk; "
            "use the prompts of the files summary_*"
        )
    return {name: (ended[0] if name == "outcome" else found[name].lower()) for name in WORTH}


def parts(summary: str, ticket: str) -> dict[str, int]:
    """What a summary earns and costs, in tenths, by part."""
    true = facts(ticket)
    text = " ".join(summary.lower().split())
    earned = dict.fromkeys([*WORTH, "order", "form", "wrong", "repetition"], 0)
    told: list[int] = []  # kinds of sentences as they come
    for sentence in re.split(r"[.?!]\s*", text):
        for kind, pattern in enumerate(SENTENCES):
            if said := pattern.fullmatch(sentence):
                if kind in told:
                    earned["repetition"] += REPETITION
                    continue
                told.append(kind)
                for name, value in said.groupdict().items():
                    if value == true[name]:
                        earned[name] = WORTH[name]
                    else:
                        earned["wrong"] += WRONG
    earned["order"] = ORDER * (told == list(range(len(SENTENCES))))
    earned["form"] = FORM * (0 < len(text.split()) <= MAX_WORDS and text.endswith("."))
    return earned


def summary_gold(prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[str]) -> list[float]:
    """Score summaries of the tickets in `prompts`; the columns are not read."""
    if len(prompts) != len(completions):
        got = f"{len(prompts)} prompts, {len(completions)} completions"
        raise ValueError(f"summary_gold: got {got}, expected as many of each; pass lists of equal length")
    tenths = [sum(parts(summary, ticket).values()) for ticket, summary in zip(prompts, completions, strict=True)]
    return [min(max(t, 0), 10) / 10 for t in tenths]
