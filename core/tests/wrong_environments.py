"""Wrong environments. Each fails one check, and what it derives from fails none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from rlhf_core.records import Prompt, Sample
from rlhf_core.rl.environment import SingleTurn


class Speaks(SingleTurn):
    """An environment as it should be."""


class Opens(SingleTurn):
    """One that has the first word: the mask has a hole there."""

    word = " Well,"

    def rollout(self, policy, prompts, sampling, *, seed, sample_ids):
        opened = [Prompt(text=prompt.render() + self.word) for prompt in prompts]
        drawn = policy.generate(opened, sampling, seed=seed, sample_ids=sample_ids)
        word = policy.codec.tokenizer(self.word, add_special_tokens=False).input_ids
        rows = [(*word, *sample.response_ids) for sample in drawn.samples]
        samples = [Sample(p, policy.codec.decode(ids), ids) for p, ids in zip(prompts, rows, strict=True)]
        rollout = policy.encode(samples, temperature=sampling.heat)
        return rollout.replace(
            mask=self.mask(rollout, len(word)), truncated=drawn.truncated, sample_ids=drawn.sample_ids
        )

    def mask(self, rollout, size):
        return rollout.attention & (torch.arange(rollout.attention.shape[1]) >= size)


class TellsItsOwnPrompt(Speaks):
    def rollout(self, policy, prompts, sampling, **options):
        told = [Prompt(text=f"Please. {prompt.render()}") for prompt in prompts]
        return super().rollout(policy, told, sampling, **options)


class NumbersFromZero(Speaks):
    def rollout(self, *arguments, **options):
        rollout = super().rollout(*arguments, **options)
        return rollout.replace(sample_ids=torch.arange(len(rollout)))


class TellsOtherText(Speaks):
    def rollout(self, *arguments, **options):
        rollout = super().rollout(*arguments, **options)
        return rollout.replace(samples=tuple(replace(s, response=f"Well, {s.response}") for s in rollout.samples))


class LearnsWhatItSaid(Opens):
    def mask(self, rollout, size):
        return rollout.attention


class LearnsNothing(Speaks):
    def rollout(self, *arguments, **options):
        rollout = super().rollout(*arguments, **options)
        return rollout.replace(mask=torch.zeros_like(rollout.mask))


class HidesWhatWasRead(Speaks):
    """The policy reads more than the rollout says."""

    def rollout(self, policy, prompts, sampling, **options):
        told = [Prompt(text=f"Please. {prompt.render()}") for prompt in prompts]
        drawn = super().rollout(policy, told, sampling, **options)
        samples = tuple(replace(s, prompt=prompt) for s, prompt in zip(drawn.samples, prompts, strict=True))
        given = policy.encode(samples)
        return drawn.replace(samples=samples, prompt_ids=given.prompt_ids, prompt_mask=given.prompt_mask)


class ForgetsTheSeed(Speaks):
    def rollout(self, policy, prompts, sampling, *, seed, sample_ids):
        return super().rollout(policy, prompts, sampling, seed=0, sample_ids=sample_ids)


class DrawsByPlace(Speaks):
    def rollout(self, policy, prompts, sampling, *, seed, sample_ids):
        rollout = super().rollout(policy, prompts, sampling, seed=seed, sample_ids=range(len(prompts)))
        return rollout.replace(sample_ids=torch.tensor(list(sample_ids)))


class TouchesRandomness(Speaks):
    def rollout(self, *arguments, **options):
        torch.rand(1)
        return super().rollout(*arguments, **options)


RIGHT = [("environment", Speaks), ("environment", Opens)]
MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("environment", TellsItsOwnPrompt, "rollouts_have_their_form", "with the prompt as it was given"),
    ("environment", NumbersFromZero, "rollouts_have_their_form", "sample_ids are not those that were given"),
    ("environment", TellsOtherText, "rollouts_have_their_form", "Sample.response is not the text of response_ids"),
    ("environment", LearnsWhatItSaid, "only_its_own_tokens_are_learnt", "mask is True on ' Well,"),
    ("environment", LearnsNothing, "only_its_own_tokens_are_learnt", "mask is False everywhere"),
    ("environment", HidesWhatWasRead, "recorded_logprobs_equal_rescored_ones", "hold all that the policy had read"),
    ("environment", ForgetsTheSeed, "the_seed_decides", "another seed gives the same tokens; expected other ones"),
    ("environment", DrawsByPlace, "the_rest_of_the_batch_changes_nothing", "hand `sample_ids` on, those of each row"),
    ("environment", TouchesRandomness, "leaves_its_inputs_alone", "it draws from torch's own generator"),
]  # fmt: skip
