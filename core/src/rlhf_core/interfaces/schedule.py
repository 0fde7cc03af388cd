"""Options that change while a stage runs: a number, or ``{schedule: cosine, start: 1.0, end: 0.7}``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic_core import core_schema


class Schedule(BaseModel):
    """A value over the steps of a stage, or for a learning rate over the updates of the weights.

    With s steps taken of n, not counting the warm-up: linear is ``start + (end - start) s / n``; cosine is
    ``end + (start - end) (1 + cos(pi s / n)) / 2`` (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5);
    inverse-sqrt is ``start sqrt(w / max(k, w))`` at step k from 1, with w the warm-up or 1, never below `end`
    (Vaswani et al. 2017, section 5.3).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    schedule: Literal["constant", "linear", "cosine", "inverse-sqrt"] = Field(description="the shape of the way")
    start: float = Field(description="the value at the beginning, after the warm-up")
    end: float = Field(default=0.0, description="the value after the last step; of inverse-sqrt the lower bound")
    warmup: int = Field(default=0, ge=0, description="first steps, over which the value rises from 0 to `start`")

    @model_validator(mode="after")
    def _end_means_something(self) -> Schedule:
        if self.schedule == "constant" and self.end not in (0.0, self.start):  # 0 is what a saved config has
            raise ValueError(f"a constant schedule has no end, got {self.end:g}; leave it out, or take linear")
        if self.schedule == "inverse-sqrt" and self.end > self.start:
            raise ValueError(
                f"got start {self.start:g} and end {self.end:g}; the end of inverse-sqrt is the least value that it "
                "falls to: give one below start"
            )
        return self

    def at(self, step: int, total: int) -> float:
        """The value at `step` (from 0) of `total`."""
        if self.schedule == "inverse-sqrt":
            number, full = step + 1, max(self.warmup, 1)
            share = number / full if number < full else math.sqrt(full / number)
            return max(self.start * share, self.end)
        if step < self.warmup:
            return self.start * (step + 1) / self.warmup
        done = min((step - self.warmup) / max(total - self.warmup, 1), 1.0)
        if self.schedule == "linear":
            return self.start + (self.end - self.start) * done
        if self.schedule == "cosine":
            return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * done))
        return self.start

    @property
    def bounds(self) -> tuple[float, ...]:
        """The values between which it runs, warm-up apart."""
        return (self.start,) if self.schedule == "constant" else (self.start, self.end)


def _branch(value: Any) -> str:
    return "as a schedule" if isinstance(value, (dict, Schedule)) else "as a number"


Scheduled: TypeAlias = Annotated[
    Annotated[float, Tag("as a number")] | Annotated[Schedule, Tag("as a schedule")], Discriminator(_branch)
]
"""A number, or a `Schedule`; read it in a component with ``self.now(self.config.NAME)``."""


def value_at(option: float | Schedule, step: int, total: int) -> float:
    """The number that an option of type `Scheduled` has at `step` (from 0) of `total`."""
    return option.at(step, total) if isinstance(option, Schedule) else option


@dataclass(frozen=True)
class within:
    """Bounds of a scheduled option, kept at its start and its end: ``Annotated[Scheduled, within(ge=0)]``."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler(schema)
        names = {"minimum": self.ge, "exclusiveMinimum": self.gt, "maximum": self.le, "exclusiveMaximum": self.lt}
        bounds = {name: limit for name, limit in names.items() if limit is not None}
        number, *rest = found["oneOf"]
        scheduled = {"properties": {"start": {"type": "number", **bounds}, "end": {"type": "number", **bounds}}}
        return {**found, "oneOf": [{**number, **bounds}, *({"allOf": [branch, scheduled]} for branch in rest)]}

    def _check(self, option: float | Schedule) -> float | Schedule:
        named = {f"{option:g}": option} if not isinstance(option, Schedule) else {
            f"{name} {value:g} of the {option.schedule} schedule": value
            for name, value in zip(("start", "end"), option.bounds, strict=False)
        }  # fmt: skip
        limits = (
            (self.ge, float.__ge__, "{:g} or more"), (self.gt, float.__gt__, "a number above {:g}"),
            (self.le, float.__le__, "{:g} or less"), (self.lt, float.__lt__, "a number below {:g}"),
        )  # fmt: skip
        for name, value in named.items():
            for limit, holds, words in limits:
                if limit is not None and not holds(float(value), float(limit)):
                    raise ValueError(f"got {name}, expected {words.format(limit)}")
        return option
