"""Where sampling, scoring and updating run out of memory: with which batch, and what to lower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..interfaces import Context, Policy, Sampling
from ..memory import Part, adapters, checkpointing, lower, within_memory
from ..policies.text import Codec
from ..records import Prompt, Rollout
from ..training import GradientSteps

Guard = AbstractContextManager[None]


def part_of(rollout: Rollout) -> Part:
    """How much of it goes through a network at once."""
    return Part(len(rollout), rollout.prompt_ids.shape[1], rollout.response_ids.shape[1])


def within_update(
    context: Context,
    policy: Policy[Any],
    micro_batch_tokens: int,
    part: Part | Rollout | str,
    gradient: GradientSteps,
    *,
    sampled: bool = True,
) -> Guard:
    """Around forward and backward of a part of an update.

    Args:
        context: of the optimizer. micro_batch_tokens: its option. part: what goes through. gradient: cleared.
        sampled: whether the responses are the policy's, so that the stage's `sampling` decides how long they are.
    """

    def advice() -> Iterator[str | None]:
        yield lower("micro_batch_tokens", micro_batch_tokens, context.where, size)
        yield checkpointing(policy.config, policy.context.where)
        yield shorten(size.response) if sampled and size else None
        yield adapters(policy.config, policy.context.where)

    part = part_of(part) if isinstance(part, Rollout) else part
    size = part if isinstance(part, Part) else None
    return within_memory(context, "update", part, advice(), lambda: gradient.clear())


def within_adamw(context: Context, policy: Policy[Any]) -> Guard:
    """Around the step of AdamW: `GradientSteps` says what its moments take, and this how to have fewer of them."""

    def advice() -> Iterator[str | None]:
        yield adapters(policy.config, policy.context.where)

    return within_memory(context, "AdamW step", "the weights", advice())


def within_generation(
    policy: Policy[Any], prompts: Sequence[Prompt], each: int, sampling: Sampling, *, training: bool
) -> Guard:
    """Around the drawing of `each` responses to every prompt."""

    def batch() -> str:
        codec = getattr(policy, "codec", None)
        if isinstance(codec, Codec):
            longest = f"{max(len(codec.encode_prompt(prompt, 0)) for prompt in prompts)} prompt"
        else:
            longest = f"{max(len(prompt.render()) for prompt in prompts)} characters of prompt"
        return f"{len(prompts) * each} samples x ({longest} + up to {sampling.max_new_tokens} response tokens)"

    def advice() -> Iterator[str | None]:
        yield from _fewer(len(prompts), each, training=training)
        yield lower("sampling.max_new_tokens", sampling.max_new_tokens, "the stage")

    phase = "generation" if training else "evaluation (generation)"
    return within_memory(policy.context, phase, batch, advice())


def within_scoring(policy: Policy[Any], by: str, rollout: Rollout, forward_tokens: int) -> Guard:
    """Around the evaluation of a part of a rollout under `by`, policy or reference."""

    def advice() -> Iterator[str | None]:
        yield lower("forward_tokens", forward_tokens, "the stage", part)
        yield shorten(part.response)
        yield lower("max_prompt_tokens", getattr(policy.config, "max_prompt_tokens", None), policy.context.where)

    part = part_of(rollout)
    return within_memory(policy.context, f"scoring under the {by}", part, advice())


def within_rewards(context: Context, rollout: Rollout, prompts: int, each: int, *, training: bool) -> Guard:
    """Around all that rewards do with a rollout; they themselves say more where they can."""

    def advice() -> Iterator[str | None]:
        yield from _fewer(prompts, each, training=training)
        yield shorten(part.response)

    part = part_of(rollout)
    return within_memory(context, "scoring by the rewards", part, advice())


def shorten(response: int) -> str | None:
    """To draw shorter responses than those here, of at most `response` tokens."""
    if response <= 1:
        return None
    return f"lower `sampling.max_new_tokens` of the stage (the longest response here has {response} tokens)"


def _fewer(prompts: int, each: int, *, training: bool) -> Iterator[str | None]:
    """The first of these that can be lowered."""
    if not training:
        yield lower("limit", prompts, "the evaluation's prompts")
    elif prompts > 1:
        yield lower("prompts_per_step", prompts, "the optimizer")
    else:
        yield lower("samples_per_prompt", each, "the optimizer")
