"""The help-desk example: its files are what its generator writes, and its gold rule says what it is meant to say."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from statistics import correlation, fmean
from types import ModuleType
from typing import Any

import pytest
from rlhf_core.records import parse_feedback

DESK = Path(__file__).parent.parent / "examples" / "desk"
ABOUT = "annotator time"
FILES: dict[str, tuple[int, str]] = {  # name -> lines, and fields, those in brackets in some lines only
    "demonstrations": (1500, "prompt topic completion annotator"),
    "comparisons": (2500, f"prompt topic chosen rejected {ABOUT}"),
    "prompts": (400, "prompt topic"),
    "held_out": (128, "prompt topic"),
    "ratings": (3200, f"prompt topic response rating aspects {ABOUT}"),
    "rankings": (1200, f"prompt topic responses ranks {ABOUT}"),
    "edits": (1500, f"prompt topic original edited {ABOUT}"),
    "keywords": (800, f"prompt topic [response] wanted unwanted {ABOUT}"),
    "sentiment": (1200, f"prompt topic response label [score] {ABOUT}"),
    "expert": (2000, "prompt topic completion annotator"),
    "summary_demonstrations": (1200, "prompt topic completion annotator"),
    "summary_prompts": (400, "prompt topic key reference"),
    "summary_held_out": (128, "prompt topic key reference"),
    "summary_facts": (528 * 6 + 6, "[key] subject relation object"),
}
FRESH = ("held_out", "prompts")  # whose prompts are in no other file
CAREFUL, USUAL, CARELESS = ("ada", "ben"), ("chloe", "dan"), ("eve",)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"desk_{name}", DESK / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


desk, desk_summary = load("gold"), load("gold_summary")
ROWS: dict[str, list[dict[str, Any]]] = {
    name: [json.loads(line) for line in (DESK / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in FILES
}


def score(reply: str, topic: str = "printer") -> float:
    return desk.gold(["Customer: my printer does not print.\nAgent:"], [reply], topic=[topic])[0]


def gold_of(rows: list[dict[str, Any]], key: str) -> list[float]:
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


def test_the_first_four_files_are_as_they_were_first_published():
    published = {
        "demonstrations": "b58b33f378291f87",
        "comparisons": "7f44269df35db61f",
        "prompts": "07260571eccc1614",
        "held_out": "80dbfcaf4908c7d9",
    }
    for name, digest in published.items():
        assert hashlib.sha256((DESK / "data" / f"{name}.jsonl").read_bytes()).hexdigest()[:16] == digest, name


def test_all_files_together_are_small():
    assert sum(path.stat().st_size for path in (DESK / "data").iterdir()) < 5.5e6


@pytest.mark.parametrize("name", FILES)
def test_fields_and_counts(name):
    count, fields = FILES[name]
    rows = ROWS[name]
    assert len(rows) == count
    always = {field for field in fields.split() if field[0] != "["}
    for row in rows:
        assert always <= row.keys() <= set(re.findall(r"\w+", fields))


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"summary_facts"}))
def test_prompts_belong_to_their_topic_and_topics_are_equally_frequent(name):
    summary = name.startswith("summary")
    prompts = {row["prompt"]: row["topic"] for row in ROWS[name]}
    topics = Counter(prompts.values())
    assert set(topics) == set(desk.REMEDIES) and max(topics.values()) - min(topics.values()) <= 1
    for prompt, topic in prompts.items():
        assert prompt.startswith("Customer ") if summary else prompt.startswith("Customer: ")
        assert prompt.endswith("\nSummary:" if summary else "\nAgent:")
        assert topic in prompt
    if name != "ratings":
        assert len(prompts) == len(ROWS[name])


def test_every_response_starts_with_one_space():
    columns = ("completion", "chosen", "rejected", "response", "original", "edited", "reference")
    for row in (row for rows in ROWS.values() for row in rows):
        for text in [*(row[key] for key in columns if key in row), *row.get("responses", [])]:
            assert text[0] == " " != text[1]


def test_prompts_for_training_and_held_out_prompts_are_in_no_other_file():
    for name in FRESH:
        fresh = {row["prompt"] for row in ROWS[name]}
        for other in FILES.keys() - {name, "summary_facts"}:
            assert fresh.isdisjoint(row["prompt"] for row in ROWS[other]), other


def test_further_feedback_is_on_prompts_of_the_comparisons():
    asked = {row["prompt"] for row in ROWS["comparisons"]}
    for name in ("ratings", "rankings", "edits", "keywords", "sentiment", "expert"):
        assert asked.issuperset(row["prompt"] for row in ROWS[name])


def test_judgements_are_in_the_order_of_time():
    for name in ("comparisons", "ratings", "rankings", "edits", "keywords", "sentiment"):
        times = [row["time"] for row in ROWS[name]]
        assert times == sorted(set(times))


def as_records(name: str) -> list[Any]:
    """The rows of a file as records of the core, which look over what they are given."""
    about = ("prompt", "annotator", "time")
    columns: dict[str, tuple[str, dict[str, str]]] = {
        "ratings": ("rating", {"response": "response", "score": "rating", "aspects": "aspects"}),
        "rankings": ("comparison", {"responses": "responses", "ranks": "ranks"}),
        "edits": ("edit", {"original": "original", "edited": "edited"}),
        "keywords": ("keywords", {"response": "response", "wanted": "wanted", "unwanted": "unwanted"}),
        "sentiment": ("sentiment", {"response": "response", "label": "label", "score": "score"}),
        "expert": ("demonstration", {"response": "completion"}),
        "summary_demonstrations": ("demonstration", {"response": "completion"}),
    }
    kind, named = columns[name]
    more = {"scale": (1, 5)} if kind == "rating" else {}
    return [
        parse_feedback(
            {"kind": kind, **{key: row[key] for key in about if key in row}, **more}
            | {ours: row[theirs] for ours, theirs in named.items() if theirs in row}
        )
        for row in ROWS[name]
    ]


@pytest.mark.parametrize(
    "name", ["ratings", "rankings", "edits", "keywords", "sentiment", "expert", "summary_demonstrations"]
)
def test_every_line_is_a_valid_record_and_none_is_there_twice(name):
    records = as_records(name)
    assert len({record.id for record in records}) == len(records)


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


def by_care(value: dict[str, float]) -> None:
    """Careful people are above usual ones, and those above the careless one."""
    assert min(value[a] for a in CAREFUL) > max(value[a] for a in USUAL), value
    assert min(value[a] for a in USUAL) > max(value[a] for a in CARELESS), value


def of(name: str, annotator: str) -> list[dict[str, Any]]:
    rows = [row for row in ROWS[name] if row["annotator"] == annotator]
    assert len(rows) > 0.15 * len(ROWS[name])
    return rows


PEOPLE = (*CAREFUL, *USUAL, *CARELESS)


def test_ratings_follow_gold_and_every_rater_has_a_bias_of_their_own():
    golds = {a: gold_of(of("ratings", a), "response") for a in PEOPLE}
    ratings = {a: [row["rating"] for row in of("ratings", a)] for a in PEOPLE}
    assert all(set(given) == {1, 2, 3, 4, 5} for given in ratings.values())
    agreement = {a: correlation(golds[a], ratings[a]) for a in PEOPLE}
    assert agreement["eve"] == min(agreement.values()) and 0.3 < agreement["eve"] < 0.6
    assert agreement["ada"] == max(agreement.values()) and min(agreement[a] for a in PEOPLE if a != "eve") > 0.8
    off = {a: fmean(ratings[a]) - fmean(1 + 4 * g for g in golds[a]) for a in PEOPLE}
    assert off["ben"] < -0.4 and off["chloe"] > 0.4 and off["eve"] > 0.3 and abs(off["ada"]) < 0.2


def test_two_replies_to_one_prompt_are_rated_by_one_person_one_after_the_other():
    rows = ROWS["ratings"]
    pairs = [(a, b) for a, b in pairwise(rows) if a["prompt"] == b["prompt"]]
    assert len(pairs) == 800 and len({row["prompt"] for row in rows}) == 2400
    assert all(a["annotator"] == b["annotator"] and a["response"] != b["response"] for a, b in pairs)
    assert sum(abs(a["rating"] - b["rating"]) >= 1 for a, b in pairs) > 250  # make pairs with a margin


def test_aspects_by_hand():
    aspects = desk.aspects(" Thanks for writing. Please clean the printer tray. Stop asking.", "printer")
    assert aspects == {"quality": 1.0, "politeness": 0.25, "form": 1.0}
    aspects = desk.aspects(" Please wait. Please wait. Please ask if you need more help.", "printer")
    assert aspects == {"quality": 0.0, "politeness": 0.75, "form": 0.5}
    assert desk.aspects("", "printer") == {"quality": 0.0, "politeness": 0.5, "form": 0.0}


def test_every_aspect_is_rated_by_its_own_truth():
    rows = [row for row in ROWS["ratings"] if row["annotator"] in CAREFUL]
    truths = [desk.aspects(row["response"], row["topic"]) for row in rows]
    for aspect in ("quality", "politeness", "form"):
        rated = [row["aspects"][aspect] for row in rows]
        follows = {other: correlation(rated, [truth[other] for truth in truths]) for other in truths[0]}
        assert max(follows, key=lambda other: follows[other]) == aspect and follows[aspect] > 0.8


def test_rankings_follow_gold_careful_people_best():
    agreement = {}
    for annotator in PEOPLE:
        right = []
        for row in of("rankings", annotator):
            golds = desk.gold([""] * 4, row["responses"], topic=[row["topic"]] * 4)
            pairs = [(i, j) for i in range(4) for j in range(4) if row["ranks"][i] < row["ranks"][j]]
            right += [golds[i] > golds[j] for i, j in pairs if golds[i] != golds[j]]
        agreement[annotator] = fmean(right)
    assert agreement["eve"] == min(agreement.values()) > 0.65
    assert agreement["ada"] > 0.97 and min(agreement[a] for a in (*CAREFUL, *USUAL)) > 0.8


def test_rankings_leave_no_place_out_and_some_have_ties():
    rows = ROWS["rankings"]
    assert all(set(row["ranks"]) == set(range(max(row["ranks"]) + 1)) and max(row["ranks"]) > 0 for row in rows)
    assert 0.15 < fmean(len(set(row["ranks"])) < 4 for row in rows) < 0.35
    same: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows:
        golds = desk.gold([""] * 4, row["responses"], topic=[row["topic"]] * 4)
        for i, j in combinations(range(4), 2):
            same[row["ranks"][i] == row["ranks"][j]].append(golds[i] == golds[j])
    assert fmean(same[True]) > 3 * fmean(same[False])  # tied replies are more often as good as one another
    assert all(len(set(row["responses"])) == 4 for row in rows)


def word_distance(a: Sequence[str], b: Sequence[str]) -> float:
    table = {(i, j): max(i, j) for i in range(len(a) + 1) for j in range(len(b) + 1) if not i or not j}
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return table[len(a), len(b)] / max(len(a), len(b))


def test_edits_make_replies_better_and_careful_editors_most():
    after: dict[str, float] = {}
    for annotator in PEOPLE:
        rows = of("edits", annotator)
        before = gold_of(rows, "original")
        edited = gold_of(rows, "edited")
        after[annotator] = fmean(edited)
        assert 0.3 < fmean(before) < 0.45
        assert fmean(a < b for a, b in zip(edited, before, strict=True)) < 0.02
        changed = [row["original"] != row["edited"] for row in rows]
        better = [a > b for a, b, c in zip(edited, before, changed, strict=True) if c]
        assert fmean(better) > 0.95
    by_care(after)
    assert after["ada"] > 0.95 and after["eve"] < 0.75


def test_some_edits_change_nothing_and_some_nearly_everything():
    distances = [word_distance(row["original"].split(), row["edited"].split()) for row in ROWS["edits"]]
    assert 0.05 < fmean(d == 0 for d in distances) < 0.15
    assert 0.1 < fmean(d > 0.7 for d in distances) < 0.2
    assert fmean(0.02 < d <= 0.7 for d in distances) > 0.7


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (" Thanks for writing. Please wait. We are happy to help again.", 1.0),
        (" Please wait. We are happy to help again.", 0.5),
        (" Please clean the printer tray.", 0.0),  # right, but neither warm nor cold
        (" You broke it. Please wait. We are happy to help again.", -0.5),
        (" Thanks for writing. Stop asking.", -0.5),
        (" You broke it. Read the manual.", -1.0),
        ("", 0.0),
    ],
)
def test_tone_by_hand(reply, expected):
    assert desk.tone([""], [reply], topic=["printer"]) == [expected]


def test_sentiment_follows_tone_careful_people_best():
    names = {-1: "negative", 0: "neutral", 1: "positive"}
    agreement = {}
    for annotator in PEOPLE:
        rows = of("sentiment", annotator)
        tones = desk.tone([""] * len(rows), [row["response"] for row in rows])
        signs = [(tone > 0) - (tone < 0) for tone in tones]
        agreement[annotator] = fmean(names[sign] == row["label"] for sign, row in zip(signs, rows, strict=True))
    by_care(agreement)
    assert agreement["ada"] > 0.97 and 0.5 < agreement["eve"] < 0.75
    labels = Counter(row["label"] for row in ROWS["sentiment"])
    assert set(labels) == set(names.values()) and min(labels.values()) > 200
    assert {row["annotator"] for row in ROWS["sentiment"] if "score" in row} == {"ada", "dan"}
    for row in ROWS["sentiment"]:
        assert row["label"] == "neutral" or row.get("score", 0) * {"positive": 1, "negative": -1}[row["label"]] >= 0


def test_keywords_name_polite_words_and_blame_and_some_noise():
    rows = ROWS["keywords"]
    wanted = Counter(word for row in rows for word in row["wanted"])
    unwanted = Counter(word for row in rows for word in row["unwanted"])
    for word in (*desk.OPENINGS, *desk.OFFERS):
        assert wanted[word] > 50 and unwanted[word] < 0.15 * wanted[word], word
    for word in desk.BLAME:
        assert unwanted[word] > 10 and wanted[word] < 0.15 * unwanted[word], word
    noise = wanted.keys() - {*desk.OPENINGS, *desk.OFFERS, *desk.BLAME, *desk.REMEDIES.values()}
    assert len(noise) == 12 and all(0.25 < wanted[word] / (wanted[word] + unwanted[word]) < 0.75 for word in noise)
    assert 0.25 < fmean("response" not in row for row in rows) < 0.4
    for row in rows:
        assert row["wanted"] or row["unwanted"]
        words = [*row["wanted"], *row["unwanted"]]
        assert len(set(words)) == len(words) and all(words)


def test_experts_are_the_old_desk_tilted_by_gold():
    """pi_E ~ pi_ref exp(gold / 0.15): so demonstrations of the old desk, weighted so, have the experts' gold."""
    old = gold_of(ROWS["demonstrations"], "completion")
    expert = gold_of(ROWS["expert"], "completion")
    weights = [math.exp(g / 0.15) for g in old]
    for level in (1.0, 0.8, 0.6, 0.5):
        predicted = sum(w for g, w in zip(old, weights, strict=True) if g == level) / sum(weights)
        assert fmean(g == level for g in expert) == pytest.approx(predicted, abs=0.06)
    assert 0.88 < fmean(expert) < 0.92


