"""Reading ratings, making them comparable, and learning from them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context
from rlhf_core.records import Demonstration, Rating, Sample, SpanRating
from rlhf_plugin_rating.config import RatingRewardConfig, RatingsConfig
from rlhf_plugin_rating.normalise import Normaliser
from rlhf_plugin_rating.source import Ratings
from scipy.stats import spearmanr

from .toys import fresh_samples, make_reward, ratings, truth

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def read(folder: Path, *rows: dict[str, Any], **config: Any) -> list[Rating]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = Ratings(RatingsConfig.model_validate({"path": str(path), **config}), Context("feedback", "stars"))
    return list(source)  # type: ignore[arg-type]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_importing_the_plugin_imports_no_torch() -> None:
    code = "import sys, rlhf_plugin_rating.config; assert not {'torch', 'scipy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stars_thumbs_clicks_and_aspects(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "response": "r", "rating": 4, "annotator": 7, "topic": "shop"},
        {"prompt": "p", "completion": "r", "label": True},
        {"prompt": "p", "completion": [{"role": "assistant", "content": "r"}], "label": False},
        {"prompt": "p", "response": "r", "event": "purchase"},
        {"prompt": "p", "response": "r", "event": "glance"},
        {"prompt": "p", "response": "r", "aspects": {"quality": 5, "safety": 2}},
        {"prompt": "p", "response": "r", "rating": 3, "aspects": {"quality": 5, "fluency": None}},
        {"prompt": "p", "response": "r", "rating": 7, "scale": [0, 10]},
    ]
    found = read(tmp_path, *rows, events={"purchase": 1, "glance": 0.25}, aspects={"quality": 1, "safety": 2})
    assert [(r.score, r.scale) for r in found] == [
        (4, (1, 5)), (1, (0, 1)), (0, (0, 1)), (1, (0, 1)), (0.25, (0, 1)), (3, (1, 5)), (3, (1, 5)), (7, (0, 10)),
    ]  # fmt: skip
    assert (found[0].annotator, found[0].prompt.fields) == ("7", {"topic": "shop"})
    assert found[6].aspects == {"quality": 5}
    assert {r.response for r in found} == {"r"}


def test_parts_are_rated_by_span_and_by_token(tmp_path: Path) -> None:
    by_span = {"prompt": "p", "response": "good bad", "rating": 3, "spans": [{"start": 5, "end": 8, "score": 1}]}
    by_token = {"prompt": "p", "response": "good bad", "rating": 3, "tokens": ["good", " ", "bad"],
                "token_ratings": [5, None, 1]}  # fmt: skip
    first, second = read(tmp_path, by_span, by_token)
    assert first.spans == (SpanRating(start=5, end=8, score=1),)
    assert second.spans == (SpanRating(start=0, end=4, score=5), SpanRating(start=5, end=8, score=1))


@pytest.mark.parametrize(("row", "words"), [
    ({"rating": 6}, r"rows.jsonl:1: score is 6.0, outside its scale 1.0 to 5.0"),
    ({"rating": 3, "aspects": {"quality": 0}}, "quality is 0.0, outside its scale"),
    ({"rating": 3, "spans": [{"start": 0, "end": 1, "score": 9}]}, "span 0-1 is 9.0, outside its scale"),
    ({"rating": 3, "spans": [{"start": 0, "end": 99, "score": 3}]}, "a span that ends at 99; expected an end within the 8"),
    ({"rating": 3, "tokens": ["go"], "token_ratings": [1]}, "tokens that joined are the response"),
    ({"event": "nod"}, "event 'nod'; expected one of thumbs_up, .*add it to `events`"),
    ({"label": "maybe"}, "label is 'maybe'; expected true or false"),
    ({"aspects": {"tone": 3}}, "only the aspects tone; expected one of quality"),
    ({"aspects": {"quality": "good"}}, "expected numbers"),
    ({"aspects": [1]}, "expected an object of ratings by aspect"),
    ({}, "expected one of rating, aspects, label, event; map it in the config"),
    ({"rating": "four"}, "score: Input should be a valid number"),
])  # fmt: skip
def test_bad_rows_are_told_or_counted(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    bad, good = {"prompt": "p", "response": "good bad", **row}, {"prompt": "p", "response": "r", "rating": 3}
    with pytest.raises(DataError, match=words):
        read(tmp_path, bad, aspects={"quality": 1})
    with pytest.warns(UserWarning, match="skipped 1 bad records"):
        assert len(read(tmp_path, bad, good, aspects={"quality": 1}, on_bad_record="skip")) == 1


@pytest.mark.parametrize(("config", "words"), [
    ({"scale": [5, 1]}, "scale goes from the lowest to the highest"),
    ({"events": {"click": 2}}, "less than or equal to 1"),
])  # fmt: skip
def test_source_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RatingsConfig.model_validate({"path": "x", **config})


# --- making ratings comparable ---------------------------------------------------------------------------------------


def test_normalisation_by_hand() -> None:
    """Ten ratings by a, five by b: mean 2, variance 2/3. a: mean 1.5, variance .25; b: mean 3, variance 0."""
    given = [("a", r) for r in [1, 2] * 5] + [("b", 3.0)] * 5
    found = Normaliser.of(given, 5.0, per_annotator=True)
    variance = (5 * 1 + 5 * 0 + 5 * 1) / 15
    assert (found.mean, found.deviation) == (2, pytest.approx(math.sqrt(variance)))
    bias, spread = found.annotators["a"]  # share 10 / 15
    assert bias == pytest.approx(2 / 3 * -0.5)
    assert spread == pytest.approx(math.sqrt(2 / 3 * 0.25 + 1 / 3 * variance))
    assert found.annotators["b"] == pytest.approx((0.5 * 1, math.sqrt(0.5 * variance)))
    assert found.z("a", 1.5) == pytest.approx((1.5 - 2 + 1 / 3) / spread)
    assert found.z(None, 3.0) == found.z("unknown", 3.0) == pytest.approx(1 / math.sqrt(variance))


def test_one_record_moves_its_annotator_little_and_no_shrinkage_moves_all_the_way() -> None:
    given = [("crowd", r) for r in [1.0, 2, 3, 4, 5] * 4] + [("new", 5.0)]
    careful, trusting = (Normaliser.of(given, s, per_annotator=True) for s in (5.0, 0.0))
    assert 1.0 < careful.z("new", 5.0) < Normaliser.of(given, 5.0, per_annotator=False).z("new", 5.0)
    assert trusting.z("new", 5.0) == 0, "their only rating is their usual one"


def test_full_agreement_says_nothing_and_is_finite() -> None:
    same = Normaliser.of([("a", 3.0), ("b", 3.0)], 5.0, per_annotator=True)
    assert same.z("a", 3.0) == same.z("c", 5.0) == 0
    assert Normaliser.of([], 5.0, per_annotator=True).z("a", 1.0) == 0


def test_raters_become_comparable() -> None:
    """What the crowd's harshness and spread hid comes back: the correlation with the truth rises."""
    records = ratings(2000, 3)
    true = [truth(r.response) for r in records]
    raw = float(spearmanr([r.score for r in records], true).statistic)
    normaliser = Normaliser.of([(r.annotator, r.score) for r in records], 5.0, per_annotator=True)
    corrected = float(spearmanr([normaliser.z(r.annotator, r.score) for r in records], true).statistic)
    assert corrected > raw + 0.1


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("loss", ["regression", "ordinal"])
def test_what_is_learnt_agrees_with_the_truth(loss: str, seed: int) -> None:
    reward = make_reward(seed, loss=loss)
    metrics = reward.fit(ratings(800, seed))
    samples = fresh_samples(300, 100 + seed)
    found = spearmanr(reward.score(samples).values, [truth(s.response) for s in samples]).statistic
    assert found > 0.85, (found, metrics)
    assert metrics["spearman"] > 0.5


