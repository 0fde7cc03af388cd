"""A console for text that others wrote: models, annotators, files."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich import console as rich_console
from rich.segment import Segment

__all__ = ["Console", "plain"]

_ESCAPES = re.compile(r"\x9b[0-?]*[ -/]*[@-~]|\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
# control characters except tab and newline, and those that reverse the direction of what follows
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def plain(text: str) -> str:
    """`text` without escape sequences, control characters, text-direction overrides and lone surrogates."""
    text = _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))
    return _SURROGATES.sub("\ufffd", text)


class Console(rich_console.Console):
    """rich's console; nothing that is printed on it can command the terminal, be it a cell of a table or a line.

    Markup is still obeyed: text of others goes through `rich.markup.escape` first.
    """

    def render(
        self,
        renderable: rich_console.RenderableType,
        options: rich_console.ConsoleOptions | None = None,
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # rich's own commands are marked as control, its colours are styles
            yield segment if segment.control else Segment(plain(segment.text), segment.style)
