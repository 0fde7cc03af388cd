"""Two small classifiers: how a response feels, and whether its sentences stand in a sensible order.

Coherence is the shuffle test (Barzilay and Lapata, 2008, Computational Linguistics 34): people's own texts against the
same texts with their sentences in another order. Both read prompt and response with a network of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import factorial
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from rlhf_core.interfaces import LossSum, StepStats, SupervisedTask
from rlhf_core.randomness import derive_seed
from rlhf_core.records import Comparison, Demonstration, Edit, Feedback, Sample, Scores, Sentiment
from rlhf_core.rewards import TextNetwork, TextReward
from torch import Tensor, nn

from .config.learned import CoherenceRewardConfig, SentimentRewardConfig
from .text import script, sentences

LABELS = ("negative", "neutral", "positive")


@dataclass(frozen=True)
class Labelled:
    """A text as ids, the number of its class, and how much it counts."""

    ids: list[int]
    label: int
    weight: float


class LabelTask(SupervisedTask):
    """The weighted mean over texts of the cross-entropy of their classes."""

    def __init__(self, reward: TextReward[Any], train: Sequence[Labelled], held_out: Sequence[Labelled]) -> None:
        self.reward, self.module = reward, reward.network
        self.train, self.held_out = train, held_out

    def size(self, example: Labelled) -> int:
        return len(example.ids)

    def count(self, example: Labelled) -> float:
        return example.weight

    def loss(self, examples: Sequence[Labelled]) -> LossSum:
        logits = self.reward.outputs([e.ids for e in examples])  # (B, classes)
        labels = torch.tensor([e.label for e in examples], device=logits.device)
        weight = torch.tensor([e.weight for e in examples], dtype=logits.dtype, device=logits.device)
        losses = F.cross_entropy(logits, labels, reduction="none")
        right = float((weight * (logits.argmax(1) == labels)).sum())
        return LossSum((weight * losses).sum(), sum(e.weight for e in examples), {"accuracy": right})

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Labelled]) -> StepStats:
        """`accuracy`, `majority` (that of always saying the most frequent class), `loss` and the number of `texts`."""
        logits = self.reward.predict([e.ids for e in examples]).float().cpu()
        labels = torch.tensor([e.label for e in examples])
        return {
            "accuracy": float((logits.argmax(1) == labels).float().mean()),
            "majority": float(labels.bincount().max()) / len(examples),
            "loss": float(F.cross_entropy(logits, labels)),
            "texts": float(len(examples)),
        }


class SentimentReward(TextReward[SentimentRewardConfig]):
    """From -1, surely negative, to 1, surely positive."""

    def make_network(self, trunk: nn.Module, hidden_size: int) -> TextNetwork:
        return TextNetwork(trunk, hidden_size, self.config.pooling, self.generator(), outputs=len(LABELS))

    def task(self, feedback: Iterable[Feedback]) -> SupervisedTask:
        return LabelTask(self, *self.split(feedback, (Sentiment,), self._labelled))

    def _labelled(self, record: Sentiment) -> list[Labelled]:
        return [Labelled(self.encode(record.prompt, record.response), LABELS.index(record.label), record.weight)]

    def score(self, samples: Sequence[Sample]) -> Scores:
        shares = self._shares(samples)
        return Scores(shares[:, 2] - shares[:, 0])

    def _shares(self, samples: Sequence[Sample]) -> Tensor:
        """(B, 3) probabilities of the labels."""
        texts = [self.encode(sample.prompt, sample.response) for sample in samples]
        return self.predict(texts).float().softmax(-1)


class CoherenceReward(TextReward[CoherenceRewardConfig]):
    """Probability that the sentences of a response are in their order, from 0 to 1; 1/2 for less than two sentences.

    Learns from what people wrote or preferred: demonstrations, the edited text of edits, the best of comparisons.
    """

    def make_network(self, trunk: nn.Module, hidden_size: int) -> TextNetwork:
        return TextNetwork(trunk, hidden_size, self.config.pooling, self.generator(), outputs=2)

    def task(self, feedback: Iterable[Feedback]) -> SupervisedTask:
        return LabelTask(self, *self.split(feedback, (Demonstration, Edit, Comparison), self._against_shuffled))

    def _against_shuffled(self, record: Demonstration | Edit | Comparison) -> Iterator[Labelled]:
        """The text and shuffled versions of it, which together weigh as much; nothing of less than two sentences."""
        if isinstance(record, Demonstration):
            text = record.response
        else:
            text = record.edited if isinstance(record, Edit) else record.best
        rng = Random(derive_seed(self.context.seed, self.context.where, record.id))
        versions = list(shuffled(text, rng, self.config.shuffles))
        if versions:
            yield Labelled(self.encode(record.prompt, text), 1, record.weight)
        for version in versions:
            yield Labelled(self.encode(record.prompt, version), 0, record.weight / len(versions))

    def score(self, samples: Sequence[Sample]) -> Scores:
        texts = [self.encode(sample.prompt, sample.response) for sample in samples]
        values = self.predict(texts).float().softmax(-1)[:, -1]
        several = torch.tensor([len(sentences(s.response)) > 1 for s in samples], dtype=torch.bool)
        return Scores(torch.where(several.to(values.device), values, 0.5))


def shuffled(text: str, rng: Random, count: int) -> Iterator[str]:
    """Up to `count` different texts with the sentences of `text` in another order; none if that gives no other text.

    White space around the text stays; between sentences stands one space, or none in scripts that put none.
    """
    parts = [text[start:end] for start, end in sentences(text)]
    start = len(text) - len(text.lstrip())
    join = " " if script(text) == "spaced" else ""
    seen = {join.join(parts)}
    for _ in range(4 * count):  # of two sentences there is one other order only
        if len(seen) > min(count, factorial(len(parts)) - 1):
            return
        rng.shuffle(parts)
        version = join.join(parts)
        if version not in seen:
            seen.add(version)
            yield text[:start] + version
