"""The two small classifiers of the plugin, against known truths, in English and in Chinese."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context
from rlhf_core.records import Comparison, Demonstration, Edit, Feedback, Prompt, Sample, Sentiment
from rlhf_plugin_rules.config.learned import CoherenceRewardConfig, SentimentRewardConfig
from rlhf_plugin_rules.learned import CoherenceReward, SentimentReward, shuffled
from scipy.stats import spearmanr

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
WORDS = {
    "en": (
        ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "no", "dog"],
        ["lovely", "kind"],
        ["awful", "rude"],
        " ",
    ),
    "zh": (list("今天天气猫坐在垫子上看见狗"), ["可爱", "友好"], ["糟糕", "粗鲁"], ""),
}


def made(cls: Any, schema: Any, records: Sequence[Feedback], seed: int = 0, **config: Any) -> Any:
    fresh = {"architecture": "llama", "sizes": SIZES, "tokenizer": {"text": ["texts"], "vocab_size": 340}}
    context = Context("reward", "learnt", seed, resolve=lambda kind, id: records[:200])
    defaults = {"fresh": fresh, "learning_rate": 3e-3, "epochs": 2, "batch_size": 16}
    return cls(schema.model_validate({**defaults, **config}), context)


def reply(rng: random.Random, language: str) -> tuple[str, int]:
    plain, good, bad, join = WORDS[language]
    words = rng.choices(plain, k=rng.randint(4, 8))
    extra = [rng.choice([(rng.choice(good), 1), (rng.choice(bad), -1)]) for _ in range(rng.randint(0, 3))]
    words += [word for word, _ in extra]
    rng.shuffle(words)
    return join.join(words), sum(sign for _, sign in extra)


def sentiments(count: int, seed: int, language: str) -> list[Sentiment]:
    """Labels of what the words feel like, one in ten of them wrong."""
    rng = random.Random(seed)
    records = []
    for i in range(count):
        text, tone = reply(rng, language)
        label = "positive" if tone > 0 else "negative" if tone < 0 else "neutral"
        if rng.random() < 0.1:
            label = rng.choice(["positive", "neutral", "negative"])
        records.append(Sentiment(prompt=f"{i}:", response=text, label=label))
    return records


@pytest.mark.parametrize(("language", "seed"), [("en", 0), ("en", 1), ("en", 2), ("zh", 0)])
def test_the_learnt_sentiment_agrees_with_the_truth(language: str, seed: int) -> None:
    records = sentiments(700, seed, language)
    reward = made(SentimentReward, SentimentRewardConfig, records, seed)
    metrics = reward.fit(records)
    rng = random.Random(100 + seed)
    texts, tones = zip(*[reply(rng, language) for _ in range(300)], strict=True)
    values = reward.score([Sample(Prompt(text="new:"), text) for text in texts]).values
    assert spearmanr(values, tones).statistic > 0.8, metrics
    assert bool((values.abs() <= 1).all())
    assert metrics["accuracy"] > metrics["majority"] + 0.1


def story(rng: random.Random, language: str) -> str:
    """Four sentences that count upwards: only their order can tell them from a shuffled story."""
    if language == "zh":
        return "".join(f"{when}猫看见{rng.choice('狗鸟鱼人')}。" for when in ("首先", "然后", "接着", "最后"))
    things = ["dog", "bird", "fish", "man"]
    return " ".join(f"{when} the cat saw a {rng.choice(things)}." for when in ("First", "Then", "Next", "Last"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_learnt_coherence_tells_order_from_disorder_on_fresh_stories(language: str) -> None:
    rng = random.Random(0)
    records = [Demonstration(prompt=f"{i}:", response=story(rng, language)) for i in range(250)]
    reward = made(CoherenceReward, CoherenceRewardConfig, records, epochs=3)
    metrics = reward.fit(records)
    fresh = [story(rng, language) for _ in range(60)]
    mixed = [next(shuffled(text, rng, 1)) for text in fresh]
    whole, broken = (reward.score([Sample(Prompt(text="new:"), t) for t in texts]).values for texts in (fresh, mixed))
    assert float((whole > broken).float().mean()) > 0.9, metrics
    assert metrics["majority"] == 0.5 < 0.8 < metrics["accuracy"]


def test_one_sentence_has_no_order() -> None:
    records = [Demonstration(prompt="p", response="One. Two.")]
    reward = made(CoherenceReward, CoherenceRewardConfig, records)
    values = reward.score([Sample(Prompt(text="p"), text) for text in ("", "One.", "One. Two.")]).values
    assert values[:2].tolist() == [0.5, 0.5] and float(values[2]) != 0.5


def test_shuffling_keeps_the_sentences_and_changes_their_order() -> None:
    text = " One is here. Two? Three!"
    versions = list(shuffled(text, random.Random(0), 5))
    assert len(set(versions)) == 5 and text not in versions
    for version in versions:
        assert version.startswith(" ") and sorted(version) == sorted(text)
    assert list(shuffled("Yes. No.", random.Random(0), 3)) == ["No. Yes."]
    assert list(shuffled("甲。乙。", random.Random(0), 3)) == ["乙。甲。"]
    assert list(shuffled("Same. Same.", random.Random(0), 3)) == []
    assert list(shuffled("Alone.", random.Random(0), 3)) == []


def test_what_coherence_learns_from_and_how_much_it_weighs() -> None:
    records = [
        Demonstration(prompt="a", response="1 x. 2 y. 3 z.", weight=2.0),
        Edit(prompt="b", original="bad", edited="1 x. 2 y."),
        Comparison(prompt="c", responses=("bad", "1 x. 2 y."), ranks=(1, 0)),
        Demonstration(prompt="d", response="Alone."),
    ]
    task = made(CoherenceReward, CoherenceRewardConfig, records, shuffles=2, held_out=0.0).task(records)
    assert [(e.label, e.weight) for e in task.train] == [(1, 2), (0, 1), (0, 1), (1, 1), (0, 1), (1, 1), (0, 1)]


def test_the_loss_by_hand() -> None:
    records = [
        Sentiment(prompt="p", response=r, label=label, weight=w)
        for r, label, w in (("a", "positive", 1), ("b", "negative", 3))
    ]
    reward = made(SentimentReward, SentimentRewardConfig, records, held_out=0.0)
    task = reward.task(records)
    reward.outputs = lambda texts: torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.25, 0.25, 0.5]]))
    found = task.loss(task.train)
    assert float(found.total) == pytest.approx(0.6931 + 3 * 1.3863, abs=1e-3)  # log 2 + 3 log 4
    assert (found.count, found.stats) == (4, {"accuracy": 1})


def test_feedback_of_another_kind() -> None:
    records: list[Any] = [Demonstration(prompt="p", response="One. Two.")]
    with pytest.raises(DataError, match=r"reward 'learnt': feedback of kind 'demonstration'; expected sentiments"):
        made(SentimentReward, SentimentRewardConfig, records).fit(records)
    with pytest.raises(DataError, match="expected demonstrations or edits or comparisons"):
        made(CoherenceReward, CoherenceRewardConfig, records).fit(
            [Sentiment(prompt="p", response="r", label="neutral")]
        )
