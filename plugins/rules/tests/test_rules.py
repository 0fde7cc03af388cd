from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.errors import RewardError
from rlhf_core.interfaces import FeedbackSource, RewardModel, SourceConfig
from rlhf_core.rewards.config import TextRewardConfig
from rlhf_plugin_rules import rlhf_components
from rlhf_plugin_rules.config import KeywordsConfig, LengthConfig, RegexConfig, RepetitionConfig
from rlhf_plugin_rules.keywords import Keywords
from rlhf_plugin_rules.surface import Length, Regex, Repetition
from rlhf_plugin_rules.text import Finder, script, sentences
from ruamel.yaml import YAML

from .toys import credits, score, values

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def spans(response: str, **config: Any) -> list[tuple[str, float]]:
    return credits(Keywords, response, **config)


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_import_are_light() -> None:
    (point,) = entry_points(group="rlhf", name="rules")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize("spec", rlhf_components(), ids=lambda spec: f"{spec.kind}-{spec.name}")
def test_specs_resolve_and_the_readme_lists_every_option(spec: Any) -> None:
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert issubclass(factory, {"reward": RewardModel, "feedback": FeedbackSource}[spec.kind])
    assert factory.Config is config
    assert f"| {spec.kind} | `{spec.name}` |" in README
    section = README.split(f"\n## {spec.kind.title()} `{spec.name}`\n")[1].split("\n## ")[0]
    bases = [base for base in (SourceConfig, TextRewardConfig) if issubclass(config, base)]
    shared = {name for base in bases for name in base.model_fields}
    for name, field in config.model_fields.items():
        assert field.description
        assert name in shared or f"| `{name}` |" in section


def test_the_example_of_the_readme_is_valid() -> None:
    example = YAML(typ="safe").load(StringIO(README.split("```yaml\n")[1].split("```")[0]))
    configs = {(spec.kind, spec.name): spec.config for spec in rlhf_components()}
    used = [(kind, entry) for kind, entries in example["components"].items() for entry in entries.values()]
    assert {(kind, entry["use"]) for kind, entry in used} == configs.keys()
    for kind, entry in used:
        module, cls = configs[kind, entry["use"]].split(":")
        getattr(import_module(module), cls)(**entry["config"])


@pytest.mark.parametrize(("reward", "config"), [
    (Keywords, {"prefer": ["please"]}), (Length, {"target": 3}), (Regex, {"pattern": "a"}), (Repetition, {}),
])  # fmt: skip
def test_scores_are_float32_one_per_sample_and_do_not_depend_on_the_batch(reward: Any, config: dict[str, Any]) -> None:
    responses = ["please please please please", "", "a b c d a b c"]
    together = score(reward, responses, **config).values
    assert (together.dtype, together.shape) == (torch.float32, (3,))
    assert together.tolist() == [values(reward, r, **config)[0] for r in responses]
    assert score(reward, [], **config).values.shape == (0,)


# --- sentences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    ("Dr. Li of No. 10 paid 3.5 dollars. He said No. (Why?) I know", ["Dr. Li of No. 10 paid 3.5 dollars.", "He said No.", "(Why?)", "I know"]),
    ("你好。世界！\n真的吗？“是的。”好", ["你好。", "世界！", "真的吗？", "“是的。”", "好"]),
    ("ok.好的.", ["ok.", "好的."]),
    (" \n ... !! ", []),
    ("", []),
])  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == expected


def test_a_finder_of_nothing_finds_nothing() -> None:
    assert list(Finder([])("any text")) == []


def test_script_is_that_of_most_words() -> None:
    texts = ["Hello 世界, my friend", "我用AI来写", "本当にありがとう", "감사합니다 고객님", "สวัสดี", "42!", ""]
    assert [script(text) for text in texts] == [
        "spaced", "chinese", "unspaced", "spaced", "unspaced", "spaced", "spaced"
    ]  # fmt: skip


# --- keywords --------------------------------------------------------------------------------------------------------


def test_keywords_adds_preferred_and_subtracts_avoided_weights() -> None:
    config: dict[str, Any] = {"prefer": {"please": 1, "thank you": 2.5}, "avoid": {"stupid": 4}}
    assert values(Keywords, "Please wait. Thank\nyou!", "please, stupid", "", **config) == [3.5, -3.0, 0.0]


def test_keywords_are_whole_words_unless_told_otherwise() -> None:
    assert values(Keywords, "the user", "reuse", "use_it", "(use)", "use", prefer=["use"]) == [0, 0, 0, 1, 1]
    assert values(Keywords, "the user", prefer=["use"], whole_words=False) == [1]
    assert values(Keywords, "C++ is", "I like C++.", "ABC++", prefer=["C++"]) == [1, 1, 0]
    assert values(Keywords, "caf\u0065\u0301", prefer=["cafe"]) == [0]


