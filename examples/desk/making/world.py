"""The words of the help desk: what customers write, and the sentences an agent puts together."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Any, TypeAlias

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
Row: TypeAlias = dict[str, Any]  # of a file
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

POLITE, _, _, BLAMING = OPENINGS
OFFERING, _, _, CURT = CLOSINGS


def prompts(rng: Random, topic: str) -> list[str]:
    """Every prompt text of a topic, shuffled."""
    texts = product(GREETINGS, PROBLEMS[topic], TIMES[topic], QUESTIONS)
    shuffled = ["Customer: " + "".join(words) + "\nAgent:" for words in texts]
    rng.shuffle(shuffled)
    return shuffled
