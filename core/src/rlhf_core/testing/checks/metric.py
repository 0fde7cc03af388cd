"""Metrics: one number per sample."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...interfaces import Metric
from ...records import Rollout
from ..compare import copied, difference, padded, same
from ..kit import check_example
from ..rollouts import example_rollout
from ..subjects import Example, NotApplicable

TOLERANCE = 1e-5  # sums over another number of columns round differently
ORDER = [4, 2, 7, 0, 6, 1, 3, 5]


@check_example("metric")
def one_float_per_sample(example: Example) -> None:
    """`measure` gives floats of shape (B,): means and errors over samples are taken elsewhere."""
    rollout = example_rollout()
    values = example.build().measure(rollout)
    if tuple(values.shape) != (len(rollout),) or not values.is_floating_point():
        example.fail(
            f"{values.dtype} of shape {tuple(values.shape)} for {len(rollout)} samples",
            f"floats of shape ({len(rollout)},)",
            "return one number per sample, nan where there is none",
        )


@check_example("metric")
def leaves_its_inputs_alone(example: Example) -> None:
    """Measuring changes nothing in the rollout."""
    rollout = example_rollout()
    before = copied(rollout.tensors())
    example.build().measure(rollout)
    if not same(before, rollout.tensors()):
        example.fail("measuring changes the rollout", "inputs left as they are", "write x = x * y, not x *= y")


def _measured(metric: Metric[Any], rollout: Rollout) -> Tensor:
    values = metric.measure(rollout)
    if tuple(values.shape) != (len(rollout),):
        raise NotApplicable("its numbers are not one per sample: see one_float_per_sample")
    return values


@check_example("metric")
def order_does_not_matter(example: Example) -> None:
    """The same samples in another order get the same numbers."""
    rollout, metric = example_rollout(), example.build()
    forth, back = _measured(metric, rollout)[ORDER], _measured(metric, rollout.select(ORDER))
    if not (moved := difference(forth, back)) <= TOLERANCE:
        example.fail(
            f"another order of the samples changes numbers by up to {moved:.2g}",
            "the same number for a sample wherever it stands",
            "measure each sample by itself",
        )


@check_example("metric")
def padding_changes_nothing(example: Example) -> None:
    """More columns of padding change no number."""
    rollout, metric = example_rollout(), example.build()
    moved = difference(_measured(metric, rollout), _measured(metric, padded(rollout, prompt=2, response=3)))
    if not moved <= TOLERANCE:
        example.fail(
            f"three columns of padding change numbers by up to {moved:.2g}",
            "no change",
            "use rollout.lengths and masked_mean, not shape[1] and .mean()",
        )
