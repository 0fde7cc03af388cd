"""Mutated registry files and feedback files: each is taken or refused in our own words, soon, with its file and line.

Every case follows from its number, so `registry_case(4711)` or `feedback_case(4711)` makes it again.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rlhf_core.errors import DataError, RegistryErrors, RLHFError
from rlhf_core.interfaces import Context, FeedbackSource
from rlhf_core.plugins import Plugins, load_plugins
from rlhf_core.registry import Registry
from rlhf_core.testing.records import example_feedback

PATIENCE = 5.0  # seconds

REGISTRY = """\
# yaml-language-server: $schema=./registry.schema.json
schema_version: 1
requires: ["rlhf-core>=0.1"]
functions:
  mine: rewards.py:score
  made: {factory: "math:sqrt", kwargs: {x: 1, key: "${env:HOME}"}}
components:
  policy:
    lm: {use: causal-lm, config: {model: models/lm, lora: {r: 4, target_modules: [q_proj, v_proj]}}}
  feedback:
    said: {use: preference, config: {path: said.jsonl, columns: {chosen: better}}}
    ratings: &ratings
      use: rating
      config: {path: ratings.csv, on_bad_record: skip}
    again: *ratings
  prompts:
    desk:
      use: jsonl
      config:
        path: desk.jsonl
  reward:
    helpful: {use: preference, config: {model: models/lm, epochs: 2, learning_rate: 3e-4}}
    polite: {use: keywords, config: {prefer: [please, "thank you"], avoid: ['stupid']}}
    own: {use: function, config: {function: mine}}
    both: {use: mix, config: {rewards: {helpful: 1.0, polite: -0.5}}}
  shaper:
    kl: {use: kl, config: {coef: 0.05, estimator: k1}}
  optimizer:
    ppo: {use: ppo, config: {learning_rate: 3e-4, clip: 0.2}}
pipelines:
  first:
    description: "the first \\u00e9 \U0001f600"
    seed: 0
    policy: lm
    stages:
      - fit-reward: {reward: helpful, feedback: [said]}
      - optimize: {optimizer: ppo, prompts: desk, rewards: {both: 1.0, own: 0.2}, shapers: [kl], steps: 60}
      - evaluate: {prompts: desk, metrics: [reward, kl, length]}
  second:
    extends: first
    override:
      stages.optimize.steps: 5
      optimizer.ppo.clip: 0.1
