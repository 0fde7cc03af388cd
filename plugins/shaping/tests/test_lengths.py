from __future__ import annotations

import pytest
import torch
from rlhf_plugin_shaping.lengths import LengthPenalty, MissingEOS, Overlong
from rlhf_plugin_shaping.scores import SuccessBonus

from .toys import build, make_rollout, scores


def test_missing_eos_by_hand() -> None:
    rollout = make_rollout([2, 3, 3], truncated=[1, 2])
    shaped, stats = build(MissingEOS, penalty=1.5).shape(scores(1, 2, -1), rollout)
    assert shaped.tolist() == [1, 0.5, -2.5]
    assert stats["shaping/missing_eos"] == pytest.approx(2 / 3)
    assert build(MissingEOS, penalty=1.5, replace=True).shape(scores(1, 2, -1), rollout)[0].tolist() == [1, -1.5, -1.5]


def test_length_penalty_by_hand() -> None:
    shaped, stats = build(LengthPenalty, coef=0.5, free_tokens=2).shape(scores(1, 1, 1), make_rollout([1, 2, 5]))
    assert shaped.tolist() == [1, 1, -0.5]
    assert stats == {"shaping/length_penalty": 0.5}


def test_overlong_by_hand() -> None:
    """The line of DAPO's equation 13 between 4 and 8 tokens, times 2."""
    lengths = [1, 4, 5, 6, 8, 11]
    shaped, stats = build(Overlong, max_tokens=8, buffer=4, coef=2).shape(scores(*[1] * 6), make_rollout(lengths))
    assert shaped.tolist() == [1, 1, 0.5, 0, -1, -1]
    assert stats["shaping/overlong"] == pytest.approx(4 / 6)
    assert stats["shaping/overlong_penalty"] == pytest.approx(5.5 / 6)


def test_overlong_with_the_numbers_of_dapo() -> None:
    """max_tokens 20480, buffer 4096: 16384 is free, and half of the way costs a half."""
    made = make_rollout([1, 1, 1])
    mask = torch.arange(20480)[None] < torch.tensor([16384, 18432, 20480])[:, None]
    shaped, _ = build(Overlong, max_tokens=20480, buffer=4096).shape(scores(1, 1, -1), made.replace(mask=mask))
    assert shaped.tolist() == [1, 0.5, -2]


def test_what_other_speakers_say_costs_nothing() -> None:
    rollout = make_rollout([6, 6])
    mask = rollout.mask.clone()
    mask[0, 1:5] = False
    rollout = rollout.replace(mask=mask)
    assert build(LengthPenalty, coef=1).shape(scores(0, 0), rollout)[0].tolist() == [-2, -6]
    assert build(Overlong, max_tokens=6, buffer=4).shape(scores(0, 0), rollout)[0].tolist() == [0, -1]
    brief, _ = build(SuccessBonus, threshold=0, max_tokens=8).shape(scores(0, 0), rollout)
    assert brief.tolist() == [0.75, 0.25]
