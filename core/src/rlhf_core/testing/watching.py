"""What a monitor is shown by the conformance kit: a run that goes well for 20 steps, and then goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..interfaces import Monitor, Observation
from ..records import Sample
from .records import example_samples

STEPS, WELL = 40, 20


def watched(monitor: Monitor[Any], first: int = 1, last: int = STEPS) -> Iterator[Observation]:
    """The steps from `first` to `last`; samples only where `monitor` wants them, when it is asked before that step."""
    for step in range(first, last + 1):
        yield observation(step, samples=bool(monitor.wants_samples(step)))


def observation(step: int, *, samples: bool) -> Observation:
    """Step `step`. From step 21 on every response says one word, ever longer, and scores rise to one value."""
    wobble = (step * 7 % 5 - 2) / 10  # -0.2 to 0.2, as random as need be
    wrong = max(step - WELL, 0)
    stats = {
        "reward/score": 1 + wobble + wrong / 4,
        "reward/score_std": 0.5 + wobble / 10 if not wrong else 0.01,
        "reward/shaped": 0.9 + wobble + wrong / 4,
        "response/length": 12 + wobble + 3 * wrong,
        "response/truncated": 0.0 if not wrong else 1.0,
        "policy/entropy": 2 + wobble if not wrong else 0.1,
        "kl/sequence": 0.4 + wobble + 3 * wrong,
        "kl/token": (0.4 + wobble + 3 * wrong) / 12,
        "loss": 0.3 + wobble,
    }
    drawn = example_samples() if samples else []
    if wrong:
        drawn = [Sample(sample.prompt, " please" * (6 + wrong), None) for sample in drawn]
    scores = [1 + wobble + (i % 3 - 1) / 2 if not wrong else 1 + wrong / 4 for i in range(len(drawn))]
    return Observation("optimize", step, STEPS, stats, tuple(drawn), tuple(scores))
