"""A run over tiny components: what a test of a stage needs."""

from __future__ import annotations

import atexit
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ..interfaces import Component, ComponentSpec, Config, Context, Stage
from ..registry import Declared, FunctionDecl, PipelineSettings, ResolvedPipeline, ResolvedStage
from ..runs.display import Display
from ..runs.processes import start
from ..runs.runner import Runner
from .toys import NoOptions, Toys

Makers: TypeAlias = Mapping[tuple[str, str], Callable[[Context], Component[Any]]]


class TinyRun(Runner):
    """The runner; a signal comes after step `stop_after`, counted from 1."""

    stop_after: int | None = None

    def _notify(self, hook: str, **arguments: Any) -> None:
        if hook == "rlhf_step_finished" and arguments["step"] == self.stop_after:
            self._stop.number = signal.SIGINT  # noted as if it had come, also outside the main thread
        super()._notify(hook, **arguments)

    def _write_head(self) -> None:
        """Nothing: looking up versions takes as long as all the rest."""

    def _write_manifest(self, record: Any, result: Any) -> None:
        """Nothing, for the same reason."""


class _Declared(dict[tuple[str, str], Declared]):
    """Whatever is asked for is declared."""

    def get(self, key: tuple[str, str], default: Any = None) -> Declared:
        return Declared(*key, key[1], NoOptions(), None, ComponentSpec(*key, "", "", ""), "tiny_run", {})


class _Parts:
    """What the runner imports: toys, the components of `makers`, and the one stage."""

    def __init__(self, makers: Makers, stage: Callable[[Any, Context], Stage[Any]] | None) -> None:
        self.makers, self.stage = makers, stage

    def import_class(self, spec: ComponentSpec, role: str) -> Any:
        return self.stage if spec.kind == "stage" else self.make

    def make(self, config: Config, context: Context) -> Component[Any]:
        if (context.kind, context.id) in self.makers:
            return self.makers[context.kind, context.id](context)
        toys = Toys()
        toys.context = context
        return toys(context.kind, context.id)

    def notify(self, hook: str, **arguments: Any) -> list[str]:
        return []


def tiny_run(
    directory: Path | None = None,
    stage: Callable[[Any, Context], Stage[Any]] | None = None,
    config: Config | None = None,
    *,
    components: Makers | None = None,
    stop_after: int | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> TinyRun:
    """The runner itself, over the components of `tiny_context`: any id names a toy of its kind.

    It is the `Run` that a stage is set up with, to try out a step of it:

        run = tiny_run(tmp_path)
        stage = Mine(MineConfig(prompts="toy"), run.context.named("stage", "mine"))
        stage.setup(run)
        stats = stage.step(0)

    and it runs a stage as a pipeline does; here one that is interrupted and goes on:

        with pytest.raises(Interrupted):
            tiny_run(tmp_path, Mine, MineConfig(prompts="toy"), stop_after=1).run(resume=False)
        summary = tiny_run(tmp_path, Mine, MineConfig(prompts="toy")).run(resume=True)

    Args:
        directory: the run directory; by default one that goes when the process ends.
        stage: the class of the stage to run. config: its own.
        components: (kind, id) -> what makes that component from its context, in place of the toy.
        stop_after: stop after this step, counted from 1, as at a signal: the runner takes a checkpoint and raises
            `Interrupted`.
        dry_run: take one step, and end.
        settings: of the pipeline, such as ``seed=1`` or ``dtype="float64"``.
    """
    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="rlhf-tiny-run-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    spec = ComponentSpec("stage", "tiny", "", "", "")
    resolved = ResolvedPipeline(
        name="tiny",
        settings=PipelineSettings.model_validate({"policy": "toy", "device": "cpu", "precision": "fp32", **settings}),
        stages=() if config is None else (ResolvedStage("tiny", "tiny", config, spec, "tiny_run", {}),),
        components=_Declared(),
        functions={"length": FunctionDecl("length", "rlhf_core.testing.toys:_lengths")},
        requires=(),
        root=directory,
        path=directory / "registry.yaml",
        written={},
    )
    parts = _Parts(components or {}, stage)
    run = TinyRun(resolved, parts, start(resolved), directory, Display(quiet=True), dry_run=dry_run)
    run.stop_after = stop_after
    return run
