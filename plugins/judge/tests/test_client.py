"""The wire: what is sent, what is tried again, and what is said when nothing comes back."""

from __future__ import annotations

import json
import socket
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from time import monotonic

import pytest
from rlhf_core.errors import RewardError
from rlhf_plugin_judge import client

from .toys import CLOSE, HANG, TRICKLE, Heard, JudgeServer, Page, completion, reward, samples

GOOD = '{"score": 10}'


def closed_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/v1"


def test_the_request_is_a_chat_completion_with_the_key_and_nothing_of_the_environment(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-ours")
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "theirs")
    reward(server, key="sk-ours", extra={"seed": 3}).score(samples("Hello."))
    reward(server, temperature=None, max_tokens=None).score(samples("Hello."))
    first, second = server.asked
    assert first.path == "/v1/chat/completions"
    assert first.headers["authorization"] == "Bearer sk-ours"
    assert "authorization" not in second.headers
    assert [message["role"] for message in first.body["messages"]] == ["system", "user"]
    about = {name: value for name, value in first.body.items() if name != "messages"}
    assert about == {"model": "toy", "temperature": 0.0, "max_tokens": 64, "seed": 3}
    assert second.body.keys() == {"model", "messages"}
    assert "theirs" not in json.dumps([asked.headers for asked in server.asked])


def test_a_judge_on_this_machine_is_asked_without_a_proxy(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, closed_port())
    assert reward(server, retries=0).score(samples("Hello.")).values.tolist() == pytest.approx([2 / 3])
    with pytest.raises(RewardError, match="no connection"):
        reward("http://judge.invalid/v1", retries=0).score(samples("Hello."))


@pytest.mark.parametrize("trouble", [
    Page(500, "oops"), Page(503), Page(429, '{"error": {"message": "slow down"}}'), Page(408), Page(409), CLOSE,
], ids=str)  # fmt: skip
def test_what_may_pass_is_tried_again(server: JudgeServer, trouble: str | Page) -> None:
    server.script(trouble, trouble, GOOD)
    assert reward(server, retries=2).score(samples("Hello.")).values.tolist() == [1.0]
    assert len(server.asked) == 3
    assert server.asked[0].body == server.asked[2].body, "the same question, the same code"


def test_a_judge_that_hangs_once_is_asked_again(server: JudgeServer) -> None:
    server.script(HANG, GOOD)
    assert reward(server, timeout=0.2).score(samples("Hello.")).values.tolist() == [1.0]


def test_a_judge_that_trickles_is_cut_off(server: JudgeServer) -> None:
    server.script(TRICKLE)
    start = monotonic()
    with pytest.raises(RewardError, match=r"gave no answer in 1 attempt: timed out; expected a chat completion within"):
        reward(server, timeout=0.2, retries=0).score(samples("Hello."))
    assert monotonic() - start < 2


def test_an_endless_answer_is_cut_off(server: JudgeServer) -> None:
    server.script(Page(200, "x" * (2**20 + 1)))
    with pytest.raises(RewardError, match="1 attempt: an answer of more than 1048576 bytes"):
        reward(server).score(samples("Hello."))


def test_retry_after_is_waited_for(server: JudgeServer) -> None:
    server.script(Page(429, headers=(("Retry-After", "0.3"),)), GOOD)
    reward(server).score(samples("Hello."))
    assert server.asked[1].time - server.asked[0].time >= 0.3


def test_retry_after_may_be_a_number_or_a_date_or_nonsense() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 < client._wanted_pause(soon) <= 100
    assert client._wanted_pause("7") == 7
    assert [client._wanted_pause(header) for header in (None, "", "soon", "nan", "inf", "-3")] == [0] * 6


def test_pauses_grow_and_have_a_limit(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(client, "FIRST_PAUSE", 10.0)
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: bool(waited.append(seconds)))
    question = [{"role": "user", "content": ""}]
    asking = reward(server, on_failure="abstain", retries=5)._judge._client
    monkeypatch.setattr(asking, "_attempt", lambda http, question: _fail())
    reply = asking._reply(None, question, threading.Event())  # type: ignore[arg-type]
    assert reply.failure == "HTTP 500"
    assert len(waited) == 5
    assert all(low <= seconds <= high for seconds, low, high in
               zip(waited, (5, 10, 20, 40, 60), (10, 20, 40, 60, 60), strict=True))  # fmt: skip


def _fail() -> None:
    raise client.NoAnswer("HTTP 500", again=True)


def test_a_dead_judge_is_an_error_that_names_url_attempts_and_fix() -> None:
    url = closed_port()
    with pytest.raises(RewardError) as error:
        reward(url, retries=1).score(samples("Hello."))
    text = str(error.value)
    assert text.startswith(f"reward 'judge': {url}/chat/completions gave no answer in 2 attempts: no connection: ")
    assert text.endswith(
        "; expected a chat completion within 60 s; check that the server runs, or raise `timeout` or `retries`; "
        "on_failure: abstain goes on without"
    )


