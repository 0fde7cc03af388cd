"""Taking turns with a loop that is not ours."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from rlhf_plugin_trl.turns import Pause, Turns


def alive() -> int:
    return sum(thread.name == "trl" for thread in threading.enumerate())


def test_one_runs_while_the_other_waits() -> None:
    seen: list[str] = []

    def work(pause: Pause[int]) -> None:
        for n in range(3):
            seen.append(f"work {n}")
            assert pause(n)
        seen.append("end")

    turns = Turns(work)
    assert seen == []  # nothing runs before it is asked for
    for n in range(3):
        assert turns.next() == n
        time.sleep(0.01)
        seen.append(f"us {n}")
    assert seen == ["work 0", "us 0", "work 1", "us 1", "work 2", "us 2"]
    assert turns.next() is None and seen[-1] == "end"
    assert turns.next() is None and alive() == 0
    turns.close()


def test_what_the_work_raises_is_raised_here() -> None:
    def work(pause: Pause[int]) -> None:
        pause(1)
        raise ZeroDivisionError("in the work")

    turns = Turns(work)
    turns.next()
    with pytest.raises(ZeroDivisionError, match="in the work"):
        turns.next()
    assert turns.next() is None and alive() == 0


def test_closing_tells_the_work_to_end() -> None:
    told: list[bool] = []

    def work(pause: Pause[int]) -> None:
        while pause(0):
            pass
        told.append(True)

    turns = Turns(work)
    turns.next()
    turns.close()
    assert told == [True] and alive() == 0
    never = Turns(work)
    never.close()
    assert told == [True] and alive() == 0, "work that was never asked for does not begin"


def test_turns_that_nobody_holds_any_more_end() -> None:
    def work(pause: Pause[int]) -> None:
        while pause(0):
            pass

    turns = Turns(work)
    turns.next()
    del turns
    gc.collect()
    for _ in range(100):
        if alive() == 0:
            break
        time.sleep(0.01)
    assert alive() == 0
