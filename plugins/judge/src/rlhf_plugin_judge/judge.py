"""The judge: questions in, verdicts out, asking nothing twice."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from rlhf_core.interfaces import Context
from rlhf_core.records import Prompt

from .cache import Cache, Reply
from .client import Client, holders
from .config import JudgeSettings
from .questions import Question, Unreadable, pairwise, rating, read_chance, read_score

ORDER_DECIDES = "a verdict that changes with the order"


@dataclass(frozen=True)
class Verdict:
    """What the judge thinks, from 0 to 1, or why there is nothing to be had.

    agreed: whether it said the same in both orders.
    """

    value: float | None
    agreed: bool = True
    reason: str = ""


class Judge:
    """A language model that rates and compares."""

    def __init__(self, settings: JudgeSettings, context: Context) -> None:
        self.settings, self.context = settings, context
        self._client = Client(settings, context.where)
        self._secret = secrets.token_bytes(32)
        if settings.key and not holders(settings.key):
            context.warn(
                f"{context.where}: `key` is in no environment variable; written into a registry it ends up in run "
                "directories, so set key: ${env:NAME}"
            )

    def rate(self, samples: Sequence[tuple[Prompt, str]], scale: tuple[float, float]) -> list[Verdict]:
        """How good each (prompt, response) is: 0 at the bottom of `scale`, 1 at its top."""
        replies = self._replies(
            [rating(prompt, response, self.settings.criteria, scale) for prompt, response in samples]
        )
        return [_verdict(partial(read_score, reply, scale)) for reply in replies]

    def compare(self, pairs: Sequence[tuple[Prompt, str, str]]) -> list[Verdict]:
        """The probability that the first response of each (prompt, first, second) wins: the mean over both orders."""
        criteria = self.settings.criteria
        replies = self._replies(
            [
                question
                for prompt, a, b in pairs
                for question in (pairwise(prompt, a, b, criteria), pairwise(prompt, b, a, criteria))
            ]
        )
        return [_verdict_of_both(*both) for both in zip(replies[::2], replies[1::2], strict=True)]

    def warn(self, reasons: Sequence[str], total: int, did: str) -> None:
        """Tell how many of `total` verdicts are missing, by reason; nothing if none is."""
        if not reasons:
            return
        kinds = [reason.split(":")[0] for reason in reasons]
        example = dict(zip(reversed(kinds), reversed(reasons), strict=True))  # the first of each kind
        told = "; ".join(f"{count} x {example[kind]}" for kind, count in Counter(kinds).most_common())
        self.context.warn(f"{self.context.where}: {did} {len(reasons)} of {total}: {told}")

    @cached_property
    def _cache(self) -> Cache:
        directory, path = self.context.directory, self.settings.cache
        default = directory / "judge.jsonl" if directory else None
        return Cache(Path(path) if path else default, self.context.where)

    def _replies(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply per question; equal ones are asked once, and none that the cache knows."""
        keys = [self._key(question) for question in questions]
        replies = {key: reply for key in keys if (reply := self._cache.get(key)) is not None}
        new = {key: q for key, q in zip(keys, questions, strict=True) if key not in replies}
        names = list(new)

        def keep(i: int, reply: Reply) -> None:
            replies[names[i]] = reply
            if not reply.failure:  # the next run may have more luck
                self._cache.put(names[i], reply)

        if new:
            self._client.ask([question.messages(self._secret) for question in new.values()], keep)
        return [replies[key] for key in keys]

    def _key(self, question: Question) -> str:
        """A hash of all that the answer depends on; not of the nonce, which is new in every process."""
        s = self.settings
        content = [s.url, s.model, s.temperature, s.max_tokens, s.extra, question.content]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _verdict(read: Callable[[], float]) -> Verdict:
    try:
        return Verdict(read())
    except Unreadable as reason:
        return Verdict(None, reason=str(reason))


def _verdict_of_both(forth: Reply, back: Reply) -> Verdict:
    """Of the replies to (a, b) and to (b, a), the mean probability that a wins."""
    try:
        first, second = read_chance(forth), 1 - read_chance(back)
    except Unreadable as reason:
        return Verdict(None, agreed=False, reason=str(reason))
    return Verdict((first + second) / 2, agreed=first == second)
