"""Reading YAML: what scalars mean, where things stand, and what is said about files that cannot be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlhf_core.errors import RegistryErrors
from rlhf_core.registry.reader import Source, parse, parse_value, read


def value(text: str) -> Any:
    return parse(f"key: {text}", "file")[0]["key"]


def read_text(folder: Path, text: str | bytes) -> Source:
    path = folder / "registry.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path)


def failures(folder: Path, text: str | bytes) -> list[str]:
    with pytest.raises(RegistryErrors) as caught:
        read_text(folder, text)
    return [str(error).removeprefix(f"{folder}/") for error in caught.value.errors]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3e-6", 3e-6), ("1e3", 1000.0), (".5", 0.5), ("1.", 1.0), ("-2", -2), ("+2", 2), ("010", 10), ("0o17", 15),
        ("0x1F", 31), (".inf", math.inf), ("-.INF", -math.inf), ("true", True), ("False", False), ("null", None),
        ("~", None), ("", None),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("tRue", "tRue"),
        ("2026-01-01", "2026-01-01"), ("12:30:45", "12:30:45"), ("1_000", "1_000"), ("0b11", "0b11"), ("=", "="),
        ("1e", "1e"), ("'5'", "5"), ('"no"', "no"), ("!!str 5", "5"), ("[1, no, {a: 3e-6}]", [1, "no", {"a": 3e-6}]),
        ("|\n  5\n", "5\n"), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, expected: object) -> None:
    assert value(text) == expected
    assert type(value(text)) is type(expected)


def test_keys_are_the_text_as_written() -> None:
    assert parse("1: a\nno: b\n2.50: c\n~: d\n'5': e", "file")[0] == {
        "1": "a",
        "no": "b",
        "2.50": "c",
        "~": "d",
        "5": "e",
    }


def test_aliases_are_followed() -> None:
    assert parse("a: &x [1, 2]\nb: *x", "file")[0] == {"a": [1, 2], "b": [1, 2]}


def test_every_value_keeps_its_line(tmp_path: Path) -> None:
    source = read_text(tmp_path, "# comment\na:\n  b: 1\n  c:\n    - x\n    - {y: 2,\n       z: 3}\n")
    lines = {("a",): 2, ("a", "b"): 3, ("a", "c"): 4, ("a", "c", 0): 5, ("a", "c", 1): 6, ("a", "c", 1, "z"): 7}
    assert {keys: source.line(keys) for keys in lines} == lines
    assert source.line(("a", "c", 1, "missing")) == 6
    assert source.where("a", "b") == f"{tmp_path}/registry.yaml:3 a.b"


def test_keys_written_twice_are_all_reported_with_both_lines(tmp_path: Path) -> None:
    text = "a:\n  b: 1\n  c: 2\n  b: 3\na: 4\n"
    assert failures(tmp_path, text) == [
        "registry.yaml:4 a.b: is written twice, on line 2 and on line 4; keep one",
        "registry.yaml:5 a: is written twice, on line 1 and on line 5; keep one",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1", "registry.yaml:2: a tab; indent with spaces"),
        ("a: 1\n b: 2", "registry.yaml:2: a colon where no key can stand; quote the value if the colon belongs to it"),
        ("a: b: c", "registry.yaml:1: a colon where no key can stand"),
        ("a: 1\nb\nc: 2", "registry.yaml:3: a line that is no `key: value`"),
        ("- a\nb: 1", "registry.yaml:2: the indentation does not fit the lines above, in what begins on line 1"),
        ("a: 1\nb: 'x", "registry.yaml:2: a quote that is never closed; close it"),
        ("a: [1,\n  2\nb: 3", "registry.yaml:3: a bracket that is never closed, or a comma that is missing"),
        ("a: {b: 1", "a bracket that is never closed"),
        ("a: @x", "registry.yaml:1: a character that cannot begin a value; quote the value"),
        ("a: *x", "registry.yaml:1: an alias without an anchor"),
        ("a: 1\n---\nb: 1", "registry.yaml:2: a second document (`---`)"),
        ('a: "\\q"', "registry.yaml:1: is not YAML: found unknown escape character 'q'"),
        ("a: \x01", "registry.yaml:1: is not YAML: the control character U+0001"),
        ("a: !!python/object:os.system 1", "has the tag tag:yaml.org,2002:python/object:os.system"),
        ("a: !!int '5'", "has the tag tag:yaml.org,2002:int; expected plain YAML; remove the tag"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "registry.yaml:3 c.<<: merge keys are not part of YAML 1.2"),
        ("a: &x [*x]", "is nested too deeply"),
        ("[a]: 1", "registry.yaml:1: has a collection as a key"),
        ("a: " + "[" * 60 + "]" * 60, "is nested too deeply; expected at most 50 levels"),
        ("a: " + "[" * 700, "is nested too deeply"),
        ('a: "\\ud800"', "registry.yaml:1 a: holds half of a surrogate pair"),
        ("", "registry.yaml:1: is empty; expected a registry; write one with `rlhf init`"),
        ("# only a comment\n", "registry.yaml:1: is empty"),
        ("\n- a\n", "registry.yaml:2: the file holds a list of 1; expected a mapping; begin with `schema_version: 1`"),
        ("just text", "the file holds 'just text'; expected a mapping"),
        (b"a: 1\nb: \xff\n", "registry.yaml:2: byte 0xff is not UTF-8"),
        ("a: 1".encode("utf-16"), "is not UTF-8; expected text in UTF-8"),
    ],
)
def test_what_stops_reading_is_a_sentence_with_the_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    errors = failures(tmp_path, text)
    assert len(errors) == 1
    assert message in errors[0]
    assert "yaml.org/type" not in errors[0] and "ruamel" not in errors[0] and "\n" not in errors[0]


def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    layers = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    assert "has more than 200000 values" in failures(tmp_path, f"a0: &a0 x\n{layers}")[0]


def test_a_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RegistryErrors, match=r"nowhere\.yaml: there is no such file; write one with `rlhf init`"):
        read(tmp_path / "nowhere.yaml")
    with pytest.raises(RegistryErrors, match="is a folder; expected a registry file; name the file in it"):
        read(tmp_path)
    with pytest.raises(RegistryErrors, match="cannot be read: embedded null byte"):
        read("\0")


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    source = read_text(tmp_path, "\ufeffa: 1\r\nb: 2\r\n")
    assert (source.data, source.line(("b",))) == ({"a": 1, "b": 2}, 2)


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_json_is_read_too(ensure_ascii: bool) -> None:
    data = {"text": "a\tb \U0001f600 é", "numbers": [1, 1e-8, 3e300], "none": None, "no": "no", "1e3": "1e3"}
    assert parse(json.dumps(data, ensure_ascii=ensure_ascii), "file")[0] == data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3e-6", 3e-6), ("no", "no"), ("", None), (" 5 ", 5), ("'5'", "5"), ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1}),
        ("note: this", "note: this"), ("- a", "- a"), ("#1", "#1"), ("*x", "*x"), ("a # b", "a # b"),
        ("${env:KEY}", "${env:KEY}"),
    ],
)  # fmt: skip
def test_set_values_are_scalars_or_flow_collections(text: str, expected: object) -> None:
    assert parse_value(text, "--set") == expected


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, "file")
        parse_value(text, "--set")
    except RegistryErrors as errors:
        assert str(errors)


@given(st.text(alphabet="ab:-[]{},'\"#&*!|>%@` \n\t?<~0.e"))
def test_any_punctuation_is_read_or_refused(text: str) -> None:
    test_any_text_is_read_or_refused.hypothesis.inner_test(text)  # type: ignore[attr-defined]