TICKET = (
    "Customer Anna, Monday: hi, the printer is slow. it is urgent.\nAgent Gus: hello. please clean the printer tray. "
    "goodbye.\nCustomer: ok. nothing changed.\nSummary:"
)
WROTE, SAID, NOW = (
    " Customer Anna wrote on Monday that the printer is slow.",
    " Then agent Gus said to clean the printer tray.",
    " Now the ticket is open.",
)


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (WROTE + SAID + NOW, 1.0),
        (" CUSTOMER anna reported on\nMonday that the printer is slow. Agent Gus said to clean the printer tray."
         " The ticket is open.", 1.0),  # the words may vary
        (SAID + WROTE + NOW, 0.8),  # out of order
        (WROTE + SAID, 0.7),  # no outcome, so no order
        (NOW, 0.2),  # outcome and form
        (WROTE.replace("Anna", "Bob") + SAID + NOW, 0.8),  # not earned, and wrong
        (WROTE.replace("slow", "loud") + SAID + NOW, 0.8),
        (WROTE + SAID.replace("clean the printer tray", "pay the refund") + NOW, 0.7),
        (WROTE + SAID + NOW.replace("open", "closed"), 0.8),
        (WROTE + SAID + NOW + NOW, 0.7),  # twice
        (NOW.replace("open", "closed") + NOW, 0.0),  # every answer in turn: the first counts
        (WROTE + SAID + " Now the ticket is open", 0.9),  # no full stop
        (WROTE + SAID + NOW + " now" * 10 + ".", 0.9),  # 34 words
        (" Thanks for writing.", 0.1),
        ("", 0.0),
    ],
)  # fmt: skip
def test_summary_gold_by_hand(summary, expected):
    assert desk_summary.summary_gold([TICKET], [summary], topic=["printer"]) == [pytest.approx(expected)]


