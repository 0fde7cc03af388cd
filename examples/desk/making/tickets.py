"""A second task: the summary of a ticket.

**Tickets** are made of values (customer, day, what is wrong with what, agent, outcome; the remedy follows from what is
wrong) and of words around them that do not matter. No two tickets have the same values, so the held-out ones are new.
Names and things are written alike in the ticket and in the summary. `reference` is a right summary, and `key` names the
ticket.

**Demonstrations** are summaries of mixed quality: right, in another order, with one wrong fact, without one of the
three sentences, or with one of them twice, in the shares of `FLAWS`. Their words vary ("wrote" or "reported", "Then" or
not).

**Facts** are what each ticket of the prompts and of the held-out prompts says, as subject, relation and object, under
its key; and, without a key, what can stand in each relation.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from random import Random
from typing import Any

from gold import REMEDIES
from gold_summary import LAST_WORDS

from .world import Row

COUNTS = {"held_out": 128, "prompts": 400, "demonstrations": 1200}
FLAWS = {"none": 0.35, "order": 0.15, "wrong": 0.2, "missing": 0.15, "repeated": 0.15}
WRITERS = ("lea", "max", "nora")

CUSTOMERS = ("Anna", "Bob", "Clara", "David", "Emma", "Frank")
AGENTS = ("Fay", "Gus", "Hal", "Ida")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
STATES: dict[str, tuple[str, ...]] = {
    "password": ("wrong", "blocked", "lost"),
    "printer": ("slow", "loud", "off"),
    "wifi": ("slow", "weak", "off"),
    "screen": ("black", "dark", "off"),
    "login": ("blocked", "slow", "wrong"),
    "invoice": ("wrong", "late", "lost"),
    "delivery": ("late", "lost", "wrong"),
    "refund": ("late", "lost", "wrong"),
}
PROMISED = ("login", "invoice", "refund")  # what the desk does itself
GREETINGS = ("", "hi, ", "hello, ")
PLEAS = ("", " what now?", " it is urgent.", " can you help?")
OPENINGS = ("", "thanks for writing. ", "sorry for the trouble. ", "hello. ")
CLOSINGS = ("", " do you need more help?", " goodbye.")
FIRST_WORDS = ("", "ok. ", "thanks. ")

RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # value -> phrases before it, and what it can be
    "customer": (("wrote", "reported"), CUSTOMERS),
    "day": (("wrote on", "reported on"), DAYS),
    "state": (("is",), tuple(state for states in STATES.values() for state in states)),
    "agent": (("said", "promised"), AGENTS),
    "remedy": (("said to", "promised to"), tuple(REMEDIES.values())),
    "outcome": (("is",), tuple(LAST_WORDS)),
}

Ticket = dict[str, str]  # topic, customer, day, state, agent, outcome


def make(seed: int) -> dict[str, list[Row]]:
    """The rows of the four files, by name."""
    rng = Random(f"{seed}:summary")
    tickets = draw_tickets(rng)
    files: dict[str, list[Row]] = {}
    asked: list[tuple[str, Ticket]] = []
    for name, count in COUNTS.items():
        drawn, tickets = tickets[:count], tickets[count:]
        rng.shuffle(drawn)
        keys = [f"{name[0]}{i}" for i in range(count)]
        rows = [{"prompt": show(rng, ticket), "topic": ticket["topic"]} for ticket in drawn]
        if name == "demonstrations":
            files[f"summary_{name}"] = [row | demonstration(rng, t) for row, t in zip(rows, drawn, strict=True)]
            continue
        asked += zip(keys, drawn, strict=True)
        files[f"summary_{name}"] = [
            row | {"key": key, "reference": join(sentences(t))} for row, key, t in zip(rows, keys, drawn, strict=True)
        ]
    files["summary_facts"] = [{"key": key, **fact} for key, ticket in asked for fact in facts(ticket)]
    files["summary_facts"] += possible()
    return files


def draw_tickets(rng: Random) -> list[Ticket]:
    """Every ticket there can be, topics in turn."""
    columns = []
    for topic, states in STATES.items():
        names = ("customer", "day", "state", "agent", "outcome")
        values = product(CUSTOMERS, DAYS, states, AGENTS, LAST_WORDS)
        columns.append([{"topic": topic, **dict(zip(names, ticket, strict=True))} for ticket in values])
        rng.shuffle(columns[-1])
    return [ticket for tickets in zip(*columns, strict=True) for ticket in tickets]


def show(rng: Random, t: Ticket) -> str:
    """The prompt."""
    wish = "we will" if t["topic"] in PROMISED else "please"
    return (
        f"Customer {t['customer']}, {t['day']}: {rng.choice(GREETINGS)}the {t['topic']} is {t['state']}."
        f"{rng.choice(PLEAS)}\n"
        f"Agent {t['agent']}: {rng.choice(OPENINGS)}{wish} {REMEDIES[t['topic']]}.{rng.choice(CLOSINGS)}\n"
        f"Customer: {rng.choice(FIRST_WORDS)}{rng.choice(LAST_WORDS[t['outcome']])}.\nSummary:"
    )


def sentences(t: Ticket, wrote: str = "wrote", then: str = "Then ", now: str = "Now ") -> list[str]:
    said = "promised" if t["topic"] in PROMISED else "said"
    return [
        f"Customer {t['customer']} {wrote} on {t['day']} that the {t['topic']} is {t['state']}.",
        f"{then}{'agent' if then else 'Agent'} {t['agent']} {said} to {REMEDIES[t.get('remedy', t['topic'])]}.",
        f"{now}{'the' if now else 'The'} ticket is {t['outcome']}.",
    ]


def join(said: list[str]) -> str:
    return "".join(" " + sentence for sentence in said)


def demonstration(rng: Random, ticket: Ticket) -> Row:
    """A summary of mixed quality and who wrote it."""
    flaw = rng.choices(list(FLAWS), list(FLAWS.values()))[0]
    if flaw == "wrong":
        ticket = mistaken(rng, ticket)
    words = rng.choice(("wrote", "wrote", "reported")), rng.choice(("Then ", "")), rng.choice(("Now ", ""))
    said = sentences(ticket, *words)
    if flaw == "order":
        while said == sentences(ticket, *words):
            rng.shuffle(said)
    elif flaw == "missing":
        del said[rng.randrange(3)]
    elif flaw == "repeated":
        at = rng.randrange(3)
        said.insert(at, said[at])
    return {"completion": join(said), "annotator": rng.choice(WRITERS)}


def mistaken(rng: Random, ticket: Ticket) -> Ticket:
    """The ticket with one value changed."""
    choices: dict[str, Any] = {"customer": CUSTOMERS, "day": DAYS, "state": STATES[ticket["topic"]], "agent": AGENTS,
                               "remedy": REMEDIES, "outcome": LAST_WORDS}  # fmt: skip
    name = rng.choice(list(choices))
    true = ticket.get(name, ticket["topic"])  # the remedy is that of the topic
    return ticket | {name: rng.choice([value for value in choices[name] if value != true])}


def facts(t: Ticket) -> Iterator[dict[str, list[str]]]:
    """What the ticket says."""
    subjects = {"state": f"the {t['topic']}", "outcome": "the ticket", "customer": "customer", "day": "customer",
                "agent": "agent", "remedy": "agent"}  # fmt: skip
    for name, (relation, _) in RELATIONS.items():
        value = REMEDIES[t["topic"]] if name == "remedy" else t[name]
        yield {"subject": [subjects[name]], "relation": list(relation), "object": [value]}


def possible() -> Iterator[dict[str, list[str]]]:
    """What can stand in each relation: facts about no one, which tell a wrong value from a word of another kind."""
    for relation, values in RELATIONS.values():
        yield {"subject": ["someone"], "relation": list(relation), "object": list(dict.fromkeys(values))}
