"""Prompts from a file, a dataset, or the records of a feedback source."""

from __future__ import annotations

from functools import partial

from ..errors import DataError
from ..interfaces import Context, PromptSource, Row, read_rows
from ..interfaces.rows import checked
from ..records import Prompt
from .config import FeedbackPromptsConfig, PromptsConfig


class Prompts(PromptSource[PromptsConfig]):
    """A `prompt` column, or else `messages`, and all further columns as fields; read when it is built.

    A column `system` is the first message of a chat. A reply at the end of `messages` is left out. `skipped` counts bad
    rows where the config says to skip them.
    """

    def __init__(self, config: PromptsConfig, context: Context) -> None:
        super().__init__(config, context)
        self.skipped = 0
        skips = config.on_bad_record == "skip"
        self._prompts: list[Prompt] = []
        for row in read_rows(config, context.where, self._bad if skips else None):
            try:
                prompt = checked(row, partial(self._prompt, row))
            except DataError as error:
                if not skips:
                    raise
                self._bad(error)
                continue
            self._prompts.append(prompt)
        if self.skipped:
            context.warn(f"{context.where}: skipped {self.skipped} bad records")
        if not self._prompts:
            raise DataError(
                context.where,
                f"{config.path or config.dataset} has no prompts",
                "at least one row",
                "check the file and the `columns` of the source",
            )

    def _prompt(self, row: Row) -> Prompt:
        if row.data.get("prompt") is not None or row.data.get("messages") is None:
            return row.prompt(row.take("prompt"), ["prompt"], self.config.fields)
        messages = row.take_list("messages")
        replied = bool(messages) and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
        return row.prompt(messages[:-1] if replied else messages, ["prompt", "messages"], self.config.fields)

    def _bad(self, error: DataError) -> None:
        self.skipped += 1

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self._prompts[index]


class FeedbackPrompts(PromptSource[FeedbackPromptsConfig]):
    """The prompts of a feedback source, in the order of their first appearance."""

    def __init__(self, config: FeedbackPromptsConfig, context: Context) -> None:
        super().__init__(config, context)
        found: dict[str, Prompt] = {}
        for record in context.component("feedback", config.feedback):
            if config.part == "all" or record.prompt.in_share(config.share) == (config.part == "held-out"):
                found.setdefault(record.prompt.render(), record.prompt)
            if config.limit is not None and len(found) == config.limit:
                break
        self._prompts = list(found.values())
        if not self._prompts:
            raise DataError(
                context.where,
                f"feedback {config.feedback!r} has no prompts in the part {config.part!r}",
                "at least one",
                "take another part, or a larger share",
            )

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self._prompts[index]
