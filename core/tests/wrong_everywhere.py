"""Wrong configs, states and classes, as metrics, and wrong metrics. Each fails one check, and what it derives from fails none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import ConfigDict, Field, field_validator
from rlhf_core.interfaces import Config, Metric


class Plain(Config):
    """Nothing to set."""


class Abstract(Metric[Plain]):
    """Does not implement `measure`."""


class Callback(Config):
    callback: Callable[[], None] | None = Field(default=None, description="what no JSON can hold")


class Inner(Config):
    depth: int = 1


class Silent(Config):
    inner: Inner = Field(default_factory=Inner, description="says what it is, but its own field does not")


class Lax(Config):
    model_config = ConfigDict(extra="ignore")


class Doubling(Config):
    minutes: int = Field(default=2, validate_default=True, description="given in hours")

    @field_validator("minutes")
    @classmethod
    def _to_minutes(cls, hours: int) -> int:
        return hours * 60


class Length(Metric[Plain]):
    """A metric as it should be."""

    def measure(self, rollout):
        return rollout.lengths.float()


class WithCallback(Length):
    Config = Callback


class WithSilent(Length):
    Config = Silent


class WithLax(Length):
    Config = Lax


class WithDoubling(Length):
    Config = Doubling


class CannotBeBuilt(Length):
    def __init__(self, config, context):
        raise ValueError("no such file")


class KeepsASet(Length):
    def state_dict(self):
        return {"seen": {"a"}}


class GrowsWhenLoaded(Length):
    count = 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"] + 1


class Averages(Length):
    def measure(self, rollout):
        return rollout.lengths.float().mean()


class Clears(Length):
    def measure(self, rollout):
        return rollout.logprobs.zero_().sum(1)


class HoldsALambda(Length):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.lengths = lambda rollout: rollout.lengths.float()


class ForgetsInTheMail(Length):
    scale = 1.0

    def __init__(self, config, context):
        super().__init__(config, context)
        self.scale = 2.0

    def __getstate__(self):
        return {"config": self.config, "context": self.context}

    def measure(self, rollout):
        return self.scale * super().measure(rollout)


class TakesTheGlobalSeed(Length):
    def measure(self, rollout):
        return super().measure(rollout) + torch.initial_seed() % 1000


class ComparesWithTheFirst(Length):
    def measure(self, rollout):
        lengths = super().measure(rollout)
        return lengths - lengths[0]


class AveragesOverColumns(Length):
    def measure(self, rollout):
        return rollout.logprobs.mean(1)


class GoesThroughNumpy(Length):
    def measure(self, rollout):
        lengths = super().measure(rollout).to(self.context.torch_dtype)
        return torch.from_numpy(lengths.numpy())


RIGHT: list[tuple[str, type[Any]]] = [("metric", Length)]
MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("metric", Abstract, "resolves_and_implements", "does not implement measure"),
    ("metric", WithCallback, "config_has_a_schema", "no JSON Schema can be made"),
    ("metric", WithSilent, "config_describes_every_field", "Inner does not describe depth; expected a description"),
    ("metric", WithLax, "config_rejects_unknown_keys", 'Lax takes keys that it does not know; expected extra="forbid"'),
    ("metric", WithDoubling, "config_round_trips", "minutes=120) comes back as Doubling(minutes=7200)"),
    ("metric", CannotBeBuilt, "builds_from_its_examples", "raised ValueError: no such file; expected a component"),
    ("metric", KeepsASet, "state_fits_a_checkpoint", "state at /seen is a set"),
    ("metric", GrowsWhenLoaded, "loading_its_own_state_changes_nothing", "loading its own state changes count"),
    ("metric", Averages, "one_float_per_sample", "torch.float32 of shape () for 8 samples; expected floats of shape (8,)"),
    ("metric", Clears, "leaves_its_inputs_alone", "measuring changes the rollout"),
    ("metric", HoldsALambda, "can_be_sent_to_workers", "its component with its context cannot be pickled"),
    ("metric", ForgetsInTheMail, "can_be_sent_to_workers", "pickled and read again it answers otherwise"),
    ("metric", TakesTheGlobalSeed, "same_seed_same_output", "once the global generators were seeded anew"),
    ("metric", ComparesWithTheFirst, "order_does_not_matter", "another order of the samples changes numbers by up to"),
    ("metric", AveragesOverColumns, "padding_changes_nothing", "three columns of padding change numbers by up to"),
    ("metric", GoesThroughNumpy, "works_in_its_dtype", "TypeError in bfloat16 on cpu: Got unsupported ScalarType"),
]  # fmt: skip
