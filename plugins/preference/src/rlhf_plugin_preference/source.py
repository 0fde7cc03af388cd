"""Comparisons from rows: TRL's preference formats, HH-RLHF transcripts, and rankings."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable
from typing import Any

from rlhf_core.errors import DataError
from rlhf_core.interfaces import Row, RowFeedback
from rlhf_core.records import Comparison

from .config import PreferencesConfig

META = ("annotator", "time", "source", "comment", "margin")
ASSISTANT = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")


class Preferences(RowFeedback[PreferencesConfig]):
    """Yields one `Comparison` per row."""

    def records(self, row: Row) -> Iterable[Comparison]:
        meta = {name: row.data[name] for name in META if row.data.get(name) is not None}
        if "responses" in row.data:
            used = {"prompt", "responses", "ranks", "ties_judged", *meta}
            prompt = row.take("prompt")
            responses, ranks = [_text(row, r) for r in row.take("responses")], row.take("ranks")
            meta["ties_judged"] = row.data.get("ties_judged", True)
        else:
            used = {"prompt", "chosen", "rejected", *meta}
            prompt, chosen, rejected = _split(row)
            responses, ranks = [chosen, rejected], [0, 1]
            if chosen == rejected:
                ranks = [0, 0]  # the same text twice cannot be better than itself
        yield Comparison(prompt=row.prompt(prompt, used, self.config.fields), responses=tuple(responses),
                         ranks=tuple(ranks), **meta)  # fmt: skip


def _split(row: Row) -> tuple[Any, str, str]:
    """(prompt, chosen, rejected) of a row in one of the pairwise formats."""
    chosen, rejected = row.take("chosen"), row.take("rejected")
    if row.data.get("prompt") is not None:
        return row.take("prompt"), _text(row, chosen), _text(row, rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if ASSISTANT in chosen:
            return _split_transcripts(row, chosen, rejected)
        shared = os.path.commonprefix([chosen, rejected])
        # an implicit prompt ends at a word: a response does not begin in the middle of one
        cut = max((m.end() for m in re.finditer(r"\s(?=\S)|\n", shared)), default=0)
        if not shared[:cut].strip():
            raise DataError(row.where, "chosen and rejected share no beginning", "a `prompt` column, or texts that both "
                            "begin with the prompt", "add a prompt column")  # fmt: skip
        cut -= len(shared[:cut]) - len(shared[:cut].rstrip())  # the space before a response belongs to it
        return shared[:cut], chosen[cut:], rejected[cut:]
    if isinstance(chosen, list) and isinstance(rejected, list):
        count = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
                     min(len(chosen), len(rejected)) - 1)  # fmt: skip
        return chosen[:count], _text(row, chosen[count:]), _text(row, rejected[count:])
    raise DataError(row.where, f"chosen is {_kind(chosen)} and rejected is {_kind(rejected)}",
                    "both text, or both lists of messages")  # fmt: skip


def _split_transcripts(row: Row, chosen: str, rejected: str) -> tuple[list[dict[str, str]], str, str]:
    """HH-RLHF: the prompt is the longest common beginning that ends with an Assistant marker."""
    cut = os.path.commonprefix([chosen, rejected]).rfind(ASSISTANT)
    if cut < 0:
        raise DataError(row.where, "the transcripts share no beginning that ends with 'Assistant:'",
                        "two continuations of one dialogue")  # fmt: skip
    parts = TURN.split(chosen[:cut])[1:]  # role, text, role, text, ...
    roles = {"Human": "user", "Assistant": "assistant"}
    messages = [{"role": roles[role], "content": text.strip()}
                for role, text in zip(parts[::2], parts[1::2], strict=True)]  # fmt: skip
    start = cut + len(ASSISTANT)
    return messages, chosen[start:].strip(), rejected[start:].strip()


def _text(row: Row, response: Any) -> str:
    """A response as text, from text or from one assistant message."""
    if isinstance(response, str):
        return response
    if isinstance(response, list) and len(response) == 1 and response[0].get("role") == "assistant":
        return str(response[0]["content"])
    raise DataError(row.where, f"a response that is {_kind(response)}", "text, or a list with one assistant message",
                    "mend the row, or set on_bad_record: skip")  # fmt: skip


def _kind(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else f"a {type(value).__name__}"
