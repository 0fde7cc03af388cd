"""The runner: it alone loops over steps, logs, checkpoints, evaluates, listens to signals, and resumes.

A checkpoint is taken every so many steps and at the end of each stage. It holds the policy, the state of the running
stage and of the components that change in it, and what earlier stages left; what they fitted lies in `components/`.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ruamel.yaml import YAML

from ..errors import ConfigError, RunError
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
from . import checkpoint
from .collector import Collector
from .directory import CHECKPOINTS, METRICS, PROVENANCE, REGISTRY, SAMPLES, SUMMARY, TIMINGS, Log, write_json
from .display import Display
from .profile import device_done
from .provenance import provenance
from .signals import Interrupted, PoliteStop
from .watch import Watch

if TYPE_CHECKING:
    from accelerate import Accelerator

KEPT = "components"


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
            clock=Clock(wait=device_done(self.accelerator.device) if profile else None),
            functions={name: load_function(f, resolved.root) for name, f in resolved.functions.items()},
        )
        self._components: dict[tuple[str, str], Component[Any]] = {}
        self._metrics, self._timings = Log(directory / METRICS), Log(directory / TIMINGS)
        self._started = time.perf_counter()
        self._steps: dict[str, int] = {}
        self._stop = PoliteStop(display.say)
        self._global_step = 0

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
            kept = self.artefacts.get("kept", {}).get(f"{kind}.{id}")
            source = self.directory / kept if kept else Path(declared.load) if declared.load else None
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
        name = f"{component.context.kind}.{component.context.id}"
        if self._main:
            checkpoint.save(self.directory / KEPT / name, component.state_dict())
        self.artefacts.setdefault("kept", {})[name] = f"{KEPT}/{name}"

    @property
    def _main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    # --- the run ---

    def run(self, *, resume: bool) -> dict[str, Any]:
        """Run every stage, or the rest of them, and return what summary.json holds."""
        state = self._latest() if resume else None
        if state is None:
            self._write_head()
        stages = self.resolved.stages
        self.display.start(self.pipeline, self.directory, self.resolved.settings.policy, [s.id for s in stages])
        first, results = self._restore(state)
        self._notify("rlhf_run_started", run=self)
        self._start_trackers()
        with self._stop:
            for index in range(first, len(stages)):
                inside = state["stage"] if state is not None and index == first else None
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
        seed_everything(derive_seed(self.seed, "setup", name))
        factory = self.plugins.import_class(declared.spec, "factory")
        stage: Stage[Any] = factory(config, self.context.named("stage", name))
        stage.setup(self)
        watch = Watch(config)
        done = 0
        if inside is not None:
            done = inside["step"]
            stage.load_state_dict(inside["stage"])
            for key, component in stage.components().items():
                component.load_state_dict(inside["components"][key])
            watch.load_state_dict(inside["watch"])
        total = min(stage.total, 1) if self.dry_run else stage.total
        self._steps[name] = stage.total
        self.display.stage(name, stage.total, done)
        with Collector(clean=index > 0 and total > 1) as collector, ExitStack() as afterwards:
            afterwards.callback(self.display.close_stage)
            for step in range(done, total):
                with collector.off():
                    self._step(stage, declared, step, watch)
                if watch.satisfied:
                    watch.stopped_at = step + 1
                    self.display.say(f"{name}: stopped at step {step + 1}, {watch.reason}")
                    break
                every = self.resolved.settings.checkpoint_every
                last = step + 1 == total
                if self._stop.number is not None or (every and (step + 1) % every == 0 and not last):
                    self._checkpoint(index, step + 1, stage, watch, results)
                if self._stop.number is not None:
                    raise Interrupted(
                        self._stop.number, self.directory, f"rlhf run {self.pipeline} --resume --out {self.directory}"
                    )
        if watch.best_value is not None:
            self.accelerator.wait_for_everyone()  # until the main process has written it
            (stage.trained() or self.policy).load_state_dict(checkpoint.load(self._best(name)))
        results[name] = {**stage.finish(), **watch.outcome()}
        self.artefacts.setdefault("stages_done", []).append(name)
        if index + 1 < len(self.resolved.stages):
            self._checkpoint(index + 1, 0, None, None, results)

    def _step(self, stage: Stage[Any], declared: ResolvedStage, step: int, watch: Watch) -> None:
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
                if watch.look(measured, declared.id, step + 1) and self._main:
                    checkpoint.save(self._best(declared.id), (stage.trained() or self.policy).state_dict())
            stats.update({f"eval/{name}": value for name, value in measured.items()})
        self._log(declared.id, step + 1, stats)
        self.display.step(declared.id, step + 1, stage.total, stats)
        self._notify("rlhf_step_finished", run=self, stage=declared.id, step=step + 1, stats=stats)

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
            (self.directory / SAMPLES).unlink(missing_ok=True)
            log = Log(self.directory / SAMPLES)
            for sample in samples:
                log.append(sample)
            write_json(self.directory / SUMMARY, summary)
        return summary

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
                "components": {key: c.state_dict() for key, c in stage.components().items()},
            }
        state = {
            "index": index,
            "stage": inside,
            "policy": self.policy.state_dict(),
            "artefacts": self.artefacts,
            "results": results,
            "steps": self._steps,
            "warnings": self.warnings,
            "global_step": self._global_step,
            "metrics": self._metrics.size,
            "timings": self._timings.size,
        }
        if self._main:
            folder = self.directory / CHECKPOINTS
            path = folder / f"{self._global_step:06d}-{name}-{step}"
            checkpoint.save(path, state)
            for old in _checkpoints(self.directory)[: -self.resolved.settings.keep_checkpoints]:
                shutil.rmtree(old)
            self._notify("rlhf_checkpoint_saved", run=self, path=path)

    def _best(self, stage: str) -> Path:
        return self.directory / "best" / stage

    def _latest(self) -> State | None:
        if (self.directory / SUMMARY).exists():
            raise RunError(
                f"run directory {self.directory}",
                "the run is complete",
                "an unfinished run",
                "look at its report.html, or start a new run without --resume",
            )
        found = _checkpoints(self.directory)
        if not found:
            for log in (self._metrics, self._timings):
                log.cut(0)
            return None
        return checkpoint.load(found[-1])

    def _restore(self, state: State | None) -> tuple[int, dict[str, Any]]:
        """Put everything back where a checkpoint left it; returns the stage to go on with and the results so far."""
        if state is None:
            return 0, {}
        self.artefacts, self.warnings = state["artefacts"], list(state["warnings"])
        self._global_step, self._steps = state["global_step"], state["steps"]
        self._metrics.cut(state["metrics"])
        self._timings.cut(state["timings"])
        self.policy.load_state_dict(state["policy"])
        if "reference" in self.artefacts:
            self.policy.set_reference(str(self.directory / "references" / self.artefacts["reference"]))
        self.display.say(f"resumed at step {self._global_step}")
        return state["index"], state["results"]

    def _write_head(self) -> None:
        """What is known before the first step: the resolved registry and where everything comes from."""
        if not self._main:
            return
        resolved = self.resolved.to_dict()
        with (self.directory / REGISTRY).open("w", encoding="utf-8") as file:
            YAML().dump(resolved, file)
        write_json(
            self.directory / PROVENANCE,
            provenance(
                self.pipeline,
                self.seed,
                self.resolved.root,
                [resolved],
                self.context.device,
                self.accelerator.num_processes,
            ),
        )

    def _start_trackers(self) -> None:
        if self.resolved.settings.trackers:
            self.accelerator.init_trackers(self.pipeline, config={"pipeline": self.pipeline, "seed": self.seed})


def _checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in (directory / CHECKPOINTS).glob("[0-9]*") if p.is_dir())
