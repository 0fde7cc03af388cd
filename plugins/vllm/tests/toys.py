"""A server that speaks vLLM's protocol as TRL's client uses it, and remembers what it was told."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Responses = Callable[[dict[str, Any]], list[list[int]]]


class FakeServer:
    """Listens on a free port of this machine.

    Attributes:
        responses: from a request for a completion to the token ids of each choice.
        asked: (path, body) of every request that changes something, in order.
        failing: path -> status and text to answer with, in place of what is right.
    """

    def __init__(self) -> None:
        self.responses: Responses = lambda body: [[7, 0]]
        self.asked: list[tuple[str, Any]] = []
        self.failing: dict[str, tuple[int, str]] = {}
        self.weight_transfer: Any = {"backend": "nccl"}
        self.looks = 0

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    @property
    def completions(self) -> list[dict[str, Any]]:
        """Requests for completions in the order of their prompts."""
        return sorted((body for path, body in self.asked if path == "/v1/completions"), key=lambda b: b["prompt"])

    def forget(self) -> None:
        self.asked.clear()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/health":
            self.looks += 1
        if path in self.failing:
            return self.failing[path]
        if path == "/v1/models":
            return 200, {"data": [{"id": "toy"}]}
        if path == "/server_info":
            return 200, {"vllm_config": {"weight_transfer_config": self.weight_transfer}}
        if path == "/get_world_size":
            return 200, {"world_size": 2}
        if path == "/v1/completions":
            choices = [
                {"prompt_token_ids": body["prompt"][0], "token_ids": ids, "logprobs": None}
                for ids in self.responses(body)
            ]
            return 200, {"choices": choices}
        return 200, {}

    @contextmanager
    def serving(self) -> Any:
        """Inside, it listens; gives its address."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(*fake.answer(self.path.partition("?")[0], None))

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.loads(text) if text else None
                fake.asked.append((self.path, body))
                self.reply(*fake.answer(self.path, body))

            def reply(self, status: int, body: Any) -> None:
                text = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                """Tests are quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class FakeGroup:
    """In place of vLLM's NCCL engine: keeps the tensors that the client sends."""

    def __init__(self) -> None:
        self.joined: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.broken = False
        self.store = self.socket = None

    @property
    def group(self) -> FakeGroup:
        return self

    def trainer_init(self, info: dict[str, Any]) -> FakeGroup:
        self.joined.append(info)
        return self

    def trainer_send_weights(self, *, iterator: Any, trainer_args: Any) -> None:
        if self.broken:
            raise RuntimeError("NCCL error: unhandled system error")
        assert trainer_args["group"] is self
        self.sent.append({name: tensor.clone() for name, tensor in iterator})
