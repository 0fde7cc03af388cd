"""The runner: it alone loops over steps, logs, checkpoints, evaluates, listens to signals, and resumes.

A checkpoint is taken every so many steps and at the end of each stage. It holds the policy, the state of the running
stage and of the components that change in it, and what earlier stages left; what they fitted lies in `components/`.
"""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from safetensors import SafetensorError

from ..errors import ConfigError
from ..interfaces import (
    Clock,
    Component,
    ComponentSpec,
    Context,
    Policy,
    Stage,
    StageConfig,
    State,
    StepStats,
    SupervisedConfig,
)
from ..randomness import derive_seed, seed_everything
from ..registry import ResolvedPipeline, ResolvedStage, load_function
from . import changes, checkpoint
from .collector import Collector
from .directory import (
    METRICS,
    PROVENANCE,
    REGISTRY,
    SAMPLES,
    SUMMARY,
    TIMINGS,
    Log,
    write_json,
    writing,
)
from .display import Display
from .kept import Kept
from .manifest import Ledger, StageRecord
from .monitoring import Monitors
from .processes import together
from .profile import device_done
from .provenance import provenance, write_registry
from .resume import Resume
from .shelf import Shelf
from .signals import Interrupted, PoliteStop
from .watch import Watch

if TYPE_CHECKING:
    from accelerate import Accelerator


class Plugins(Protocol):
    """What the runner uses of the plugin manager."""

    def notify(self, hook: str, **arguments: Any) -> list[str]: ...

    def import_class(self, spec: ComponentSpec, role: Literal["factory", "config"]) -> Any: ...


