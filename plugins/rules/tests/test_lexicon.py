"""Keywords that are learnt: what people want and do not want becomes weights."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest
from rlhf_core import records
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.records import Feedback, Prompt, Rating, Sample
from rlhf_plugin_rules.keywords import Keywords

from .toys import build, spearman


def said(*wanted: str, no: tuple[str, ...] = (), prompt: str = "Hello", weight: float = 1.0) -> records.Keywords:
    return records.Keywords(prompt=Prompt(text=prompt), wanted=wanted, unwanted=no, weight=weight)


def fitted(feedback: list[Feedback], **config: object) -> Keywords:
    model: Keywords = build(Keywords, **{"held_out": 0.0, "min_count": 1, **config})
    model.fit(feedback)
    return model


def reward(model: Keywords, response: str) -> float:
    return float(model.score([Sample(Prompt(text="Hello"), response)]).values)


# --- weights by hand -------------------------------------------------------------------------------------------------


def test_a_weight_is_wanted_minus_unwanted_over_all_votes_and_the_doubt() -> None:
    # tea has 4 votes, the others 1 each, so an average word has 2
    model = fitted([said("tea"), said("Tea "), said("tea", "two  cups"), said(no=("tea", "coffee"))])
    assert model.learnt == {"tea": 2 / 6, "two cups": 1 / 3, "coffee": -1 / 3}
    assert reward(model, "Tea or two\ncups of coffee") == pytest.approx(1 / 3)


def test_records_vote_with_their_weight() -> None:
    votes: list[Feedback] = [said("tea", weight=0.5), said(no=("tea",), weight=2.0), said("milk", weight=0.0)]
    model = fitted(votes, shrinkage=0.2)
    assert model.learnt == {"tea": -1.5 / (2.5 + 0.5)}  # who weighs nothing names nothing


def test_words_that_too_few_name_are_not_learnt() -> None:
    votes: list[Feedback] = [said("tea", "milk"), said("tea", "tea"), said(no=("tea",))]
    assert fitted(votes, min_count=3).learnt == {"tea": 1 / 6}
    with pytest.raises(DataError) as error:
        fitted(votes, min_count=4)
    assert str(error.value) == (
        "reward 'rule': no word is named by 4 of 3 records; expected words that people agree on; "
        "give more feedback, or lower min_count"
    )


def test_the_config_wins_over_what_is_learnt_and_both_count() -> None:
    model = fitted([said("Tea", "milk")], prefer={"TEA": 3}, avoid=["coffee"])
    assert [reward(model, text) for text in ("tea", "milk", "coffee")] == [3, 0.5, -1]
    exact = fitted([said("Tea", "milk")], prefer={"TEA": 3}, ignore_case=False)
    assert [reward(exact, text) for text in ("TEA", "Tea", "tea")] == [3, 0.5, 0]


def test_learnt_words_have_spans_and_the_longest_still_wins() -> None:
    model = fitted([said("happy", no=("not happy",))])
    (spans,) = model.score([Sample(Prompt(text="Hello"), "not happy, happy")]).spans or ()
    assert [(s.start, s.end, s.credit) for s in spans] == [(0, 9, -0.5), (11, 16, 0.5)]


def test_the_check_is_on_prompts_that_were_kept_out() -> None:
    prompts = [f"prompt {i}" for i in range(200)]
    out = [p for p in prompts if Prompt(text=p).in_share(0.3)]
    kept = [p for p in prompts if p not in out]
    feedback = [said("tea", no=("mud",), prompt=p) for p in kept]
    # of the held-out votes 3 of 4 are for words that are known, and 2 of these 3 are on the side of their weight
    feedback += [said("tea", "mud", no=("mud", "unheard-of"), prompt=p) for p in out]
    model = build(Keywords, held_out=0.3)
    metrics = model.fit(feedback)
    assert metrics == pytest.approx({"words": 2, "records": len(kept), "coverage": 3 / 4, "agreement": 2 / 3})
    assert set(model.learnt) == {"tea", "mud"}


def test_state_survives_a_checkpoint() -> None:
    model = fitted([said("茶", "a.b/c"), said("tea", no=("mud",))], avoid=["coffee"])
    other = build(Keywords, avoid=["coffee"])
    other.load_state_dict(json.loads(json.dumps(model.state_dict())))
    assert other.learnt == model.learnt
    assert reward(other, "tea a.b/c coffee 喝茶") == reward(model, "tea a.b/c coffee 喝茶") == 0.5


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_scoring_before_fitting_says_what_to_do() -> None:
    with pytest.raises(ConfigError) as error:
        reward(build(Keywords), "tea")
    assert str(error.value) == (
        "reward 'rule': has no keywords yet; expected words under `prefer` or `avoid`, or words learnt from feedback; "
        "list some, or add a fit-reward stage with a feedback source of keywords"
    )


def test_other_feedback_and_empty_words_are_errors() -> None:
    rating = Rating(prompt=Prompt(text="Hello"), response="x", score=1, scale=(0, 1))
    with pytest.raises(DataError, match="feedback of kind 'rating'; expected keywords; name a feedback source of keyw"):
        fitted([rating])
    with pytest.raises(DataError, match="an empty word in the record of prompt 'Hello'; expected words that are not"):
        fitted([said("tea", " ")])


# --- a known lexicon is recovered ------------------------------------------------------------------------------------

ENGLISH = ["please", "thanks", "sorry", "hello", "help", "safe", "kind", "clear", "short", "soon", "gladly", "sure", "refund", "exactly", "welcome", "happy", "proud", "maybe", "never", "stupid", "wrong", "boring", "slow", "ugly", "costly", "late", "rude", "vague", "useless", "sadly", "refuse", "ignore", "broken"]  # fmt: skip
CHINESE = ["谢谢", "您好", "请问", "抱歉", "安全", "清楚", "马上", "欢迎", "高兴", "帮助", "详细", "放心", "优惠", "及时", "耐心", "周到", "满意", "笨蛋", "无聊", "太慢", "错误", "讨厌", "麻烦", "昂贵", "迟到", "粗鲁", "模糊", "没用", "拒绝", "忽视", "损坏", "敷衍", "推脱"]  # fmt: skip
FILLERS = {" ": [f"word{i}" for i in range(60)], "": list("的了在有我他这中大来上国个到说们为子和你地出道也时年得就那")}


class World:
    """People with a lexicon in mind, who name some of the words they read; one vote in four is a slip."""

    def __init__(self, lexicon: list[str], space: str, seed: int) -> None:
        self.random, self.space = random.Random(seed), space
        self.truth = {word: self.random.uniform(-1, 1) for word in lexicon}
        self.vocabulary = lexicon + FILLERS[space]

    def text(self) -> tuple[str, list[str]]:
        words = self.random.choices(self.vocabulary, k=12)
        return self.space.join(words), words

    def feedback(self, count: int) -> Iterator[Feedback]:
        for i in range(count):
            text, words = self.text()
            sides: tuple[set[str], set[str]] = (set(), set())
            for word in words:
                weight = self.truth.get(word, self.random.uniform(-0.2, 0.2))  # whims about words that mean nothing
                if self.random.random() < abs(weight):
                    sides[(weight < 0) ^ (self.random.random() < 0.25)].add(word)
            yield records.Keywords(prompt=Prompt(text=f"question {i}"), response=text, wanted=tuple(sides[0] - sides[1]),
                                   unwanted=tuple(sides[1]))  # fmt: skip

    def fresh(self, count: int) -> tuple[list[str], list[float]]:
        texts = [self.text() for _ in range(count)]
        return [text for text, _ in texts], [sum(self.truth.get(w, 0) for w in set(words)) for _, words in texts]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("lexicon", "space"), [(ENGLISH, " "), (CHINESE, "")], ids=["english", "chinese"])
def test_a_known_lexicon_is_recovered_from_noisy_votes(lexicon: list[str], space: str, seed: int) -> None:
    world = World(lexicon, space, seed)
    model = build(Keywords)
    metrics = model.fit(world.feedback(1000))
    texts, truth = world.fresh(300)
    learnt = model.score([Sample(Prompt(text="Hello"), text) for text in texts]).values.tolist()
    agreement = spearman(learnt, truth)
    print(f"spearman {agreement:.3f}, held-out agreement {metrics['agreement']:.3f}")
    assert agreement >= 0.80
    assert 0.6 < metrics["agreement"] < 0.85  # one vote in four is a slip, so nobody can do better than 0.75 or so


def test_votes_that_mean_nothing_teach_nothing() -> None:
    world = World(ENGLISH, " ", 0)
    noise = random.Random(1)
    feedback = [
        record.model_copy(update={"wanted": record.unwanted, "unwanted": record.wanted})
        if noise.random() < 0.5
        else record
        for record in world.feedback(1000)
        if isinstance(record, records.Keywords)
    ]
    model = build(Keywords)
    assert model.fit(feedback)["agreement"] == pytest.approx(0.5, abs=0.1)
    assert max(abs(model.learnt.get(word, 0.0)) for word in ENGLISH) < 0.5
