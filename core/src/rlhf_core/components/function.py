"""A reward that is a Python function with TRL's signature, named in the registry's `functions:` section."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import ConfigError, RewardError
from ..interfaces import Context, RewardModel
from ..records import Sample, Scores
from .config import FunctionRewardConfig


class FunctionReward(RewardModel[FunctionRewardConfig]):
    """Calls ``f(prompts, completions, **columns) -> list[float | None]``.

    Chat prompts come as lists of messages and their completions as lists of one assistant message, as TRL gives them;
    text as text. Every prompt field is a column (None where a prompt lacks it), and ``completion_ids`` are the token
    ids. None means no opinion: the sample is abstained.
    """

    def __init__(self, config: FunctionRewardConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.function not in context.functions:
            raise ConfigError(
                context.where,
                f"no function {config.function!r}",
                f"one of {', '.join(context.functions) or 'none declared'}",
                "name it in the registry's `functions:` section",
            )
        self.function: Callable[..., Any] = context.functions[config.function]

    def score(self, samples: Sequence[Sample]) -> Scores:
        if not samples:
            return Scores(torch.zeros(0))
        prompts: list[Any] = []
        completions: list[Any] = []
        for sample in samples:
            chat = not isinstance(sample.prompt.text, str)
            prompts.append(sample.prompt.messages if chat else sample.prompt.text)
            completions.append([{"role": "assistant", "content": sample.response}] if chat else sample.response)
        names = dict.fromkeys(name for sample in samples for name in sample.prompt.fields)
        columns: dict[str, Any] = {name: [s.prompt.fields.get(name) for s in samples] for name in names}
        if all(s.response_ids is not None for s in samples):
            columns["completion_ids"] = [list(s.response_ids or ()) for s in samples]
        answer = self.function(prompts=prompts, completions=completions, **columns)
        try:
            values = [math.nan if value is None else float(value) for value in answer]
        except TypeError as error:
            raise RewardError(
                self.context.where,
                f"function {self.config.function!r} returned {answer!r:.80}",
                "a list of one number (or None) per completion",
            ) from error
        abstained = torch.tensor([value is None for value in answer], dtype=torch.bool)
        scores = torch.tensor(values, dtype=torch.float32)
        if len(scores) == len(abstained):
            scores = scores.masked_fill(abstained, 0.0)
        return Scores(scores, abstained=abstained)
