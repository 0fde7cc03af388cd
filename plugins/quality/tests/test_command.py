"""`rlhf feedback check`: what it guesses, prints, writes and complains about."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rlhf_core.cli.app import build_app
from rlhf_core.errors import ConfigError, DataError, PluginError, RLHFError
from rlhf_core.records import parse_feedback
from rlhf_plugin_quality.checking import Checked, run_check
from rlhf_plugin_quality.commands import add_commands
from rlhf_plugin_quality.tables import print_check
from typer.testing import CliRunner

from .toys import crowd, truth

QUESTION = {"prompt": "Name a colour.", "annotator": "ann"}
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "records": ({**QUESTION, "kind": "demonstration", "response": "Blue."}, "records"),
    "pairs": ({**QUESTION, "chosen": "Blue.", "rejected": "No."}, "preference"),
    "rankings": ({**QUESTION, "responses": ["Blue.", "No.", "Hm."], "ranks": [0, 2, 1]}, "preference"),
    "completions": ({**QUESTION, "completion": "Blue."}, "demonstrations"),
    "chats": ({"messages": [{"role": "user", "content": "A colour?"}, {"role": "assistant", "content": "Blue."}]},
              "demonstrations"),
}  # fmt: skip
ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {  # sources of other plugins, which need not be installed
    "edits": ({**QUESTION, "original": "No.", "edited": "Blue."}, "edit"),
    "ratings": ({**QUESTION, "response": "Blue.", "rating": 4}, "rating"),
    "scores": ({**QUESTION, "response": "Blue.", "score": 4}, "rating"),
    "thumbs": ({**QUESTION, "response": "Blue.", "label": True}, "rating"),
    "feelings": ({**QUESTION, "response": "Blue.", "label": "positive"}, "sentiment"),
    "keywords": ({**QUESTION, "response": "Blue.", "wanted": ["blue"]}, "keywords"),
}


def write(path: Path, *rows: Any) -> Path:
    """A JSONL file; rows that are text are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def as_rows(records: list[Any]) -> list[dict[str, Any]]:
    return [record.model_dump(mode="json") for record in records]


def printed(checked: Checked, width: int = 100) -> str:
    console = Console(width=width, record=True, force_terminal=False, file=StringIO())
    print_check(checked, console)
    return console.export_text()


def spoiled(path: Path) -> Path:
    """A file in which everything is wrong that can be."""
    records = crowd({"ada": 0.95, "ben": 0.9, "chloe": 0.85}, items=60)
    records += crowd({"contrary [bold]": 0.05}, items=60, seed=1) + crowd({"fast": 0.9}, items=60, seed=2, gap=0.3)
    rows: list[Any] = as_rows(records)
    rows[10:10] = [rows[3], '{"kind": "comp', {**rows[0], "kind": "comparsion"}, {**rows[1], "ranks": [0]},
                   {**rows[2], "responses": ["", "no"]}]  # fmt: skip
    return write(path, *rows)


# --- guessing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_the_source_is_guessed_from_the_columns(name: str, tmp_path: Path) -> None:
    row, use = ROWS[name]
    checked = run_check(write(tmp_path / "rows.jsonl", row))
    assert (checked.use, checked.findings.kept, checked.bad) == (use, 1, ())


@pytest.mark.parametrize("name", ELSEWHERE)
def test_sources_of_other_plugins_are_found_or_named(name: str, tmp_path: Path) -> None:
    row, use = ELSEWHERE[name]
    try:
        checked = run_check(write(tmp_path / "rows.jsonl", row))
    except PluginError as error:
        assert f"feedback {use!r}" in str(error)
        pytest.skip(f"no plugin offers feedback {use!r} here")
    assert checked.use == use and not checked.bad and checked.findings.kept >= 1


def test_columns_and_options_of_the_source(tmp_path: Path) -> None:
    row = {"question": "Name a colour.", "good": "Blue.", "bad": "No.", "worker": 7}
    file = write(tmp_path / "rows.jsonl", row, row, row)
    columns = ("prompt=question", "chosen=good", "rejected=bad", "annotator=worker")
    checked = run_check(file, columns=columns, options=("limit=2",), settings=("duplicates=keep",))
    assert (checked.use, checked.findings.records) == ("preference", 2)
    assert [a.name for a in checked.findings.annotators] == ["7"]


# --- what it finds ----------------------------------------------------------------------------------------------------