def test_keywords_need_no_boundaries_in_chinese_and_japanese() -> None:
    assert values(Keywords, "太谢谢你了", "用AI来写", "OpenAI来写", prefer=["谢谢", "AI"]) == [1, 1, 0]
    assert values(Keywords, "本当にありがとうございます", "コーヒーを", prefer=["ありがとう", "コーヒー"]) == [1, 1]
    assert spans("太谢谢你了", prefer={"谢谢": 2}) == [("谢谢", 2.0)]


def test_keywords_ignore_case_unless_told_otherwise() -> None:
    assert values(Keywords, "PLEASE", "Straße", prefer=["please", "STRASSE"]) == [1, 1]
    assert values(Keywords, "PLEASE", prefer=["please"], ignore_case=False) == [0]


def test_keywords_count_up_to_max_count_from_the_left() -> None:
    text = "Please, please, PLEASE"
    assert spans(text, prefer=["please"]) == [("Please", 1.0)]
    assert spans(text, prefer=["please"], max_count=2) == [("Please", 1.0), ("please", 1.0)]


def test_the_longest_keyword_wins_and_covers_its_place() -> None:
    config: dict[str, Any] = {"prefer": ["happy"], "avoid": ["not happy"]}
    assert spans("not happy, happy", **config) == [("not happy", -1.0), ("happy", 1.0)]
    assert spans("not happy, not happy", **config) == [("not happy", -1.0)]  # the second is covered, so not "happy"
    assert spans("very happy birthday", prefer=["very happy", "happy birthday"]) == [("very happy", 1.0)]


def test_keywords_may_hold_what_regular_expressions_reserve() -> None:
    assert spans(r"a.b [x] \d c  d", prefer=["a.b", "[x]", r"\d c d"]) == [("a.b", 1), ("[x]", 1), (r"\d c  d", 1)]
    assert values(Keywords, "axb", prefer=["a.b"]) == [0]


def test_spans_add_up_to_the_score() -> None:
    responses = ["Please be kind, stupid. Thanks please", "nothing", "谢谢please"]
    scores = score(Keywords, responses, prefer={"please": 0.1, "thanks": 0.7, "谢谢": 3}, avoid=["stupid"], max_count=2)
    assert scores.spans is not None
    sums = [sum(span.credit for span in row) for row in scores.spans]
    assert scores.values.tolist() == pytest.approx(sums)
    assert sums == pytest.approx([-0.1, 0, 3.1])


@pytest.mark.parametrize(("config", "words"), [
    ({"prefer": ["please", " "]}, "got the empty word ' ', which is everywhere; remove it"),
    ({"avoid": {"": 2}}, "got the empty word ''"),
    ({"prefer": "please"}, "got 'please', expected a list of words, or a mapping from word to weight"),
    ({"prefer": [24]}, "got 24, expected a word or phrase; put quotes around it"),
    ({"prefer": [["please"]]}, "expected a word or phrase"),
    ({"prefer": ["so  what", "so what"]}, "'so what' is there twice; keep one"),
    ({"prefer": ["fine"], "avoid": ["fine"]}, "'fine' and 'fine' are one keyword, listed twice"),
    ({"prefer": ["Please", "please"]}, "'Please' and 'please' are one keyword, listed twice"),
    ({"prefer": {"please": -1}}, "greater than 0"),
    ({"prefer": ["a"], "max_count": 0}, "greater than or equal to 1"),
])  # fmt: skip
def test_keywords_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        KeywordsConfig(**config)
    assert words in str(error.value)


def test_keywords_schema_takes_lists_and_mappings() -> None:
    kinds = KeywordsConfig.model_json_schema()["properties"]["prefer"]["anyOf"]
    assert [kind["type"] for kind in kinds] == ["array", "object"]
    config = KeywordsConfig.model_validate({"prefer": ["Please", "please"], "ignore_case": False})
    assert config.prefer == {"Please": 1, "please": 1}


# --- length ----------------------------------------------------------------------------------------------------------


def test_length_is_zero_in_the_band_linear_beyond_and_has_a_floor() -> None:
    responses = [" ".join(["word"] * n) for n in (0, 5, 9, 10, 11, 15, 40)]
    expected = [-1, -0.5, -0.1, 0, -0.1, -0.5, -1]
    assert values(Length, *responses, target=10) == pytest.approx(expected)
    # a band of 20 % and slope 2: |5 - 10| / 10 - 0.2 = 0.3 beyond the band, times 2
    banded = values(Length, *responses, target=10, tolerance=0.2, scale=2, floor=-3)
    assert banded == pytest.approx([-1.6, -0.6, 0, 0, 0, -0.6, -3])


