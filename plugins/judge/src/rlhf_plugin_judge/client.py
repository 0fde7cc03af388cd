"""Asking an OpenAI-compatible endpoint: POST url/chat/completions, with retries and plain words for what goes wrong.

One request is all that is needed, so this is httpx2 (which transformers brings along) and not the openai package: that
one sends OPENAI_API_KEY and other settings of the environment to whatever url it is given.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx2
from rlhf_core.errors import RewardError

from .cache import Reply
from .config import JudgeSettings

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before the second attempt, doubled at each further one; and at most, whatever the server asks for."""
LARGEST_ANSWER = 2**20
"""Bytes; a verdict is a few dozen."""

Messages = list[dict[str, str]]


class NoAnswer(Exception):
    """An attempt failed: why, whether another may do better, and how many seconds the server wants to be left alone."""

    def __init__(self, reason: str, again: bool = False, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.again, self.pause = reason, again, pause


class Client:
    """An endpoint and a model at it; `where` is who asks, for messages."""

    def __init__(self, settings: JudgeSettings, where: str) -> None:
        self._settings, self._where = settings, where
        self._url = f"{settings.url}/chat/completions"
        self._headers = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
        self._body: dict[str, Any] = {"model": settings.model, **settings.extra}
        for name in ("temperature", "max_tokens"):  # some models refuse to be told
            if (value := getattr(settings, name)) is not None:
                self._body[name] = value

    def ask(self, questions: Sequence[Messages], keep: Callable[[int, Reply], None]) -> None:
        """Ask `questions`, several at a time, and hand each reply to `keep` with its question's number as it comes.

        Raises:
            RewardError: the endpoint refuses the key or does not know the url or model; or, with
                ``on_failure: raise``, gives no answer. Questions that were not asked yet are then left.
        """
        count, stop = self._settings.concurrency, Event()
        limits = httpx2.Limits(max_connections=count, max_keepalive_connections=count)
        pool = ThreadPoolExecutor(min(count, max(len(questions), 1)))

        def one(i: int) -> None:
            keep(i, self._reply(http, questions[i], stop))

        local = urlsplit(self._url).hostname in ("localhost", "127.0.0.1", "::1")  # no proxy can get there
        with httpx2.Client(
            headers=self._headers, timeout=self._settings.timeout, limits=limits, trust_env=not local
        ) as http:
            try:
                asked = [pool.submit(one, i) for i in range(len(questions))]
                wait(asked, return_when=FIRST_EXCEPTION)
                for future in asked:
                    if future.done():
                        future.result()
            finally:
                stop.set()  # no further attempts, no waiting for one
                pool.shutdown(cancel_futures=True)

    def _reply(self, http: httpx2.Client, question: Messages, stop: Event) -> Reply:
        """What the endpoint says, after as many attempts as it takes."""
        pause, attempt = FIRST_PAUSE, 1
        while True:
            try:
                return self._attempt(http, question)
            except NoAnswer as problem:
                seconds = min(LONGEST_PAUSE, max(problem.pause, pause * random.SystemRandom().uniform(0.5, 1)))
                if not problem.again or attempt > self._settings.retries or stop.wait(seconds):
                    return self._failed(problem, attempt)
                pause, attempt = 2 * pause, attempt + 1

    def _failed(self, problem: NoAnswer, attempts: int) -> Reply:
        if self._settings.on_failure == "abstain":
            return Reply(None, failure=problem.reason)
        fix = "check that the server runs, or raise `timeout` or `retries`" if problem.again else "do what it says"
        raise RewardError(
            self._where,
            f"{self._url} gave no answer in {attempts} attempt{'s' * (attempts > 1)}: {problem.reason}",
            f"a chat completion within {self._settings.timeout:g} s",
            f"{fix}; on_failure: abstain goes on without",
        )

    def _attempt(self, http: httpx2.Client, question: Messages) -> Reply:
        deadline = monotonic() + self._settings.timeout
        content = bytearray()
        try:
            # streamed, so that a server that trickles or never ends is cut off
            with http.stream("POST", self._url, json={**self._body, "messages": question}) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > LARGEST_ANSWER:
                        raise NoAnswer(f"an answer of more than {LARGEST_ANSWER} bytes")
                    if monotonic() > deadline:
                        raise NoAnswer("timed out", again=True)
        except httpx2.TimeoutException:
            raise NoAnswer("timed out", again=True) from None
        except httpx2.RequestError as error:
            raise NoAnswer(f"no connection: {error or type(error).__name__}", again=True) from None
        return self._understood(response, bytes(content))

    def _understood(self, response: httpx2.Response, content: bytes) -> Reply:
        """The reply in an HTTP response. Raises NoAnswer, or RewardError where no attempt can ever do better."""
        status = response.status_code
        if status == 200:
            return self._completion(content)
        reason = f"HTTP {status}: {self._said(content)}"
        if status in (401, 403):
            raise RewardError(self._where, f"{self._url} refused the key: {reason}", "a valid key", self._key_fix())
        if status == 404 or 300 <= status < 400:
            raise RewardError(
                self._where,
                f"{self._url} has no model {self._settings.model!r}: {reason}",
                "an OpenAI-compatible endpoint, and a model that it offers",
                "check `url` (it usually ends in /v1) and `model`",
            )
        again = status in (408, 409, 429) or status >= 500
        raise NoAnswer(reason, again, _wanted_pause(response.headers.get("retry-after")))

    def _completion(self, content: bytes) -> Reply:
        try:
            choice = json.loads(content)["choices"][0]
            text, truncated = choice["message"]["content"], choice.get("finish_reason") == "length"
            if not isinstance(text, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise NoAnswer(f"no chat completion: {self._said(content)}") from None
        return Reply(text, truncated)

    def _said(self, content: bytes) -> str:
        """What an error page says, in one line that never shows the key."""
        text = content.decode("utf-8", "replace")
        try:
            told = json.loads(text)["error"]
            text = str(told["message"] if isinstance(told, dict) else told)
        except (ValueError, LookupError, TypeError, RecursionError):
            pass  # not in OpenAI's form
        if self._settings.key:
            text = text.replace(self._settings.key, "(the key)")
        return " ".join(text.split())[:200] or "(nothing)"

    def _key_fix(self) -> str:
        if not self._settings.key:
            return "put the token in an environment variable and set key: ${env:NAME}"
        names = holders(self._settings.key)
        return f"check the environment variable {' or '.join(names)}" if names else "set key: ${env:NAME}"


def holders(key: str) -> list[str]:
    """The environment variables whose value is `key`."""
    return sorted(name for name, value in os.environ.items() if value.strip() == key)


def _wanted_pause(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 if it says nothing."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            date = parsedate_to_datetime(str(header))
        except ValueError:
            return 0.0
        seconds = (date.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