class Runner:
    """One run of a resolved pipeline in `directory`; also the `Run` that stages and listeners see."""

    def __init__(
        self,
        resolved: ResolvedPipeline,
        plugins: Plugins,
        accelerator: Accelerator,
        directory: Path,
        display: Display,
        *,
        dry_run: bool = False,
        profile: bool = False,
    ) -> None:
        self.resolved, self.plugins, self.directory, self.display = resolved, plugins, directory, display
        self.pipeline, self.seed = resolved.name, resolved.settings.seed
        self.artefacts: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.dry_run, self.profile = dry_run, profile
        self.accelerator = accelerator
        configuration = accelerator.project_configuration
        configuration.project_dir = configuration.logging_dir = str(directory)
        self._ledger = Ledger(directory, write=self._main and not dry_run)
        self.context = Context(
            seed=self.seed,
            device=str(self.accelerator.device),
            dtype=resolved.settings.dtype,
            directory=directory,
            accelerator=self.accelerator,
            resolve=self.component,
            warn=self.warn,
            kind="pipeline",
            id=resolved.name,
            policy=resolved.settings.policy,
            seen=self._ledger.seen,
            clock=Clock(wait=device_done(self.accelerator.device) if profile else None),
            functions={name: load_function(f, resolved.root) for name, f in resolved.functions.items()},
        )
        self._components: dict[tuple[str, str], Component[Any]] = {}
        self._metrics, self._timings = Log(directory / METRICS), Log(directory / TIMINGS)
        self._started = time.perf_counter()
        self._steps: dict[str, int] = {}
        self._stop = PoliteStop(display.say)
        self._global_step = 0
        self._kept = Kept(directory, len(resolved.stages))
        ids = [stage.id for stage in resolved.stages]
        self._shelf = Shelf(directory, ids, resolved.settings.keep_checkpoints)

    # --- what stages and listeners use ---

    @property
    def policy(self) -> Policy[Any]:
        policy: Policy[Any] = self.component("policy", self.resolved.settings.policy)
        return policy

    def component(self, kind: str, id: str) -> Any:
        """The component, built at its first use; one object per run."""
        key = (kind, id)
        if key not in self._components:
            declared = self.resolved.components.get(key)
            if declared is None:
                raise ConfigError(
                    f"pipeline {self.pipeline!r}",
                    f"{kind} {id!r} is not part of it",
                    "a component that the pipeline names",
                )
            factory = self.plugins.import_class(declared.spec, "factory")
            component: Component[Any] = factory(declared.config, self.context.named(kind, id))
            kept = self._kept.place(f"{kind}.{id}", self.artefacts)
            source = kept or (Path(declared.load) if declared.load else None)
            if source is not None:
                if not (source / checkpoint.STATE_FILE).is_file():
                    raise ConfigError(
                        f"{kind} {id!r} load",
                        f"nothing to load at {source}",
                        f"a folder with {checkpoint.STATE_FILE}, such as components/{kind}.{id} of an earlier run",
                        "check the path, relative to the registry file",
                    )
                component.load_state_dict(checkpoint.load(source))
            self._components[key] = component
        return self._components[key]

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            self.display.warn(message)

    def keep(self, component: Component[Any]) -> None:
        self._kept.keep(component, self.artefacts, write=self._main)

    @property
    def _main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    # --- the run ---

    def run(self, *, resume: bool, name: str | None = None, allow_config_change: bool = False) -> dict[str, Any]:
        """Run every stage, or the rest of them, and return what summary.json holds.

        Args:
            resume: go on from a checkpoint, the latest or the one called `name`.
            allow_config_change: though its configuration was another, if that does no harm.

        Raises:
            RunError: the checkpoint is damaged, of another configuration, or something cannot be written.
            Interrupted: a signal came.
        """
        logs = {"metrics": self._metrics, "timings": self._timings}
        going_on = Resume(self.resolved, self._shelf, logs, self._command, self.display.say)
        state = going_on.state(self.accelerator, name, allow=allow_config_change) if resume else None
        if state is None:
            self._write_head()
        stages = self.resolved.stages
        self.display.start(self.pipeline, self.directory, self.resolved.settings.policy, [s.id for s in stages])
        self._ledger.restore(0 if state is None else state["index"])
        first, results = self._restore(state)
        self._notify("rlhf_run_started", run=self)
        self._start_trackers()
        with together(self.accelerator, self.directory, self._command), self._stop:
            for index in range(first, len(stages)):
                inside = state["stage"] if state is not None and index == first else None
                self._kept.stage = index
                # a disk that fills up while weights are exported, say, is told like one that fills up at a checkpoint
                with writing(f"stage {stages[index].id!r}", SafetensorError, strangers=False):
                    self._run_stage(index, inside, results)
        summary = self._finish(results)
        self._notify("rlhf_run_finished", run=self, summary=summary)
        self.accelerator.end_training()
        return summary

    def _run_stage(self, index: int, inside: State | None, results: dict[str, Any]) -> None:
        """Run a stage, from its checkpoint `inside` if there is one, and put what it leaves into `results`."""
        declared = self.resolved.stages[index]
        name, config = declared.id, declared.config
        assert isinstance(config, StageConfig)
        self._ledger.stage = name
        seed_everything(derive_seed(self.seed, "setup", name))
        factory = self.plugins.import_class(declared.spec, "factory")
        stage: Stage[Any] = factory(config, self.context.named("stage", name))
        stage.setup(self)
        record = StageRecord(
            self.directory, self.resolved, index, stage, self._policy_if_built, resumed=inside is not None
        )
        watch = Watch(config)
        self._monitors = Monitors(self, name, config)
        done = 0
        if inside is not None:
            done = inside["step"]
            stage.load_state_dict(inside["stage"])
            for key, component in stage.components().items():
                component.load_state_dict(inside["components"][key])
            watch.load_state_dict(inside["watch"])
            self._monitors.load_state_dict(inside["monitors"])
        total = min(stage.total, 1) if self.dry_run else stage.total
        self._steps[name] = stage.total
        self.display.stage(name, stage.total, done)
        with Collector(clean=index > 0 and total > 1) as collector, ExitStack() as afterwards:
            afterwards.callback(self.display.close_stage)
            for step in range(done, total):
                with collector.off():
                    stats = self._step(stage, declared, step, watch)
                    alarm = self._monitors.look(stage, step + 1, total, stats)
                if watch.satisfied:
                    watch.stopped_at = step + 1
                    self.display.say(f"{name}: stopped at step {step + 1}, {watch.reason}")
                    break
                every = self.resolved.settings.checkpoint_every
                last = step + 1 == total
                stopping = self._stop.asked(self.accelerator)
                if stopping or alarm or (every and (step + 1) % every == 0 and not last):
                    self._checkpoint(index, step + 1, stage, watch, results)
                if stopping:
                    raise Interrupted(stopping, self.directory, self._command)
                if alarm:
                    raise alarm.error(self._command)
        if watch.best_value is not None:
            self.accelerator.wait_for_everyone()  # until the main process has written it
            (stage.trained() or self.policy).load_state_dict(checkpoint.load(self._best(name)))
        results[name] = {**stage.finish(), **watch.outcome(), **self._monitors.outcome()}
        self.artefacts.setdefault("stages_done", []).append(name)
        self._write_manifest(record, results[name])
        for component in stage.components().values():  # those begin anew in each stage; rewards have been kept
            if component.context.kind in ("optimizer", "shaper"):
                self._components.pop((component.context.kind, component.context.id), None)
        if index + 1 < len(self.resolved.stages):
            self._checkpoint(index + 1, 0, None, None, results)
            if stopping := self._stop.asked(self.accelerator):
                raise Interrupted(stopping, self.directory, self._command)

    def _step(self, stage: Stage[Any], declared: ResolvedStage, step: int, watch: Watch) -> StepStats:
        """One step: seeded, timed, evaluated if it is its turn, logged."""
        seed_everything(derive_seed(self.seed, "step", declared.id, step))
        clock = self.context.clock
        clock.reset()
        supervised = isinstance(declared.config, SupervisedConfig) or stage.trained() is not None
        with clock("update" if supervised else "overhead"):  # less the phases that the stage marks
            stats = dict(stage.step(step))
        every = declared.config.evaluate_every  # type: ignore[attr-defined]
        if every and (step + 1) % every == 0:
            with clock("evaluation", whole=True):
                measured = stage.evaluate()
                if watch.look(measured, declared.id, step + 1):
                    state = (stage.trained() or self.policy).state_dict()  # of all processes: each may have a part
                    if self._main:
                        checkpoint.save(self._best(declared.id), state)
            stats.update({f"eval/{name}": value for name, value in measured.items()})
        self._log(declared.id, step + 1, stats)
        self.display.step(declared.id, step + 1, stage.total, stats)
        self._notify("rlhf_step_finished", run=self, stage=declared.id, step=step + 1, stats=stats)
        return stats

    def _log(self, stage: str, step: int, stats: StepStats) -> None:
        self._global_step += 1
        if self._main:
            self._metrics.append({"stage": stage, "step": step, **stats})
            phases = self.context.clock.seconds
            times: dict[str, Any] = {"seconds": round(sum(phases.values()), 4)}
            if self.profile:
                times["phases"] = {phase: round(seconds, 4) for phase, seconds in phases.items()}
            self._timings.append({"stage": stage, "step": step, **times})
        if self.resolved.settings.trackers:
            self.accelerator.log(stats, step=self._global_step)

    def _finish(self, results: dict[str, Any]) -> dict[str, Any]:
        seconds: dict[str, float] = {}
        for entry in self._timings:
            seconds[entry["stage"]] = seconds.get(entry["stage"], 0.0) + entry["seconds"]
        samples = [
            {"stage": name, **sample} for name, result in results.items() for sample in result.get("samples", ())
        ]
        shown = {
            name: {key: value for key, value in result.items() if key != "samples"} for name, result in results.items()
        }
        parameters = list(self.policy.module.parameters())
        summary = {
            "pipeline": self.pipeline,
            "seed": self.seed,
            "stages": shown,
            "steps": self._steps,
            "seconds": seconds,
            "wall_seconds": round(time.perf_counter() - self._started, 1),
            "parameters": self.policy.parameter_count,
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "warnings": self.warnings,
        }
        if self._main:
            log = Log(self.directory / SAMPLES)
            log.cut(0)
            for sample in samples:
                log.append(sample)
            write_json(self.directory / SUMMARY, summary)
            self._kept.settle()
        return summary

    def _write_manifest(self, record: StageRecord, result: dict[str, Any]) -> None:
        if self._main and not self.dry_run:
            record.write(
                self._policy_if_built, result, self._ledger, self.context.device, self.accelerator.num_processes
            )

    @property
    def _policy_if_built(self) -> Policy[Any] | None:
        policy: Policy[Any] | None = self._components.get(("policy", self.resolved.settings.policy))  # type: ignore[assignment]
        return policy

    def _notify(self, hook: str, **arguments: Any) -> None:
        for problem in self.plugins.notify(hook, **arguments):
            self.warn(problem)

    # --- checkpoints ---

    def _checkpoint(
        self, index: int, step: int, stage: Stage[Any] | None, watch: Watch | None, results: dict[str, Any]
    ) -> None:
        """Save everything that has changed; `stage` is None between stages."""
        name = self.resolved.stages[index].id
        inside: State | None = None
        if stage is not None and watch is not None:
            inside = {
                "step": step,
                "stage": stage.state_dict(),
                "watch": watch.state_dict(),
                "monitors": self._monitors.state_dict(),
                "components": {key: c.state_dict() for key, c in stage.components().items()},
            }
        state = {
            "config": changes.snapshot(self.resolved),
            "index": index,
            "stage": inside,
            "policy": self.policy.state_dict(),
            "artefacts": self.artefacts,
            "results": results,
            "steps": self._steps,
            "warnings": self.warnings,
            "global_step": self._global_step,
            "metrics": self._metrics.saved(),
            "timings": self._timings.saved(),
        }
        if self._main:
            path = self._shelf.path(self._global_step, name, step)
            self._shelf.save(path, state)
            self._notify("rlhf_checkpoint_saved", run=self, path=path)

    def _best(self, stage: str) -> Path:
        return self.directory / "best" / stage

    @property
    def _command(self) -> str:
        return shlex.join(["rlhf", "run", self.pipeline, "--resume", "--out", str(self.directory)])

    def _restore(self, state: State | None) -> tuple[int, dict[str, Any]]:
        """Put everything back where a checkpoint left it; returns the stage to go on with and the results so far."""
        if state is None:
            return 0, {}
        self.artefacts, self.warnings = state["artefacts"], list(state["warnings"])
        self._global_step, self._steps = state["global_step"], state["steps"]
        self._kept.stage = state["index"]
        self.policy.load_state_dict(state["policy"])
        if "reference" in self.artefacts:
            self.policy.set_reference(str(self.directory / "references" / self.artefacts["reference"]))
        self.display.say(f"resumed at step {self._global_step}, as configured in {self.directory / REGISTRY}")
        return state["index"], state["results"]

    def _write_head(self) -> None:
        """What is known before the first step: the resolved registry and where everything comes from."""
        if self._main:
            write_registry(self.resolved, self.directory)
            facts = provenance(self.resolved, self.context.device, self.accelerator.num_processes)
            write_json(self.directory / PROVENANCE, facts)

    def _start_trackers(self) -> None:
        if self.resolved.settings.trackers:
            self.accelerator.init_trackers(self.pipeline, config={"pipeline": self.pipeline, "seed": self.seed})
