"""People whose taste is known: a hidden rule over words, and noisy judgements by it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rlhf_core.interfaces import Context
from rlhf_core.records import Comparison, Feedback, Prompt, Rating, Sample
from rlhf_plugin_linear.config import LinearRewardConfig
from rlhf_plugin_linear.reward import LinearReward
from scipy.stats import spearmanr

TALK = (
    "please thanks sorry help soon today maybe wait call later stop never wrong broken manual again page link cable "
    "tray router invoice refund order money name desk screen light paper"
)
ENGLISH = TALK.split()
CHARACTERS = "请谢抱歉帮助快今天也许等候电话以后停止永错误责任手册再网页链接数据线纸盒路由发票退款"
TOPICS = {
    "wifi": "restart the router",
    "printer": "clean the tray",
    "refund": "pay the money",
    "screen": "check a cable",
}

Say = Callable[[], tuple[str, float]]
"""Draws a text and its true score."""


def make_reward(seed: int = 0, **config: Any) -> LinearReward:
    return LinearReward(LinearRewardConfig(**config), Context("reward", "mine", seed))


def hidden_rule(language: str, rng: random.Random) -> Say:
    """Ten of thirty words please or displease; Chinese ones are two characters, shared among words, and unspaced."""
    words = ENGLISH
    if language == "zh":
        pairs = [a + b for a in sorted(set(CHARACTERS)) for b in sorted(set(CHARACTERS)) if a != b]
        words = rng.sample(pairs, 30)
    worth = {word: rng.choice([-1, 1]) * rng.uniform(0.7, 1.5) for word in rng.sample(words, 10)}

    def say() -> tuple[str, float]:
        said = rng.choices(words, k=rng.randint(4, 8))
        return ("" if language == "zh" else " ").join(said), sum(worth.get(word, 0.0) for word in said)

    return say


def compared(say: Say, rng: random.Random, count: int) -> list[Feedback]:
    """Bradley-Terry: a is preferred to b with probability sigmoid(truth(a) - truth(b))."""
    records: list[Feedback] = []
    for number in range(count):
        (a, worth_a), (b, worth_b) = say(), say()
        if a != b:
            a_wins = rng.random() < 1 / (1 + math.exp(worth_b - worth_a))
            ranks = (0, 1) if a_wins else (1, 0)
            records.append(Comparison(prompt=f"case {number % 97}", responses=(a, b), ranks=ranks))
    return records


def rated(say: Say, rng: random.Random, count: int) -> list[Feedback]:
    """Stars from 1 to 5: the truth around 3, with noise of half its spread."""
    records: list[Feedback] = []
    for number in range(count):
        text, worth = say()
        stars = min(5, max(1, round(3 + 0.7 * worth + rng.gauss(0, 0.5))))
        records.append(Rating(prompt=f"case {number % 97}", response=text, score=stars, scale=(1, 5)))
    return records


def agreement(reward: LinearReward, fresh: Iterable[tuple[str, str, float]]) -> float:
    """Spearman correlation of scores and true scores over (prompt, response, truth)."""
    rows = list(fresh)
    scores = reward.score([Sample(Prompt(text=prompt), response) for prompt, response, _ in rows]).values
    return float(spearmanr(scores.numpy(), [truth for *_, truth in rows]).statistic)


def desk(rng: random.Random, count: int) -> list[tuple[str, str, float]]:
    """(prompt, response, truth): the remedy of the prompt's own topic earns 2, thanks earn 1."""
    rows = []
    for _ in range(count):
        topic, other = rng.choice(sorted(TOPICS)), rng.choice(sorted(TOPICS))
        thanks = rng.random() < 0.5
        response = " ".join(["Thanks."] * thanks + [f"You can {TOPICS[other]}."])
        rows.append((f"My {topic} is {rng.choice(['bad', 'slow', 'odd'])}", response, 2.0 * (topic == other) + thanks))
    return rows


def desk_pairs(rng: random.Random, count: int) -> list[Comparison]:
    rows = []
    while len(rows) < count:
        (prompt, a, worth_a), (_, b, _) = desk(rng, 2)
        topic = prompt.split()[1]
        worth_b = 2.0 * (TOPICS[topic] in b) + b.startswith("Thanks")
        if a != b:
            ranks = (0, 1) if rng.random() < 1 / (1 + math.exp(2 * (worth_b - worth_a))) else (1, 0)
            rows.append(Comparison(prompt=prompt, responses=(a, b), ranks=ranks))
    return rows


def values(reward: LinearReward, responses: Sequence[str], prompt: str = "Hello") -> list[float]:
    return reward.score([Sample(Prompt(text=prompt), response) for response in responses]).values.tolist()