def test_a_spoiled_file(tmp_path: Path) -> None:
    file, gold = spoiled(tmp_path / "spoiled.jsonl"), write(tmp_path / "gold.jsonl", *as_rows(truth(30)))
    out = tmp_path / "kept.jsonl"
    checked = run_check(file, gold=gold, out=out)
    assert [problem.where for problem in checked.bad] == [f"{file}:{line}" for line in (12, 13, 14)]
    assert "malformed line" in checked.bad[0].detail and "kind 'comparsion'; expected one of" in checked.bad[1].detail
    assert "one rank per response" in checked.bad[2].detail
    assert (checked.bad[0].annotator, checked.bad[1].annotator) == (None, "ada")
    assert checked.findings.dropped == {"invalid": 1, "duplicate": 1, "too fast": 60, "gold": 60}
    where = {problem.reason: problem.where for problem in reversed(checked.dropped)}
    assert where == {
        "duplicate": f"{file}:11",
        "invalid": f"{file}:15",
        "gold": f"{file}:186",
        "too fast": f"{file}:246",
    }
    assert len(checked.dropped) == 122

    kept = [parse_feedback(json.loads(line)) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(kept) == checked.findings.kept == 180
    assert {record.annotator for record in kept} == {"ada", "ben", "chloe"}
    assert {record.weight for record in kept} == {checked.findings.factors()[name] for name in ("ada", "ben", "chloe")}
    again = run_check(out)
    assert (again.use, again.findings.dropped, again.bad) == ("records", {}, ())


def test_the_tables(tmp_path: Path) -> None:
    file, gold = spoiled(tmp_path / "spoiled.jsonl"), write(tmp_path / "gold.jsonl", *as_rows(truth(30)))
    text = printed(run_check(file, gold=gold))
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "line 13", "malformed line", "line 15", "invalid: empty response",
        "duplicate: the same answer to the same item by the same annotator",
        "lines 186-245", "lines 246-305", "contrary [bold]", "too fast", "kept", "alpha 0.", "position", "60 items",
    ):  # fmt: skip
        assert words in text, words
    places = [re.search(words, text) for words in ("bad rows", "dropped records", "\nannotators  ", r"read\s+as")]
    starts = [place.start() for place in places if place]  # a long path may break the line within "read as"
    assert len(starts) == 4 and starts == sorted(starts)
    assert "lines" not in printed(run_check(file, gold=gold, settings=("gold_accuracy=0.01", "min_seconds=null")))


def test_long_crowds_are_cut_but_never_the_dropped(tmp_path: Path) -> None:
    records = crowd({f"w{i:02d}": 0.9 for i in range(40)}, items=12) + crowd({"fast": 0.9}, items=12, gap=0.1)
    text = printed(run_check(write(tmp_path / "rows.jsonl", *as_rows(records))))
    assert "and 10 more that were kept; --json lists all" in text and "w29" in text and "w30" not in text
    assert text.count("fast") >= 3
    few = printed(run_check(write(tmp_path / "rows.jsonl", *as_rows(records[:3]))))
    assert "too few: fewer than 10 records are not judged" in few


def test_biases_and_coverage_are_printed(tmp_path: Path) -> None:
    rows = [{**QUESTION, "prompt": f"q{i}", "topic": "ab"[i % 2], "level": 1 + (i % 2), "first": "chosen" if i % 5 else "rejected",
             "chosen": "long " * 9, "rejected": "short"} for i in range(60)]  # fmt: skip
    text = printed(run_check(write(tmp_path / "rows.jsonl", *rows), settings=("coverage=[topic, level]",)))
    assert "the first response won 80.0% (68.2% to 88.2%) of 60, fair is 50% biased" in text
    assert "the longer response won 100.0%" in text
    assert "topic x level" in text and "a / 1 30, b / 2 30" in text and "missing" in text
    unknown = printed(
        run_check(write(tmp_path / "rows.jsonl", *({k: v for k, v in r.items() if k != "first"} for r in rows)))
    )
    assert "unknown: the order in which responses were shown is not in the file" in unknown


# --- the command itself -----------------------------------------------------------------------------------------------


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(build_app(), ["feedback", "check", *map(str, arguments)], env={"COLUMNS": "100"})


def test_json(tmp_path: Path) -> None:
    file = spoiled(tmp_path / "spoiled.jsonl")
    found = json.loads(run(file, "--json", "--set", "coverage=topic", "--set", "min_seconds=null").stdout)
    assert found["dropped"] == {"invalid": 1, "duplicate": 1}
    assert found["thresholds"]["min_seconds"] is None and found["coverage"]["fields"] == ["topic"]
    assert len(found["bad_rows"]) == 3 and {a["name"] for a in found["annotators"]} >= {"ada", "fast"}
    assert found["dropped_records"][0] == {
        "where": f"{file}:11", "annotator": "ada", "reason": "duplicate",
        "detail": "the same answer to the same item by the same annotator",
    }  # fmt: skip


