"""Shapers: they change rewards where there are any, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...interfaces import RewardShaper
from ...records import Rollout
from ..answers import shaper_input
from ..compare import copied, difference, padded, same, through_checkpoint
from ..kit import check_class, check_example
from ..rollouts import example_rollout
from ..subjects import Example, NotApplicable, Subject
from .precision import places

TOLERANCE = 1e-5  # sums over another number of columns round differently


@check_class("shaper")
def declares_its_level(subject: Subject) -> None:
    """`level` says what it maps: "sequence" scores, or "token" rewards."""
    level = getattr(subject.component_class, "level", None)
    if level not in ("sequence", "token"):
        subject.fail(f"level is {level!r}", "'sequence' or 'token'", 'write level = "token" in the class')


def _level(example: Example) -> str:
    level: Any = getattr(example.subject.component_class, "level", None)
    if level not in ("sequence", "token"):
        raise NotApplicable("its level is not known: see declares_its_level")
    return str(level)


def _rewards(example: Example, rollout: Rollout) -> Tensor:
    _level(example)
    return shaper_input(example.subject.component_class, rollout)


def _shaped(shaper: RewardShaper[Any], example: Example, rollout: Rollout) -> Tensor:
    shaped: Tensor = shaper.shape(_rewards(example, rollout), rollout)[0]
    return shaped


@check_example("shaper")
def keeps_shape_and_dtype(example: Example) -> None:
    """What comes back is of the shape and dtype that went in, and where there is a GPU, on the device."""
    for place in [{"device": "cpu", "dtype": "float32"}, *places()]:
        rollout = example_rollout().to(place["device"])
        rewards = _rewards(example, rollout).to(getattr(torch, place["dtype"]))
        shaped, _ = example.build(**place).shape(rewards.clone(), rollout)
        if (shaped.shape, shaped.dtype, shaped.device) != (rewards.shape, rewards.dtype, rewards.device):
            example.fail(
                f"{shaped.dtype} of shape {tuple(shaped.shape)} on {shaped.device}",
                f"{rewards.dtype} of shape {tuple(rewards.shape)} on {rewards.device}, as it was given",
                "end with .to(rewards)",
            )


@check_example("shaper")
def statistics_are_numbers(example: Example) -> None:
    """The statistics are plain finite numbers by name, ready to be logged."""
    rollout = example_rollout()
    stats = example.build().shape(_rewards(example, rollout), rollout)[1]
    for name, value in stats.items():
        if type(value) not in (int, float, bool) or not abs(value) < float("inf"):
            example.fail(f"statistic {name!r} is {value!r}", "a finite Python number", "write float(...) around it")


@check_example("shaper")
def leaves_its_inputs_alone(example: Example) -> None:
    """Neither the rewards nor the rollout are changed in place."""
    rollout = example_rollout()
    rewards = _rewards(example, rollout)
    before = copied([rewards, rollout.tensors()])
    example.build().shape(rewards, rollout)
    if not same(before, [rewards, rollout.tensors()]):
        example.fail("shaping changes its inputs", "inputs left as they are", "write x = x * y, not x *= y")


@check_example("shaper")
def masked_positions_stay_zero(example: Example) -> None:
    """Token rewards outside the mask (padding, other speakers, abstained samples) stay 0."""
    if _level(example) != "token":
        raise NotApplicable("a sequence shaper has no positions")
    rollout = example_rollout()
    outside = _shaped(example.build(), example, rollout)[~rollout.mask]
    if bool((outside != 0).any()):
        example.fail(
            f"{int((outside != 0).sum())} of {len(outside)} masked positions are paid",
            "0 outside the mask",
            "end with .masked_fill(~rollout.mask, 0.0)",
        )


@check_example("shaper")
def zero_stays_zero_where_declared(example: Example) -> None:
    """With `zero_stays_zero`, rewards that are all 0 stay 0, also after rewards that were not."""
    if not example.subject.component_class.zero_stays_zero:
        raise NotApplicable("it does not declare zero_stays_zero")
    shaper, first, second = example.build(), example_rollout(seed=1), example_rollout(seed=2)
    shaper.shape(_rewards(example, first), first)
    shaped, _ = shaper.shape(torch.zeros_like(_rewards(example, second)), second)
    if bool((shaped != 0).any()):
        example.fail(
            f"zero_stays_zero, and of rewards of 0 it makes up to {float(shaped.abs().max()):.2g}",
            "0 everywhere",
            "leave zero_stays_zero out of the class",
        )


@check_example("shaper")
def abstained_scores_stay_zero(example: Example) -> None:
    """The score of an abstained sample stays 0."""
    if _level(example) != "sequence":
        raise NotApplicable("for a token shaper abstained samples are masked: see masked_positions_stay_zero")
    rollout = example_rollout()
    assert rollout.abstained is not None
    scores = _shaped(example.build(), example, rollout)[rollout.abstained]
    if bool((scores != 0).any()):
        example.fail(
            f"an abstained sample gets {scores.tolist()}",
            "0: no opinion is not a bad opinion",
            "end with .masked_fill(rollout.abstained, 0.0)",
        )


@check_example("shaper")
def abstained_samples_do_not_count(example: Example) -> None:
    """The others get what they would get without the abstained samples: those enter no statistics."""
    rollout = example_rollout()
    assert rollout.abstained is not None
    live = (~rollout.abstained).nonzero()[:, 0].tolist()
    together, alone = (_shaped(example.build(), example, part) for part in (rollout, rollout.select(live)))
    rows = together[live] if together.dim() == 1 else together[live][:, : alone.shape[1]]
    if difference(rows, alone) > TOLERANCE:
        example.fail(
            f"the others change by up to {difference(rows, alone):.2g} when an abstained sample is left out",
            "no change",
            "take statistics over rollout.mask or ~rollout.abstained",
        )


@check_example("shaper")
def padding_changes_nothing(example: Example) -> None:
    """More columns of padding change no reward."""
    rollout = example_rollout()
    wide = padded(rollout, prompt=2, response=3)
    narrow, shaped = (_shaped(example.build(), example, part) for part in (rollout, wide))
    shaped = shaped if shaped.dim() == 1 else shaped[:, : narrow.shape[1]]
    if difference(narrow, shaped) > TOLERANCE:
        example.fail(
            f"three columns of padding change rewards by up to {difference(narrow, shaped):.2g}",
            "no change",
            "use masked_mean and its like, not .mean()",
        )


@check_example("shaper")
def continues_after_a_checkpoint(example: Example) -> None:
    """A shaper that was saved and loaded goes on bit for bit as one that was not."""
    first, second = example_rollout(seed=1), example_rollout(seed=2)
    straight, resumed = example.build(), example.build()
    straight.shape(_rewards(example, first), first)
    resumed.load_state_dict(through_checkpoint(straight.state_dict()))
    expected, got = (shaper.shape(_rewards(example, second), second) for shaper in (straight, resumed))
    if not same(list(expected), list(got)):
        example.fail(
            "after loading its state it shapes other rewards than without the interruption",
            "the same, bit for bit",
            "put everything that changes into state_dict",
        )
