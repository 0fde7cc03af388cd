"""Shapers by name with what to build them from, and rollouts that are made up."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from rlhf_core.interfaces import Config, Context, RewardModel, RewardShaper
from rlhf_core.records import Prompt, Rollout, Sample, Scores
from rlhf_plugin_shaping.lengths import LengthPenalty, MissingEOS, Overlong
from rlhf_plugin_shaping.potential import Potential
from rlhf_plugin_shaping.scores import Clip, PromptBaseline, Scale, SuccessBonus
from rlhf_plugin_shaping.tokens import Discount, RepetitionPenalty, Spread, Whiten
from torch import Tensor

ALL: list[tuple[type[RewardShaper[Any]], dict[str, Any]]] = [
    (Clip, {"low": 0.5, "high": 2}),
    (Scale, {}),
    (Scale, {"center": True, "clip": 0.5}),
    (PromptBaseline, {}),
    (PromptBaseline, {"decay": 0.5}),
    (SuccessBonus, {"threshold": 0.9}),
    (SuccessBonus, {"threshold": 0.9, "max_tokens": 4}),
    (MissingEOS, {}),
    (MissingEOS, {"replace": True}),
    (LengthPenalty, {}),
    (Overlong, {"max_tokens": 4, "buffer": 4}),
    (Whiten, {}),
    (Whiten, {"shift_mean": True}),
    (Discount, {}),
    (RepetitionPenalty, {"n": 1}),
    (Spread, {}),
    (Spread, {"decay": 0.5}),
    (Potential, {"reward": "hash", "every": 1}),
    (Potential, {"reward": "hash", "every": 2, "gamma": 0.9}),
]
every_shaper = pytest.mark.parametrize(("cls", "config"), ALL, ids=lambda value: getattr(value, "__name__", str(value)))


class NoOptions(Config):
    """Nothing to set."""


class Function(RewardModel[NoOptions]):
    """Scores each sample by a function; None: no opinion. `asked` is what it was asked for."""

    def __init__(self, function: Callable[[Sample], float | None]) -> None:
        super().__init__(NoOptions(), Context(kind="reward", id="toy"))
        self.function, self.asked = function, list[str]()

    def score(self, samples: Sequence[Sample]) -> Scores:
        self.asked += [sample.response for sample in samples]
        said = [self.function(sample) for sample in samples]
        values = torch.tensor([0.0 if value is None else value for value in said])
        return Scores(values, abstained=torch.tensor([value is None for value in said]))


def hashed(sample: Sample) -> float:
    """A number between -2 and 2, another one for every text."""
    text = f"{sample.prompt.render()}|{sample.response}"
    return zlib.crc32(text.encode()) / 2**30 - 2


def build(cls: type[RewardShaper[Any]], model: RewardModel[Any] | None = None, **config: Any) -> Any:
    """A shaper; `model` is what it gets for any reward that it names."""
    context = Context(kind="shaper", id="mine", resolve=lambda kind, id: model or Function(hashed))
    return cls(cls.Config(**config), context)


def make_rollout(lengths: list[int], truncated: list[int] | None = None, abstained: list[int] | None = None,
                 prompts: list[str] | None = None) -> Rollout:  # fmt: skip
    """A rollout of responses of these lengths; the other lists name rows. A token is a character of the response."""
    rows, width = len(lengths), max(lengths)
    attention = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    named = [torch.tensor([b in which for b in range(rows)]) for which in (truncated or [], abstained or [])]
    mask = attention & ~named[1][:, None]
    zeros = torch.zeros(rows, width, dtype=torch.int64)
    texts = prompts or ["Hi"] * rows
    return Rollout(
        samples=tuple(Sample(Prompt(text=text), "abcdefgh"[:n]) for text, n in zip(texts, lengths, strict=True)),
        prompt_ids=zeros[:, :1], prompt_mask=zeros[:, :1] == 0,
        response_ids=zeros, attention=attention, mask=mask, logprobs=zeros.float(), truncated=named[0],
        groups=torch.arange(rows), sample_ids=torch.arange(rows), abstained=None if abstained is None else named[1],
        token_ends=attention.cumsum(1) * attention,
    )  # fmt: skip


def scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


# --- a problem small enough to write down every response ---------------------------------------------------------------

TOKENS = "ab$"  # $: end of text
LONGEST = 3
RESPONSES = [  # finished ones of up to 3 tokens, and those cut after 3
    "".join(letters) + ("$" if length < LONGEST else "")
    for length in range(LONGEST + 1)
    for letters in itertools.product("ab", repeat=length)
]
STATES = [""] + [response for n in (1, 2) for response in map("".join, itertools.product("ab", repeat=n))]
PROMPTS = ["one", "two"]


def everything() -> Rollout:
    """Every response to both prompts, one row each; every token is a character, the end of text is none."""
    both = [(prompt, response) for prompt in PROMPTS for response in RESPONSES]
    ids = torch.tensor([[TOKENS.index(t) for t in response.ljust(LONGEST, "a")] for _, response in both])
    lengths = torch.tensor([len(response) for _, response in both])
    mask = torch.arange(LONGEST)[None] < lengths[:, None]
    characters = torch.tensor([len(response.rstrip("$")) for _, response in both])
    base = make_rollout(lengths.tolist())
    return base.replace(
        samples=tuple(Sample(Prompt(text=prompt), response.rstrip("$")) for prompt, response in both),
        response_ids=ids, attention=mask, mask=mask,
        truncated=torch.tensor(["$" not in response for _, response in both]),
        groups=torch.tensor([PROMPTS.index(prompt) for prompt, _ in both]),
        token_ends=torch.minimum(torch.arange(1, LONGEST + 1)[None], characters[:, None]) * mask,
    )  # fmt: skip
