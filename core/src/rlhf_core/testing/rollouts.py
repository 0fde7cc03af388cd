"""Example rollouts: with holes, padding, one-token responses, and samples that were abstained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..interfaces import Needs, Policy, Sampling
from ..records import Rollout, Scores
from .records import example_prompts, example_samples

ALL = Needs(values=True, bootstrap=True, entropy=True, top_k=3)
LENGTHS = (5, 1, 7, 3, 6, 2, 7, 4)
"""Tokens of the rows of `example_rollout`."""


def example_rollout(policy: Policy[Any] | None = None, *, seed: int = 0, needs: Needs | None = None) -> Rollout:
    """Eight scored samples, two per prompt, with everything that a rollout can hold.

    With `policy` it samples and evaluates them, and what `needs` asks for beyond all that; without, all numbers are
    made up. Row 0 has a hole in its mask, row 1 is a single token, row 2 was truncated, row 7 is abstained. "Old" and
    reference values lie a little beside today's, so that no ratio is exactly 1. What is masked is 0 in rewards, and
    real or 0 elsewhere.
    """
    noise = torch.Generator().manual_seed(seed)
    rollout = _made_up(noise) if policy is None else _sampled(policy, seed, ALL | (needs or Needs()))
    attention, logprobs, values = rollout.attention, rollout.logprobs, rollout.values
    assert values is not None
    rows, width = attention.shape

    def near(x: Tensor) -> Tensor:
        shift = 0.1 * torch.randn(x.shape, generator=noise, dtype=torch.float64).to(x)
        return (x + shift).masked_fill(~attention, 0.0)

    mask = attention.clone()
    mask[0, 2], mask[7] = False, False
    abstained = torch.arange(rows, device=mask.device) == 7
    score = torch.randn(rows, generator=noise, dtype=torch.float64).to(logprobs).masked_fill(abstained, 0.0)
    rewards = 0.1 * torch.randn(rows, width, generator=noise, dtype=torch.float64).to(logprobs)
    last = (attention.sum(1) - 1)[:, None]
    rewards = rewards.scatter_add(1, last, score[:, None]).masked_fill(~mask, 0.0)
    spoken = torch.tensor([len(sample.response) for sample in rollout.samples], device=mask.device)[:, None]
    return rollout.replace(
        token_ends=torch.minimum(2 * attention.cumsum(1), spoken) * attention,  # two characters per token or less
        mask=mask,
        logprobs=near(logprobs),
        reference_logprobs=near(logprobs),
        values=near(values),
        truncated=torch.arange(rows, device=mask.device) == 2,
        abstained=abstained,
        score=score,
        rewards=rewards,
        groups=torch.tensor([0, 0, 1, 1, 2, 2, 3, 4], device=mask.device),
        scores={"example": Scores(score, abstained=abstained)},
    )


def _made_up(noise: torch.Generator) -> Rollout:
    samples = tuple(example_samples()[: len(LENGTHS)])
    rows, width = len(LENGTHS), max(LENGTHS)
    attention = torch.arange(width)[None] < torch.tensor(LENGTHS)[:, None]  # (B, T)

    def ids(*shape: int) -> Tensor:
        return torch.randint(2, 260, shape, generator=noise)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise)

    top = -1 - torch.rand(rows, width, 3, generator=noise).sort(-1).values
    return Rollout(
        samples=samples,
        prompt_ids=ids(rows, 4),
        prompt_mask=torch.arange(4)[None] >= torch.arange(rows)[:, None] % 3,
        response_ids=ids(rows, width),
        attention=attention,
        mask=attention,
        logprobs=(-numbers(rows, width).abs()).masked_fill(~attention, 0.0),
        values=numbers(rows, width).masked_fill(~attention, 0.0),
        bootstrap=numbers(rows),
        entropy=numbers(rows, width).abs().masked_fill(~attention, 0.0),
        top_ids=ids(rows, width, 3),
        top_logprobs=top,
        truncated=torch.zeros(rows, dtype=torch.bool),
        groups=torch.arange(rows),
        sample_ids=torch.arange(rows),
    )


@torch.no_grad()
def _sampled(policy: Policy[Any], seed: int, needs: Needs) -> Rollout:
    needs = replace(needs, distribution=False, hidden=False, heads=0)
    policy.prepare(needs)
    prompts = [example_prompts()[i // 2] for i in range(len(LENGTHS))]
    rollout = policy.generate(prompts, Sampling(max_new_tokens=max(LENGTHS), min_new_tokens=max(LENGTHS)), seed=seed)
    rollout = shortened(rollout, LENGTHS).replace(behaviour_logprobs=None)
    out = policy.forward(rollout, needs)
    return rollout.replace(**{name: value for name, value in vars(out).items() if value is not None})


def shortened(rollout: Rollout, lengths: Sequence[int]) -> Rollout:
    """The same samples, cut to at most `lengths` tokens; the columns stay."""
    limits = torch.tensor(lengths, device=rollout.attention.device)[:, None]
    attention = rollout.attention & (torch.arange(rollout.attention.shape[1], device=limits.device)[None] < limits)
    logprobs = rollout.logprobs.masked_fill(~attention, 0.0)
    return rollout.replace(attention=attention, mask=rollout.mask & attention, logprobs=logprobs)
