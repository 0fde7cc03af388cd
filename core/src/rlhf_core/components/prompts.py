"""Prompts from a JSONL file or a dataset: a `prompt` column, and all further columns as fields."""

from __future__ import annotations

from ..errors import DataError
from ..interfaces import Context, PromptSource, read_rows
from ..interfaces.rows import checked
from ..records import Prompt
from .config import PromptsConfig


class Prompts(PromptSource[PromptsConfig]):
    """Reads all rows when it is built. `skipped` counts bad ones where the config says to skip them."""

    def __init__(self, config: PromptsConfig, context: Context) -> None:
        super().__init__(config, context)
        self.skipped = 0
        skips = config.on_bad_record == "skip"
        self._prompts: list[Prompt] = []
        for row in read_rows(config, context.where, self._bad if skips else None):
            try:
                prompt = checked(row, lambda row=row: row.prompt(row.take("prompt"), ["prompt"], config.fields))
            except DataError as error:
                if not skips:
                    raise
                self._bad(error)
                continue
            self._prompts.append(prompt)
        if self.skipped:
            context.warn(f"{context.where}: skipped {self.skipped} bad records")
        if not self._prompts:
            raise DataError(context.where, f"{config.path or config.dataset} has no prompts", "at least one row",
                            "check the file and the `columns` of the source")

    def _bad(self, error: DataError) -> None:
        self.skipped += 1

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self._prompts[index]
