"""Demonstrations: responses to imitate, in TRL's prompt-completion and conversational formats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..interfaces import ABOUT, Row, RowFeedback
from ..records import Demonstration
from .config import DemonstrationsConfig


class Demonstrations(RowFeedback[DemonstrationsConfig]):
    """Rows of `prompt` and `completion` (or `response`), each text or messages, or `messages` alone."""

    def records(self, row: Row) -> Iterable[Demonstration]:
        used = {"prompt", "completion", "response", "messages", *ABOUT}
        prompt: Any
        if row.data.get("messages") is not None:
            messages = row.take_list("messages")
            prompt, response = messages[:-1], row.text(messages[-1:])
        else:
            prompt, response = row.take("prompt"), row.response()
        yield Demonstration(prompt=row.prompt(prompt, used, self.config.fields), response=response, **row.about())
