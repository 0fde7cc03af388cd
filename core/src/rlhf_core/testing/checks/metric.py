"""Metrics: one number per sample."""

from __future__ import annotations

from ..compare import copied, same
from ..kit import check_example
from ..rollouts import example_rollout
from ..subjects import Example


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
