"""Intervals, alpha, Dawid and Skene's model: by hand, against the reference implementations, and on known truths."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlhf_plugin_quality.agreement import (
    DawidSkene,
    dawid_skene,
    ordinal_alpha,
    rank_correlation,
    wilson_interval,
)

PATH = Path(os.environ.get("RLHF_GOLDEN") or Path(__file__).resolve().parents[3] / "../shared/golden/golden.json")


def golden(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if not PATH.is_file():
        pytest.skip(f"no reference data at {PATH} (set RLHF_GOLDEN)")
    entry = next(e for e in json.loads(PATH.read_text(encoding="utf-8"))["cases"] if e["id"] == name)
    return entry["inputs"], entry["expected"]


def flat(table: list[list[Any]]) -> tuple[Any, Any]:
    """Raters by units, None where missing -> item and value of each answer."""
    answers = [(unit, value) for row in table for unit, value in enumerate(row) if value is not None]
    return np.array([unit for unit, _ in answers]), np.array([value for _, value in answers], dtype=float)


# --- Wilson -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n", "low", "high"), [
    (8, 10, 0.49016, 0.94332), (50, 100, 0.40383, 0.59617), (0, 0, 0.0, 1.0), (1, 1, 0.20655, 1.0),
    (0, 3, 0.0, 0.56150),  # z^2 / (n + z^2) = 3.84146 / 6.84146
    (18, 20, 0.69897, 0.97213),
])  # fmt: skip
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=2e-5)


def test_wilson_is_wider_for_more_confidence_and_narrower_for_more_answers() -> None:
    def width(n: int, confidence: float) -> float:
        low, high = wilson_interval(n // 2, n, confidence)
        return high - low

    assert width(20, 0.8) < width(20, 0.95) < width(20, 0.99)
    assert width(2000, 0.95) < width(200, 0.95) / 3


@pytest.mark.parametrize(("arguments", "words"), [
    ((3, 2), "3 successes of 2"), ((-1, 2), "-1 successes"), ((1, 2, 1.0), "confidence 1.0"),
])  # fmt: skip
def test_wilson_of_what_cannot_be(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wilson_interval(*arguments)


# --- Krippendorff's alpha ----------------------------------------------------------------------------------------------


def test_alpha_by_hand() -> None:
    """Coincidences 00: 2, 11: 4, 01 and 10: 1 each; observed 2/8, expected 2 * 3 * 5 / (8 * 7)."""
    items, values = flat([[0, 1, 0, 1], [0, 1, 1, 1]])
    assert ordinal_alpha(items, values) == pytest.approx(1 - (2 / 8) / (30 / 56))


def test_alpha_of_the_reference() -> None:
    inputs, expected = golden("agreement/krippendorff_wikipedia")
    items, values = flat(inputs["reliability_data_raters_by_units"])
    alpha = ordinal_alpha(items, values)
    assert alpha == pytest.approx(expected["ordinal"], abs=1e-8)
    assert ordinal_alpha(items, 7 + 10 * values) == pytest.approx(alpha), "only the order of the values counts"


def test_a_spammer_ruins_the_alpha_of_the_reference() -> None:
    inputs, _ = golden("agreement/krippendorff_wikipedia")
    table = inputs["reliability_data_raters_by_units"]
    spammer = [[4, 1, 4, 1, 4, 1, 1, 4, 1, 4, 4, 1, 1, 4, 1]]
    before, after = ordinal_alpha(*flat(table)), ordinal_alpha(*flat(table + spammer))
    assert before is not None and after is not None
    assert before > 0.8 and after < 0.4


def test_alpha_where_it_says_nothing() -> None:
    same = flat([[1, 2, 3, 1], [1, 2, 3, 1], [1, None, 3, None]])
    assert ordinal_alpha(*same) == 1.0, "perfect agreement"
    assert ordinal_alpha(*flat([[3, 3, 3], [3, 3, 3]])) is None, "everyone always says the same"
    assert ordinal_alpha(*flat([[1, 2, None, None], [None, None, 3, 4]])) is None, "nobody overlaps"
    assert ordinal_alpha(*flat([[1, 1, 4, None], [1, 1, None, 5]])) is None, "the only other answers stand alone"
    assert ordinal_alpha(*flat([])) is None


# --- Dawid and Skene --------------------------------------------------------------------------------------------------


def test_the_reference_aggregation() -> None:
    """crowd-kit: the same labels, and the same probabilities and confusion, in far less than the tolerance of 1e-3."""
    inputs, expected = golden("aggregation/dawid_skene_crowdkit")
    items, annotators, answers = (np.array([int(str(row[i]).strip("tw")) for row in inputs["rows"]]) for i in range(3))
    fitted = dawid_skene(items, annotators, answers, 3, tolerance=1e-12)
    assert fitted.posteriors.argmax(1).tolist() == expected["labels"]
    np.testing.assert_allclose(fitted.posteriors.max(1), expected["p_of_label"], atol=1e-7)
    for name, diagonal in expected["confusion_diagonal_p_obs_eq_true"].items():
        for k, probability in diagonal.items():
            assert fitted.confusion[int(name[1]), int(k), int(k)] == pytest.approx(probability, abs=1e-6)
    right = (fitted.posteriors.argmax(1) == inputs["truth"]).mean()
    assert right == expected["accuracy_ds"] >= expected["accuracy_majority"]
    assert (np.diff(fitted.accuracies()) < 0).all(), "they were simulated from good to adversarial"
    assert fitted.kappas()[4] == 0, "the adversary"


@pytest.mark.parametrize("seed", range(3))
def test_reliabilities_are_recovered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    accuracies = np.array([0.95, 0.9, 0.85, 0.75, 0.65, 0.5, 0.2])
    truth = rng.integers(0, 2, 1000)
    items, annotators = (a.ravel() for a in np.meshgrid(np.arange(1000), np.arange(7)))
    asked = rng.random(7000) < 0.7  # not everyone answers everything
    asked[:1000] = True  # but someone every item
    items, annotators = items[asked], annotators[asked]
    answers = np.where(rng.random(len(items)) < accuracies[annotators], truth[items], 1 - truth[items])
    fitted = dawid_skene(items, annotators, answers, 2, smoothing=0.5)
    np.testing.assert_allclose(fitted.accuracies(), accuracies, atol=0.05)
    np.testing.assert_allclose(fitted.kappas(), np.maximum(2 * accuracies - 1, 0), atol=0.1)
    majority = np.bincount(items, answers) / np.bincount(items) > 0.5
    assert (fitted.posteriors.argmax(1) == truth).mean() > (majority == truth).mean()


def test_kappa_by_hand() -> None:
    ordinal = [[0.8, 0.2, 0.0], [0.1, 0.8, 0.1], [0.0, 0.2, 0.8]]  # one step off
    far = [[0.8, 0.0, 0.2], [0.0, 1.0, 0.0], [0.2, 0.0, 0.8]]  # from one end to the other
    fitted = DawidSkene(np.zeros((1, 3)), np.array([ordinal, far]), np.full(3, 1 / 3))
    # answers of the first: P = .3, .4, .3; apart (.2 + .2 + .2) / 3 = .2; by chance (1.4 + .8 + ...) / 3
    chance = (2 * (0.4 + 4 * 0.3) + (0.3 + 0.3)) / 3
    assert fitted.kappas()[0] == pytest.approx(1 - 0.2 / chance)
    assert fitted.accuracies().tolist() == pytest.approx([0.8, 2.6 / 3])
    assert fitted.kappas()[1] < fitted.kappas()[0], "more often right, but wrong by far"
    both = DawidSkene(np.zeros((1, 2)), np.array([[[0.9, 0.1], [0.1, 0.9]], [[1, 0], [1, 0]]]), np.full(2, 0.5))
    assert both.kappas().tolist() == pytest.approx([0.8, 0.0]), "2 * .9 - 1, and whoever always says the same"


@pytest.mark.parametrize(("arrays", "words"), [
    (([0, 1], [0], [0]), "2 items, 1 annotators and 1 answers"), (([], [], []), "0 items"),
    (([0], [0], [2]), "answers from 2 to 2, expected 0 to 1"), (([0], [0], [-1]), "answers from -1"),
])  # fmt: skip
def test_what_cannot_be_fitted(arrays: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dawid_skene(*(np.array(a, dtype=np.int64) for a in arrays), 2)


# --- rank correlation -------------------------------------------------------------------------------------------------


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation(np.array([1, 2, 3]), np.array([9, 8, -70])) == pytest.approx(-1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([5, 5, 5])) is None
