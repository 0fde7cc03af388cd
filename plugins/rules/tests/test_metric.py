"""BLEU, chrF and ROUGE as rewards; every number here was worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError
from rlhf_core.errors import RewardError
from rlhf_core.records import Prompt, Sample
from rlhf_plugin_rules.config import MetricConfig
from rlhf_plugin_rules.metric import Metric

from .toys import build, score, values

MAT = "the cat sat on the mat"


def against(reference: Any, *responses: str, **config: Any) -> list[float]:
    return values(Metric, *responses, fields={"reference": reference}, **config)


def test_rouge_n_by_hand() -> None:
    # the, cat, on, mat of 6 and 6 words; "the cat" of 5 and 5 pairs
    assert against(MAT, "The cat lay on a mat.", metric="rouge1") == pytest.approx([2 / 3])
    assert against(MAT, "The cat lay on a mat.", metric="rouge2") == pytest.approx([1 / 5])
    # precision 1, recall 1/3: F = 2 * (1/3) / (4/3)
    assert against(MAT, "the cat", "", metric="rouge1") == pytest.approx([1 / 2, 0])


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    # all six words are there, but only three (on the mat, or the cat sat) in order
    assert against(MAT, "on the mat the cat sat", metric="rouge1") == pytest.approx([1])
    assert against(MAT, "on the mat the cat sat", metric="rougeL") == pytest.approx([1 / 2])
    assert against(MAT, "the big cat sat on mat", metric="rougeL") == pytest.approx([5 / 6])


def test_rouge_takes_chinese_characters_for_words() -> None:
    # 我 and 猫, of 3 and 4 characters: F = 2 * 2 / (3 + 4)
    assert against("我喜欢猫", "我爱猫！", metric="rouge1") == pytest.approx([4 / 7])
    assert against("我喜欢猫", "我爱猫！", metric="rougeL") == pytest.approx([4 / 7])
    # 喜欢 is one pair of 2 and 3
    assert against("我喜欢猫", "喜欢你", metric="rouge2") == pytest.approx([2 / 5])
    assert against("用AI写作", "AI", metric="rouge1") == pytest.approx([2 / 5])


def test_rouge_is_that_of_the_package_in_plain_english() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    pairs = [
        ("The shop on the corner opens at nine, every day.", "Every day at nine o clock the shop opens"),
        ("State-of-the-art results: 42%", "results of the state were art at 42 %"),
    ]
    for metric in ("rouge1", "rouge2", "rougeL"):
        for reference, response in pairs:
            theirs = RougeScorer([metric]).score(reference, response)[metric].fmeasure
            assert against(reference, response, metric=metric) == pytest.approx([theirs])


def test_bleu_by_hand() -> None:
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples: their geometric mean
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert against("a b c d e", "a b c d x", metric="bleu") == pytest.approx([expected])
    # all there, but shorter: the brevity penalty exp(1 - 5 / 4)
    assert against("a b c d e", "a b c d", "a b c d e", "", metric="bleu") == pytest.approx([math.exp(-1 / 4), 1, 0])
    # one of two words and none of one pair, which counts half a pair; no longer n-grams exist
    assert against("a y", "a x", metric="bleu") == pytest.approx([math.sqrt(1 / 2 * 1 / 2)])


def test_bleu_cuts_chinese_into_characters_because_the_reference_is_chinese() -> None:
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert against("我们都喜欢", "我们都喜爱", metric="bleu") == pytest.approx([expected])
    assert against("今日も雨だ", "今日も雨か", metric="bleu") == pytest.approx([expected])  # Japanese, by characters
    whole = against("我们都喜欢", "我们都喜爱", metric="bleu", tokenizer="13a")
    assert whole == [0]  # to the tokenizer of English it is one word that differs


def test_chrf_by_hand() -> None:
    # 2 of 3 letters, 1 of 2 pairs, 0 of 1 triples, the same forth and back: their mean
    assert against("abc", "abd", "abc", "", metric="chrf") == pytest.approx([7 / 18, 1, 0])
    assert against("我们好", "我们坏", metric="chrf") == pytest.approx([7 / 18])
    # precision 1; recall of letters 1/2 and of pairs 1/3, mean r = 5/12; F2 = 5 r / (4 + r)
    assert against("abcd", "ab", metric="chrf") == pytest.approx([25 / 53])


def test_several_references_and_any_field() -> None:
    for metric in ("bleu", "chrf", "rouge1", "rouge2", "rougeL"):
        assert against([MAT, "a dog ran"], "a dog ran", metric=metric) == pytest.approx([1])
    assert values(Metric, "a dog", fields={"gold": "a dog"}, metric="rouge1", reference="gold") == [1]


def test_signatures_say_how_it_was_computed() -> None:
    model = build(Metric, metric="bleu")
    samples = [Sample(Prompt(text="Hello", fields={"reference": r}), "Hi") for r in ("Hi there", ["你好", "您好"])]
    assert model.signatures == ()
    model.score(samples)
    assert [signature.split("|version")[0] for signature in model.signatures] == [
        "bleu|nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp",
        "bleu|nrefs:2|case:mixed|eff:yes|tok:zh|smooth:exp",
    ]
    rouge = build(Metric, metric="rougeL")
    rouge.score(samples)
    assert rouge.signatures == ("rougeL|measure:f|case:lower|stem:no|tok:words|version:0.1.2",)


@pytest.mark.parametrize(("fields", "complaint"), [
    ({"answer": "x"}, "no field 'reference', only 'answer'; expected a text, a number, or a list of them, none empty; "
                      "name the field in `reference`, keep the column in the prompt source, or set on_missing: abstain"),
    ({}, "no field 'reference', only none"),
    ({"reference": " "}, "field 'reference' is ' '"),
    ({"reference": None}, "field 'reference' is None"),
    ({"reference": []}, "field 'reference' is []"),
])  # fmt: skip
def test_a_missing_reference_is_an_error_or_no_opinion(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RewardError) as error:
        score(Metric, ["Hi"], fields, metric="bleu")
    assert f"reward 'rule' prompt 'Hello': {complaint}" in str(error.value)
    scores = score(Metric, ["Hi"], fields, metric="bleu", on_missing="abstain")
    assert (scores.values.tolist(), scores.abstained.tolist()) == ([0], [True])  # type: ignore[union-attr]


@pytest.mark.parametrize("reference", [{"text": "x"}, ["a", ""], ["a", None], True])
def test_a_wrong_reference_is_an_error_in_any_case(reference: Any) -> None:
    with pytest.raises(
        RewardError,
        match=r"field 'reference' is .*; name the field in `reference`, keep the column in the prompt source$",
    ):
        score(Metric, ["Hi"], {"reference": reference}, metric="bleu", on_missing="abstain")


def test_only_what_has_no_reference_abstains() -> None:
    model = build(Metric, metric="rouge1", on_missing="abstain")
    prompts = [Prompt(text="Hello", fields=fields) for fields in ({"reference": "a"}, {})]
    scores = model.score([Sample(prompt, "a") for prompt in prompts])
    assert (scores.values.tolist(), scores.abstained.tolist()) == ([1, 0], [False, True])


def test_metric_config_errors() -> None:
    with pytest.raises(ValidationError, match="only bleu asks for a tokenizer, chrf does not; leave out `tokenizer`"):
        MetricConfig(metric="chrf", tokenizer="zh")
    with pytest.raises(ValidationError, match="'bleu', 'chrf', 'rouge1', 'rouge2' or 'rougeL'"):
        MetricConfig.model_validate({"metric": "meteor"})