"""

DEEP = ["[" * 60 + "]" * 60, "[" * 3000, "{a: " * 400, "- " * 300 + "x"]
BOMB = "{a: &a [x, x, x], b: &b [*a, *a, *a, *a], c: &c [*b, *b, *b, *b], d: &d [*c, *c, *c, *c]}"
LAUGHS = "&x {a: *x, b: *x, c: [*x, *x]}"
VALUES = [
    "", "~", "null", "true", "no", "0", "-1", "1e999", "-1e999", ".nan", ".inf", "9" * 400, "9" * 5000, "1" * 30 + ".5",
    "0x" + "f" * 300, "0o777", "1_000", "2026-01-01", "3:25:45", "[]", "{}", "[1, [2, {a: b}]]", "{a: b, a: c}",
    "!!python/object/apply:os.system [id]", "!!binary aGk=", "!!set {a}", "!mine x", "*nobody", "*ratings", "&again x",
    "<<: *ratings", "|\n  text\n  more", ">-\n  folded", '"\\ud800"', '"\\x00\\x1b[31m"', "'\x1b[31mred'", "'it''s'",
    '"never closed', "'never closed", "[never, closed", "{never: closed", "a: b: c", "${env:NOBODY}", "${env:HOME}",
    "${env:}", "${env:1 2}", "/dev/null", "../../etc/passwd", "~/x", "x" * 5000, "\u202e\u2066", "\ufeff", "é\u0301",
    "\U0001f600", "%TAG ! x", "---", "...", "? a", "@x", "`x`", "#", BOMB, LAUGHS, *DEEP,
]  # fmt: skip
BYTES = [b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\x1b[2J", b"\x07", b"\r", b"\t",
         b"\x85", b"\xe2\x80\xa8", b"\xc2\xad", b"\x7f", b"\n\n", b"  ", b":", b"- ", b"\\", b'"', b"'", b"&a ", b"*a "]  # fmt: skip

JUNK: list[Any] = [
    None, True, False, 0, -1, 3, 1e308, -0.0, float("nan"), float("inf"), 10**400, "", " ", "x" * 3000, "\x00\x1b[31m",
    "\ud800", "\u202e", "[1, 2", '["a", "b"]', '{"a": 1}', [], {}, [[]], [None], ["a", 1], [{"role": "user"}],
    [{"role": "assistant", "content": "a"}], [{"role": "boss", "content": 1}], {"text": ""}, {"role": "user"},
    {"start": 3, "end": 1}, "2026-13-45T99:00:00", "1e9", "NaN",
]  # fmt: skip
ROWS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "records": ({}, [json.loads(r.model_dump_json()) for r in example_feedback()]),
    "preference": ({}, [
        {"prompt": "Hi", "chosen": "good", "rejected": "bad", "annotator": "a", "margin": 1},
        {"chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
         "rejected": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "z"}]},
        {"prompt": [{"role": "user", "content": "x"}], "responses": ["a", "b", "c"], "ranks": [0, 1, 1]},
    ]),
    "rating": ({"scale": [1, 5]}, [
        {"prompt": "Hi", "response": "good", "score": 4, "aspects": {"kind": 5}, "time": "2026-01-01T00:00:00Z"},
        {"prompt": "Hi", "response": "bad day", "score": 1, "spans": [{"start": 0, "end": 3, "score": 1}]},
    ]),
    "edit": ({}, [{"prompt": "Hi", "original": "helo", "edited": "hello", "comment": "typo", "weight": 0.5}]),
    "demonstrations": ({}, [{"prompt": "Hi", "completion": "Hello", "system": "be kind"},
                            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}]),
    "keywords": ({}, [{"prompt": "Hi", "response": "x", "wanted": ["a"], "unwanted": ["b"]}]),
    "sentiment": ({}, [{"prompt": "Hi", "response": "x", "label": "positive", "score": 0.5}]),
    "jsonl": ({}, [{"prompt": "Hi", "answer": "x"}, {"messages": [{"role": "user", "content": "x"}]}]),
}  # fmt: skip


# --- mutations -------------------------------------------------------------------------------------------------------


def registry_case(number: int) -> bytes:
    """The registry file of that number."""
    r = random.Random(number)
    text = REGISTRY.encode()
    for _ in range(r.choice([1, 1, 1, 2, 4])):
        text = r.choice([bytes_changed, bytes_changed, lines_changed, value_changed, value_changed, tree_changed])(
            text, r
        )
    return r.choice([encoded, *[lambda text, r: text] * 9])(text, r)


def bytes_changed(text: bytes, r: random.Random) -> bytes:
    place = r.randrange(len(text) + 1)
    end = min(len(text), place + r.choice([0, 0, 1, 1, 5, 200]))
    new = r.choice([b"", bytes([r.randrange(256)]), r.choice(BYTES), text[place:end] * r.choice([2, 40])])
    return text[:place] + new + text[end:]


def lines_changed(text: bytes, r: random.Random) -> bytes:
    lines = text.splitlines(keepends=True) or [b""]
    i, j = r.randrange(len(lines)), r.randrange(len(lines))
    change = r.randrange(6)
    if change == 0:
        lines[i], lines[j] = lines[j], lines[i]
    elif change == 1:
        lines.insert(j, lines[i])
    elif change == 2:
        del lines[i]
    elif change == 3:
        lines[i] = r.choice([b" ", b"  ", b"\t", b"      "]) + lines[i]
    elif change == 4:
        lines[i] = lines[i].lstrip(b" ")
    else:
        del lines[i:]
    return b"".join(lines)


def value_changed(text: bytes, r: random.Random) -> bytes:
    """Another value after a colon, behind a dash or in a list."""
    places = [m.span() for m in re.finditer(rb"(?<=[:\-,] )[^,\n\[\]{}]+|(?<=: )[\[{].*", text)]
    if not places:
        return text
    start, end = r.choice(places)
    return text[:start] + r.choice(VALUES).encode("utf-8", "surrogatepass") + text[end:]


def tree_changed(text: bytes, r: random.Random) -> bytes:
    """A part of the tree is replaced, removed, renamed or moved; written as JSON, which is YAML too."""
    from ruamel.yaml import YAML

    try:
        if b"[[[" in text:
            return text  # ruamel alone takes seconds for thousands of them
        tree = YAML(typ="safe", pure=True).load(text.decode())
        tree = json.loads(json.dumps(tree, default=str))
    except Exception:  # mutated already
        return text
    change_tree(tree, r)
    return json.dumps(tree, indent=r.choice([None, 1])).encode()


def change_tree(tree: Any, r: random.Random) -> None:
    places = list(parts(tree))
    if not places:
        return
    holder, key = r.choice(places)
    other, name = r.choice(places)
    change = r.randrange(4)
    if change == 0:
        holder[key] = r.choice(JUNK)
    elif change == 1:
        del holder[key]
    elif change == 2 and isinstance(holder, dict):
        holder[r.choice([key + "s", key[:-1], key.upper(), "", " ", "a.b", "stages", "use", "\x1b[1m"])] = holder.pop(
            key
        )
    else:
        holder[key] = json.loads(json.dumps(other[name]))


def parts(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (mapping or list, key) of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from parts(value)


def encoded(text: bytes, r: random.Random) -> bytes:
    kind = r.randrange(4)
    if kind == 0:
        return text.replace(b"\n", r.choice([b"\r\n", b"\r"]))
    if kind == 1:
        return b"\xef\xbb\xbf" + text
    return text.decode("utf-8", "replace").encode(r.choice(["utf-16", "utf-32", "latin-1"]), "replace")


def feedback_case(number: int) -> tuple[str, str, bytes, dict[str, Any]]:
    """The source, the name of the file, its content, and the settings of that number."""
    r = random.Random(number)
    kind = r.choice(list(ROWS))
    settings, rows = ROWS[kind]
    rows = json.loads(json.dumps(r.choices(rows, k=r.choice([1, 3, 8]))))
    for _ in range(r.choice([0, 1, 1, 2, 5])):
        change_tree(rows, r)
    name = r.choice(["a.jsonl"] * 8 + ["a.json", "a.jsonl.gz", "a.json.gz", "a.txt"])
    lines = [json.dumps(row, ensure_ascii=bool(r.randrange(2))) for row in rows]
    text = f"[{', '.join(lines)}]" if ".json" in name and "jsonl" not in name else "\n".join(lines) + "\n"
    if not r.randrange(12):
        depth = r.choice([40, 60, 300, 2000, 100_000])
        text = text.replace(
            '"Hi"', r.choice(["[", '{"a": ']) * depth + r.choice(["", "1" + "]" * depth, "1" + "}" * depth])
        )
    content = text.encode("utf-8", "surrogatepass")
    for _ in range(r.choice([0, 0, 1, 1, 3])):
        content = r.choice([bytes_changed, lines_changed])(content, r)
    if not r.randrange(10):
        content = encoded(content, r)
    if name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
        if r.randrange(2):
            content = bytes_changed(content, r)
    settings = settings | {"on_bad_record": r.choice(["raise", "raise", "skip"])}
    return kind, name, content, settings | ({"limit": 2} if not r.randrange(10) else {})


# --- what every case has to hold -------------------------------------------------------------------------------------


class Hang(BaseException):
    """Not an Exception: nobody may catch it and go on."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hang(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def validate(number: int, folder: Path, plugins: Plugins) -> list[RLHFError]:
    path = folder / "registry.yaml"
    path.write_bytes(registry_case(number))
    try:
        registry = Registry.load(path, plugins)
    except RegistryErrors as errors:
        return list(errors.errors)
    problems = registry.problems()
    for name in registry.pipelines:
        try:
            registry.resolve(name)
        except RegistryErrors as errors:
            problems += errors.errors
    return problems


