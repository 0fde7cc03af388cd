"""Demonstrations: responses to imitate, in TRL's prompt-completion and conversational formats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import DataError
from ..interfaces import ABOUT, Row, RowFeedback
from ..records import Demonstration
from .config import DemonstrationsConfig


class Demonstrations(RowFeedback[DemonstrationsConfig]):
    """Rows of `prompt` and `completion` (or `response`), each text or messages, or `messages` alone."""

    def records(self, row: Row) -> Iterable[Demonstration]:
        used = {"prompt", "completion", "response", "messages", *ABOUT}
        prompt: Any
        response: Any
        if row.data.get("messages") is not None:
            messages = row.take_list("messages")
            prompt, response = messages[:-1], messages[-1:]
        else:
            prompt = row.take("prompt")
            response = row.data["response"] if "response" in row.data else row.take("completion")
        text = _text(row, response)
        yield Demonstration(prompt=row.prompt(prompt, used, self.config.fields), response=text, **row.about())


def _text(row: Row, response: Any) -> str:
    """A response given as text or as one assistant message."""
    if isinstance(response, str):
        return response
    if isinstance(response, list) and len(response) == 1 and isinstance(response[0], dict):
        content = response[0].get("content")
        if response[0].get("role") == "assistant" and isinstance(content, str):
            return content
    raise DataError(
        row.where,
        f"a response that is {type(response).__name__}",
        "text, or a list with one assistant message",
        "mend the row, or set on_bad_record: skip",
    )
