"""The feedback source `quality`: what comes out, what is written, and what it complains about."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.interfaces.config import references
from rlhf_core.records import Feedback
from rlhf_plugin_quality import consensus
from rlhf_plugin_quality.config import QualityConfig
from rlhf_plugin_quality.source import Quality

from .toys import Memory, compared, context, crowd, rated, truth


def make(*sources: Any, surroundings: dict[str, Any] | None = None, **config: Any) -> Quality:
    """`quality` over sources "a", "b", ...; by default all of them are checked."""
    names = [chr(ord("a") + i) for i in range(len(sources))]
    warnings: list[str] = []
    given = {"warn": warnings.append, **(surroundings or {})}
    quality = Quality(QualityConfig(**{"feedback": names, **config}), context(*sources, **given))
    quality.heard = warnings  # type: ignore[attr-defined]
    return quality


def heard(quality: Quality) -> list[str]:
    found: list[str] = quality.heard  # type: ignore[attr-defined]
    return found


BAD: list[Feedback] = [rated(0, 3), rated(0, 3), rated(1, 3, response=" "), rated(2, 4)]


def test_what_passes_comes_out_weighted() -> None:
    records = crowd({"ada": 0.95, "ben": 0.9, "guesses": 0.5})
    records[7] = records[7].model_copy(update={"weight": 0.5})
    quality = make(records)
    kept = list(quality)
    factors = quality.findings.factors()
    assert [r.id for r in kept] == [r.id for r in records]
    assert [r.weight for r in kept] == pytest.approx([r.weight * factors[r.annotator] for r in records])
    assert kept[7].weight == pytest.approx(0.5 * factors["ada"])
    assert list(make(records, reliability="none")) == records


def test_it_reads_twice_and_then_once() -> None:
    source = Memory(BAD)
    quality = make(source, reliability="none")
    assert source.readings == 0, "nothing is read before it is needed"
    first = next(iter(quality))
    assert (first, source.readings) == (BAD[0], 2)
    assert list(islice(quality, 1)) == [BAD[0]]
    assert list(quality) == list(quality) == [BAD[0], BAD[3]]
    assert source.readings == 5
    assert quality.dropped == {"invalid": 1, "duplicate": 1} and quality.skipped == 2


def test_every_dropped_record_is_written_with_its_reason(tmp_path: Path) -> None:
    quality = make([rated(9, 1)], BAD, surroundings={"directory": tmp_path}, reliability="none")
    assert len(list(quality)) == 3
    file = tmp_path / "quality-clean.jsonl"
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == [
        {"where": "feedback 'b' record 2", "id": BAD[1].id, "annotator": "ann", "reason": "duplicate",
         "detail": "the same answer to the same item by the same annotator"},
        {"where": "feedback 'b' record 3", "id": BAD[2].id, "annotator": "ann", "reason": "invalid",
         "detail": "empty response"},
    ]  # fmt: skip
    assert heard(quality) == [
        f"feedback 'clean': dropped 2 of 5 records (1 invalid, 1 duplicate); listed in {file}",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["quality-clean.jsonl"]


def test_nothing_is_written_outside_a_run_or_when_nothing_is_dropped(tmp_path: Path) -> None:
    assert list(make(BAD[:1], surroundings={"directory": tmp_path}, reliability="none")) == BAD[:1]
    assert list(tmp_path.iterdir()) == []
    quality = make(BAD, reliability="none")
    list(quality)
    assert heard(quality) == ["feedback 'clean': dropped 2 of 4 records (1 invalid, 1 duplicate)"]


def test_only_one_process_writes(tmp_path: Path) -> None:
    class Other:
        is_main_process = False

    list(make(BAD, surroundings={"directory": tmp_path, "accelerator": Other()}, reliability="none"))
    assert list(tmp_path.iterdir()) == []


def test_several_sources_are_one_crowd() -> None:
    first, second = rated(0, 3), rated(0, 3)
    assert list(make([first], [second], reliability="none")) == [first]
    # of one source the order of the responses is known, of the other it is not
    fair = [compared(i, i % 2, "fair") for i in range(40)]
    chosen_first = [compared(i, 0, "pairs") for i in range(50, 90)]
    assert make(fair, chosen_first).dropped == {}
    assert make(fair + chosen_first).dropped == {"constant": 40}


def test_gold_is_another_source() -> None:
    records = crowd({"ada": 0.95, "ben": 0.9, "contrary": 0.1}, items=40)
    quality = make(records, truth(20), feedback="a", gold="b")
    assert quality.dropped == {"gold": 40}
    assert {r.annotator for r in quality} == {"ada", "ben"}


def test_notes_are_warnings() -> None:
    quality = make([rated(0, 3)])
    list(quality)
    assert heard(quality) == ["feedback 'clean': no annotator shares 10 items with others, so weights stay as they are"]


# --- complaints -------------------------------------------------------------------------------------------------------


def test_nothing_to_check() -> None:
    with pytest.raises(DataError) as error:
        list(make([], []))
    assert str(error.value) == (
        "feedback 'clean': a, b gives no feedback; expected at least one record; check the source"
    )


def test_nothing_passes(tmp_path: Path) -> None:
    fast = [compared(i, i % 2, seconds=i / 10) for i in range(20)]
    with pytest.raises(
        DataError, match=r"none of the 20 records of a passes \(20 too fast\); expected at least one; look at "
    ):
        list(make(fast))
    with pytest.raises(DataError, match=r"look at .*quality-clean\.jsonl, and loosen the thresholds"):
        list(make(fast, surroundings={"directory": tmp_path}))


@pytest.mark.parametrize(("then", "words"), [
    ([rated(0, 3)], "1 records instead of 2"),
    ([rated(0, 3), rated(1, 3), rated(2, 3)], "record 3 was not there"),
    ([rated(0, 3), rated(1, 3, "somebody else")], "record 2 was not there"),
])  # fmt: skip
def test_a_source_that_changes(then: list[Feedback], words: str) -> None:
    source = Memory([rated(0, 3), rated(1, 3)])
    quality = make(source)
    assert quality.findings.kept == 2
    source.records = then
    with pytest.raises(
        DataError, match=f"the sources changed since they were checked: {words}; expected the same records"
    ):
        list(quality)


def test_mace_is_asked_for_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"feedback 'clean': reliability: mace needs .*pip install 'rlhf-plugin-quality\[crowd\]'"
    ):
        make(BAD, reliability="mace")


@pytest.mark.parametrize(("config", "words"), [
    ({}, "feedback\n  Field required"),
    ({"feedback": []}, "name at least one feedback source"),
    ({"feedback": "a", "min_second": 1}, "Extra inputs are not permitted"),
    ({"feedback": "a", "constant_share": 0.4}, "greater than 0.5"),
    ({"feedback": "a", "gold_bound": "middle"}, "'upper' or 'lower'"),
    ({"feedback": "a", "coverage": ["topic", "topic"]}, "names a field twice: topic, topic"),
])  # fmt: skip
def test_wrong_options(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        QualityConfig(**config)


def test_references_are_found() -> None:
    config = QualityConfig(feedback="a", gold="g")
    assert config.feedback == ("a",)
    assert list(references(config)) == [("feedback.0", "feedback", "a"), ("gold", "feedback", "g")]