def read_all(number: int, folder: Path, plugins: Plugins) -> list[RLHFError]:
    kind, name, content, settings = feedback_case(number)
    path = folder / name
    path.write_bytes(content)
    spec = plugins.find("prompts" if kind == "jsonl" else "feedback", kind)
    config = plugins.import_class(spec, "config")(path=str(path), **settings)
    try:
        source = plugins.import_class(spec, "factory")(config, Context(kind="feedback", id="said", warn=lambda _: None))
        if isinstance(source, FeedbackSource):
            for record in source:
                assert type(record).model_validate_json(record.model_dump_json()).id == record.id
        else:
            for i in range(len(source)):
                json.dumps(source[i].messages, ensure_ascii=False).encode()
    except RLHFError as error:
        return [error]
    return []


WHOLE = re.compile(r"gives no feedback|has no prompts|there is no pipeline|requirement")
"""What is said of a file as a whole, which no line is to blame for."""


def fuzz(
    numbers: range, check: Callable[[int, Path, Plugins], list[RLHFError]], folder: Path, plugins: Plugins
) -> tuple[int, int]:
    """Check every case; returns how many were taken and how many refused."""
    taken, failures = 0, []
    (folder / "rewards.py").write_text("raise SystemExit('validating must not import functions')")
    for number in numbers:
        try:
            with at_most(PATIENCE):
                errors = check(number, folder, plugins)
        except (Exception, Hang):
            failures.append(f"case {number}\n{traceback.format_exc(limit=-4)}")
            continue
        taken += not errors
        place = re.compile(rf"{re.escape(str(folder))}/\S+?(:\d+| row \d+|: cannot be read)")
        failures += [
            f"case {number} has no place: {e}" for e in errors if not place.search(str(e)) and not WHOLE.search(str(e))
        ]
        for file in folder.iterdir():
            if file.name not in (
                "registry.yaml",
                "rewards.py",
                "a.jsonl",
                "a.json",
                "a.jsonl.gz",
                "a.json.gz",
                "a.txt",
            ):
                failures.append(f"case {number} wrote {file}")
    assert not failures, f"{len(failures)} failures\n" + "\n".join(failures[:10])
    return taken, len(numbers) - taken


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/nobody")
    return tmp_path


