"""Rewards: one finite score per sample, whatever the batch it comes in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import RLHFError
from ...interfaces import OnlineReward
from ...randomness import seed_everything
from ...records import Sample
from ..compare import close, difference, same, through_checkpoint
from ..kit import check_example
from ..records import example_samples
from ..rollouts import example_rollout
from ..subjects import Example, NotApplicable, fit_on_examples

FIX = "put everything that it learnt into state_dict"
TOLERANCE = 1e-4  # padding another batch moves the last bits of float32


@torch.no_grad()
def _values(reward: Any, samples: list[Sample]) -> Tensor:
    values: Tensor = reward.score(samples).values
    return values


@check_example("reward")
def one_finite_score_per_sample(example: Example) -> None:
    """`values` has shape (B,), floating, and is finite wherever the reward does not abstain."""
    samples = example_samples()
    scores = example.build().score(samples)
    values, abstained = scores.values, scores.abstained
    if values.shape != (len(samples),) or not values.is_floating_point():
        example.fail(
            f"{values.dtype} scores of shape {tuple(values.shape)} for {len(samples)} samples",
            f"floats of shape ({len(samples)},)",
            "return one number per sample",
        )
    if abstained is not None and (abstained.shape != values.shape or abstained.dtype != torch.bool):
        example.fail(
            f"`abstained` is {abstained.dtype} of shape {tuple(abstained.shape)}", f"bool of shape ({len(samples)},)"
        )
    valid = values.isfinite() if abstained is None else values.isfinite() | abstained.to(values.device)
    if not bool(valid.all()):
        i = int((~valid).nonzero()[0])
        example.fail(
            f"score {float(values[i])} for {samples[i].response!r}",
            "a finite number",
            "guard the division, or abstain where there is no opinion",
        )


@check_example("reward")
def order_does_not_matter(example: Example) -> None:
    """The same samples in another order get the same scores."""
    reward, samples = example.build(), example_samples()
    forth, back = _values(reward, samples), _values(reward, samples[::-1]).flip(0)
    if not close(forth, back, TOLERANCE):
        example.fail(
            f"scores {forth.tolist()}, and in reverse order {back.tolist()}",
            "the same scores in any order",
            "score each sample by itself",
        )


@check_example("reward")
def batch_size_does_not_matter(example: Example) -> None:
    """A sample gets the same score alone as among others."""
    reward, samples = example.build(), example_samples()
    together, alone = _values(reward, samples), torch.cat([_values(reward, [sample]) for sample in samples])
    if not close(together, alone, TOLERANCE):
        example.fail(
            f"scores {together.tolist()}, and one by one {alone.tolist()}",
            "the same scores in any batch",
            "mask padding, and take no statistics over the batch: that is a shaper's work",
        )


@check_example("reward")
def reads_empty_and_very_long_text(example: Example) -> None:
    """Empty responses, odd characters and 100,000 characters get a finite score too."""
    reward = example.build()
    prompt = example_samples()[0].prompt
    for text in ("", " ", "\n\n", "\x00", "!", "e\u0301\u200d🙂" * 99, "字" * 20_000, "word " * 20_000, "a" * 20_000):
        shown = f"the response {text[:12]!r} of {len(text)} characters"
        try:
            scores = reward.score([Sample(prompt, text, (*text.encode()[:1000], 0))])
        except Exception as error:
            example.fail(
                f"{type(error).__name__} for {shown}: {error}",
                "a score for any text",
                "cut what is too long, and decide what an empty response is worth",
            )
        judged = scores.abstained is None or not bool(scores.abstained.any())
        if judged and not bool(scores.values.isfinite().all()):
            example.fail(
                f"score {scores.values.tolist()} for {shown}",
                "a finite score for any text",
                "decide what such a response is worth, or abstain",
            )


@check_example("reward")
def leaves_its_inputs_alone(example: Example) -> None:
    """Scoring changes neither the list of samples nor what is in them."""
    samples = example_samples()
    before = copy.deepcopy(samples)
    example.build().score(samples)
    if samples != before:
        example.fail("scoring changes the samples", "inputs left as they are", "work on a copy")


@check_example("reward")
def spans_lie_inside_the_response(example: Example) -> None:
    """Spans come one tuple per sample, are not empty, lie inside their response, and earn finite credit."""
    samples = example_samples()
    spans = example.build().score(samples).spans
    if spans is None or not any(spans):
        raise NotApplicable("it gives no spans for the samples of the kit")
    if len(spans) != len(samples):
        example.fail(f"spans of {len(spans)} samples, for {len(samples)}", "one tuple of spans per sample")
    for sample, row in zip(samples, spans, strict=True):
        for span in row:
            if not 0 <= span.start < span.end <= len(sample.response) or not abs(span.credit) < float("inf"):
                example.fail(
                    f"{span} of {sample.response!r}",
                    f"0 <= start < end <= {len(sample.response)}",
                    "count characters of the response, without the prompt",
                )


@check_example("reward")
def continues_after_a_checkpoint(example: Example) -> None:
    """A reward that learnt, was saved and is loaded goes on bit for bit: the same scores, also after it learns more."""
    reward, resumed, samples = example.build_fresh(), example.build_fresh(), example_samples()
    learnt = fit_on_examples(reward)
    if isinstance(reward, OnlineReward):
        _learn(reward, 1)
        learnt = True
    state = through_checkpoint(reward.state_dict())
    if not state and not learnt:
        raise NotApplicable("it has no state, and learns from no feedback")
    resumed.load_state_dict(state)
    try:
        found = [_values(r, samples) for r in (reward, resumed)]
        if isinstance(reward, OnlineReward) and same(*found):
            for each in (reward, resumed):
                _learn(each, 2)
            found = [_values(r, samples) for r in (reward, resumed)]
    except RLHFError as error:
        example.fail(f"after loading its state it does not go on: {error}", "the same scores", FIX)
    if not same(*found):
        example.fail(
            f"after loading its state it gives other scores, by up to {difference(*found):.2g}",
            "the same, bit for bit",
            FIX,
        )


def _learn(reward: OnlineReward[Any], step: int) -> None:
    """An update as in a run, with made-up log-probabilities."""
    seed_everything(step)
    reward.update(example_rollout(seed=step), _made_up)


def _made_up(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([float(len(sample.response)) for sample in samples])
    return -lengths / 10, -lengths / 9
