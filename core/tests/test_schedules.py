"""Options that change during a stage: their shapes, their bounds, and that samplers and shapers follow them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field, ValidationError
from rlhf_core.components.config import KLConfig
from rlhf_core.components.kl import KL
from rlhf_core.interfaces import (
    Config,
    Context,
    Needs,
    OptimizerSettings,
    Sampling,
    Schedule,
    Scheduled,
    value_at,
    within,
)
from rlhf_core.stages.config import OptimizeConfig
from rlhf_core.stages.optimize import Optimize
from rlhf_core.testing import example_data, tiny_policy, tiny_run


class Options(Config):
    rate: Annotated[Scheduled, within(ge=0, lt=2)] = Field(default=1.0, description="something that changes")
    maybe: Annotated[Scheduled, within(gt=0)] | None = Field(default=None, description="the same, or nothing")
    share: Annotated[Scheduled, within(gt=0, le=1)] = Field(default=1.0, description="part of a whole")


@pytest.mark.parametrize(("schedule", "expected"), [
    ({"schedule": "constant", "start": 0.5}, [0.5, 0.5, 0.5, 0.5, 0.5]),
    ({"schedule": "linear", "start": 1.0, "end": 0.6}, [1.0, 0.9, 0.8, 0.7, 0.6]),
    ({"schedule": "cosine", "start": 1.0, "end": 0.0}, [1.0, 0.853553, 0.5, 0.146447, 0.0]),
    ({"schedule": "cosine", "start": 1.0, "end": 0.7}, [1.0, 0.956066, 0.85, 0.743934, 0.7]),
    ({"schedule": "inverse-sqrt", "start": 0.5, "end": 0.3}, [0.5, 0.353553, 0.3, 0.3, 0.3]),
    ({"schedule": "inverse-sqrt", "start": 1.0}, [1.0, 0.707107, 0.577350, 0.5, 0.447214]),
    ({"schedule": "inverse-sqrt", "start": 1.0, "end": 0.6}, [1.0, 0.707107, 0.6, 0.6, 0.6]),
    ({"schedule": "linear", "start": 1.0, "warmup": 2}, [0.5, 1.0, 1.0, 0.5, 0.0]),
    ({"schedule": "inverse-sqrt", "start": 1.0, "warmup": 2}, [0.5, 1.0, 0.816497, 0.707107, 0.632456]),
])  # fmt: skip
def test_the_way_from_start_to_end(schedule: dict[str, Any], expected: list[float]) -> None:
    option = Options(rate=schedule).rate
    assert [value_at(option, step, 4) for step in range(5)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_beyond_the_last_step_stands_the_end_and_a_warm_up_of_all_steps_leads_to_the_start(shape: Any) -> None:
    schedule = Schedule(schedule=shape, start=1.0, end=0.6)
    assert [schedule.at(step, 4) for step in (4, 5, 9)] == [pytest.approx(0.6)] * 3
    whole = Schedule(schedule=shape, start=1.0, end=0.6, warmup=4)
    assert [whole.at(step, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_bounds_stand_in_the_schema_for_editors() -> None:
    properties = Options.model_json_schema()["properties"]
    for option, bounds in (("rate", {"minimum": 0, "exclusiveMaximum": 2}),
                           ("share", {"exclusiveMinimum": 0, "maximum": 1})):  # fmt: skip
        number, scheduled = properties[option]["oneOf"]
        assert number == {"type": "number", **bounds}
        start, end = (scheduled["allOf"][1]["properties"][name] for name in ("start", "end"))
        assert start == end == {"type": "number", **bounds}


@pytest.mark.parametrize(("options", "words"), [
    ({"share": 1.5}, r"share\n.*got 1\.5, expected 1 or less"),
    ({"rate": {"schedule": "linear", "start": 1, "warmup": -1}}, r"warmup\n.*greater than or equal to 0"),
    ({"rate": {"schedule": "linear", "start": 1, "end": float("nan")}}, r"end\n.*finite number"),
    ({"rate": -0.1}, r"rate\n.*got -0.1, expected 0 or more"),
    ({"rate": 2}, r"rate\n.*got 2, expected a number below 2"),
    ({"rate": {"schedule": "linear", "start": 1, "end": -0.5}}, "got end -0.5 of the linear schedule, expected 0 or more"),
    ({"rate": {"schedule": "cosine", "start": 3}}, "got start 3 of the cosine schedule, expected a number below 2"),
    ({"maybe": {"schedule": "linear", "start": 1}}, "got end 0 of the linear schedule, expected a number above 0"),
    ({"rate": {"schedule": "linear", "begin": 1}}, r"start\n.*Field required"),
    ({"rate": "fast"}, "should be a valid number"),
])  # fmt: skip
def test_bounds_hold_at_both_ends(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Options(**options)


def test_a_constant_schedule_has_no_end() -> None:
    constant = Options(maybe={"schedule": "constant", "start": 1})
    assert value_at(constant.maybe or 0.0, 7, 10) == 1
    assert Options(**constant.model_dump()) == constant  # as a run writes it down, with an end of 0
    with pytest.raises(
        ValidationError, match=r"a constant schedule has no end, got 0\.5; leave it out, or take linear"
    ):
        Options(rate={"schedule": "constant", "start": 1, "end": 0.5})


def test_the_least_value_of_an_inverse_square_root_lies_below_its_start() -> None:
    words = (
        "got start 0.1 and end 0.2; the end of inverse-sqrt is the least value that it falls to: give one below start"
    )
    with pytest.raises(ValidationError, match=words):
        Options(rate={"schedule": "inverse-sqrt", "start": 0.1, "end": 0.2})


@pytest.mark.parametrize(("config", "option"), [
    (OptimizerSettings, "learning_rate"), (Sampling, "temperature"), (KLConfig, "coef"),
])  # fmt: skip
def test_rates_temperatures_and_coefficients_never_end_below_zero(config: Any, option: str) -> None:
    words = rf"{option}\n.*got end -0.1 of the cosine schedule, expected 0 or more"
    with pytest.raises(ValidationError, match=words):
        config(**{option: {"schedule": "cosine", "start": 1.0, "end": -0.1}})
    kept = getattr(config(**{option: {"schedule": "cosine", "start": 1.0, "end": 0.7}}), option)
    assert kept == Schedule(schedule="cosine", start=1.0, end=0.7)


def test_a_temperature_cannot_be_scheduled_to_zero() -> None:
    with pytest.raises(ValidationError, match=r"between 1.0 and 0.0, expected values above 0: at 0 nothing is drawn"):
        Sampling(temperature={"schedule": "linear", "start": 1.0})
    assert Sampling(temperature=0).truncates and not Sampling(temperature=0.5).truncates


def test_a_scheduled_temperature_begins_at_its_start() -> None:
    sampling = Sampling(temperature={"schedule": "cosine", "start": 1.0, "end": 0.7})
    assert sampling.heat == 1.0
    assert [sampling.at(step, 10).temperature for step in (0, 5, 10)] == pytest.approx([1.0, 0.85, 0.7])


def test_sampler_and_shapers_follow_the_step() -> None:
    policy = tiny_policy()
    policy.set_reference("stage-start")
    data = example_data(policy, Needs(reference=True))
    data.total = 4
    data._sampling = Sampling(max_new_tokens=3, temperature={"schedule": "linear", "start": 1.0, "end": 0.5})
    kl = KL(KLConfig(coef={"schedule": "linear", "start": 0.4}), Context())
    data.shapers = [kl]
    for step, (temperature, coef) in enumerate([(1.0, 0.4), (0.875, 0.3), (0.75, 0.2)]):
        data.begin(step)
        rollout = data.rollout(4)
        assert rollout.temperature == data.sampling.heat == pytest.approx(temperature)
        assert data.stats["kl/coef"] == pytest.approx(coef)
        # old log-probabilities are those at the temperature of the step
        again = policy.forward(rollout, Needs()).logprobs
        torch.testing.assert_close(again.detach(), rollout.logprobs, atol=1e-4, rtol=1e-4)


def test_the_stage_tells_the_optimizer_where_it_stands(tmp_path: Path) -> None:
    """Whatever step it begins with: a resumed run goes on where the schedule was."""
    run = tiny_run(tmp_path)
    config = {"optimizer": "toy", "prompts": "toy", "rewards": {"toy": 1.0}, "sampling": {"max_new_tokens": 2}}
    stage = Optimize(OptimizeConfig(**config, steps=4), run.context.named("stage", "mine"))
    stage.setup(run)
    for step in (2, 3):
        stage.step(step)
        assert stage.optimizer.progress == (step, 4)
        assert stage.optimizer.now(Schedule(schedule="linear", start=1.0)) == pytest.approx(1 - step / 4)


def test_a_coefficient_is_scheduled_or_adapted() -> None:
    with pytest.raises(ValidationError, match="both a schedule of coef and a target that adapts it, expected one of"):
        KLConfig(coef={"schedule": "linear", "start": 0.4}, target=6.0)
