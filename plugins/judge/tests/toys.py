"""A judge to be judged: a real HTTP server that speaks chat completions, with answers that the tests choose."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import correlation
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any

from rlhf_core.interfaces import Component, Config, Context, FeedbackSource
from rlhf_core.records import Feedback, Prompt, Sample
from rlhf_plugin_judge.config import JudgeFeedbackConfig, JudgeRewardConfig
from rlhf_plugin_judge.reward import JudgeReward
from rlhf_plugin_judge.source import JudgedPairs

HANG, CLOSE, TRICKLE = "(never answers)", "(hangs up)", "(one byte now and then)"
POLITE = ("please", "thanks", "welcome", "kindly")


@dataclass(frozen=True)
class Page:
    """An answer that is no chat completion."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Asked:
    """A request as it came over the wire, read by the marks alone: what a judge would see."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    time: float

    @property
    def system(self) -> str:
        return str(self.body["messages"][0]["content"])

    @property
    def user(self) -> str:
        return str(self.body["messages"][1]["content"])

    @cached_property
    def nonce(self) -> str:
        """The one code that the instructions name."""
        (nonce,) = set(re.findall(r"\[begin NAME ([0-9a-f]{16})\]", self.system))
        return nonce

    @cached_property
    def parts(self) -> list[tuple[str, str]]:
        """(name, text) between marks with the code."""
        n = self.nonce
        return re.findall(rf"^\[begin ([\w ]+) {n}\]\n(.*?)\n\[end \1 {n}\]$", self.user, flags=re.S | re.M)

    @property
    def outside(self) -> str:
        """The user message without what stands between marks."""
        n = self.nonce
        return re.sub(rf"^\[begin ([\w ]+) {n}\]\n.*?\n\[end \1 {n}\]$", "", self.user, flags=re.S | re.M).strip()

    def part(self, name: str) -> str:
        return dict(self.parts)[name]


Answer = Callable[[Asked], "str | Page"]


class JudgeServer:
    """Answers with what `answer` makes of each request; `asked` are those that came so far."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Answer = lambda asked: '{"score": 7}'
        self._lock, self._over = Lock(), Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def script(self, *answers: str | Page) -> None:
        """Give these answers one after the other, and the last one from then on."""
        left = list(answers)
        self.answer = lambda asked: left.pop(0) if len(left) > 1 else left[0]

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(outer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept
            wbufsize = -1  # headers and body in one packet: two would wait for each other

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                asked = Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, body, monotonic())
                with outer._lock:
                    outer.asked.append(asked)
                    answer = outer.answer(asked)
                if answer == HANG:
                    outer._over.wait(10)
                    self.close_connection = True
                elif answer == CLOSE:
                    self.close_connection = True
                elif answer == TRICKLE:
                    self.send_response(200)
                    self.send_header("Connection", "close")
                    self.end_headers()
                    while not outer._over.wait(0.02):
                        try:
                            self.wfile.write(b" ")
                            self.wfile.flush()
                        except OSError:
                            return
                elif isinstance(answer, Page):
                    self._send(answer.status, answer.body, answer.headers)
                else:
                    self._send(200, completion(answer), ())

            def _send(self, status: int, body: str, headers: Sequence[tuple[str, str]]) -> None:
                content = body.encode()
                self.send_response(status)
                for name, value in (*headers, ("Content-Length", str(len(content)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Tests are quiet."""

        return Handler


def completion(text: Any, finish: str = "stop") -> str:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "toy", "choices": [choice]})


def politeness(text: str) -> int:
    return sum(text.lower().count(word) for word in POLITE)


def polite_judge(asked: Asked) -> str:
    """A judge with a known truth: it counts polite words between the marks."""
    names = dict(asked.parts)
    if "reply" in names:
        return json.dumps({"score": politeness(names["reply"])})
    a, b = politeness(names["reply A"]), politeness(names["reply B"])
    return json.dumps({"winner": "tie" if a == b else "A" if a > b else "B"})


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The rank correlation of two lists; equal values share the mean of their ranks."""
    ranks = [[sum(x > y for y in values) + sum(x == y for y in values) / 2 for x in values] for values in (a, b)]
    return correlation(*ranks)


class Heard(list[str]):
    """Collects warnings."""

    def __call__(self, message: str) -> None:
        self.append(message)


def reward(server: JudgeServer | str, warn: Callable[[str], None] = Heard(), directory: Path | None = None,  # noqa: B008
           **config: Any) -> JudgeReward:  # fmt: skip
    url = server if isinstance(server, str) else server.url
    context = Context(kind="reward", id="judge", warn=warn, directory=directory)
    return JudgeReward(JudgeRewardConfig(**{"url": url, "model": "toy", **config}), context)


class NoConfig(Config):
    """Nothing to configure."""


class Memory(FeedbackSource[NoConfig]):
    """Records from memory, counted as they are read."""

    def __init__(self, records: Sequence[Feedback]) -> None:
        super().__init__(NoConfig(), Context())
        self.records, self.read = records, 0

    def __iter__(self) -> Any:
        for record in self.records:
            self.read += 1
            yield record


def source(server: JudgeServer, records: Sequence[Feedback] | Memory, warn: Callable[[str], None] = Heard(),  # noqa: B008
           **config: Any) -> JudgedPairs:  # fmt: skip
    memory = records if isinstance(records, Memory) else Memory(records)

    def resolve(kind: str, id: str) -> Component[Any]:
        assert (kind, id) == ("feedback", "people")
        return memory

    context = Context(kind="feedback", id="machine", warn=warn, resolve=resolve)
    return JudgedPairs(
        JudgeFeedbackConfig(**{"url": server.url, "model": "toy", "feedback": "people", **config}), context
    )


def samples(*responses: str, **fields: Any) -> list[Sample]:
    return [Sample(Prompt(text="Where is my parcel?", fields=fields), response) for response in responses]