def test_pairs_of_one_prompt_teach_as_well() -> None:
    reward = make_reward(loss="pairs", epochs=2)
    metrics = reward.fit(ratings(800, 1, per_prompt=3))
    samples = fresh_samples(300, 7)
    assert spearmanr(reward.score(samples).values, [truth(s.response) for s in samples]).statistic > 0.85
    assert metrics["accuracy"] > 0.75


def test_thumbs_are_ordinal_with_two_levels() -> None:
    thumbs = [r.model_copy(update={"score": float(r.score > 3), "scale": (0.0, 1.0)}) for r in ratings(1000, 2)]
    reward = make_reward(loss="ordinal", levels=2)
    reward.fit(thumbs)
    samples = fresh_samples(300, 7)
    values = reward.score(samples).values
    assert bool(((values >= 1) & (values <= 2)).all()), "from 1 to levels"
    assert spearmanr(values, [truth(s.response) for s in samples]).statistic > 0.8


def test_aspects_are_learnt_and_logged_one_by_one() -> None:
    records = []
    for r in ratings(900, 4, steps=False):
        polite, rude = (
            sum(r.response.count(w) for w in words) for words in (("please", "thanks"), ("never", "stupid"))
        )
        aspects = {"politeness": 1.0 + min(polite, 4), "calm": 5.0 - min(rude, 4)}
        records.append(r.model_copy(update={"aspects": aspects, "annotator": None}))
    reward = make_reward(aspects={"politeness": 1, "calm": 3})
    metrics = reward.fit(records)
    assert metrics["spearman/politeness"] > 0.8 < metrics["spearman/calm"]
    samples = fresh_samples(200, 5)
    scores = reward.score(samples)
    assert list(scores.parts) == ["politeness", "calm"]
    torch.testing.assert_close(scores.values, (scores.parts["politeness"] + 3 * scores.parts["calm"]) / 4)
    calm = [-sum(s.response.count(w) for w in ("never", "stupid")) for s in samples]
    assert spearmanr(scores.parts["calm"], calm).statistic > 0.8


