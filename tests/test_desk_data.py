"""The help-desk example: its files are what its generator writes, and its gold rule says what it is meant to say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

DESK = Path(__file__).parent.parent / "examples" / "desk"
FILES = {"demonstrations": 1500, "comparisons": 2500, "prompts": 400, "held_out": 128}


def load_gold() -> ModuleType:
    spec = importlib.util.spec_from_file_location("desk_gold", DESK / "gold.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


desk = load_gold()
ROWS: dict[str, list[dict[str, str]]] = {
    name: [json.loads(line) for line in (DESK / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in FILES
}


def score(reply: str, topic: str = "printer") -> float:
    return desk.gold(["Customer: my printer does not print.\nAgent:"], [reply], topic=[topic])[0]


def gold_of(rows: list[dict[str, str]], key: str) -> list[float]:
    return desk.gold([r["prompt"] for r in rows], [r[key] for r in rows], topic=[r["topic"] for r in rows])


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (" Thanks for writing. Please clean the printer tray. Can we help with anything else?", 1.0),
        (" We are sorry to hear that. You can clean the printer tray. Please ask if you need more help.", 1.0),
        (" Please clean the printer tray.", 0.6),  # remedy, form
        (" PLEASE  CLEAN THE\nPRINTER TRAY.", 0.6),  # case and white space do not matter
        (" Please clean the printer tray", 0.5),  # no full stop
        (" Please wait.", 0.1),  # form alone
        (" Thanks for writing. Please wait.", 0.3),
        (" Thanks for writing. Please wait. We are happy to help again.", 0.5),
        (" Please wait. Thanks for writing.", 0.1),  # thanks come first
        (" Thanks for writing. Please restart the wifi router. We are happy to help again.", 0.5),  # another topic's
        (" Hello. Please clean the printer tray. Stop asking.", 0.2),  # remedy, form, blame
        (" You broke it.", 0.0),  # clipped
        (" Please clean the printer tray. Please clean the printer tray.", 0.3),  # one repetition
        (" Please clean the printer tray. Please clean the printer tray. Please clean the printer tray.", 0.0),
        (" Please clean theprinter tray.", 0.1),  # a missing space inside the phrase
        (" Thanks for writing.Please clean the printer tray.", 0.7),  # and after a sentence: no form
        (" Thanks for writing. Please clean the printer tray. Can we help with any", 0.7),  # cut
        ("", 0.0),
        (" \n", 0.0),
        (" ...", 0.0),
    ],
)
def test_gold_by_hand(reply, expected):
    assert score(reply) == expected


def test_thirty_words_are_allowed_and_no_more():
    assert score(" Please clean the printer tray" + " now" * 25 + ".") == 0.6
    assert score(" Please clean the printer tray" + " now" * 26 + ".") == 0.5


def test_naming_every_remedy_earns_no_remedy():
    everything = "".join(f" Please {phrase}." for phrase in desk.REMEDIES.values())
    assert all(desk.parts(everything, topic)["remedy"] == 0 for topic in desk.REMEDIES)
    assert score(everything) == 0.0  # 38 words, so not even the form


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (" Do not clean the printer tray.", 0.1),  # the remedy denied
        (" No thanks. Please wait.", 0.1),  # thanks denied
        (" Thanks for writing. We cannot do anything else.", 0.3),  # the offer denied
        (" Thanks, is there anything else?", 0.3),  # one sentence is not both opening and offer
        (" Thanks. Thanks for writing. Sorry. Please wait. Anything else? More help?", 0.5),  # stacked: each part once
        (" printer printer printer", 0.0),  # the customer's word is no remedy
    ],
)
def test_gold_is_not_gamed(reply, expected):
    assert score(reply) == expected


def test_every_topic_has_its_own_remedy():
    for topic in desk.REMEDIES:
        scores = {other: score(f" Please {phrase}.", topic) for other, phrase in desk.REMEDIES.items()}
        assert scores == {other: 0.6 if other == topic else 0.1 for other in desk.REMEDIES}


def test_gold_has_the_signature_of_a_reward_function():
    replies = [" Please check the screen cable.", " Please wait."]
    assert desk.gold(prompts=["", ""], completions=replies, topic=["screen", "login"], source=["a", "b"]) == [0.6, 0.1]
    assert desk.gold([], [], topic=[]) == []


def test_gold_names_what_is_wrong():
    with pytest.raises(ValueError, match="got no column topic, expected one topic per prompt"):
        desk.gold([""], [" Please wait."])
    with pytest.raises(ValueError, match="got 1 prompts, 2 completions, 1 topics"):
        desk.gold([""], ["", ""], topic=["login"])
    with pytest.raises(ValueError, match="got topic 'fax', expected one of password, printer"):
        score(" Please wait.", "fax")


def test_files_are_what_the_generator_writes(tmp_path):
    command = [sys.executable, "-B", DESK / "make_data.py", "--out", tmp_path]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=60)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.jsonl" for name in FILES}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (DESK / "data" / path.name).read_bytes(), path.name


def test_fields_and_counts():
    fields = {
        "demonstrations": {"prompt", "completion", "topic", "annotator"},
        "comparisons": {"prompt", "chosen", "rejected", "annotator", "time", "topic"},
        "prompts": {"prompt", "topic"},
        "held_out": {"prompt", "topic"},
    }
    assert {name: len(rows) for name, rows in ROWS.items()} == FILES
    for name, rows in ROWS.items():
        topics = Counter(row["topic"] for row in rows)
        assert set(topics) == set(desk.REMEDIES) and max(topics.values()) - min(topics.values()) <= 1
        for row in rows:
            assert row.keys() == fields[name]
            assert row["prompt"].startswith("Customer: ") and row["prompt"].endswith("\nAgent:")
            assert row["topic"] in row["prompt"]
            assert all(row[key][0] == " " != row[key][1] for key in ("completion", "chosen", "rejected") if key in row)


def test_held_out_prompts_are_in_no_other_file():
    held_out = {row["prompt"] for row in ROWS["held_out"]}
    assert len(held_out) == 128
    for name in FILES.keys() - {"held_out"}:
        assert held_out.isdisjoint(row["prompt"] for row in ROWS[name])


def test_demonstrations_leave_room_and_show_the_way():
    scores = gold_of(ROWS["demonstrations"], "completion")
    assert 0.4 < sum(scores) / len(scores) < 0.55
    best = {row["topic"] for row, s in zip(ROWS["demonstrations"], scores, strict=True) if s == 1}
    assert best == set(desk.REMEDIES)


def test_annotators_agree_with_gold_above_chance_and_eve_least():
    rows = ROWS["comparisons"]
    gaps = [a - b for a, b in zip(gold_of(rows, "chosen"), gold_of(rows, "rejected"), strict=True)]
    assert sum(gap == 0 for gap in gaps) / len(gaps) < 0.1
    agreement = {}
    for annotator in ("ada", "ben", "chloe", "dan", "eve"):
        judged = [gap > 0 for gap, row in zip(gaps, rows, strict=True) if row["annotator"] == annotator and gap]
        assert len(judged) > 400
        agreement[annotator] = sum(judged) / len(judged)
    assert agreement["eve"] > 0.6
    assert all(agreement[careful] > 0.85 for careful in agreement.keys() - {"eve"})
    assert min(agreement, key=lambda annotator: agreement[annotator]) == "eve"
    assert all(row["chosen"] != row["rejected"] for row in rows)
    times = [row["time"] for row in rows]
    assert times == sorted(times)
