"""Example records: prompts, samples and feedback, in several scripts."""

from __future__ import annotations

from typing import Any

from ..records import Comparison, Demonstration, Edit, Feedback, Keywords, Message, Prompt, Rating, Sample, Sentiment

TEXTS = [
    ("What opens at nine?", "The shop on the corner opens at nine."),
    ("Name a colour.", "Blue, like the sea on a calm day."),
    ("你好吗?", "很好, 谢谢你!"),
    ("Count to three, slowly, and say nothing else.", "One...\ntwo...\nthree."),
    ("Thanks!", "You are welcome 🙂"),
]


def example_prompts() -> list[Prompt]:
    """Six prompts, the last one a chat; each has the fields `answer` and `reference`, both text."""
    texts: list[Any] = [prompt for prompt, _ in TEXTS]
    chat = (
        Message(role="user", content="Hello?"),
        Message(role="assistant", content="Hi."),
        Message(role="user", content="Bye."),
    )
    answers = [*(response for _, response in TEXTS), "See you soon."]
    return [
        Prompt(text=text, fields={"answer": answer, "reference": answer})
        for text, answer in zip([*texts, chat], answers, strict=True)
    ]


def example_samples() -> list[Sample]:
    """Ordinary responses to `example_prompts`, two each, in several scripts; ids are one per byte, and 0 as the end."""
    responses = [text for _, text in TEXTS] + ["See you soon."]
    pairs = zip([*example_prompts(), *example_prompts()], [*responses, *reversed(responses)], strict=True)
    return [Sample(prompt, response, (*response.encode(), 0)) for prompt, response in pairs]


def example_feedback() -> list[Feedback]:
    """Records of every kind, on the same prompts."""
    records: list[Feedback] = []
    for prompt, response in TEXTS:
        worse = f"{response.split()[0]} I do not know."
        records += [
            Demonstration(prompt=Prompt(text=prompt), response=response),
            Comparison(prompt=Prompt(text=prompt), responses=(response, worse), ranks=(0, 1)),
            Rating(prompt=Prompt(text=prompt), response=response, score=4, scale=(1, 5)),
            Edit(prompt=Prompt(text=prompt), original=worse, edited=response),
            Keywords(prompt=Prompt(text=prompt), response=response, wanted=("thanks",), unwanted=("know",)),
            Sentiment(prompt=Prompt(text=prompt), response=response, label="positive", score=0.5),
        ]
    return records
