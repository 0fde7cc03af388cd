"""Ratings from rows: numbers on a scale, aspects, labels, events, and ratings of spans or tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_core.interfaces import ABOUT, Row, RowFeedback
from rlhf_core.records import Rating, SpanRating

from .config import RatingsConfig

WAYS = ("rating", "aspects", "label", "event")
USED = {"prompt", "response", "completion", "spans", "tokens", "token_ratings", "scale", *WAYS, *ABOUT}


class Ratings(RowFeedback[RatingsConfig]):
    """Yields one `Rating` per row."""

    def records(self, row: Row) -> Iterable[Rating]:
        response = row.response()
        score, scale, aspects = self._score(row)
        yield Rating(
            prompt=row.prompt(row.take("prompt"), USED, self.config.fields),
            response=response,
            score=score,
            scale=scale,
            aspects=aspects,
            spans=_spans(row, response),
            **row.about(),
        )

    def _score(self, row: Row) -> tuple[Any, Any, dict[str, Any]]:
        """The rating of a row, its scale, and its aspects."""
        scale = row.data.get("scale") or self.config.scale
        aspects = row.data.get("aspects") or {}
        if not isinstance(aspects, dict):
            raise row.bad(f"aspects is {aspects!r}", "an object of ratings by aspect")
        aspects = {name: value for name, value in aspects.items() if value is not None}
        if row.data.get("rating") is not None:
            return row.data["rating"], scale, aspects
        if aspects:
            return self._mean(row, aspects), scale, aspects
        if row.data.get("label") is not None:
            if not isinstance(row.data["label"], bool) and row.data["label"] not in (0, 1, "0", "1"):
                raise row.bad(f"label is {row.data['label']!r}", "true or false")
            return float(row.data["label"]), (0.0, 1.0), {}
        if row.data.get("event") is not None:
            event = row.data["event"]
            if event not in self.config.events:
                raise row.bad(
                    f"event {event!r}",
                    f"one of {', '.join(self.config.events)}",
                    "add it to `events` of the source, with how good it says a response is",
                )
            return self.config.events[event], (0.0, 1.0), {}
        raise row.bad(
            f"only the columns {', '.join(map(repr, row.data))}",
            f"one of {', '.join(WAYS)}",
            "map it in the config: columns: {rating: <its name>}",
        )

    def _mean(self, row: Row, aspects: dict[str, Any]) -> float:
        """The weighted mean of a row's aspects."""
        weights = self.config.aspects or dict.fromkeys(aspects, 1.0)
        if not all(type(value) in (int, float) for value in aspects.values()):
            raise row.bad(f"aspects are {aspects}", "numbers")
        total = sum(weights.get(name, 0.0) for name in aspects)
        if not total:
            raise row.bad(
                f"only the aspects {', '.join(aspects)}",
                f"one of {', '.join(weights)}",
                "name it in `aspects` of the source",
            )
        return float(sum(weights.get(name, 0.0) * value for name, value in aspects.items()) / total)


def _spans(row: Row, response: str) -> tuple[SpanRating, ...]:
    """Ratings of parts: `spans` as they stand, or `tokens` with `token_ratings`, whose characters are counted."""
    if row.data.get("spans"):
        spans = tuple(SpanRating.model_validate(span) for span in row.take_list("spans"))
    elif row.data.get("tokens"):
        tokens, ratings = row.take_list("tokens"), row.take_list("token_ratings")
        if "".join(tokens) != response or len(tokens) != len(ratings):
            raise row.bad(
                f"{len(tokens)} tokens ({''.join(tokens)[:40]!r}) and {len(ratings)} ratings",
                "tokens that joined are the response, and one rating (or null) each",
            )
        ends = [len("".join(tokens[: i + 1])) for i in range(len(tokens))]
        spans = tuple(
            SpanRating(start=end - len(token), end=end, score=rating)
            for token, end, rating in zip(tokens, ends, ratings, strict=True)
            if rating is not None and token
        )
    else:
        return ()
    if late := [span for span in spans if span.end > len(response)]:
        raise row.bad(
            f"a span that ends at {late[0].end}", f"an end within the {len(response)} characters of the response"
        )
    return spans