@pytest.mark.parametrize(("trouble", "reason"), [
    (HANG, "timed out"),
    (Page(500, '{"error": {"message": "out of memory"}}'), "HTTP 500: out of memory"),
    (Page(400, '{"error": "too long"}'), "HTTP 400: too long"),
    (Page(422, "<p>what?</p>"), "HTTP 422: <p>what?</p>"),
    (Page(200, "<html>Log in</html>"), "no chat completion: <html>Log in</html>"),
    (Page(200, '{"error": {"message": "no credit"}}'), "no chat completion: no credit"),
    (Page(200, '{"choices": []}'), 'no chat completion: {"choices": []}'),
    (Page(200, completion(["a"])), "no chat completion"),
    (Page(200), "no chat completion: (nothing)"),
], ids=str)  # fmt: skip
def test_no_answer_raises_or_abstains(server: JudgeServer, trouble: str | Page, reason: str) -> None:
    server.script(trouble)
    timeout = 0.2 if trouble == HANG else 10
    with pytest.raises(RewardError) as error:
        reward(server, timeout=timeout, retries=0).score(samples("Hello."))
    assert reason in str(error.value)
    warnings = Heard()
    judge = reward(server, warnings, timeout=timeout, retries=0, on_failure="abstain")
    scores = judge.score(samples("Hello."))
    assert scores.abstained is not None and scores.abstained.tolist() == [True]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"reward 'judge': abstained on 1 of 1: 1 x {reason}")
    server.script(GOOD)
    if trouble != HANG:  # a machine under load may take its time
        assert judge.score(samples("Hello.")).values.tolist() == [1.0], "a failure is not kept"


def test_what_cannot_pass_is_not_tried_again(server: JudgeServer) -> None:
    server.script(Page(400, '{"error": {"message": "the text is too long"}}'))
    with pytest.raises(
        RewardError, match=r"1 attempt: HTTP 400: the text is too long; .*; do what it says; on_failure"
    ):
        reward(server).score(samples("Hello."))
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_stops_at_once_and_names_the_variable_but_not_the_key(
    server: JudgeServer, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    server.script(Page(status, '{"error": {"message": "Incorrect API key provided: sk-very-secret."}}'))
    judge = reward(server, key="sk-very-secret", on_failure="abstain")
    with pytest.raises(RewardError) as error:
        judge.score(samples("Hello."))
    assert str(error.value) == (
        f"reward 'judge': {server.url}/chat/completions refused the key: HTTP {status}: Incorrect API key provided: "
        "(the key).; expected a valid key; check the environment variable JUDGE_KEY"
    )
    assert len(server.asked) == 1
    assert "secret" not in repr(judge.config)
    assert error.value.__cause__ is None


def test_a_missing_key_is_told(server: JudgeServer) -> None:
    server.script(Page(401))
    with pytest.raises(RewardError, match=r"put the token in an environment variable and set key: \$\{env:NAME\}"):
        reward(server).score(samples("Hello."))


@pytest.mark.parametrize("page", [
    Page(404, '{"error": {"message": "no such model"}}'), Page(301, headers=(("Location", "https://127.0.0.1/"),)),
], ids=["unknown model", "redirect"])  # fmt: skip
def test_an_unknown_model_or_address_stops_at_once(server: JudgeServer, page: Page) -> None:
    server.script(page)
    with pytest.raises(RewardError, match=r"/v1/chat/completions has no model 'toy': HTTP \d+: .*; check `url` \(it"):
        reward(server, on_failure="abstain").score(samples("Hello."))
    assert len(server.asked) == 1


def test_after_an_error_the_other_questions_are_left(server: JudgeServer) -> None:
    server.script(Page(401))
    with pytest.raises(RewardError):
        reward(server, concurrency=2).score(samples(*map(str, range(100))))
    assert len(server.asked) < 20


def test_an_error_does_not_wait_for_the_pauses_of_others(server: JudgeServer) -> None:
    busy = Page(429, headers=(("Retry-After", "30"),))
    server.answer = lambda asked: Page(401) if asked.part("reply") == "last" else busy
    start = monotonic()
    with pytest.raises(RewardError):
        reward(server, concurrency=3).score(samples("first", "second", "last"))
    assert monotonic() - start < 5


def test_questions_are_asked_at_the_same_time(server: JudgeServer) -> None:
    together = threading.Barrier(4, timeout=5)

    def meet(_: object) -> str:
        server._lock.release()  # the server answers one by one, unless let go
        try:
            together.wait()
        finally:
            server._lock.acquire()
        return GOOD

    server.answer = meet
    assert reward(server, concurrency=4).score(samples(*"abcd")).values.tolist() == [1.0] * 4
