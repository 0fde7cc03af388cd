"""The reward: what a judge thinks, as numbers."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_core.api import load
from rlhf_core.errors import DataError
from rlhf_core.records import Prompt, Sample
from rlhf_core.testing import tiny_model
from ruamel.yaml import YAML

from .toys import POLITE, Asked, Heard, JudgeServer, polite_judge, politeness, reward, samples, spearman

OTHER = "The parcel is on its way."


def parcels(seed: int, count: int = 40) -> list[str]:
    """Different responses with 0 to 9 polite words each."""
    draw = random.Random(seed)
    return [" ".join(["parcel", str(i), *draw.choices(POLITE, k=draw.randrange(10))]) for i in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_a_judge_with_a_known_truth_is_recovered(server: JudgeServer, seed: int) -> None:
    server.answer = polite_judge
    responses = parcels(seed)
    scores = reward(server, scale=(0, 10)).score(samples(*responses))
    truth = [politeness(response) for response in responses]
    assert spearman(scores.values.tolist(), truth) == pytest.approx(1)
    assert scores.values.tolist() == pytest.approx([count / 10 for count in truth])
    assert scores.values.dtype == torch.float32


def test_answers_that_come_in_another_order_are_told_apart(server: JudgeServer) -> None:
    responses = parcels(0, 24)

    def slow(asked: Asked) -> str:
        server._lock.release()  # the server answers one by one, unless let go
        time.sleep(0.05 * random.Random(asked.nonce).random())
        server._lock.acquire()
        return polite_judge(asked)

    server.answer = slow
    together = reward(server, scale=(0, 10), concurrency=12).score(samples(*responses)).values.tolist()
    assert together == pytest.approx([politeness(response) / 10 for response in responses])
    came = [asked.part("reply") for asked in server.asked]
    assert sorted(came) == sorted(responses)


def test_a_comparison_is_asked_in_both_orders(server: JudgeServer) -> None:
    server.answer = polite_judge
    scores = reward(server, mode="pairwise").score(samples("please", "parcel", "nothing", reference="thanks"))
    assert scores.values.tolist() == [0.5, 0, 0]
    assert scores.parts["agreement"].tolist() == [1, 1, 1]
    shown = sorted((asked.part("reply A"), asked.part("reply B")) for asked in server.asked)
    others = ["please", "parcel", "nothing"]
    assert shown == sorted([(a, "thanks") for a in others] + [("thanks", b) for b in others])
    assert reward(server, mode="pairwise", against="gold").score(samples("please", gold="no")).values.tolist() == [1]


@pytest.mark.parametrize("always", ["A", "B"])
def test_a_judge_with_a_favourite_place_gives_one_half(server: JudgeServer, always: str) -> None:
    server.script(json.dumps({"winner": always}))
    scores = reward(server, mode="pairwise").score(samples("please", "parcel", reference=OTHER))
    assert scores.values.tolist() == [0.5, 0.5]
    assert scores.parts["agreement"].tolist() == [0, 0]
    assert scores.abstained is not None and not scores.abstained.any()
    warnings = Heard()
    judge = reward(server, warnings, mode="pairwise", on_disagreement="abstain")
    abstained = judge.score(samples("please", "parcel", reference=OTHER)).abstained
    assert abstained is not None and abstained.all()
    assert warnings == ["reward 'judge': abstained on 2 of 2: 2 x a verdict that changes with the order"]


@pytest.mark.parametrize(("forth", "back", "value", "agreed"), [
    ("A", "B", 1.0, 1), ("B", "A", 0.0, 1), ("tie", "tie", 0.5, 1), ("A", "A", 0.5, 0), ("B", "B", 0.5, 0),
    ("A", "tie", 0.75, 0), ("tie", "A", 0.25, 0),
])  # fmt: skip
def test_the_value_is_the_mean_chance_over_both_orders(
    server: JudgeServer, forth: str, back: str, value: float, agreed: int
) -> None:
    server.answer = lambda asked: json.dumps({"winner": back if asked.part("reply A") == OTHER else forth})
    scores = reward(server, mode="pairwise").score(samples("please", reference=OTHER))
    assert (scores.values.tolist(), scores.parts["agreement"].tolist()) == ([value], [agreed])


def test_one_order_that_cannot_be_read_is_no_verdict(server: JudgeServer) -> None:
    server.answer = lambda asked: "The first." if asked.part("reply A") == OTHER else '{"winner": "A"}'
    warnings = Heard()
    scores = reward(server, warnings, mode="pairwise").score(samples("please", reference=OTHER))
    assert scores.abstained is not None and scores.abstained.tolist() == [True]
    assert warnings == ["reward 'judge': abstained on 1 of 1: 1 x not JSON alone"]


@pytest.mark.parametrize(("fields", "words"), [
    ({}, "'Where is my parcel?' has no field 'reference', only none; expected a response to compare with; add the colu"),
    ({"gold": "x"}, "has no field 'reference', only 'gold'"),
    ({"reference": ["x"]}, "has no text in field 'reference', only 'reference'"),
])  # fmt: skip
def test_a_comparison_needs_the_field(server: JudgeServer, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as error:
        reward(server, mode="pairwise").score([Sample(Prompt(text="Where is my parcel?", fields=fields), "Here.")])
    assert str(error.value).startswith("reward 'judge' against: prompt ")
    assert words in str(error.value)
    assert server.asked == []


def test_an_empty_batch_asks_nothing(server: JudgeServer) -> None:
    for mode in ("rating", "pairwise"):
        scores = reward(server, mode=mode).score([])
        assert scores.values.shape == (0,) and scores.abstained is not None and scores.abstained.shape == (0,)
    assert server.asked == []


def test_in_a_run_the_key_is_written_nowhere_and_a_second_stage_asks_nothing(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_URL", server.url)
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    rows = "".join(json.dumps({"prompt": text, "reference": OTHER}) + "\n" for text in ("Name it.", "Where?"))
    (tmp_path / "prompts.jsonl").write_text(rows)
    judge = {"url": "${env:JUDGE_URL}", "key": "${env:JUDGE_KEY}", "model": "toy"}
    evaluate = {"prompts": "some", "metrics": ["reward"], "rewards": {"rated": 1.0, "compared": 1.0},
                "sampling": {"max_new_tokens": 4, "temperature": 0}}  # fmt: skip
    registry = {
        "schema_version": 1,
        "components": {
            "policy": {"tiny": {"use": "causal-lm", "config": tiny_model()}},
            "feedback": {"texts": {"use": "demonstrations", "config": {"path": "texts.jsonl"}}},
            "prompts": {"some": {"use": "jsonl", "config": {"path": "prompts.jsonl"}}},
            "reward": {"rated": {"use": "judge", "config": judge},
                       "compared": {"use": "judge", "config": {**judge, "mode": "pairwise"}}},
        },
        "pipelines": {"look": {"policy": "tiny", "stages": [
            {"evaluate": evaluate}, {"evaluate": {**evaluate, "id": "again"}}]}},
    }  # fmt: skip
    (tmp_path / "texts.jsonl").write_text(json.dumps({"prompt": "Name it.", "completion": " A parcel."}) + "\n")
    with (tmp_path / "registry.yaml").open("w") as file:
        YAML().dump(registry, file)
    server.answer = lambda asked: '{"score": 7}' if "reply" in dict(asked.parts) else '{"winner": "tie"}'
    load(tmp_path / "registry.yaml").run("look", out=tmp_path / "run")
    assert len(server.asked) == len({json.dumps(asked.parts) for asked in server.asked}) > 0
    assert (tmp_path / "run" / "judge.jsonl").exists()
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [path for path in written if b"sk-very-secret" in path.read_bytes()] == []
