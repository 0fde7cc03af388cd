"""Between text and token ids: prompts in, responses out, with character offsets of sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from ..errors import ConfigError, DataError
from ..records import Prompt

SEAM = 64
"""So many characters of a prompt's end decide how what follows is encoded; the longest special tokens fit in."""


class Codec:
    """A tokenizer with what this project asks of it.

    A response is encoded and decoded as it stands behind its prompt. On its own, a SentencePiece tokenizer would put a
    space in front of it that the whole text does not have, and drop the one that a sampled response begins with.

    Args:
        tokenizer: a transformers tokenizer that has an end-of-text token.
        context: most positions of the model, or None.
        max_prompt_tokens: longer prompts lose their beginning; None: they are an error.
        where: how messages call the owner.
        apart: prompt and response are two texts, each opened and closed as the tokenizer does it and with positions of
            its own, as an encoder and a decoder read them.
    """

    def __init__(
        self, tokenizer: Any, context: int | None, max_prompt_tokens: int | None, where: str, *, apart: bool = False
    ) -> None:
        self.tokenizer, self.context, self.where = tokenizer, context, where
        self.max_prompt_tokens, self.apart = max_prompt_tokens, apart
        self.eos = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id)
        self._opening = self._find_opening() if apart else []  # what a response begins with
        self._before = [] if apart else self._encoding("a").input_ids  # what ids are decoded behind
        self._known = len(self._text(self._before))
        self._lead: tuple[Any, str] | None = None  # a chat template, and what it writes between a prompt and the reply

    def encode_prompt(self, prompt: Prompt, room: int) -> list[int]:
        """Token ids of `prompt` with `room` positions left after it; chat messages go through the chat template.

        Raises:
            DataError: the prompt and `room` exceed the context and `max_prompt_tokens` does not shorten it; or the chat
                template refuses the messages.
        """
        text = self._rendered(prompt)
        if self._templated(prompt):
            ids = self._encoding(text).input_ids  # the template has written the special tokens
        else:
            ids = self.tokenizer(text).input_ids
            if len(ids) > 1 and ids[-1] == self.eos and not self.apart:  # some close every text; this one goes on
                ids = ids[:-1]
            if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:  # the text itself began with it
                ids = ids[1:]
        ids = ids or [self.eos]  # nothing to condition on: start as after an end of text
        if self.max_prompt_tokens is not None and len(ids) > self.max_prompt_tokens:
            start = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []  # a text begins, however much is cut
            ids = start + ids[len(ids) - self.max_prompt_tokens + len(start) :]
        if self.apart:
            self._check_apart(prompt, len(ids), room)
        elif self.context is not None and len(ids) + room > self.context:
            raise DataError(
                f"{self.where} prompt {prompt.render()[:60]!r}...",
                f"{len(ids)} tokens, and {room} more for the response",
                f"at most {self.context} together, the model's context",
                f"set max_prompt_tokens: {max(self.context - room, 1)} on the policy to cut the beginning "
                "of long prompts, or lower max_new_tokens",
            )
        return list(ids)

    def _check_apart(self, prompt: Prompt, size: int, room: int) -> None:
        """Raises DataError where a prompt of `size` tokens, or `room` for the response, is beyond the positions."""
        longest = self.longest_response
        if longest is None or (size <= longest + 1 and room <= longest):
            return
        raise DataError(
            f"{self.where} prompt {prompt.render()[:60]!r}...",
            f"{size} tokens, and {room} for the response",
            f"at most {longest + 1} and {longest}, the positions of encoder and decoder",
            f"set max_prompt_tokens: {longest + 1} on the policy to cut the beginning of long prompts"
            if size > longest + 1
            else "lower max_new_tokens, or give a shorter response",
        )

    @property
    def longest_response(self) -> int | None:
        """Most tokens of a response that fit beside any prompt; None: no limit, or none that holds for all prompts."""
        if self.context is None:
            return None
        if self.apart:
            return self.context - 1  # what a decoder starts from takes a position as well
        return None if self.max_prompt_tokens is None else max(self.context - self.max_prompt_tokens, 1)

    def encode_response(self, prompt: Prompt, response: str) -> list[int]:
        """Token ids of a response as it would have been sampled, closed by end of text.

        Raises:
            DataError: the chat template refuses the messages of the prompt.
        """
        encoded, known, _ = self._behind(prompt, response)
        return [*self._opening, *encoded.input_ids[known:], self.eos]

    def token_ranges(self, prompt: Prompt, response: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """For each token of a response that `encode_response` encoded, the characters [start, end) of it in `response`.

        Tokens that share a character have the same one. A space in front of a response, where a transcript or the
        tokenizer needs one, stands below 0. The end of text has none.

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
        encoded, known, start = self._behind(prompt, response, return_offsets_mapping=True)
        opened = [(0, 0)] * len(self._opening)
        ranges = [*opened, *((a - start, b - start) for a, b in encoded.offset_mapping[known:])][: len(ids)]
        closed = len(ids) > len(ranges) or [*self._opening, *encoded.input_ids[known:]][: len(ids)] != list(ids)
        end = len(response)
        return [*ranges[: len(ids) - 1], (end, end)] if closed else ranges

    def _behind(self, prompt: Prompt, response: str, **options: Any) -> tuple[Any, int, int]:
        """`response` encoded behind the end of its prompt: (encoding, tokens before it, characters before it)."""
        if self.apart:
            return self._encoding(response, **options), 0, 0
        text = self._after(prompt, response)
        # tokens may reach across the seam; those of the prompt stand, so then something else has to be in front
        for before in (self._rendered(prompt)[-SEAM:], "\n", ""):
            known = self._encoding(before).input_ids
            encoded = self._encoding(before + text, **options)
            if encoded.input_ids[: len(known)] == known:
                break
        return encoded, len(known), len(before) + len(text) - len(response)

    def _find_opening(self) -> list[int]:
        """What the tokenizer puts in front of a text that is to be written, such as BART's <s>."""
        ids: list[int] = self.tokenizer(text_target="").input_ids
        return ids[:-1] if ids[-1:] == [self.eos] else ids

    def _after(self, prompt: Prompt, response: str) -> str:
        """The text of a response as it stands behind its prompt."""
        if not self._templated(prompt):
            return prompt.render_response(response)
        if self._lead is None or self._lead[0] is not self.tokenizer.chat_template:
            self._lead = (self.tokenizer.chat_template, self._find_lead())
        return response if response[:1].isspace() else self._lead[1] + response

    def _find_lead(self) -> str:
        """The white space that the chat template writes between a prompt and the reply."""
        chat = [{"role": "user", "content": "x"}]
        try:
            before = self._from_template(chat)
            whole = self._from_template([*chat, {"role": "assistant", "content": "y"}], add_generation_prompt=False)
        except TemplateError:
            return ""
        lead = whole[len(before) :].partition("y")[0]
        return lead if whole.startswith(before) and lead.isspace() else ""

    def _templated(self, prompt: Prompt) -> bool:
        return not isinstance(prompt.text, str) and bool(self.tokenizer.chat_template)

    def _rendered(self, prompt: Prompt) -> str:
        """The prompt as one string: messages as the chat template writes them, or as a transcript."""
        if not self._templated(prompt):
            return prompt.render()
        try:
            return self._from_template(prompt.messages)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in prompt.messages)
            raise DataError(
                f"{self.where} prompt {prompt.render()[:60]!r}...",
                f"the model's chat template refuses a chat of {roles}: {error}",
                "messages that it takes",
                self._mend(prompt),
            ) from error

    def _from_template(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return text

    def _mend(self, prompt: Prompt) -> str:
        """What to do about messages that the chat template refuses."""
        others = [message for message in prompt.messages if message["role"] != "system"]
        if 0 < len(others) < len(prompt.messages):
            try:
                self._from_template(others)
            except TemplateError:
                pass
            else:
                return "it takes no system message: put its text at the beginning of the first user message"
        return "most templates want user and assistant in turn, the user first and last; mend the messages"

    def _encoding(self, text: str, **options: Any) -> Any:
        """What the tokenizer makes of `text` without special tokens of its own."""
        return self.tokenizer(text, add_special_tokens=False, **options)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids as it stands behind a prompt, without special tokens and cosmetic changes."""
        return self._text([*self._before, *ids])[self._known :]

    def written(self, text: str) -> str:
        """What the tokenizer makes of `text` inside of another: itself, unless it cannot write some of it."""
        tries = [self.decode(self._encoding(around)["input_ids"]) for around in (f"a{text}a", f"a {text} a")]
        return next((written for written in tries if text in written), tries[0])

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
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
            complete = len(text.rstrip("\ufffd"))
            ends.append(max(length + complete - len(known), ends[-1] if ends else 0))
            if len(known) < len(text) == complete:
                length, start, read = ends[-1], read, t + 1
        whole = len(self.decode(ids))  # broken characters at the end count in the end
        return [*(min(end, whole) for end in ends[:-1]), *([whole] if ends else [])]


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