def test_rated_spans_become_credit_where_the_words_stand() -> None:
    records = []
    for r in ratings(500, 6):
        spans, start = [], 0
        for word in r.response.split(" "):
            score = {1.0: 5.0, -1.0: 1.0}.get({"please": 1, "thanks": 1, "never": -1, "stupid": -1}.get(word, 0), 3.0)
            if word:
                spans.append(SpanRating(start=start, end=start + len(word), score=score))
            start += len(word) + 1
        records.append(r.model_copy(update={"spans": tuple(spans)}))
    reward = make_reward(span_coef=1.0)
    reward.fit(records)
    samples = fresh_samples(40, 8)
    scores = reward.score(samples)
    alone = torch.cat([reward.score([s]).values for s in samples])
    torch.testing.assert_close(scores.values, alone, atol=1e-4, rtol=1e-4)
    assert scores.spans is not None
    credit: dict[str, list[float]] = {word: [] for word in ("please", "stupid", "cat")}
    for sample, spans in zip(samples, scores.spans, strict=True):
        assert all(0 <= s.start < s.end <= len(sample.response) for s in spans)
        for s in spans:
            for word in credit:
                if sample.response[: s.end].endswith(" " + word):
                    credit[word].append(s.credit)
    mean = {word: sum(values) / len(values) for word, values in credit.items()}
    assert mean["please"] > 0.02 and mean["stupid"] < -0.02 and abs(mean["cat"]) < 0.02, mean


def test_the_losses_by_hand() -> None:
    """Outputs 1 and 0 for ratings that normalise to 1 and -1 (mean 3, deviation 1), the second of weight 3."""
    records = [
        Rating(prompt="p", response=r, score=s, scale=(1, 5), weight=w) for r, s, w in (("a", 4, 1), ("b", 2, 3))
    ]
    for loss, expected in (
        ("regression", 0 + 3 * 1),
        # thresholds 0 for one question: above is .75 and .25 of the only step
        ("ordinal", 0.75 * math.log1p(math.exp(-1)) + 0.25 * math.log1p(math.exp(1)) + 3 * math.log(2)),
    ):
        reward = make_reward(loss=loss, levels=2, normalise=False, held_out=0)
        task = reward.task(records)
        with torch.no_grad():
            reward.network.thresholds.zero_()
        reward.both = lambda texts: (torch.tensor([[1.0], [0.0]]), torch.zeros(2, 5))  # type: ignore[method-assign]
        found = task.loss(task.train)
        assert (float(found.total.detach()), found.count) == (pytest.approx(expected), 4), loss


def test_the_expected_step_by_hand() -> None:
    reward = make_reward(loss="ordinal", levels=3)
    with torch.no_grad():
        reward.network.thresholds.copy_(torch.tensor([[math.log(3), 0.0]]))
    # sigmoid(log 3) + sigmoid(0) = 3/4 + 1/2
    assert float(reward.network.expected(torch.zeros(1, 1))) == pytest.approx(1 + 0.75 + 0.5)


def test_state_restores_every_head() -> None:
    first, second = make_reward(0, span_coef=1.0, loss="ordinal"), make_reward(1, span_coef=1.0, loss="ordinal")
    first.fit(ratings(60, 0))
    second.load_state_dict(first.state_dict())
    samples = fresh_samples(5, 0)
    a, b = first.score(samples), second.score(samples)
    assert a.values.tolist() == b.values.tolist() and a.spans == b.spans


def test_nothing_to_score_and_empty_text() -> None:
    for config in ({}, {"span_coef": 1.0}):
        reward = make_reward(**config)
        assert reward.score([]).values.shape == (0,)
        assert bool(reward.score([Sample(fresh_samples(1, 0)[0].prompt, "")]).values.isfinite().all())


def test_what_cannot_be_learnt_from_is_told() -> None:
    with pytest.raises(DataError, match=r"reward 'stars': feedback of kind 'demonstration'; expected ratings"):
        make_reward().fit([Demonstration(prompt="p", response="r")])
    with pytest.raises(DataError, match=r"2\d ratings without the aspect 'tone'; .*rate it"):
        make_reward(aspects={"tone": 1}).fit(ratings(30, 0))
    with pytest.raises(DataError, match=r"without two of one prompt that differ.*take loss: regression"):
        make_reward(loss="pairs").fit(ratings(30, 0))


@pytest.mark.parametrize(("config", "words"), [
    ({"aspects": {"a": 0}}, "at least one aspect needs a weight above 0"),
    ({"loss": "pairs", "span_coef": 1}, "pairs compare whole ratings"),
])  # fmt: skip
def test_reward_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RatingRewardConfig.model_validate({"model": "m", **config})


@pytest.mark.parametrize(("heading", "config"), [("Feedback", RatingsConfig), ("Reward", RatingRewardConfig)])
def test_the_readme_lists_every_option_of_its_own(heading: str, config: Any) -> None:
    section = README.split(f"\n## {heading} `rating`\n")[1].split("\n## ")[0]
    own = {name for name in config.model_fields if name not in config.__mro__[1].model_fields}
    assert {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")} == own