def test_length_counts_chinese_characters_as_words_and_characters_without_outer_space() -> None:
    assert values(Length, "你好，世界！", "用AI写", target=4) == pytest.approx([0, -0.25])
    assert values(Length, " a bc\n", "你好世界", target=4, unit="characters") == [0, 0]


@pytest.mark.parametrize(("config", "words"), [
    ({"target": 0}, "greater than 0"),
    ({}, "Field required"),
    ({"target": 3, "unit": "tokens"}, "'words' or 'characters'"),
    ({"target": 3, "floor": 1}, "less than 0"),
    ({"target": 3, "tolerance": -0.1}, "greater than or equal to 0"),
])  # fmt: skip
def test_length_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        LengthConfig(**config)
    assert words in str(error.value)


# --- regex -----------------------------------------------------------------------------------------------------------


def test_regex_search_and_fullmatch() -> None:
    responses = ["Answer: 42", " 42\n", "none"]
    assert values(Regex, *responses, pattern=r"\d+", found=2, missing=-0.5) == [2, 2, -0.5]
    assert values(Regex, *responses, pattern=r"\d+", match="fullmatch") == [0, 1, 0]


def test_regex_flags() -> None:
    assert values(Regex, "DONE", pattern="done") == [0]
    assert values(Regex, "DONE", pattern="d o n e", flags=["ignorecase", "verbose"]) == [1]
    assert values(Regex, "a\nb", pattern="^a.b$", flags=["dotall"]) == [1]
    assert values(Regex, "a\nb", pattern="^b$", flags=["multiline"]) == [1]
    assert values(Regex, "谢", "x", pattern=r"\w", flags=["ascii"]) == [0, 1]


def test_regex_credits_the_span_that_search_found() -> None:
    found = score(Regex, ["x = 42.", "none"], pattern=r"\d+", found=3, missing=-1).spans
    assert found is not None
    assert [[(s.start, s.end, s.credit) for s in row] for row in found] == [[(4, 6, 3)], []]
    assert score(Regex, ["abc"], pattern="$").spans == ((),)  # nothing to credit in an empty match
    assert score(Regex, ["abc"], pattern="abc", match="fullmatch").spans is None


def test_an_invalid_pattern_is_a_config_error_that_shows_the_position() -> None:
    with pytest.raises(ValidationError) as error:
        RegexConfig(pattern="ab(c")
    assert error.value.errors()[0]["loc"] == ("pattern",)
    assert "got 'ab(c', which is not a regular expression: missing ) at position 4, after 'ab(c'" in str(error.value)
    with pytest.raises(ValidationError, match=r"at position 3, after 'ab\['"):
        RegexConfig(pattern="ab[")
    with pytest.raises(ValidationError, match="at least 1 character"):
        RegexConfig(pattern="")
    with pytest.raises(ValidationError, match="'ignorecase', 'multiline'"):
        RegexConfig.model_validate({"pattern": "a", "flags": ["i"]})


def test_a_catastrophic_pattern_stops_with_an_error_that_names_it() -> None:
    with pytest.raises(RewardError) as error:
        score(Regex, ["a" * 80 + "b"], pattern="(a|aa)+$", timeout=0.1)
    assert str(error.value) == (
        "reward 'rule': pattern '(a|aa)+$' was still searching a response of 81 characters after 0.1 s; expected a "
        "pattern without nested repetition; write a+ for (a+)+ or (a|aa)+, or raise `timeout`"
    )


# --- repetition ------------------------------------------------------------------------------------------------------


def test_repetition_by_hand() -> None:
    # "a b a b a": bigrams ab ba ab ba, 2 distinct of 4
    assert values(Repetition, "a b a b a", "a b c d e", n=2) == [-0.5, 0]
    assert values(Repetition, "go go go go", n=1, weight=2) == [-1.5]
    assert values(Repetition, "Go on, go on", n=2) == pytest.approx([-1 / 3])  # go on, on go, go on
    assert values(Repetition, "Go on, go on", n=2, ignore_case=False) == [0]
    assert values(Repetition, "谢谢谢谢", n=2) == pytest.approx([-2 / 3])  # 谢谢 three times


def test_repetition_is_zero_for_responses_shorter_than_n() -> None:
    assert values(Repetition, "", "a", "a a", "a a a", n=3) == [0, 0, 0, 0]


def test_repetition_config_errors() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        RepetitionConfig(n=0)
    with pytest.raises(ValidationError, match="greater than 0"):
        RepetitionConfig(weight=0)
