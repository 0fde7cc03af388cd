"""Between text and token ids: prompts in, responses out, with character offsets of sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..records import Prompt


class Codec:
    """A tokenizer with what this project asks of it.

    Args:
        tokenizer: a transformers tokenizer that has an end-of-text token.
        context: most positions of the model, or None.
        max_prompt_tokens: longer prompts lose their beginning; None: they are an error.
        where: how messages call the owner.
    """

    def __init__(self, tokenizer: Any, context: int | None, max_prompt_tokens: int | None, where: str) -> None:
        self.tokenizer, self.context, self.where = tokenizer, context, where
        self.max_prompt_tokens = max_prompt_tokens
        self.eos = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id)

    def encode_prompt(self, prompt: Prompt, room: int) -> list[int]:
        """Token ids of `prompt` with `room` positions left after it; chat messages go through the chat template.

        Raises:
            DataError: the prompt and `room` exceed the context and `max_prompt_tokens` does not shorten it.
        """
        if not isinstance(prompt.text, str) and self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
        else:
            ids = self.tokenizer(prompt.render()).input_ids
            if len(ids) > 1 and ids[-1] == self.eos:  # some tokenizers close every text; this one goes on
                ids = ids[:-1]
        ids = ids or [self.eos]  # nothing to condition on: start as after an end of text
        if self.max_prompt_tokens is not None and len(ids) > self.max_prompt_tokens:
            start = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []  # a text begins, however much is cut
            ids = start + ids[len(ids) - self.max_prompt_tokens + len(start) :]
        if self.context is not None and len(ids) + room > self.context:
            raise DataError(
                f"{self.where} prompt {prompt.render()[:60]!r}...",
                f"{len(ids)} tokens, and {room} more for the response",
                f"at most {self.context} together, the model's context",
                f"set max_prompt_tokens: {max(self.context - room, 1)} on the policy to cut the beginning "
                "of long prompts, or lower max_new_tokens",
            )
        return list(ids)

    def encode_response(self, prompt: Prompt, response: str) -> list[int]:
        """Token ids of a response as it would have been sampled, closed by end of text."""
        text = self._after(prompt, response)
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.eos]

    def token_ranges(self, prompt: Prompt, response: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """For each token of a response that `encode_response` encoded, the characters [start, end) of it in `response`.

        Tokens that share a character have the same one. A space that the tokenizer needs in front of a response stands
        below 0. The end of text has none.

        Args:
            ids: as `encode_response` gave them, or the first of them, with or without an end of text.

        Raises:
            ConfigError: the tokenizer does not say where its tokens stand.
        """
        if not self.tokenizer.is_fast:
            raise ConfigError(
                self.where,
                f"{type(self.tokenizer).__name__} does not say where its tokens stand in a text",
                "a fast tokenizer",
                "choose a model that comes with a tokenizer.json",
            )
        text = self._after(prompt, response)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        shift = len(text) - len(response)
        ranges = [(start - shift, end - shift) for start, end in encoded.offset_mapping[: len(ids)]]
        closed = len(ids) > len(ranges) or encoded.input_ids[: len(ids)] != list(ids)
        end = len(response)
        return [*ranges[: len(ids) - 1], (end, end)] if closed else ranges

    def _after(self, prompt: Prompt, response: str) -> str:
        """The text of a response as it stands after its prompt."""
        if not isinstance(prompt.text, str) and self.tokenizer.chat_template:
            return response
        return prompt.render_response(response)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, without special tokens and without cosmetic changes."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_ends(self, ids: Sequence[int]) -> list[int]:
        """For each token the number of characters of the decoded text that are complete with it.

        The ids are decoded step by step behind a short window, because a token's text can depend on its neighbours
        (bytes of one character, a leading space that a decoder drops at the start). Characters still being formed
        count from the token that completes them.
        """
        ends: list[int] = []
        start, read, length = 0, 0, 0
        for t in range(len(ids)):
            known, text = self.decode(ids[start:read]), self.decode(ids[start : t + 1])
            if len(text) > len(known) and not text.endswith("\ufffd"):
                length += len(text) - len(known)
                start, read = read, t + 1
            ends.append(length)
        if ends:
            ends[-1] = max(ends[-1], len(self.decode(ids)))
        return ends


def at_last_character(ranges: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int, float]]) -> list[float | None]:
    """For each range the value of the first of `spans` (start, end, value) that holds its last character, or None."""
    return [
        next((value for a, b, value in spans if a <= end - 1 < b), None) if end > start else None
        for start, end in ranges
    ]


def pad_left(rows: Sequence[Sequence[int]], value: int, device: Any) -> tuple[Tensor, Tensor]:
    """(ids (B, P), mask (B, P)) with the rows at the right edge; the mask comes from lengths, never from ids."""
    return _pad(rows, value, device, left=True)


def pad_right(rows: Sequence[Sequence[int]], value: int, device: Any) -> tuple[Tensor, Tensor]:
    """(ids (B, T), mask (B, T)) with the rows at the left edge."""
    return _pad(rows, value, device, left=False)


def _pad(rows: Sequence[Sequence[int]], value: int, device: Any, *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(1, *(len(row) for row in rows)) if rows else 1
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = True
    return ids.to(device), mask.to(device)
