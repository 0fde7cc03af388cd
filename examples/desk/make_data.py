"""Write the data files of the help desk: demonstrations, comparisons, prompts, held-out prompts.

    python examples/desk/make_data.py [--out DIR] [--seed 0]

rewrites the four JSONL files bit for bit: all randomness comes from one `random.Random(seed)`. Everything is simulated.

**Prompts** combine a greeting, a problem of one of 8 topics, a time and a question. Every text is used once: what is in
one file is in no other, so the held-out prompts are new to every stage. Topics are equally frequent.

**Replies** are of mixed quality, as a past help desk wrote them: an opening (polite, none, plain, blaming), a remedy
(right, vague, of another topic) and a closing (an offer of help, none, plain, curt), each drawn by itself with the
shares below. The demonstrations are such replies, signed by three past agents who write alike: fay, gus, hal.

**Comparisons** pair two such replies. Three of four pairs are drawn to differ in one element only. In one of four pairs
one of the two is damaged the way an untidy policy damages it: cut mid-sentence, a sentence repeated, a second remedy,
two remedies mixed into one, a missing space; half of these are shown next to their own original. Pairs of equal gold
(`gold.py`) are mostly drawn again.

**The annotators** are five simulated people who see both replies and choose one. Each prefers a over b with probability
sigmoid((gold(a) - gold(b)) / tau), Bradley-Terry around the gold rule, with a tau of their own: ada (0.05), ben (0.08)
careful, chloe (0.10) and dan (0.15) usual, eve (0.40) careless. Between equals all of them toss a coin.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from random import Random

from gold import gold

COUNTS = {"held_out": 128, "prompts": 400, "demonstrations": 1500, "comparisons": 2500}
ANNOTATORS = {"ada": 0.05, "ben": 0.08, "chloe": 0.10, "dan": 0.15, "eve": 0.40}  # name -> tau
AGENTS = ("fay", "gus", "hal")
CLOSE = 0.75  # share of pairs drawn to differ in one element,
ELEMENTS = (0, 1, 1, 1, 2)  # which is most often the remedy: the one that takes the prompt to judge
DAMAGED = 0.25  # share of pairs in which one reply is damaged
TIES_KEPT = 0.2  # share of pairs of equal gold that are not drawn again
START = datetime(2025, 3, 3, 9, tzinfo=UTC)

# The customer: "Customer: {greeting}{problem}{when}{question}\nAgent:"
GREETINGS = ("", "hi, ", "hello, ", "good morning, ")
QUESTIONS = (".", ". what now?", ". please help.", ". it is urgent.")
FAULT = ("", " again", " today", " since monday", " this morning", " after the update")
ORDER = ("", " again", " today", " this time", " this week", " this month")
PROBLEMS: dict[str, tuple[str, ...]] = {
    "password": (
        "my password does not work",
        "my password is wrong",
        "my password is blocked",
        "the page rejects my password",
        "the password is too short",
        "i cannot change my password",
    ),
    "printer": (
        "my printer does not work",
        "my printer is slow",
        "the printer does not print",
        "the printer shows an error",
        "the printer makes empty pages",
        "the printer is very loud",
    ),
    "wifi": (
        "the wifi does not work",
        "the wifi is slow",
        "i have no wifi",
        "my phone does not find the wifi",
        "the wifi is weak",
        "the wifi stops every hour",
    ),
    "screen": (
        "my screen does not work",
        "my screen is black",
        "the screen is too dark",
        "the screen stays off",
        "the screen shows wrong colours",
        "i see lines on the screen",
    ),
    "login": (
        "my login does not work",
        "my login is blocked",
        "the login is slow",
        "the login shows an error",
        "the page stops at the login",
        "i cannot finish the login",
    ),
    "invoice": (
        "my invoice is wrong",
        "the invoice shows a wrong amount",
        "the name on my invoice is wrong",
        "the date on the invoice is wrong",
        "my invoice has no address",
        "i do not understand the invoice",
    ),
    "delivery": (
        "my delivery is late",
        "my delivery did not arrive",
        "the delivery is still missing",
        "i still wait for my delivery",
        "the delivery has no date",
        "my delivery is lost",
    ),
    "refund": (
        "my refund is late",
        "my refund did not arrive",
        "the refund is still missing",
        "i still wait for my refund",
        "the refund has no date",
        "i cannot see the refund",
    ),
}
TIMES = {topic: ORDER if topic in ("invoice", "delivery", "refund") else FAULT for topic in PROBLEMS}

# The agent: opening, remedy, closing.
REMEDIES: dict[str, tuple[str, ...]] = {
    "password": ("Please use the password link.", "You can use the password link."),
    "printer": ("Please clean the printer tray.", "You can clean the printer tray."),
    "wifi": ("Please restart the wifi router.", "You can restart the wifi router."),
    "screen": ("Please check the screen cable.", "You can check the screen cable."),
    "login": ("We will unlock the login.", "We can unlock the login."),
    "invoice": ("We will send a corrected invoice.", "We can send a corrected invoice."),
    "delivery": ("Please follow the delivery online.", "You can follow the delivery online."),
    "refund": ("We will pay the refund.", "We can pay the refund."),
}
VAGUE = ("Please wait.", "Please call us tomorrow.", "We will look into it.", "Maybe it helps to start again.")
Weighted = dict[tuple[str, ...], float]  # sentences that say the same -> how often one of them is said
OPENINGS: Weighted = {
    ("Thanks for writing.", "Thank you for your message.", "Sorry for the trouble.", "We are sorry to hear that."): 0.5,
    ("",): 0.28,
    ("Hello.",): 0.1,
    ("That is your own fault.", "This is not our problem.", "You broke it."): 0.12,
}
CLOSINGS: Weighted = {
    ("Can we help with anything else?", "Please ask if you need more help.", "We are happy to help again."): 0.4,
    ("",): 0.42,
    ("Goodbye.",): 0.1,
    ("Read the manual.", "Stop asking.", "Do not write again."): 0.08,
}
RIGHT, OTHER = 0.55, 0.35  # shares of the right remedy and of another topic's; the rest is vague

Reply = tuple[str, str, str]  # opening, remedy, closing; "" for none


def prompts(rng: Random, topic: str) -> list[str]:
    """Every prompt text of a topic, shuffled."""
    texts = product(GREETINGS, PROBLEMS[topic], TIMES[topic], QUESTIONS)
    shuffled = ["Customer: " + "".join(words) + "\nAgent:" for words in texts]
    rng.shuffle(shuffled)
    return shuffled


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


def demonstrations(rng: Random, rows: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    for row in rows:
        completion = text(draw_reply(rng, row["topic"]))
        yield {**row, "completion": completion, "annotator": rng.choice(AGENTS)}


def comparisons(rng: Random, rows: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    time = START
    for row in rows:
        a, b, gap = draw_pair(rng, row["topic"])
        annotator = rng.choice(list(ANNOTATORS))
        if rng.random() >= 1 / (1 + math.exp(-gap / ANNOTATORS[annotator])):
            a, b = b, a
        time += timedelta(seconds=rng.randint(20, 240))
        yield {**row, "chosen": a, "rejected": b, "annotator": annotator, "time": time.isoformat()}


def make(seed: int) -> dict[str, list[dict[str, str]]]:
    """The rows of every file."""
    rng = Random(seed)
    columns = [[{"prompt": prompt, "topic": topic} for prompt in prompts(rng, topic)] for topic in PROBLEMS]
    pool = [row for rows in zip(*columns, strict=True) for row in rows]  # topics in turn: each file has as many of each
    files: dict[str, list[dict[str, str]]] = {}
    for name, count in COUNTS.items():
        files[name], pool = pool[:count], pool[count:]
        rng.shuffle(files[name])
    files["demonstrations"] = list(demonstrations(rng, files["demonstrations"]))
    files["comparisons"] = list(comparisons(rng, files["comparisons"]))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the data files of the help desk.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="the folder they go to")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in make(args.seed).items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (args.out / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
