"""What a person sees of a run: progress bars on a terminal, a line per step elsewhere, tables at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..terminal import Console

# what a line shows of a step, in this order, where it is there
SHOWN = (
    "sft/loss",
    "fit/loss",
    "fit/accuracy",
    "reward/score",
    "kl/sequence",
    "response/length",
    "policy/loss",
    "policy/entropy",
    "value/loss",
    "value/explained_variance",
    "policy/clip_fraction",
)


class Display:
    """Shows a run on `console`. Text of models is escaped: it is data, not markup."""

    def __init__(self, console: rich.console.Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, quiet=quiet)
        self._progress: Progress | None = None

    def start(self, pipeline: str, directory: Any, policy: str, stages: Sequence[str]) -> None:
        self.console.print(f"[bold]{escape(pipeline)}[/bold]: {escape(' -> '.join(stages))}")
        self.console.print(f"policy {escape(policy)}; run directory {escape(str(directory))}")

    def stage(self, name: str, total: int, done: int) -> None:
        """A stage begins, `done` of its `total` steps already behind it."""
        if self.console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:>12}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[stats]}"),
                console=self.console,
            )
            self._progress.add_task(escape(name), total=total, completed=done, stats="")
            self._progress.start()

    def step(self, name: str, step: int, total: int, stats: Mapping[str, float]) -> None:
        text = "  ".join(f"{_short(key)} {stats[key]:.3g}" for key in _chosen(stats))
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[-1], completed=step, stats=escape(text))
        elif not self.console.is_terminal:
            self.console.print(escape(f"{name} {step}/{total}  {text}".rstrip()))

    def close_stage(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def say(self, text: str) -> None:
        """A line of ours, in rich markup."""
        self.console.print(text)

    def warn(self, message: str) -> None:
        self.console.print(f"[yellow]warning:[/yellow] {escape(message)}")

    def result(self, metrics: Mapping[str, Any]) -> None:
        """The table of an evaluate stage: mean and 95 % interval, before and after."""
        paired = any("before" in entry for entry in metrics.values())
        table = Table(title="evaluation, mean and 95 % interval", title_justify="left")
        table.add_column("metric")
        for column in ("before", "after", "change") if paired else ("value",):
            table.add_column(column, justify="right")
        for name, entry in metrics.items():
            cells = [
                interval(entry[key]) if key in entry else ""
                for key in (("before", "after", "change") if paired else ("after",))
            ]
            table.add_row(escape(name), *cells)
        self.console.print(table)

    def fitted(self, stage: Mapping[str, Any]) -> None:
        """One line on what a reward got right on held-out feedback, beside its baseline."""
        parts = [_held_out(stage)] + ([_held_out(stage["baseline"])] if "baseline" in stage else [])
        self.console.print(f"held-out feedback: {escape('; baseline '.join(parts))}")

    def profile(self, directory: Any) -> None:
        """Where the time of steps went, per stage: what `--profile` is for."""
        from .directory import TIMINGS, Log
        from .profile import profiles

        table = Table("stage", "phase", title="profile: where the time of steps went", title_justify="left")
        for column in ("steps", "a step (median)", "share"):
            table.add_column(column, justify="right")
        for stage in profiles(Log(directory / TIMINGS)):
            for place, phase in enumerate(stage.phases):
                name = escape(stage.stage) if place == 0 else ""
                last = place + 1 == len(stage.phases)
                table.add_row(name, escape(phase.name), str(phase.steps), phase.step, phase.percent, end_section=last)
        self.console.print(table)

    def finish(self, directory: Any, summary: Mapping[str, Any], report: Any) -> None:
        """Two samples, how long it took, and where everything is."""
        from .directory import SAMPLES, Log

        self.samples(list(Log(directory / SAMPLES))[:2])
        times = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in summary["seconds"].items())
        self.console.print(f"time in steps: {escape(times)}")
        for name, stage in summary["stages"].items():
            if "path" in stage:
                what = f" (weights {stage['weights']})" if "weights" in stage else ""
                self.console.print(escape(f"{name}: {stage['path']}{what}"))
        if report is not None:
            self.console.print(f"report: [bold]{escape(str(report))}[/bold]")

    def samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Prompts with their responses before and after."""
        for sample in samples:
            self.console.print(f"[bold]prompt[/bold] {escape(sample['prompt'].strip()[-200:])}")
            for key in ("before", "after"):
                if key in sample:
                    self.console.print(f"  [dim]{key:>6}[/dim] {escape(sample[key]['response'].strip()[:300])}")


def _held_out(result: Mapping[str, Any]) -> str:
    measures = "  ".join(f"{name} {value:.3g}" for name, value in result["held_out"].items())
    return f"{result['reward']} {measures}"


def interval(entry: Mapping[str, float | None]) -> str:
    """Mean and half the width of its 95 % interval (1.96 standard errors)."""
    mean, error = entry.get("mean"), entry.get("error")
    if mean is None or math.isnan(mean):
        return "-"
    if error is None or math.isnan(error):
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {1.96 * error:.3f}"


def _chosen(stats: Mapping[str, float]) -> list[str]:
    named = [key for key in SHOWN if key in stats]
    extra = [key for key in stats if key.startswith("eval/")]
    return [*named[:6], *extra] or list(stats)[:6]


def _short(key: str) -> str:
    group, _, name = key.rpartition("/")
    if group == "kl":
        return "kl"
    return key if group in ("eval", "value", "evaluate") else name.replace("_", " ")