def test_mutated_registry_files(folder: Path, plugins: Plugins) -> None:
    taken, refused = fuzz(range(80), validate, folder, plugins)
    assert taken > 2 and refused > 25  # the mutations matter, and some do no harm


def test_mutated_feedback_files(folder: Path, plugins: Plugins) -> None:
    taken, refused = fuzz(range(250), read_all, folder, plugins)
    assert taken > 25 and refused > 75


# --- what it found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "words"), [
    ("a: 1\nb: \x01", r"registry.yaml:2: is not YAML: the control character U\+0001; remove it"),
    ("a: 1\nb: " + "[" * 3000, r"registry.yaml:2: is nested too deeply; write at most 50 levels"),  # took seconds
    ("a: 1\n" + "".join(" " * i + "a:\n" for i in range(200)), r"registry.yaml:\d+: is nested too deeply"),
    ("a: 1\n" * 2 + "#" * 500_000, r"registry.yaml:3: goes on beyond 500,000 bytes; expected a smaller file; split it"),
])  # fmt: skip
def test_registry_files_that_stop_reading(folder: Path, plugins: Plugins, text: str, words: str) -> None:
    (folder / "registry.yaml").write_text(text)
    with at_most(PATIENCE), pytest.raises(RegistryErrors, match=words):
        Registry.load(folder / "registry.yaml", plugins)


def test_an_alias_inside_itself_gives_a_hundred_problems_and_not_a_hundred_thousand(
    folder: Path, plugins: Plugins
) -> None:
    (folder / "registry.yaml").write_text("a: &a {x: *a, y: *a}")
    with at_most(PATIENCE), pytest.raises(RegistryErrors) as caught:
        Registry.load(folder / "registry.yaml", plugins)
    assert len(caught.value.errors) == 100


def test_hundreds_of_components_in_a_row_are_refused(folder: Path, plugins: Plugins) -> None:
    chain = {f"c{i}": {"use": "mix", "config": {"rewards": {f"c{i + 1}": 1.0}}} for i in range(300)}
    (folder / "registry.yaml").write_text(json.dumps({"schema_version": 1, "components": {"reward": chain}}))
    with at_most(PATIENCE):
        problems = Registry.load(folder / "registry.yaml", plugins).problems()
    assert "a chain of 51 components, each named by the one before, leads to reward 'c51'" in str(problems[0])


def test_thousands_of_broken_pipelines_are_cut_short(folder: Path, plugins: Plugins) -> None:
    lines = "".join(f"  p{i}: {{extends: q{i}}}\n" for i in range(1500))
    (folder / "registry.yaml").write_text(f"schema_version: 1\npipelines:\n{lines}")
    with at_most(PATIENCE):
        assert len(Registry.load(folder / "registry.yaml", plugins).problems()) == 201


@pytest.mark.parametrize(("line", "words"), [
    ('{"prompt": ' + "[" * 100_000, "nested more than 50 levels deep"),  # was a RecursionError
    ('{"prompt": "a", "completion": "b", "x": ' + "[" * 60 + "]" * 60 + "}", "nested more than 50 levels deep"),
    ('{"prompt": "a\\ud83d", "completion": "b"}', r"half of a surrogate pair \(\\ud83d\)"),  # had no id
    ('{"prompt": "a", "completion": "b", "x": NaN}', "NaN is no JSON: write null"),  # came back as another record
    ('{"prompt": "a", "completion" "b"}', "Expecting ':' delimiter at character 30"),
])  # fmt: skip
def test_lines_that_are_refused(folder: Path, plugins: Plugins, line: str, words: str) -> None:
    (folder / "a.jsonl").write_text(f'{{"prompt": "a", "completion": "b \\ud83d\\ude00"}}\n{line}\n')
    spec = plugins.find("feedback", "demonstrations")
    config = plugins.import_class(spec, "config")(path=str(folder / "a.jsonl"))
    source = iter(plugins.import_class(spec, "factory")(config, Context()))
    assert next(source).response == "b \U0001f600"
    with pytest.raises(DataError, match=rf"a.jsonl:2: malformed line: {words}"):
        next(source)


@pytest.mark.slow
def test_five_thousand_mutated_registry_files(folder: Path, plugins: Plugins) -> None:
    fuzz(range(5000), validate, folder, plugins)


@pytest.mark.slow
def test_five_thousand_mutated_feedback_files(folder: Path, plugins: Plugins) -> None:
    fuzz(range(5000), read_all, folder, plugins)