def test_text_and_help(tmp_path: Path) -> None:
    done = run(write(tmp_path / "rows.jsonl", ROWS["pairs"][0]), "--out", tmp_path / "kept.jsonl")
    assert done.exit_code == 0 and "wrote 1 records to" in done.stdout
    assert "feedback" in CliRunner().invoke(build_app(), ["--help"]).stdout
    assert "--gold" in CliRunner().invoke(build_app(), ["feedback", "check", "--help"], env={"COLUMNS": "100"}).stdout


def test_another_plugin_may_have_the_group_too() -> None:
    app, group = typer.Typer(), typer.Typer()
    group.command("other")(lambda: None)
    app.add_typer(group, name="feedback")
    add_commands(app)
    assert len(app.registered_groups) == 1
    assert {command.name for command in group.registered_commands} == {"other", "check"}


def test_looking_and_checking_import_no_torch(tmp_path: Path) -> None:
    """And looking no numpy either."""
    file = write(tmp_path / "rows.jsonl", *as_rows(crowd({"a": 0.9, "b": 0.9}, items=20)))
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom rlhf_core.cli.app import build_app\n"
        "CliRunner().invoke(build_app(), ['feedback', '--help'])\n"
        "print([m for m in ('torch', 'numpy', 'krippendorff', 'pandas') if m in sys.modules])\n"
        f"assert CliRunner().invoke(build_app(), ['feedback', 'check', {str(file)!r}]).exit_code == 0\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])\n"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).splitlines() == ["[]", "[]"]


# --- complaints -------------------------------------------------------------------------------------------------------

GOOD = ROWS["pairs"][0]
WRONG: list[tuple[list[Any], dict[str, Any], type[RLHFError], str]] = [
    ([], {}, DataError, r"rows\.jsonl: no row in it can be read; expected at least one record"),
    (["{", "[]"], {}, DataError, "no row in it can be read"),
    ([{"text": "a", "n": 1}], {}, DataError,
     r"rows\.jsonl:1: columns 'text', 'n', which are those of no kind of feedback; .*name the source with --use"),
    ([GOOD], {"use": "preferences"}, PluginError, "did you mean 'preference'"),
    ([GOOD], {"settings": ("min_second=2",)}, ConfigError, "--set min_second: there is no such option; did you mean 'min_seconds'"),
    ([GOOD], {"settings": ("min_seconds=soon",)}, ConfigError, "--set min_seconds: .*valid number.*, got 'soon'"),
    ([GOOD], {"settings": ("min_seconds",)}, ConfigError, "--set min_seconds: has no value; expected the form --set NAME=VALUE"),
    ([GOOD], {"settings": ("coverage=[a",)}, ConfigError, r"--set coverage: '\[a' cannot be read"),
    ([GOOD], {"settings": ("coverage=[a, a]",)}, ConfigError, "--set: `coverage` names a field twice"),
    ([GOOD], {"columns": ("prompt",)}, ConfigError, "--column prompt: has no value"),
    ([GOOD], {"options": ("limits=2",)}, ConfigError, "feedback 'preference' limits: there is no such option; did you mean 'limit'"),
    ([GOOD], {"out": Path("/nonexistent/kept.jsonl")}, ConfigError, "--out /nonexistent/kept.jsonl: cannot be written"),
    ([GOOD], {"gold": Path("nowhere.jsonl")}, DataError, r"nowhere\.jsonl: there is no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "arguments", "error", "words"), WRONG)
def test_what_cannot_be_checked(
    rows: list[Any], arguments: dict[str, Any], error: type[RLHFError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        run_check(write(tmp_path / "rows.jsonl", *rows), **arguments)


def test_a_gold_file_has_to_be_right(tmp_path: Path) -> None:
    gold = write(tmp_path / "gold.jsonl", GOOD, {**GOOD, "chosen": 5})
    with pytest.raises(
        DataError, match=r"gold\.jsonl:2: a response that is a number.*expected a gold question that can be read"
    ):
        run_check(write(tmp_path / "rows.jsonl", GOOD), gold=gold)


def test_only_bad_rows_are_told_all_the_same(tmp_path: Path) -> None:
    checked = run_check(write(tmp_path / "rows.jsonl", {**GOOD, "chosen": 5}, {**GOOD, "chosen": GOOD["rejected"]}))
    assert checked.findings.records == 0 and len(checked.bad) == 2
    assert "makes no record of it" in checked.bad[1].detail
    assert "bad rows" in printed(checked)
