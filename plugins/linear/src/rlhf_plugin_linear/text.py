"""What is read of a prompt and a response, and what a word is."""

from __future__ import annotations

import regex
from rlhf_core.records import Prompt

# scripts that put no spaces between words; version 1 syntax of `regex`: && is intersection, -- difference
_DENSE = r"[\p{Han}\p{Hiragana}\p{scx=Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_WORD = regex.compile(rf"(?V1)[\w&&{_DENSE}]\p{{M}}*|[\w--{_DENSE}]+(?:['\u2019][\w--{_DENSE}]+)*")


def words(text: str) -> list[str]:
    """The words of `text`: runs of letters and digits with inner apostrophes; punctuation is none.

    In scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character is a word,
    so that n-grams of words are n-grams of characters there, and nobody has to say where a word ends.
    """
    return list(_WORD.findall(text))


def question(prompt: Prompt) -> str:
    """What a response answers: a prompt that is text, or the last message of a chat."""
    return prompt.text if isinstance(prompt.text, str) else prompt.text[-1].content