def test_summary_gold_names_what_is_wrong():
    with pytest.raises(ValueError, match="got the prompt 'Customer: hi', expected a ticket of the help desk"):
        desk_summary.summary_gold(["Customer: hi"], [NOW])
    with pytest.raises(ValueError, match="got 1 prompts, 2 completions, expected as many of each"):
        desk_summary.summary_gold([TICKET], [NOW, NOW])


def test_references_are_right_and_demonstrations_are_mixed():
    for name in ("summary_prompts", "summary_held_out"):
        prompts, references = ([row[key] for row in ROWS[name]] for key in ("prompt", "reference"))
        assert set(desk_summary.summary_gold(prompts, references)) == {1.0}
    rows = ROWS["summary_demonstrations"]
    earned = [desk_summary.parts(row["completion"], row["prompt"]) for row in rows]
    assert fmean(sum(parts.values()) == 10 for parts in earned) == pytest.approx(0.35, abs=0.03)
    assert fmean(parts["wrong"] < 0 for parts in earned) == pytest.approx(0.2, abs=0.03)
    assert fmean(parts["repetition"] < 0 for parts in earned) == pytest.approx(0.15, abs=0.03)


def test_no_two_tickets_say_the_same():
    names = ("summary_demonstrations", "summary_prompts", "summary_held_out")
    tickets = [tuple(desk_summary.facts(row["prompt"]).values()) for name in names for row in ROWS[name]]
    assert len(set(tickets)) == len(tickets) == 1728


def test_facts_are_stated_by_the_references_under_their_key():
    references = {
        row["key"]: row["reference"] for name in ("summary_prompts", "summary_held_out") for row in ROWS[name]
    }
    assert len(references) == 528
    keys = Counter(row.get("key") for row in ROWS["summary_facts"])
    assert set(keys) == {*references, None} and set(keys.values()) == {6}
    possible = {name for row in ROWS["summary_facts"] if "key" not in row for name in row["object"]}
    for row in ROWS["summary_facts"]:
        if "key" in row:
            (subject,), (true,) = row["subject"], row["object"]
            said = [s for s in references[row["key"]].split(".") if subject.lower() in s.lower()]
            assert any(true in s and any(phrase in s for phrase in row["relation"]) for s in said), row
            assert true in possible


def test_tickets_and_summaries_are_short():
    rows = [row for name in ("summary_demonstrations", "summary_prompts", "summary_held_out") for row in ROWS[name]]
    assert max(len(row["prompt"].split()) for row in rows) <= 45
    assert max(len(row["reference"].split()) for row in rows if "reference" in row) <= 30
    assert len({word for row in rows for word in re.findall(r"\w+", row["prompt"].lower())}) < 120
