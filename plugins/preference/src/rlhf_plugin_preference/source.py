"""Comparisons from rows: TRL's preference formats, HH-RLHF transcripts, rankings, thumbs, and what importers read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_core.errors import DataError
from rlhf_core.interfaces import ABOUT, Row, RowFeedback, described
from rlhf_core.records import Comparison, Feedback, Prompt

from .config import PreferencesConfig
from .importers import importer

META = ("margin", "ties_judged", "confidence")
ASSISTANT = "\n\nAssistant:"
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
# where a word may begin: behind white space, and anywhere in scripts that are written without it
WORD = re.compile(r"\s|[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")


class Preferences(RowFeedback[PreferencesConfig]):
    """Yields one `Comparison` per row; a row whose two responses are the same text gives none.

    Rows with thumbs (`completion`, `label`) are gathered while they answer the same prompt.
    """

    def readings(self) -> Iterator[tuple[Row | None, list[Feedback] | DataError]]:
        self._thumbs = Thumbs()
        return super().readings()

    def rest(self) -> Iterable[Comparison]:
        return self._thumbs.taken()

    def records(self, row: Row) -> Iterable[Comparison]:
        if (read := importer(row)) is not None:
            yield from read(row)
            return
        if "label" in row.data and "chosen" not in row.data:
            used = {"prompt", "completion", "response", "label", *ABOUT}
            prompt = row.prompt(row.take("prompt"), used, self.config.fields)
            yield from self._thumbs.add(row, prompt, row.response())
            return
        meta = row.about() | {name: row.data[name] for name in META if row.data.get(name) is not None}
        if "responses" in row.data:
            used = {"prompt", "responses", "ranks", *META, *ABOUT}
            prompt = row.take("prompt")
            responses, ranks = [row.text(response) for response in row.take_list("responses")], row.take_list("ranks")
        else:
            used = {"prompt", "chosen", "rejected", *META, *ABOUT}
            prompt, chosen, rejected = _split(row)
            responses, ranks = [chosen, rejected], [0, 1]
            if chosen == rejected:
                return  # the same text twice says nothing
        yield Comparison(prompt=row.prompt(prompt, used, self.config.fields), responses=tuple(responses),
                         ranks=tuple(ranks), **meta)  # fmt: skip


@dataclass
class Thumbs:
    """Thumbs for the responses to one prompt: every one that was liked is better than every one that was not."""

    prompt: Prompt | None = None
    ranks: dict[str, int] = field(default_factory=dict)  # response -> 0 liked, 1 not
    about: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Row, prompt: Prompt, response: str) -> Iterator[Comparison]:
        """Take a row in; gives the comparison of the rows before it if it answers another prompt."""
        if row.data["label"] not in (True, False, 0, 1, "0", "1", "true", "false", "True", "False"):
            raise row.bad(f"label is {row.data['label']!r}", "true or false")
        if self.prompt is not None and prompt.text != self.prompt.text:
            yield from self.taken()
        liked = str(row.data["label"]).lower() in ("true", "1")
        # whoever says both of one response has said nothing
        self.ranks[response] = int(not liked) if self.ranks.get(response, int(not liked)) == int(not liked) else -1
        self.prompt, self.about = prompt, row.about()

    def taken(self) -> Iterator[Comparison]:
        """The comparison of what was gathered, if both kinds of thumbs are among it; begins anew."""
        ranks = {response: rank for response, rank in self.ranks.items() if rank >= 0}
        prompt, about = self.prompt, self.about
        self.prompt, self.ranks, self.about = None, {}, {}
        if prompt is not None and len(set(ranks.values())) == 2:
            yield Comparison(
                prompt=prompt, responses=tuple(ranks), ranks=tuple(ranks.values()), ties_judged=False, **about
            )


def _split(row: Row) -> tuple[Any, str, str]:
    """(prompt, chosen, rejected) of a row in one of the pairwise formats."""
    chosen, rejected = row.take("chosen"), row.take("rejected")
    if row.data.get("prompt") is not None:
        return row.take("prompt"), row.text(chosen), row.text(rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_transcripts(row, chosen, rejected) if ASSISTANT in chosen else _split_texts(row, chosen, rejected)
    if isinstance(chosen, list) and isinstance(rejected, list):
        cut = min(_alike(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
        if cut < 1:
            raise _no_prompt(row)
        return chosen[:cut], row.text(chosen[cut:]), row.text(rejected[cut:])
    raise row.bad(
        f"chosen is {described(chosen)} and rejected is {described(rejected)}", "both text, or both lists of messages"
    )


def _split_texts(row: Row, chosen: str, rejected: str) -> tuple[str, str, str]:
    """Texts that begin alike: the prompt ends where a word begins, for no response begins in the middle of one."""
    shared = chosen[: _alike(chosen, rejected)]
    cut = max((match.end() for match in WORD.finditer(shared)), default=0)
    if shared[:cut].endswith(" "):
        cut -= 1  # the space before a response belongs to it, as in TRL
    if not shared[:cut].strip():
        raise _no_prompt(row)
    return shared[:cut], chosen[cut:], rejected[cut:]


def _split_transcripts(row: Row, chosen: str, rejected: str) -> tuple[list[dict[str, str]] | str, str, str]:
    """HH-RLHF: the prompt is the longest common beginning that ends with an Assistant marker."""
    cut = chosen[: _alike(chosen, rejected)].rfind(ASSISTANT)
    if cut < 0:
        raise row.bad(
            "the transcripts share no beginning that ends with 'Assistant:'", "two continuations of one dialogue"
        )
    start = cut + len(ASSISTANT)
    before, *parts = TURN.split(chosen[:cut])  # what comes before the first turn, then role, text, role, text, ...
    if before.strip() or not parts:
        return chosen[:start], chosen[start:], rejected[start:]  # no plain dialogue: kept word for word, as text
    roles = {"Human": "user", "Assistant": "assistant"}
    messages = [{"role": roles[role], "content": text.strip()}
                for role, text in zip(parts[::2], parts[1::2], strict=True)]  # fmt: skip
    return messages, chosen[start:].strip(), rejected[start:].strip()


def _alike(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many of the first items are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _no_prompt(row: Row) -> DataError:
    return row.bad(
        "chosen and rejected share no beginning",
        "a `prompt`, or responses that both begin with it",
        "add a prompt column, or set on_bad_record: skip",
    )
