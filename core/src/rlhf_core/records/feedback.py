"""What people say: prompts and the six kinds of feedback, immutable and typed.

Records are pydantic models with a `kind`, so that a line of JSON becomes the right one through `parse_feedback`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

S = TypeVar("S", "SpanRating", "SpanWeight")


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Message(Record):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _is_text(cls, content: Any) -> Any:
        if isinstance(content, list):
            raise ValueError(
                f"got a list of {len(content)} parts, expected text; join the texts of the parts "
                "(images and sound are not read)"
            )
        return content


class Prompt(Record):
    """What a response answers: text, or chat messages, with `fields` (references, answers) for rewards and metrics."""

    text: str | tuple[Message, ...] = Field(description="a string, or the messages of a chat up to the reply")
    fields: dict[str, Any] = Field(
        default_factory=dict, description="further columns, handed on to rewards and metrics"
    )

    @field_validator("text")
    @classmethod
    def _not_empty(cls, text: str | tuple[Message, ...]) -> str | tuple[Message, ...]:
        if not text:
            raise ValueError("a prompt must not be empty")
        return text

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages; a string is one user message."""
        if isinstance(self.text, str):
            return [{"role": "user", "content": self.text}]
        return [message.model_dump() for message in self.text]

    def render(self) -> str:
        """The prompt as one string, for models without a chat template.

        A string is itself. Messages become a transcript in the manner of HH-RLHF ("Human:", "Assistant:") that ends
        with an open assistant turn.
        """
        if isinstance(self.text, str):
            return self.text
        names = {"user": "Human", "assistant": "Assistant", "system": "System", "tool": "Tool"}
        turns = "".join(f"\n\n{names[m.role]}: {m.content.strip()}" for m in self.text)
        return f"{turns}\n\nAssistant:"

    def in_share(self, share: float) -> bool:
        """Whether this prompt belongs to the held-out `share` of all prompts.

        A hash of its text decides, so that all records of a prompt fall on one side, in every run and every stage.
        """
        text = json.dumps(self.messages, ensure_ascii=False)
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 < share

    def render_response(self, response: str) -> str:
        """`response` so that ``render() + render_response(response)`` is the whole text.

        After a transcript the response starts with a space; after a string prompt it is left as it is.
        """
        if isinstance(self.text, str) or response[:1].isspace():
            return response
        return f" {response}"


def _as_prompt(value: Any) -> Any:
    """Accept a bare string or list of messages where a prompt is wanted."""
    return {"text": value} if isinstance(value, (str, list, tuple)) else value


