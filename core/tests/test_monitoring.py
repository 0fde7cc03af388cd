"""Showing steps to monitors: who is told what, when, and what is kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rlhf_core.errors import PluginError
from rlhf_core.interfaces import Config, Context, Monitor, Observation, StageConfig
from rlhf_core.records import Prompt, Sample
from rlhf_core.runs.monitoring import Monitors


class NoOptions(Config):
    """Nothing."""


class Told(Monitor[NoOptions]):
    """Answers what it was given to answer, step by step, and wants the samples of even steps."""

    def __init__(self, answers: list[Any]) -> None:
        super().__init__(NoOptions(), Context(kind="monitor", id="told"))
        self.answers, self.seen = answers, list[Observation]()

    def wants_samples(self, step: int) -> bool:
        return step % 2 == 0

    def look(self, seen: Observation) -> str | None:
        self.seen.append(seen)
        return self.answers[seen.step - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": len(self.seen)}


def monitors(action: str = "warn", **answers: list[Any]) -> tuple[Monitors, list[str], dict[str, Told]]:
    found = {id: Told(said) for id, said in answers.items()}
    warned: list[str] = []
    run = SimpleNamespace(
        component=lambda kind, id: found[id], warn=warned.append, accelerator=SimpleNamespace(num_processes=1)
    )
    return Monitors(run, "optimize", StageConfig(monitors=dict.fromkeys(answers, action))), warned, found


STAGE = SimpleNamespace(shown=lambda: ([Sample(Prompt(text="a"), "b")], [0.5]))


def look(asked: Monitors, *steps: int) -> list[Any]:
    return [asked.look(STAGE, step, 9, {"loss": 1.0}) for step in steps]


def test_an_alarm_is_told_when_it_begins_and_again_when_it_comes_back() -> None:
    asked, warned, _ = monitors(told=[None, "bad", "bad", None, "worse"])
    assert look(asked, 1, 2, 3, 4, 5) == [None] * 5
    assert warned == [
        "monitor 'told', stage 'optimize', step 2: bad",
        "monitor 'told', stage 'optimize', step 5: worse",
    ]
    assert [(alarm["step"], alarm["reason"]) for alarm in asked.outcome()["alarms"]] == [(2, "bad"), (5, "worse")]


def test_samples_are_shown_where_they_are_wanted() -> None:
    asked, _, found = monitors(told=[None, None])
    look(asked, 1, 2)
    odd, even = found["told"].seen
    assert (odd.samples, odd.scores) == ((), ())
    assert ([sample.response for sample in even.samples], even.scores) == (["b"], (0.5,))


def test_every_monitor_looks_before_one_of_them_stops_the_run() -> None:
    asked, warned, found = monitors("stop", first=["no"], second=["neither"])
    (alarm,) = look(asked, 1)
    assert warned == [] and len(found["second"].seen) == 1
    assert str(alarm.error("rlhf run p --resume")) == (
        "optimize step 1: stopped by monitor 'first': no; look at metrics.jsonl; to go on in spite of it: "
        "rlhf run p --resume --allow-config-change --set stages.optimize.monitors.first=warn"
    )


def test_its_state_goes_on() -> None:
    asked, _, _ = monitors(told=["bad", "bad"])
    look(asked, 1)
    again, warned, _ = monitors(told=["bad", "bad"], new=[None, None])  # one more than the checkpoint knows
    again.load_state_dict(asked.state_dict())
    look(again, 2)
    assert warned == [] and len(again.alarms) == 1


@pytest.mark.parametrize("answer", [True, "", " ", 3])
def test_an_answer_is_nothing_or_words(answer: Any) -> None:
    with pytest.raises(PluginError, match=r"monitor 'told': answers .*; expected None, or the reason of its alarm"):
        look(monitors(told=[answer])[0], 1)
