"""The dry run: each stage steps on one prompt, then on 2, 4, ... while that is quick, and the rest is extrapolated.

Responses are as long as they may be. Memory is what is held, by role, and what a step takes on top of it, by phase:
measured at two sizes and drawn out to the tokens that a whole step has at work at a time. Time is drawn out from the
smallest and the largest step by the clock.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from ..errors import ConfigError
from ..interfaces import Component, Policy, Sampling, Stage, StageConfig
from ..randomness import derive_seed, seed_everything
from ..records import Prompt, Rollout
from ..registry import ResolvedPipeline
from ..runs.directory import TIMINGS, Log
from ..runs.profile import device_done
from ..runs.runner import Runner
from .advice import Advice
from .measured import Measured
from .memory import Meter, MeteredClock, libraries_apart, room
from .sizes import batch_of

EVALUATED = 8
"""Held-out examples, or prompts, that an evaluation during a stage is timed with."""


class DryRun(Runner):
    """Tries a pipeline out. Listeners and trackers hear nothing of it, and nothing is written that is to stay."""

    def __init__(self, resolved: ResolvedPipeline, *arguments: Any, **options: Any) -> None:
        super().__init__(resolved, *arguments, **options, dry_run=True)
        self.meter = Meter(self.accelerator.device)
        wait = device_done(self.accelerator.device)
        self.context = replace(self.context, clock=MeteredClock(self.meter, wait))
        self._advice = Advice(self.warn)
        self.longest = 0
        self._found: dict[str, Any] = {}

    def warn(self, message: str) -> None:
        """Kept for the end."""
        if message not in self.warnings:
            self.warnings.append(message)

    def keep(self, component: Any) -> None:
        """Nothing: what is tried out is not worth keeping."""

    def run(self, **_: Any) -> dict[str, Any]:
        """Try every stage, and return the summary; its `dry_run` is what the command shows."""
        with libraries_apart(), _ending_on_sigterm():
            for stage in self.resolved.stages:
                self.display.say(f"[dim]trying {stage.id} ...[/dim]")
                self._try(stage)
                self.artefacts.setdefault("stages_done", []).append(stage.id)
            for kind, id in self.resolved.components:
                self.component(kind, id)  # those that no step has asked for
        parameters = list(self.policy.module.parameters())
        return {
            "pipeline": self.pipeline,
            "seed": self.seed,
            "steps": self._steps,
            "seconds": {name: found["step_seconds"] for name, found in self._found.items()},
            "parameters": self.policy.parameter_count,
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "warnings": self.warnings,
            "dry_run": {
                "device": str(self.accelerator.device),
                "processes": self.accelerator.num_processes,
                "stages": self._found,
            },
        }

    def _try(self, declared: Any) -> None:
        """Set a stage up, step it at growing sizes, end it, and note what it would take."""
        name, config = declared.id, declared.config
        assert isinstance(config, StageConfig)
        begun = time.perf_counter()
        seed_everything(derive_seed(self.seed, "setup", name))
        stage: Stage[Any] = self.plugins.import_class(declared.spec, "factory")(
            config, self.context.named("stage", name)
        )
        stage.setup(self)
        batch = batch_of(stage, self.policy, self.accelerator.num_processes)
        self._advice.before(name, stage, self.policy)
        setup = time.perf_counter() - begun
        self._steps[name], self.longest = stage.total, 0
        generate = _at_full_length(self.policy, self._note)
        try:
            measured = Measured(self, name, stage, batch)
            measured.steps()
        finally:
            self.policy.generate = generate  # type: ignore[method-assign]
        evaluation = self._evaluation(stage)
        begun = time.perf_counter()
        stage.finish()
        finish = time.perf_counter() - begun
        found = measured.result()
        if self.profile:
            entry = {"stage": name, "step": 1, "seconds": sum(measured.phases.values()), "phases": measured.phases}
            Log(self.directory / TIMINGS).append(entry)
        self._advice.after(name, stage, measured.stats, found["peak"], self.room())
        self._found[name] = {
            **found, "steps": stage.total, "setup_seconds": setup, "finish_seconds": finish,
            "evaluation_seconds": evaluation,
        }  # fmt: skip

    @property
    def built(self) -> list[Component[Any]]:
        """The components that there are by now."""
        return list(self._components.values())

    def room(self) -> int | None:
        """Bytes that the device has for each process."""
        there = room(self.accelerator.device)
        shared = self.accelerator.device.type == "cpu"
        return there // self.accelerator.num_processes if there is not None and shared else there

    def _note(self, rollout: Rollout) -> None:
        self.longest = max(self.longest, rollout.prompt_ids.shape[1] + rollout.response_ids.shape[1])

    def _evaluation(self, stage: Any) -> float:
        """Seconds that all evaluations during the stage would take, from one on a few prompts or examples."""
        every, whole = stage.config.evaluate_every, 0
        task, wanted = getattr(getattr(stage, "loop", None), "task", None), getattr(stage.config, "evaluation", None)
        if task is not None:
            whole = len(task.held_out)
            task.held_out = task.held_out[:EVALUATED]  # for `finish` as well
        elif wanted is not None and every:
            whole = min(wanted.limit, len(self.component("prompts", wanted.prompts)))
            fewer = wanted.model_copy(update={"limit": EVALUATED})
            stage.config = stage.config.model_copy(update={"evaluation": fewer})
        if not every and not whole:
            return 0.0
        begun = time.perf_counter()
        stage.evaluate()
        seconds = (time.perf_counter() - begun) * max(whole / EVALUATED, 1.0)
        times = stage.total // every if every else 0
        return seconds * (times + (task is not None))  # the supervised stages evaluate once more at their end


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the process in order, so that the temporary folder goes away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _at_full_length(policy: Policy[Any], note: Any) -> Any:
    """From now on responses of `policy` are as long as they may be, if its engine can do so; returns its `generate`."""
    generate = policy.generate

    def full(prompts: Sequence[Prompt], sampling: Sampling, **options: Any) -> Rollout:
        longest = sampling.model_copy(update={"min_new_tokens": sampling.max_new_tokens, "stop": ()})
        try:
            rollout = generate(prompts, longest, **options)
        except ConfigError:
            rollout = generate(prompts, sampling, **options)
        note(rollout)
        return rollout

    policy.generate = full  # type: ignore[method-assign]
    return generate
