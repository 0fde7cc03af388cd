"""Ratings whose truth is known: a reply is worth its polite words minus its rude ones; raters differ."""

from __future__ import annotations

import random
from typing import Any

from rlhf_core.interfaces import Context
from rlhf_core.records import Prompt, Rating, Sample
from rlhf_plugin_rating.config import RatingRewardConfig
from rlhf_plugin_rating.reward import RatingReward

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "no", "dog", "in", "this", "old", "town"]
WORTH = {"please": 1.0, "thanks": 1.0, "never": -1.0, "stupid": -1.0}
RATERS = {"harsh": (-1.2, 0.6), "mild": (1.0, 0.7), "wide": (0.0, 1.3), "usual": (0.0, 1.0)}  # bias, spread


def reply(rng: random.Random) -> str:
    words = rng.choices(WORDS, k=rng.randint(4, 7)) + rng.choices(list(WORTH), k=rng.randint(0, 3))
    rng.shuffle(words)
    return " " + " ".join(words)


def truth(response: str) -> float:
    return sum(WORTH.get(word, 0.0) for word in response.split())


def ratings(count: int, seed: int, *, noise: float = 0.4, steps: bool = True, per_prompt: int = 1) -> list[Rating]:
    """Ratings from 1 to 5 around 3, by raters with a bias and a spread of their own."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        response, rater = reply(rng), rng.choice(list(RATERS))
        bias, spread = RATERS[rater]
        score = 3 + bias + spread * (truth(response) * 0.7 + rng.gauss(0, noise))
        score = min(max(round(score) if steps else score, 1), 5)
        made.append(Rating(prompt=f"Ask {number // per_prompt}:", response=response, score=score, scale=(1, 5),
                           annotator=rater))  # fmt: skip
    return made


def fresh_samples(count: int, seed: int) -> list[Sample]:
    rng = random.Random(seed)
    return [Sample(Prompt(text=f"New {i}:"), reply(rng)) for i in range(count)]


def make_reward(seed: int = 0, **config: Any) -> RatingReward:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    fresh = {"architecture": "llama", "sizes": sizes, "tokenizer": {"text": ["texts"], "vocab_size": 320}}
    defaults = {"fresh": fresh, "learning_rate": 3e-3, "epochs": 3, "batch_size": 16}
    context = Context("reward", "stars", seed, resolve=lambda kind, id: ratings(100, 9))
    return RatingReward(RatingRewardConfig.model_validate({**defaults, **config}), context)
