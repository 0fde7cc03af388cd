"""The framework from Python: ``rlhf_core.load("registry.yaml").run("quickstart")``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RegistryErrors, RLHFError, RunError
from .plugins import Plugins, load_plugins
from .registry import Registry, ResolvedPipeline

if TYPE_CHECKING:
    from .interfaces import Context
    from .runs.display import Display


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory, what summary.json holds, and the report."""

    directory: Path
    summary: dict[str, Any]
    report: Path | None


class Project:
    """A registry file together with the installed plugins."""

    def __init__(self, registry: Registry, plugins: Plugins) -> None:
        self.registry, self.plugins = registry, plugins

    @property
    def pipelines(self) -> list[str]:
        """Names of the pipelines."""
        return self.registry.pipelines

    def validate(self) -> list[RLHFError]:
        """Every problem of the file."""
        return self.registry.problems()

    def resolve(self, pipeline: str, overrides: Iterable[str] = ()) -> ResolvedPipeline:
        """The pipeline with `overrides` ("a.b.c=value") applied and everything it names looked up.

        Raises:
            RegistryErrors: it does not hold together.
        """
        return self.registry.resolve(pipeline, list(overrides))

    def build(self, kind: str, id: str, context: Context | None = None) -> Any:
        """One component, built on its own.

        Raises:
            RLHFError: it is not declared, or its configuration is wrong.
        """
        return self.build_together((kind, id), context=context)[0]

    def build_together(self, *wanted: tuple[str, str], context: Context | None = None) -> list[Any]:
        """Several components, and whatever they name, each built once."""
        from .interfaces import Context
        from .registry import load_function

        functions = {name: load_function(f, self.registry.root) for name, f in self.registry.functions.items()}
        shared: dict[tuple[str, str], Any] = {}

        def resolve(kind: str, id: str) -> Any:
            if (kind, id) not in shared:
                declared = self.registry.component(kind, id)
                factory = self.plugins.import_class(declared.spec, "factory")
                shared[kind, id] = factory(declared.config, surroundings.named(kind, id))
                if declared.load:
                    from .runs import checkpoint

                    shared[kind, id].load_state_dict(checkpoint.load(Path(declared.load)))
            return shared[kind, id]

        surroundings = replace(context or Context(), functions=functions, resolve=resolve)
        return [resolve(kind, id) for kind, id in wanted]

    def run(
        self,
        pipeline: str,
        *,
        out: str | Path | None = None,
        overrides: Iterable[str] = (),
        resume: bool = False,
        dry_run: bool = False,
        profile: bool = False,
        display: Display | None = None,
    ) -> RunResult:
        """Run a pipeline to its end.

        Args:
            out: the run directory; by default a new one under ``runs/PIPELINE``, or with `resume` the latest there.
            overrides: "a.b.c=value", as on the command line.
            resume: go on from the last checkpoint, with the registry that the run directory holds.
            dry_run: build everything and take one step of every stage, in a directory that is thrown away.
            profile: write where each step's time went into ``timings.jsonl`` and the report, and show it at the end.

        Raises:
            RLHFError: bad input, or what the run met.
        """
        if resume:
            return resume_run(
                pipeline, out=out, overrides=overrides, profile=profile, display=display, plugins=self.plugins
            )
        from .runs.directory import new_directory

        resolved = self.resolve(pipeline, overrides)
        if not dry_run:
            target = Path(out) if out is not None else None
            return _run(resolved, self.plugins, lambda: new_directory(pipeline, target), display, profile=profile)
        scratch = Path(tempfile.mkdtemp(prefix="rlhf-dry-run-"))
        try:
            return _run(
                resolved,
                self.plugins,
                lambda: new_directory(pipeline, scratch / "run"),
                display,
                dry_run=True,
                profile=profile,
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def replay(folder: str | Path, plugins: Plugins | None = None) -> list[dict[str, Any]]:
    """Compute a batch again whose loss was not finite, sample by sample, under the weights of that moment.

    Args:
        folder: what the error named, ``failures/step-N`` of a run directory.

    Returns:
        one mapping per sample: prompt, response, loss (None for an optimizer whose loss is not a sum over samples),
        lowest and highest log-probability, and the names of the entries that are not finite.

    Raises:
        RLHFError: there is no such batch, or its run is not there.
    """
    from .interfaces import Needs
    from .rl import OnPolicyOptimizer
    from .rl.failure import FailedBatch
    from .runs.directory import REGISTRY

    failed = FailedBatch(Path(folder))
    project = load(Path(folder).resolve().parents[1] / REGISTRY, plugins)
    pipeline = project.resolve(project.pipelines[0])
    policy, optimizer = project.build_together(("policy", pipeline.settings.policy), ("optimizer", failed.optimizer))
    policy.load_state_dict(failed.policy)
    optimizer.bind(policy, 1)
    policy.load_state_dict(failed.policy)  # binding may have given the critic another beginning
    rows = []
    for row, sample in enumerate(failed.rollout.samples):
        one = failed.rollout.select([row])
        logprobs = policy.forward(one, Needs()).logprobs[one.mask].detach()
        loss = (
            optimizer.loss_of(failed.rollout, failed.prepared, row)
            if isinstance(optimizer, OnPolicyOptimizer)
            else None
        )
        rows.append(
            {
                "prompt": str(sample.prompt.text),
                "response": sample.response,
                "loss": loss,
                "logprobs": (float(logprobs.min()), float(logprobs.max())) if len(logprobs) else None,
                "not_finite": failed.not_finite(row),
            }
        )
    return rows


def resume_run(
    pipeline: str,
    *,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    profile: bool = False,
    display: Display | None = None,
    plugins: Plugins | None = None,
) -> RunResult:
    """Go on with a run from its last checkpoint, with the registry that its directory holds: what it was started with
    counts, not what the registry file says today.

    Raises:
        RLHFError: there is no such run, it is complete, or its checkpoint is damaged.
    """
    from .runs.directory import REGISTRY, existing_directory

    directory = existing_directory(pipeline, Path(out) if out is not None else None)
    project = load(directory / REGISTRY, plugins)
    resolved = project.resolve(pipeline, overrides)
    return _run(resolved, project.plugins, lambda: directory, display, resume=True, profile=profile)


def _run(
    resolved: ResolvedPipeline,
    plugins: Plugins,
    choose: Callable[[], Path],
    display: Display | None,
    *,
    resume: bool = False,
    dry_run: bool = False,
    profile: bool = False,
) -> RunResult:
    # what imports torch comes only after the registry has been found to be right
    specs = [declared.spec for declared in resolved.components.values()] + [stage.spec for stage in resolved.stages]
    if errors := plugins.check(specs):
        raise RegistryErrors(errors)
    from .runs.display import Display
    from .runs.processes import agree, start
    from .runs.report import write_report
    from .runs.runner import Runner

    accelerator = start(resolved)
    display = display or Display()
    display.console.quiet |= not accelerator.is_main_process  # one voice for all processes
    directory = agree(accelerator, choose)
    runner = Runner(resolved, plugins, accelerator, directory, display, dry_run=dry_run, profile=profile)
    summary = runner.run(resume=resume)
    if profile and accelerator.is_main_process:
        display.profile(directory)
    report = None
    if not dry_run and accelerator.is_main_process:
        try:
            report = write_report(directory)
        except RunError as error:  # the run itself is done and whole
            display.warn(str(error))
    return RunResult(directory, summary, report)


def load(path: str | Path = "registry.yaml", plugins: Plugins | None = None) -> Project:
    """Read a registry file.

    Raises:
        RLHFError: it cannot be read at all; other problems wait for `validate`, or for the pipeline that meets them.
    """
    plugins = plugins or load_plugins()
    return Project(Registry.load(path, plugins), plugins)