class FeedbackRecord(Record):
    """What every kind of feedback carries."""

    prompt: Prompt
    annotator: str | None = Field(default=None, description="who gave it")
    time: datetime | None = Field(default=None, description="when it was given")
    source: str | None = Field(default=None, description="where it came from: a file, a page, a crowd")
    comment: str | None = Field(default=None, description="free text of the annotator")
    weight: float = Field(default=1.0, ge=0, description="how much it counts in training, as quality control sees it")

    _normalise_prompt = field_validator("prompt", mode="before")(_as_prompt)

    @cached_property
    def id(self) -> str:
        """The hash of the content: equal records have equal ids, everywhere and always, whatever they weigh."""
        content = json.dumps(self.model_dump(mode="json", exclude={"weight"}), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _ordered(span: S) -> S:
    if span.end <= span.start:
        raise ValueError(f"a span must end after it starts, got [{span.start}, {span.end})")
    return span


class SpanRating(Record):
    """A score for the characters [start, end) of the response."""

    start: int = Field(ge=0)
    end: int
    score: float

    @model_validator(mode="after")
    def _ordered(self) -> SpanRating:
        return _ordered(self)


class Rating(FeedbackRecord):
    """A score of one response on a declared scale, optionally per aspect and per span."""

    kind: Literal["rating"] = "rating"
    response: str
    score: float
    scale: tuple[float, float] = Field(description="lowest and highest possible score")
    aspects: dict[str, float] = Field(default_factory=dict, description="scores by aspect, on the same scale")
    spans: tuple[SpanRating, ...] = ()

    @model_validator(mode="after")
    def _inside_scale(self) -> Rating:
        low, high = self.scale
        if low >= high:
            raise ValueError(f"a scale goes from low to high, got {low} to {high}")
        named = {"score": self.score, **self.aspects, **{f"span {s.start}-{s.end}": s.score for s in self.spans}}
        for name, score in named.items():
            if not low <= score <= high:
                raise ValueError(f"{name} is {score}, outside its scale {low} to {high}")
        return self


class Comparison(FeedbackRecord):
    """A ranking of two or more responses to one prompt.

    `ranks[i]` is the place of `responses[i]`: 0 is best, equal numbers are ties. For a best-of-K vote the winner has
    rank 0 and the others rank 1 with ``ties_judged=False``: they were not compared with each other.
    """

    kind: Literal["comparison"] = "comparison"
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    ties_judged: bool = Field(default=True, description="whether equal ranks mean 'as good as', or 'not compared'")
    margin: float | None = Field(default=None, description="how much better the best is, in units of the annotator")
    confidence: float | None = Field(
        default=None, ge=0, le=1, description="probability that the order is right; None: nobody said"
    )

    @model_validator(mode="after")
    def _one_rank_each(self) -> Comparison:
        if len(self.responses) < 2:
            raise ValueError(f"a comparison needs at least two responses, got {len(self.responses)}")
        if len(self.ranks) != len(self.responses):
            raise ValueError(
                f"a comparison needs one rank per response, got {len(self.ranks)} ranks "
                f"for {len(self.responses)} responses"
            )
        if len(set(self.responses)) < len(self.responses):
            twice = next(r for i, r in enumerate(self.responses) if r in self.responses[:i])
            raise ValueError(f"a comparison needs different responses, got {twice[:60]!r} twice")
        return self

    @property
    def best(self) -> str:
        """The best response; the first of them if several share the best rank."""
        return self.responses[self.ranks.index(min(self.ranks))]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every (better, worse) pair; ties give none."""
        ordered = sorted(zip(self.ranks, self.responses, strict=True), key=lambda pair: pair[0])
        for i, (rank, better) in enumerate(ordered):
            for other_rank, worse in ordered[i + 1 :]:
                if other_rank > rank:
                    yield better, worse


class Edit(FeedbackRecord):
    """A response and what a person made of it."""

    kind: Literal["edit"] = "edit"
    original: str
    edited: str

    @field_validator("original", "edited")
    @classmethod
    def _not_blank(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("an edit needs an original and an edited text, neither of them empty")
        return text


class SpanWeight(Record):
    """How much the characters [start, end) of a demonstration count; below 0, they are to be avoided."""

    start: int = Field(ge=0)
    end: int
    weight: float

    @model_validator(mode="after")
    def _ordered(self) -> SpanWeight:
        return _ordered(self)


class Demonstration(FeedbackRecord):
    """A response to imitate; its text outside `spans` weighs 1."""

    kind: Literal["demonstration"] = "demonstration"
    response: str
    spans: tuple[SpanWeight, ...] = ()

    @field_validator("response")
    @classmethod
    def _not_blank(cls, response: str) -> str:
        if not response.strip():
            raise ValueError("a demonstration must not be empty")
        return response


class Keywords(FeedbackRecord):
    """Words that a response should or should not use."""

    kind: Literal["keywords"] = "keywords"
    response: str | None = None
    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()


class Sentiment(FeedbackRecord):
    """How a response feels: a label, and optionally a score from -1 to 1."""

    kind: Literal["sentiment"] = "sentiment"
    response: str
    label: Literal["positive", "neutral", "negative"]
    score: float | None = Field(default=None, ge=-1, le=1)


Feedback: TypeAlias = Annotated[
    Rating | Comparison | Edit | Demonstration | Keywords | Sentiment, Field(discriminator="kind")
]


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Feedback]:
    return TypeAdapter(Feedback)


def parse_feedback(data: Any) -> Feedback:
    """The right record for a dict with a `kind`. Raises pydantic's ValidationError."""
    return _adapter().validate_python(data)
