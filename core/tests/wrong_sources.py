"""Wrong sources of feedback and prompts. Each fails one check, and what it derives from fails none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from rlhf_core.interfaces import Config, FeedbackSource, PromptSource
from rlhf_core.records import Demonstration, Prompt

from .wrong_everywhere import Plain


class Told(FeedbackSource[Plain]):
    """A source as it should be."""

    annotator = "ann"

    def __iter__(self) -> Iterator[Any]:
        yield from (Demonstration(prompt="p", response=r, annotator=self.annotator) for r in "abc")


class YieldsDicts(Told):
    def __iter__(self):
        return iter([{"prompt": "p", "response": "a"}])


class RunsDry(Told):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.rows = iter(list(super().__iter__()))

    def __iter__(self):
        return self.rows


class NamesItself(Told):
    built = 0

    def __init__(self, config, context):
        super().__init__(config, context)
        NamesItself.built += 1
        self.annotator = f"reader {self.built}"


class Listed(PromptSource[Plain]):
    """Prompts as they should be."""

    texts: Sequence[str] = "abc"

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return Prompt(text=self.texts[index])


class OneTooMany(Listed):
    def __len__(self):
        return 4


class Shuffles(Listed):
    asked = 0

    def __getitem__(self, index):
        self.asked += 1
        return Prompt(text=self.texts[(index + (self.asked - 1) // 3) % 3])


class OfOthers(Config):
    feedback: str = Field(default="toy", description="another source")


class ReadsAllOfIt(FeedbackSource[OfOthers]):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.other = context.component("feedback", config.feedback)

    def __iter__(self):
        yield from list(self.other)


class AsksTooLate(FeedbackSource[OfOthers]):
    """In a worker there is nobody to be asked."""

    def __iter__(self):
        yield from self.context.component("feedback", self.config.feedback)


class OfAFile(Config):
    path: str = Field(description="a response per line")


class ReadsTheWholeFile(FeedbackSource[OfAFile]):
    @staticmethod
    def conformance_examples(folder):
        (folder / "rows.jsonl").write_text('"a"\n"b"\n')
        return [{"path": str(folder / "rows.jsonl")}]

    def __iter__(self):
        responses = [json.loads(line) for line in Path(self.config.path).read_text().splitlines()]
        yield from (Demonstration(prompt="p", response=response) for response in responses)


class CountsItsRows(Listed):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.read = {}

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Prompt(text=self.read.setdefault(index, self.texts[len(self.read) % 3]))


RIGHT: list[tuple[str, type[Any]]] = [("feedback", Told), ("prompts", Listed)]
MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("feedback", YieldsDicts, "yields_records", "a dict; expected records such as Comparison"),
    ("feedback", RunsDry, "restarts_from_the_beginning", "3 records, then 0 other ones"),
    ("feedback", NamesItself, "ids_are_stable", "two sources built alike give other ids"),
    ("prompts", OneTooMany, "length_and_index_agree", "len is 4, and [3] raises IndexError"),
    ("prompts", Shuffles, "index_is_stable", "an index gives different prompts at different times"),
    ("feedback", AsksTooLate, "can_be_sent_to_workers", "in another process than that of the run"),
    ("feedback", ReadsAllOfIt, "streams", "DataError of the last row, before there was a record: feedback 'endless'"),
    ("feedback", ReadsTheWholeFile, "streams", "JSONDecodeError of the last row, before there was a record"),
    ("prompts", CountsItsRows, "resumes_anywhere", "asked first, [1] is 'a', and 'b' after those before it"),
]  # fmt: skip
