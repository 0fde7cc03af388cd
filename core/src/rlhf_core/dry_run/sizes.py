"""How much a step takes: its prompts or examples, how they are cut into parts, and taking fewer of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..interfaces import Policy, Stage
from ..randomness import derive_seed, permutation
from ..training import by_tokens

OPTIONS = ("prompts_per_step", "batch_size")
"""The options that say how much a step takes: of an optimizer, or of what the supervised loop trains."""
LOOKED_AT = 200  # batches of an epoch


@dataclass(frozen=True)
class Parts:
    """How a step is cut.

    samples: of all processes. longest: tokens of a sample, padded. updates: of the weights. accumulation: parts of
    an update. units: phase -> tokens that are at work at a time, padding included, on each process.
    """

    samples: int
    longest: int
    updates: int
    accumulation: int
    units: dict[str, int]


class Batch:
    """What a step of a stage takes. This one cannot be changed: its steps are taken whole.

    Attributes:
        whole: prompts or examples of a step, over all processes; 0 where that is not known. what: their name.
    """

    whole = 0
    what = ""

    def take(self, count: int) -> None:
        """From now on steps take `count`."""

    def parts(self, count: int, longest: int) -> Parts | None:
        """How a step of `count` is cut, where `longest` is that of the rollouts so far."""
        return None


class Examples(Batch):
    """Of the supervised loop."""

    what = "examples"

    def __init__(self, loop: Any, processes: int) -> None:
        self.loop, self.processes = loop, processes
        self.whole = min(loop.config.batch_size, len(loop.task.train))
        self._sizes = [loop.task.size(example) for example in loop.task.train]

    def take(self, count: int) -> None:
        self.loop.config = self.loop.config.model_copy(update={"batch_size": count})

    def parts(self, count: int, longest: int) -> Parts:
        """Of the first batch if it is smaller than a step's, else the largest of many."""
        cuts = [
            list(by_tokens(self._sizes, self.loop.config.micro_batch_tokens, [rows[i] for i in mine]))
            for rows in self._batches(count)
            for mine in [range(len(rows) * (self.processes - 1) // self.processes, len(rows))]
        ]
        tokens = max((self._padded(part) for cut in cuts for part in cut), default=0)
        rows = [row for cut in cuts for part in cut for row in part]
        widest = max((self._padded([row]) for row in rows), default=0)
        return Parts(count, widest, 1, max(map(len, cuts), default=1), {"update": tokens})

    def _batches(self, count: int) -> Iterator[tuple[int, ...]]:
        order = permutation(
            derive_seed(self.loop.context.seed, self.loop.context.where, "epoch", 0), len(self.loop.task.train)
        )
        wanted = LOOKED_AT if count == self.whole else 1
        for start in range(0, min(wanted * count, len(order)), count):
            yield order[start : start + count]

    def _padded(self, rows: list[int]) -> int:
        sizes = [self._sizes[row] for row in rows]
        widths = zip(*(s if isinstance(s, tuple) else (s,) for s in sizes), strict=True)
        return len(rows) * sum(int(max(width)) for width in widths)


class Samples(Batch):
    """Of an optimizer: responses to prompts, or, offline, records."""

    def __init__(self, stage: Any, optimizer: Any, option: str, policy: Policy[Any], processes: int) -> None:
        self.stage, self.optimizer, self.option = stage, optimizer, option
        self.policy, self.processes = policy, processes
        self.whole = getattr(optimizer.config, option)
        self.what = "prompts" if option == "prompts_per_step" else "examples"

    def take(self, count: int) -> None:
        self.optimizer.config = self.optimizer.config.model_copy(update={self.option: count})

    def parts(self, count: int, longest: int) -> Parts:
        config = self.optimizer.config
        samples = count * int(getattr(config, "samples_per_prompt", 1))
        batch = min(getattr(config, "minibatch_size", samples), samples)
        budget = getattr(config, "micro_batch_tokens", None)
        mine = -(-batch // self.processes)
        at_once = mine if budget is None else min(mine, max(1, budget // max(longest, 1)))
        units = _without_gradients(self.stage, self.policy, -(-samples // self.processes), longest)
        updates = int(getattr(config, "epochs", 1)) * -(-samples // batch)
        return Parts(samples, longest, updates, -(-mine // at_once), {**units, "update": at_once * max(longest, 1)})


class Questions(Batch):
    """Prompts of a stage that only measures."""

    what = "prompts"

    def __init__(self, stage: Any, policy: Policy[Any], processes: int) -> None:
        self.stage, self.policy, self.processes = stage, policy, processes
        self.every = list(stage.prompts)
        self.whole = len(self.every)

    def take(self, count: int) -> None:
        self.stage.prompts = self.every[:count]

    def parts(self, count: int, longest: int) -> Parts:
        units = _without_gradients(self.stage, self.policy, -(-count // self.processes), longest)
        return Parts(count, longest, 0, 1, units)


def _without_gradients(stage: Any, policy: Any, samples: int, longest: int) -> dict[str, int]:
    """Tokens at work at a time of `samples` on one process, while they are drawn, evaluated and paid."""
    engine = getattr(policy, "engine", None)
    slots = getattr(engine, "slots", None) or getattr(getattr(engine, "config", None), "slots", None) or samples
    budget = getattr(stage.config, "forward_tokens", None)
    rewards = getattr(getattr(getattr(stage, "sampler", None), "mix", None), "models", {}).values()
    budgets = [getattr(reward.config, "micro_batch_tokens", 0) for reward in rewards]
    whole = samples * longest
    return {
        "generation": min(samples, slots) * longest,
        "scoring": whole if budget is None else min(whole, max(budget, longest)),
        "reward": min(whole, max(budgets)) if any(budgets) else whole,
        "shaping": whole,
        "overhead": whole,
    }


def batch_of(stage: Stage[Any], policy: Policy[Any], processes: int) -> Batch:
    """What a step of `stage` takes."""
    if hasattr(stage, "loop"):
        return Batch() if stage.loop is None else Examples(stage.loop, processes)
    for key, component in stage.components().items():
        option = next((name for name in OPTIONS if hasattr(component.config, name)), None)
        if key.startswith("optimizer.") and option is not None:
            return Samples(stage, component, option, policy, processes)
    if isinstance(getattr(stage, "prompts", None), list):
        return Questions(stage, policy, processes)
    return Batch()
