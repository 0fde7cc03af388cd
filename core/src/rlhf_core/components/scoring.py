"""Asking a reward for scores, and looking over what it answers: the one way, in training and in metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ..errors import RewardError
from ..interfaces import RewardModel
from ..memory import lower, within_memory
from ..records import Sample, Scores


@torch.no_grad()
def checked_scores(model: RewardModel[Any], samples: Sequence[Sample]) -> Scores:
    """``model.score(samples)``, looked over.

    Raises:
        RewardError: not one score per sample, a score that is not finite, or a span outside its response.
        OutOfMemory: there is no room to compute them.
    """
    where = model.context.where
    with within_memory(model.context, "scoring by the reward", partial(_sized, samples), _smaller(model)):
        scores = model.score(samples)
    if scores.values.shape != (len(samples),):
        shape = tuple(scores.values.shape)
        raise RewardError(
            where,
            f"scores of shape {shape} for {len(samples)} samples",
            f"one score per sample, shape ({len(samples)},)",
            "return as many scores as completions",
        )
    valid = torch.isfinite(scores.values)
    if scores.abstained is not None:
        valid = valid | scores.abstained.to(valid.device)
    if not bool(valid.all()):
        i = int((~valid).nonzero()[0])
        raise RewardError(
            where,
            f"score {float(scores.values[i])} for sample {i}: {show(samples[i])}",
            "a finite number",
            "return None (function rewards) or abstain where there is no opinion",
        )
    for i, spans in enumerate(scores.spans or ()):
        for span in spans:
            if not 0 <= span.start < span.end <= len(samples[i].response):
                raise RewardError(
                    where,
                    f"span [{span.start}, {span.end}) of sample {i}: {show(samples[i])}",
                    f"a range inside its {len(samples[i].response)} characters",
                )
    return scores


def _sized(samples: Sequence[Sample]) -> str:
    prompts, responses = (max(map(len, texts), default=0) for texts in
                          ([s.prompt.render() for s in samples], [s.response for s in samples]))  # fmt: skip
    return f"{len(samples)} samples x (up to {prompts} prompt + {responses} response characters)"


def _smaller(model: RewardModel[Any]) -> Iterator[str | None]:
    """What a reward that is a network has to lower."""
    for name in ("micro_batch_tokens", "max_tokens"):
        yield lower(name, getattr(model.config, name, None), model.context.where)


def show(sample: Sample) -> str:
    """A sample in one line, for messages."""
    return f"{sample.prompt.render()[-80:]!r} -> {sample.response[:160]!r}"
