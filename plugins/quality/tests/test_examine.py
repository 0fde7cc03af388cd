"""What is dropped, weighted and told, on crowds whose truth is known."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from rlhf_core.errors import ConfigError
from rlhf_core.records import Comparison, Demonstration, Edit, Feedback, Keywords, Message, Prompt, Rating, Sentiment
from rlhf_plugin_quality import consensus, ledger
from rlhf_plugin_quality.config import Thresholds
from rlhf_plugin_quality.examine import examine
from rlhf_plugin_quality.findings import Annotator, Findings, Share
from rlhf_plugin_quality.ledger import Ledger

from .toys import START, compared, crowd, rated, truth

GOOD = {"ada": 0.95, "ben": 0.9, "chloe": 0.85, "dan": 0.8}


def look(records: list[Any], gold: list[Any] | None = None, **config: Any) -> Findings:
    return examine(records, Thresholds(**config), gold or [])


def dropped(findings: Findings) -> dict[str, str]:
    """Dropped annotators with the reason."""
    return {a.name: a.verdict.reason for a in findings.annotators if a.verdict is not None}


def one(findings: Findings, name: str) -> Annotator:
    return next(a for a in findings.annotators if a.name == name)


def reasons(findings: Findings) -> list[str | None]:
    """Why each record was dropped, None if it was not."""
    verdicts = [findings.verdict(i) for i in range(findings.records)]
    return [None if verdict is None else verdict.reason for verdict in verdicts]


# --- the whole --------------------------------------------------------------------------------------------------------


def test_exactly_the_bad_ones_are_dropped() -> None:
    rng = Random(5)
    records: list[Any] = crowd(GOOD)
    records += crowd({"fast": 0.9}, seed=1, gap=0.4)
    records += [c for c in crowd({"first": 0.5}, seed=2) if c.ranks[0] == 0]  # always the one shown first
    records += crowd({"contrary": 0.15}, seed=3)
    records += crowd({"guesses": 0.5}, seed=4)
    records += [compared(i, 0, "newcomer", swap=rng.random() < 0.5) for i in range(3)]
    findings = look(records, truth(40), alpha_gain=0.15)
    assert dropped(findings) == {"fast": "too fast", "first": "constant", "contrary": "gold", "guesses": "disagrees"}
    assert findings.kept == 4 * 200 + 3
    assert findings.dropped == {
        "too fast": 200,
        "constant": findings.dropped["constant"],
        "gold": 200,
        "disagrees": 200,
    }
    kept = {r.annotator for r, reason in zip(records, reasons(findings), strict=True) if reason is None}
    assert kept == {*GOOD, "newcomer"}
    assert one(findings, "newcomer").few and not one(findings, "ada").few
    json.dumps(findings.to_dict())


@pytest.mark.parametrize("seed", range(3))
def test_a_good_crowd_stays_whole(seed: int) -> None:
    findings = look(crowd(GOOD, seed=seed), truth(40), alpha_gain=0.15)
    assert dropped(findings) == {} and findings.kept == findings.records == 800
    assert findings.notes == ()


def test_nothing_at_all() -> None:
    findings = look([])
    assert (findings.records, findings.kept, findings.annotators, findings.agreement) == (0, 0, (), ())
    assert findings.position is findings.length is findings.coverage is findings.repeats is None
    json.dumps(findings.to_dict())


@pytest.mark.parametrize("name", ["alone", None])
def test_one_record(name: str | None) -> None:
    findings = look([compared(0, 0, name)], truth(1))
    assert findings.kept == 1
    assert findings.factors().get(name) == 1
    assert [a.few for a in findings.annotators] == ([True] if name else [])


def test_many_annotators_with_one_record_each() -> None:
    findings = look([rated(i, 3, f"w{i}") for i in range(50)])
    assert findings.kept == 50 and all(a.few for a in findings.annotators)


def test_one_annotator_who_gives_everything() -> None:
    findings = look(crowd({"ada": 0.9}))
    assert findings.kept == 200 and findings.agreement == ()
    assert "no annotator shares 10 items with others" in findings.notes[0]


def test_what_is_remembered_is_small() -> None:
    filled = Ledger(Thresholds())
    for record in crowd({"ada": 0.9}, items=100):
        filled.add(record)
    columns = [*filled.records.values(), *filled.judgements.values()]
    assert sum(column.nbytes for column in columns) / 100 < 100


# --- records ----------------------------------------------------------------------------------------------------------

BLANK = [
    (Rating(prompt=" ", response="r", score=1, scale=(0, 1)), "empty prompt"),
    (Rating(prompt=[{"role": "user", "content": "\n"}], response="r", score=1, scale=(0, 1)), "empty prompt"),
    (Rating(prompt="p", response=" \n", score=1, scale=(0, 1)), "empty response"),
    (Sentiment(prompt="p", response="", label="neutral"), "empty response"),
    (Comparison(prompt="p", responses=("a", ""), ranks=(0, 1)), "empty response"),
    (Comparison(prompt="p", responses=("a b", " a  b"), ranks=(0, 1)), "white space only"),
    (Comparison(prompt="p", responses=("a", "b"), ranks=(1, 1), ties_judged=False), "no order"),
    (Edit(prompt="p", original="same", edited="same"), "changes nothing"),
    (Keywords(prompt="p", response="r"), "no keywords"),
]


@pytest.mark.parametrize(("record", "words"), BLANK, ids=[words for _, words in BLANK])
def test_records_that_say_nothing(record: Feedback, words: str) -> None:
    good = rated(1, 3)
    findings = look([good, record, rated(2, 4)])
    verdict = findings.verdict(1)
    assert verdict is not None and verdict.reason == "invalid" and words in verdict.detail
    assert findings.dropped == {"invalid": 1} and findings.verdict(0) is None
    assert look([good, record], invalid="keep").kept == 2


def test_records_that_say_something() -> None:
    records: list[Feedback] = [
        Comparison(prompt="p", responses=("a", "b"), ranks=(0, 0)),  # as good, and somebody judged so
        Comparison(prompt="p", responses=("a", "b", "c"), ranks=(0, 1, 1), ties_judged=False),
        Edit(prompt="p", original="same", edited="same."),
        Demonstration(prompt=[{"role": "user", "content": "p"}], response="r"),
        Keywords(prompt="p", unwanted=("no",)),
    ]
    assert look(records).kept == 5


def test_duplicates() -> None:
    later = START + timedelta(days=1)
    records: list[Any] = [
        rated(1, 3), rated(1, 3), rated(1, 3, time=later),  # the same answer again, at whatever time
        rated(1, 4), rated(1, 3, "bob"), rated(2, 3), rated(1, 3, scale=(1, 7)), rated(1, 3, aspects={"tone": 2}),
        compared(1, 0), compared(1, 0, swap=True), compared(1, 1),
        rated(1, 3, None, time=START), rated(1, 3, None, time=START), rated(1, 3, None, time=later),
    ]  # fmt: skip
    findings = look(records)
    found = [i for i, reason in enumerate(reasons(findings)) if reason == "duplicate"]
    assert found == [1, 2, 9, 12], "who is anonymous may be two people, unless all is equal"
    assert look(records, duplicates="keep").kept == len(records)


def test_repeated_items_show_how_consistent_people_are() -> None:
    records = [compared(i, 0, "ann", swap=i % 2 == 0, seconds=3 * i) for i in range(40)]
    records += [compared(i, int(i < 6), "ann", swap=i % 3 == 0, seconds=200 + 3 * i) for i in range(20)]
    records += [records[0]]  # the very same record twice is no second answer
    assert look(records).repeats == Share(6, 20)


# --- speed ------------------------------------------------------------------------------------------------------------


def test_speed_is_the_median_in_order_of_time() -> None:
    breaks = [compared(i, i % 2, "steady", seconds=i * 5.0 + 3600 * (i > 10)) for i in range(20)]
    hasty = [compared(i, i % 2, "hasty", seconds=i * 0.5) for i in range(20)]
    Random(0).shuffle(hasty)
    findings = look([*breaks, *hasty, *crowd(GOOD, items=20)])
    assert dropped(findings) == {"hasty": "too fast"}
    assert one(findings, "steady").seconds == 5
    assert "0.5 s between two records (median), floor 1 s" in str(one(findings, "hasty").verdict)
    assert dropped(look([*breaks, *hasty], min_seconds=None)) == {}
    assert dropped(look([*breaks, *hasty, *crowd(GOOD, items=20)], min_seconds=10)) == {
        "hasty": "too fast", "steady": "too fast",
    }  # fmt: skip


def test_times_of_an_import_tell_nothing() -> None:
    records = [compared(i, i % 2, name, seconds=0) for name in ("a", "b", "c") for i in range(20)]
    findings = look(records)
    assert dropped(findings) == {}
    assert any("3 of 3 annotators have less than 1 s between two records" in note for note in findings.notes)


def test_times_with_and_without_zone() -> None:
    aware, naive = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, 0, 0, 7)
    findings = look([rated(1, 3, time=aware), rated(2, 3, time=naive), rated(3, 2)])
    assert one(findings, "ann").seconds == 7


# --- constant answers -------------------------------------------------------------------------------------------------


def test_a_constant_rater() -> None:
    rng = Random(0)
    records = [rated(i, rng.choice([2, 3, 4]), name) for name in ("a", "b", "c") for i in range(40)]
    records += [rated(i, 5, "fives") for i in range(40)]
    findings = look(records)
    assert dropped(findings) == {"fives": "constant"}
    assert "the same answer in 100% of 40 records" in str(one(findings, "fives").verdict)
    assert dropped(look(records, constant_share=None)) == {"fives": "constant"}, "40 in a row"
    assert dropped(look(records, constant_share=None, constant_run=None)) == {}


def test_an_answer_that_everybody_gives_is_not_held_against_anybody() -> None:
    rng = Random(0)
    records = [rated(i, 1 + 4 * (rng.random() < 0.96), f"w{j}") for j in range(6) for i in range(100)]
    assert dropped(look(records)) == {}
    assert one(look(records), "w0").constant > 0.9


def test_who_stops_looking() -> None:
    rng = Random(1)
    careful = [rated(i, rng.choice([1, 2, 3, 4, 5]), name) for name in ("a", "b", "c") for i in range(120)]
    tired = [rated(i, rng.choice([1, 2, 3, 4, 5]) if i < 80 else 3, "tired") for i in range(120)]
    findings = look(careful + tired)
    assert dropped(findings) == {"tired": "constant"} and one(findings, "tired").run >= 40
    assert "times in a row" in str(one(findings, "tired").verdict)


def test_sorted_records_are_told_from_runs() -> None:
    rng = Random(1)
    records = [rated(i, rng.choice([1, 5]), name) for name in ("a", "b", "c") for i in range(120)]
    findings = look(sorted(records, key=lambda r: r.score))
    assert dropped(findings) == {}
    assert any("the records seem to be sorted" in note for note in findings.notes)


def lazy(count: int, field: Any) -> list[Comparison]:
    """Always the response that was shown first; chosen is written first, as in chosen and rejected rows."""
    return [
        Comparison(
            prompt=Prompt(text=f"q{i}", fields=field(i)), responses=(f"a{i}", f"b{i}"), ranks=(0, 1), annotator="lazy"
        )
        for i in range(count)
    ]


def test_the_place_of_the_chosen_one_may_be_unknown() -> None:
    chosen_first = lazy(50, lambda i: {})
    findings = look(chosen_first)
    assert dropped(findings) == {} and findings.position is None
    assert one(findings, "lazy").constant is None

    fair = [compared(i, i % 2, "fair", swap=i % 3 == 0) for i in range(60)]
    for field in (lambda i: {"first": "chosen"}, lambda i: {"first": 0}):
        assert dropped(look([*lazy(50, field), *fair])) == {"lazy": "constant"}
    for field in (lambda i: {"first": "rejected"}, lambda i: {"first": 1}):
        second = look([*lazy(50, field), *fair])
        assert dropped(second) == {"lazy": "constant"}
    both = look(lazy(50, lambda i: {"first": i % 2}))
    assert dropped(both) == {} and one(both, "lazy").constant == 0.5
    other = look(lazy(50, lambda i: {"shown": i % 2}), position_field="shown")
    assert one(other, "lazy").constant == 0.5
    assert one(look(lazy(50, lambda i: {"first": "perhaps"})), "lazy").constant is None


def test_always_as_good_is_constant_too() -> None:
    ties = [Comparison(prompt=f"q{i}", responses=("a", "b"), ranks=(0, 0), annotator="tie") for i in range(30)]
    assert dropped(look([*ties, *crowd(GOOD, items=30)])) == {"tie": "constant"}


def test_the_same_text_pasted_everywhere() -> None:
    rng = Random(0)
    records: list[Any] = [Demonstration(prompt=f"q{i}", response="As I said.", annotator="paste") for i in range(20)]
    records += [Demonstration(prompt=f"q{i}", response=f"{rng.random()}", annotator="ada") for i in range(20)]
    records += [Keywords(prompt=f"q{i}", wanted=("please",), annotator="polite") for i in range(20)]
    assert dropped(look(records)) == {"paste": "constant"}, "wanting the same words everywhere is fine"


# --- gold -------------------------------------------------------------------------------------------------------------


def test_upper_and_lower_bound() -> None:
    records = crowd({"ada": 0.99, "ben": 0.99}, items=20) + [
        compared(i, int(i >= 14), "fair", swap=i % 2 == 0) for i in range(20)
    ]
    fair = one(look(records, truth(20)), "fair")
    assert fair.gold == Share(14, 20) and fair.verdict is None, "0.48 to 0.85: may be good"
    assert dropped(look(records, truth(20), gold_bound="lower")) == {"fair": "gold"}, "or may not"
    assert dropped(look(records, truth(20), gold_accuracy=0.9)) == {"fair": "gold"}
    assert "14 of 20 gold questions right (48% to 85%), wanted 90%" in str(
        one(look(records, truth(20), gold_accuracy=0.9), "fair").verdict
    )


def test_too_few_gold_answers_say_nothing() -> None:
    records = [compared(i, 1, "wrong", swap=i % 2 == 0) for i in range(20)] + crowd(GOOD, items=20)
    assert dropped(look(records, truth(4))) == {}
    assert dropped(look(records, truth(5))) == {"wrong": "gold"}
    assert dropped(look(records, truth(4), gold_min=4)) == {"wrong": "gold"}
    assert "no record answers a gold question" in look(records, [compared(999, 0)]).notes[-1]


def test_ratings_are_right_when_they_are_near() -> None:
    gold = [rated(i, 3, None) for i in range(10)]
    records = [rated(i, 4 if i % 2 else 3, "near") for i in range(10)] + [
        rated(i, 1 + 4 * (i % 2), "far") for i in range(10)
    ]
    assert dropped(look(records, gold)) == {"far": "gold"}
    assert dropped(look(records, gold, gold_tolerance=0.1, gold_accuracy=0.9)) == {"near": "gold", "far": "gold"}
    other_scale = [rated(i, 50, None, scale=(0, 100)) for i in range(10)]
    assert dropped(look(records, other_scale)) == {"far": "gold"}


def test_a_ranking_is_right_when_all_of_it_is() -> None:
    def ranked(item: int, ranks: tuple[int, ...], name: str | None) -> Comparison:
        return Comparison(prompt=f"q{item}", responses=("x", "y", "z"), ranks=ranks, annotator=name)

    gold = [ranked(i, (0, 1, 2), None) for i in range(10)]
    swapped = (0, 2, 1)
    records = [ranked(i, (0, 1, 2), "right") for i in range(10)] + [ranked(i, swapped, "partly") for i in range(10)]
    findings = look(records, gold, constant_share=None)
    assert one(findings, "right").gold == Share(10, 10) and one(findings, "partly").gold == Share(0, 10)
    assert dropped(findings) == {"partly": "gold"}


# --- agreement and reliability ----------------------------------------------------------------------------------------


def test_alpha_and_who_lowers_it() -> None:
    findings = look(crowd({**GOOD, "guesses": 0.5}))
    (agreement,) = findings.agreement
    assert (agreement.measure, agreement.items, agreement.answers) == ("comparison", 200, 1000)
    gains = {a.name: a.alpha_gain for a in findings.annotators}
    assert gains["guesses"] > 0.1 > 0 > gains["ada"]
    without = look(crowd(GOOD))
    assert without.agreement[0].alpha == pytest.approx(agreement.alpha + gains["guesses"], abs=0.05)


def test_one_spammer_does_not_hide_another() -> None:
    findings = look(crowd({**GOOD, "contrary": 0.1, "guesses": 0.5}), alpha_gain=0.15)
    assert dropped(findings) == {"contrary": "disagrees", "guesses": "disagrees"}
    assert "higher without, allowed 0.15" in str(one(findings, "guesses").verdict)


def test_perfect_agreement_and_none() -> None:
    perfect = look(crowd({"a": 1.0, "b": 1.0}, items=50))
    assert perfect.agreement[0].alpha == 1.0
    assert all(a.reliability is not None and a.reliability > 0.95 for a in perfect.annotators)
    apart = look([compared(i, i % 2, "a" if i < 30 else "b") for i in range(60)])
    assert apart.agreement == () and "weights stay as they are" in apart.notes[0]
    same = look([rated(i, 4, name) for name in "ab" for i in range(20)])
    assert same.agreement[0].alpha is None and dropped(same) == {}
    assert set(same.factors().values()) == {1.0}


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_are_recovered_and_become_weights(seed: int) -> None:
    accuracies = {"ada": 0.95, "ben": 0.85, "chloe": 0.75, "dan": 0.65, "eve": 0.5}
    findings = look(crowd(accuracies, items=600, seed=seed))
    for annotator in findings.annotators:
        assert annotator.accuracy == pytest.approx(accuracies[annotator.name], abs=0.05)
        assert annotator.reliability == pytest.approx(2 * accuracies[annotator.name] - 1, abs=0.1)
    assert findings.factors()["ada"] > 0.8 and findings.factors()["eve"] < 0.1


def test_who_cannot_be_judged_weighs_as_much_as_the_crowd() -> None:
    records = crowd(GOOD) + [compared(i, 0, "new") for i in range(4)] + [compared(0, 0, None)]
    findings = look(records)
    known = [a.reliability for a in findings.annotators if a.reliability is not None]
    assert len(known) == 4
    mean = sum(known) / 4
    assert findings.factors()["new"] == findings.factors()[None] == pytest.approx(mean)
    assert look(records, reliability="none").factors()["ada"] == 1


def test_ratings_one_step_off_still_count() -> None:
    rng = Random(0)

    def near(score: int) -> int:
        return min(5, max(1, score + rng.choice([-1, 0, 0, 1])))

    true = [rng.randint(1, 5) for _ in range(300)]
    records = [rated(i, near(score), name) for name in ("a", "b", "c") for i, score in enumerate(true)]
    records += [rated(i, rng.randint(1, 5), "guesses") for i in range(300)]
    findings = look(records)
    assert findings.agreement[0].measure == "rating 1 5"
    assert min(one(findings, name).reliability for name in "abc") > 0.75
    assert one(findings, "guesses").reliability < 0.2


def test_fine_scales_are_cut_into_classes() -> None:
    rng = Random(0)
    true = [rng.uniform(0, 100) for _ in range(200)]
    records = [
        rated(i, min(100.0, max(0.0, score + rng.gauss(0, 8))), name, scale=(0, 100))
        for name in ("a", "b", "c")
        for i, score in enumerate(true)
    ]
    findings = look(records)
    assert findings.agreement[0].alpha > 0.8 and one(findings, "a").reliability > 0.8


def test_of_many_items_alpha_takes_some(monkeypatch: pytest.MonkeyPatch) -> None:
    records = crowd(GOOD, items=400)
    all_of_them = look(records)
    monkeypatch.setattr(consensus, "MOST_ITEMS", 100)
    some = look(records)
    assert some.agreement[0].items == 400 and some.agreement[0].alpha != all_of_them.agreement[0].alpha
    assert some.agreement[0].alpha == pytest.approx(all_of_them.agreement[0].alpha, abs=0.15)
    assert one(some, "ada").alpha_gain == pytest.approx(one(all_of_them, "ada").alpha_gain, abs=0.15)


def test_kinds_are_judged_apart() -> None:
    records: list[Any] = crowd({"ada": 0.95, "ben": 0.95, "chloe": 0.9})
    records += [Sentiment(prompt=f"s{i}", response="r", label=("positive", "negative")[i % 2], annotator=name)
                for name in ("ada", "ben", "chloe") for i in range(50)]  # fmt: skip
    records += [rated(i, 1 + i % 5, name) for name in ("ada", "ben") for i in range(50)]
    assert [a.measure for a in look(records).agreement] == ["comparison", "sentiment", "rating 1 5"]


def test_mace_needs_crowd_kit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        look(crowd(GOOD), reliability="mace")
    assert str(error.value) == (
        "quality control: reliability: mace needs the library crowd-kit, which is not installed; "
        "pip install 'rlhf-plugin-quality[crowd]', or set reliability: dawid-skene"
    )


@pytest.mark.slow
def test_mace_with_crowd_kit() -> None:
    pytest.importorskip("crowdkit")
    findings = look(crowd({**GOOD, "guesses": 0.5}), reliability="mace")
    found = {a.name: a.reliability for a in findings.annotators}
    assert found["guesses"] < 0.3 < 0.6 < found["ada"]


# --- biases -----------------------------------------------------------------------------------------------------------


def test_a_crowd_that_likes_the_first_place() -> None:
    rng = Random(0)
    records = [
        compared(i, int((rng.random() < 0.7) == swap), name, swap=swap)
        for name in ("a", "b", "c")
        for i in range(100)
        for swap in [rng.random() < 0.5]
    ]
    position = look(records).position
    assert position is not None and position.found and position.expected == 0.5
    assert position.share.value == pytest.approx(0.7, abs=0.06)
    fair = look(crowd({"a": 0.5, "b": 0.5})).position
    assert fair is not None and not fair.found


def test_of_three_places_a_third_is_fair() -> None:
    records = [
        Comparison(prompt=f"q{i}", responses=("x", "y", "z"), ranks=[(0, 1, 2), (1, 0, 2), (1, 2, 0)][i % 3])
        for i in range(90)
    ]
    position = look(records).position
    assert position is not None and position.expected == pytest.approx(1 / 3) and not position.found


def test_a_crowd_that_likes_length() -> None:
    rng = Random(0)

    def pair(i: int, longer_wins: bool) -> Comparison:
        long, short = f"{i} " + "word " * rng.randint(6, 9), f"{i} " + "word " * rng.randint(1, 5)
        return Comparison(prompt=f"q{i}", responses=(long, short), ranks=(0, 1) if longer_wins else (1, 0))

    length = look([pair(i, rng.random() < 0.75) for i in range(200)]).length
    assert length is not None and length.found and length.share.value == pytest.approx(0.75, abs=0.07)
    fair = look([pair(i, i % 2 == 0) for i in range(200)]).length
    assert fair is not None and fair.share == Share(100, 200) and not fair.found


def test_ratings_that_grow_with_length() -> None:
    rng = Random(0)
    records = [rated(i, min(5, 1 + i / 50 + rng.random()), response="x" * (1 + i)) for i in range(200)]
    score = look(records).length_score
    assert score is not None and score.rho > 0.9 and score.found
    fair = look([rated(i, rng.randint(1, 5), response="x" * (1 + i)) for i in range(200)]).length_score
    assert fair is not None and not fair.found


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_diversity_of_prompts() -> None:
    texts: list[Any] = ["What is up?", "what is up", "What  is up?!", "你好吗", "你好吗？", "Something else entirely",
                        (Message(role="user", content="What is up?"),)]  # fmt: skip
    records = [rated(i, 3, prompt=text) for i, text in enumerate([*texts, texts[0]])]
    prompts = look(records).prompts
    assert (prompts.records, prompts.distinct, prompts.near) == (8, 7, 4)
    # pairs of words: 4 x (what is, is up), 2 x (你好, 好吗), (something else, else entirely): 6 of 14 differ
    assert prompts.distinct_bigrams == pytest.approx(6 / 14)


def test_coverage_of_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(i: int, **fields: Any) -> Rating:
        return rated(i, 3, prompt=Prompt(text=f"q{i}", fields=fields))

    even = [
        asked(i, topic=topic, level=level) for i, (topic, level) in enumerate([("a", 1), ("a", 2), ("b", 1), ("b", 2)])
    ]
    coverage = look(even, coverage="topic").coverage
    assert coverage is not None
    assert coverage.counts == {"a": 2, "b": 2} and coverage.evenness == pytest.approx(1) and coverage.missing == ()
    coverage = look(even[:3], coverage=("topic", "level")).coverage
    assert coverage is not None
    assert coverage.missing == ("b / 2",) and coverage.evenness == pytest.approx(0.7925, abs=1e-4)  # ln 3 / ln 4
    assert look(even).coverage is None
    monkeypatch.setattr(ledger, "MOST_CELLS", 2)
    many = look([asked(i, topic=f"t{i % 5}") for i in range(9)], coverage="topic").coverage
    assert many is not None and many.counts == {"(more values than are counted)": 5, "t0": 2, "t1": 2}
    lacking = look([asked(1, topic="a"), asked(2)], coverage="topic").coverage
    assert lacking is not None and lacking.counts == {"a": 1, "(none)": 1}
    alone = look([asked(1, topic="a")], coverage="topic").coverage
    assert alone is not None and alone.evenness == 1
