"""Two of the same: a copy in another process, and another one built alike, say the same of the same."""

from __future__ import annotations

import pickle
from typing import Any

from ..answers import answer, generators_at
from ..compare import same
from ..kit import check_example
from ..subjects import Example

SENT = ("feedback", "prompts", "reward", "shaper", "metric", "monitor", "environment", "optimizer")
"""What works in other processes, or is sent there before it is bound. The others stay in theirs: a policy and its
engine hold a device's memory and are sent as `state_dict`, and a stage holds the run."""


def _received(example: Example, value: Any, what: str) -> Any:
    try:
        return pickle.loads(pickle.dumps(value))
    except Exception as error:
        example.fail(
            f"its {what} cannot be pickled: {type(error).__name__}: {error}",
            "what can be sent to a worker process",
            "keep functions of modules, not lambdas, and leave out locks and open files in __getstate__",
        )


@check_example()
def can_be_sent_to_workers(example: Example) -> None:
    """Pickled, the config is the same; so is what the component says (policy, engine and stage stay where they are)."""
    if _received(example, example.config, "config") != example.config:
        example.fail("its config comes back changed from a worker process", "the same config")
    kind = example.subject.spec.kind
    if kind not in SENT:
        return
    component = example.build()
    copy = _received(example, component, "component with its context")
    if kind != "optimizer" and not same(answer(kind, component), answer(kind, copy)):  # unbound it says nothing yet
        example.fail(
            "pickled and read again it answers otherwise",
            "a copy that says the same",
            "let __getstate__ leave out only what __setstate__ makes anew",
        )


@check_example("reward", "shaper", "metric", "monitor", "optimizer", "policy", "environment")
def same_seed_same_output(example: Example) -> None:
    """Two built alike answer alike, bit for bit, whatever others drew from the global generators of random numbers."""
    first = example.first_answer
    with generators_at(20_260_921):
        second = answer(example.subject.spec.kind, example.build())
    if not same(first, second):
        example.fail(
            "two built alike answer otherwise once the global generators were seeded anew",
            "the same, bit for bit",
            "draw from a generator of its own, seeded with context.stream(...)",
        )
