"""Wrong rewards. Each fails one check, and what it derives from fails none."""

from __future__ import annotations

from typing import Any

import torch
from rlhf_core.interfaces import OnlineReward, RewardModel
from rlhf_core.records import Scores, Span

from .wrong_everywhere import Plain


class Words(RewardModel[Plain]):
    """A reward as it should be: words per response, and credit for the first character."""

    def values(self, samples):
        return torch.tensor([float(len(s.response.split())) for s in samples])

    def score(self, samples):
        return Scores(self.values(samples), tuple((Span(0, 1, 1.0),) if s.response else () for s in samples))


class OneColumn(Words):
    def score(self, samples):
        return Scores(self.values(samples)[:, None])


class LooksAtTheEnds(Words):
    def values(self, samples):
        return super().values(samples) + float(samples[0].prompt.render() < samples[-1].prompt.render())


class CountsTheBatch(Words):
    def values(self, samples):
        return super().values(samples) + 0.1 * len(samples)


class DividesByLength(Words):
    def values(self, samples):
        return torch.tensor([1 / len(s.response) for s in samples])


class ClearsFields(Words):
    def values(self, samples):
        for sample in samples:
            sample.prompt.fields.clear()
        return super().values(samples)


class SpansBeyond(Words):
    def score(self, samples):
        return Scores(self.values(samples), tuple((Span(0, len(s.response) + 1, 1.0),) for s in samples))


class TakesTheGlobalSeed(Words):
    def values(self, samples):
        return super().values(samples) + torch.initial_seed() % 1000


class RoundsToWhole(Words):
    def values(self, samples):
        values = super().values(samples)
        return values.long() if self.context.dtype == "bfloat16" else values


class ForgetsWhatItLearnt(Words):
    learnt = 0.0

    def fit(self, feedback):
        self.learnt = float(len(list(feedback)))
        return {}

    def values(self, samples):
        return super().values(samples) + self.learnt


class ForgetsItsUpdates(Words, OnlineReward[Plain]):
    updates = 0

    def update(self, rollout, score_logprobs):
        self.updates += 1
        return {}

    def values(self, samples):
        return super().values(samples) + self.updates


RIGHT: list[tuple[str, type[Any]]] = [("reward", Words)]
MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("reward", OneColumn, "one_finite_score_per_sample", "of shape (12, 1) for 12 samples; expected floats of shape (12,)"),
    ("reward", LooksAtTheEnds, "order_does_not_matter", "expected the same scores in any order"),
    ("reward", CountsTheBatch, "batch_size_does_not_matter", "expected the same scores in any batch"),
    ("reward", DividesByLength, "reads_empty_and_very_long_text", "ZeroDivisionError for the response '' of 0 characters"),
    ("reward", ClearsFields, "leaves_its_inputs_alone", "scoring changes the samples"),
    ("reward", SpansBeyond, "spans_lie_inside_the_response", "Span(start=0, end=38, credit=1.0) of 'The shop"),
    ("reward", TakesTheGlobalSeed, "same_seed_same_output", "draw from a generator of its own"),
    ("reward", RoundsToWhole, "works_in_its_dtype", "torch.int64, of which 12 of 12 are finite, in bfloat16 on cpu"),
    ("reward", ForgetsWhatItLearnt, "continues_after_a_checkpoint", "it gives other scores, by up to 5"),
    ("reward", ForgetsItsUpdates, "continues_after_a_checkpoint", "put everything that it learnt into state_dict"),
]  # fmt: skip
