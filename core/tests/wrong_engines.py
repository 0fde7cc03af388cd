"""Wrong engines. Each fails one check, and what it derives from fails none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from rlhf_core.policies.decoding import Compaction


class Draws(Compaction):
    """An engine as it should be."""


def at(sampling, **changes):
    return sampling.model_copy(update=changes)


class LeavesJunk(Draws):
    def draw(self, *arguments, **options):
        drawn = super().draw(*arguments, **options)
        return replace(drawn, logprobs=drawn.logprobs.masked_fill(~drawn.attention, -1.0))


class NeverTruncates(Draws):
    def draw(self, *arguments, **options):
        drawn = super().draw(*arguments, **options)
        return replace(drawn, truncated=torch.zeros_like(drawn.truncated))


class RecordsWhatItWishes(Draws):
    def draw(self, policy, prompts, sampling, **options):
        drawn = super().draw(policy, prompts, sampling, **options)
        return replace(drawn, logprobs=drawn.logprobs + (sampling.heat == 0.7) * 0.01 * drawn.attention)


class ValuesTheNextState(Draws):
    def draw(self, *arguments, **options):
        drawn = super().draw(*arguments, **options)
        return replace(drawn, values=drawn.values.roll(-1, 1) * drawn.attention)


class RemembersWeights(Draws):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.known = {}

    def draw(self, policy, prompts, sampling, **options):
        key = f"{prompts} {sampling} {options}"
        if key not in self.known:
            self.known[key] = super().draw(policy, prompts, sampling, **options)
        return self.known[key]


class ForgetsTopK(Draws):
    def draw(self, policy, prompts, sampling, **options):
        return super().draw(policy, prompts, at(sampling, top_k=0), **options)


class ForgetsTheLeast(Draws):
    def draw(self, policy, prompts, sampling, **options):
        return super().draw(policy, prompts, at(sampling, min_new_tokens=0), **options)


class ForgetsToStop(Draws):
    def draw(self, policy, prompts, sampling, **options):
        return super().draw(policy, prompts, at(sampling, stop=()), **options)


class ForgetsTheSeed(Draws):
    def draw(self, policy, prompts, sampling, *, seed, sample_ids):
        return super().draw(policy, prompts, sampling, seed=0, sample_ids=sample_ids)


class TouchesRandomness(Draws):
    def draw(self, *arguments, **options):
        torch.rand(1)
        return super().draw(*arguments, **options)


RIGHT: list[tuple[str, type[Any]]] = [("engine", Draws)]
MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("engine", LeavesJunk, "responses_have_their_form", "logprobs is not 0 in padding"),
    ("engine", NeverTruncates, "responses_end_where_they_say", "truncated=False for the ids ["),
    ("engine", RecordsWhatItWishes, "recorded_logprobs_equal_rescored_ones", "at temperature 0.7 recorded and rescored"),
    ("engine", ValuesTheNextState, "recorded_values_equal_evaluated_ones", "value the state before each token"),
    ("engine", RemembersWeights, "draws_with_the_weights_of_now", "after training, tokens drawn at temperature 0"),
    ("engine", ForgetsTopK, "top_k_is_kept", "with top_k: 2 it draws other tokens than the two likeliest"),
    ("engine", ForgetsTheLeast, "least_length_is_kept", "with min_new_tokens: 5; expected at least 5"),
    ("engine", ForgetsToStop, "stop_strings_are_kept", "a response that ends with the token that completes it"),
    ("engine", ForgetsTheSeed, "the_seed_decides", "another seed draws the same tokens"),
    ("engine", TouchesRandomness, "leaves_the_policy_as_it_was", "it draws from torch's own generator"),
]  # fmt: skip
