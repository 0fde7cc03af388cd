"""The framework from Python: ``rlhf_core.load("registry.yaml").run("quickstart")``."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RegistryErrors, RLHFError, RunError
from .plugins import Plugins, load_plugins
from .registry import Registry, ResolvedPipeline, check_trust

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

    def __init__(self, registry: Registry, plugins: Plugins, trust_functions: bool | None = None) -> None:
        self.registry, self.plugins, self.trust_functions = registry, plugins, trust_functions

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

        listed = self.registry.functions
        check_trust(listed, self.registry.path, self.trust_functions)
        functions = {name: load_function(f, self.registry.root) for name, f in listed.items()}
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
        checkpoint: str | None = None,
        allow_config_change: bool = False,
        dry_run: bool = False,
        profile: bool = False,
        display: Display | None = None,
    ) -> RunResult:
        """Run a pipeline to its end.

        Args:
            out: the run directory; by default a new one under ``runs/PIPELINE``, or with `resume` the latest there.
            overrides: "a.b.c=value", as on the command line.
            resume: go on from the last checkpoint, with the registry that the run directory holds.
            checkpoint, allow_config_change: with `resume`, as in `resume_run`.
            dry_run: build everything, try every stage with small steps in a directory that is thrown away, and put
                what the run would take into the summary's `dry_run`.
            profile: write where each step's time went into ``timings.jsonl`` and the report, and show it at the end.

        Raises:
            RLHFError: bad input, or what the run met.
        """
        if resume:
            return resume_run(
                pipeline,
                out=out,
                overrides=overrides,
                checkpoint=checkpoint,
                allow_config_change=allow_config_change,
                profile=profile,
                display=display,
                plugins=self.plugins,
                trust_functions=self.trust_functions,
            )
        from .runs.directory import new_directory

        resolved = self.resolve(pipeline, overrides)
        check_trust(resolved.functions, resolved.path, self.trust_functions)
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


def replay(
    folder: str | Path, plugins: Plugins | None = None, trust_functions: bool | None = None
) -> list[dict[str, Any]]:
    """Compute a batch again whose loss was not finite, sample by sample, under the weights of that moment.

    Args:
        folder: what the error named, ``failures/step-N`` of a run directory.
        trust_functions: as in `load`.

    Returns:
        one mapping per sample: prompt, response, score before shaping (None if it has none), loss (what it adds to that
        of the batch; None for an optimizer whose loss is not a sum over samples), lowest and highest log-probability,
        and the names of the entries that are not finite.

    Raises:
        RLHFError: there is no such batch, or its run is not there.
    """
    from .interfaces import Needs
    from .rl import OnPolicyOptimizer
    from .rl.failure import FailedBatch
    from .runs.directory import REGISTRY

    failed = FailedBatch(Path(folder))
    project = load(Path(folder).resolve().parents[1] / REGISTRY, plugins, trust_functions)
    pipeline = project.resolve(project.pipelines[0])
    policy, optimizer = project.build_together(("policy", pipeline.settings.policy), ("optimizer", failed.optimizer))
    optimizer.bind(policy, 1)
    policy.load_state_dict(failed.policy)  # after binding, which may give the critic another beginning
    scores, rows = failed.rollout.score, list[dict[str, Any]]()
    if summed := isinstance(optimizer, OnPolicyOptimizer):
        optimizer.progress = tuple(failed.update["progress"])
    for row, sample in enumerate(failed.rollout.samples):
        one = failed.rollout.select([row])
        logprobs = policy.forward(one, Needs()).logprobs[one.mask].detach()
        loss = None
        if summed:
            counts = failed.update["tokens"], failed.update["samples"]
            loss = optimizer.share_of_loss(failed.rollout, failed.prepared, row, *counts)
        rows.append(
            {
                "prompt": str(sample.prompt.text),
                "response": sample.response,
                "score": None if scores is None else float(scores[row]),
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
    registry: str | Path | None = None,
    overrides: Iterable[str] = (),
    checkpoint: str | None = None,
    allow_config_change: bool = False,
    profile: bool = False,
    display: Display | None = None,
    plugins: Plugins | None = None,
    trust_functions: bool | None = None,
) -> RunResult:
    """Go on with a run from a checkpoint.

    Args:
        registry: the registry file to go by; by default the one that the run directory holds: what the run was started
            with counts, not what its file says today.
        overrides: "a.b.c=value", as on the command line.
        checkpoint: the name of the checkpoint, such as ``000050-optimize-50``; by default the latest. Newer ones, and
            the metrics after it, are forgotten.
        allow_config_change: though registry and overrides differ from what the checkpoint was taken with, if that
            cannot have changed a number so far.
        trust_functions: as in `load`; the run directory's registry counts as any other.

    Raises:
        RLHFError: there is no such run, it is complete, its checkpoint is damaged or of another configuration.
    """
    from .runs.directory import REGISTRY, REPORT, SUMMARY, existing_directory

    directory = existing_directory(pipeline, Path(out) if out is not None else None)
    if (directory / SUMMARY).exists() and not (directory / REPORT).exists():  # killed while it wrote the report
        from .runs.report import write_report

        summary = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
        return RunResult(directory, summary, write_report(directory))
    project = load(registry or directory / REGISTRY, plugins, trust_functions)
    resolved = project.resolve(pipeline, overrides)
    check_trust(resolved.functions, resolved.path, trust_functions)
    going_on: dict[str, Any] = {"resume": True, "name": checkpoint, "allow_config_change": allow_config_change}
    return _run(resolved, project.plugins, lambda: directory, display, profile=profile, **going_on)


def _run(
    resolved: ResolvedPipeline,
    plugins: Plugins,
    choose: Callable[[], Path],
    display: Display | None,
    *,
    dry_run: bool = False,
    profile: bool = False,
    resume: bool = False,
    **going_on: Any,
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
    kind: type[Runner] = Runner
    if dry_run:
        from .dry_run import DryRun

        kind = DryRun
    runner = kind(resolved, plugins, accelerator, directory, display, profile=profile)
    summary = runner.run(resume=resume, **going_on)
    if profile and accelerator.is_main_process:
        display.profile(directory)
    report = None
    if not dry_run and accelerator.is_main_process:
        try:
            report = write_report(directory)
        except RunError as error:  # the run itself is done and whole
            display.warn(str(error))
    return RunResult(directory, summary, report)


def load(
    path: str | Path = "registry.yaml", plugins: Plugins | None = None, trust_functions: bool | None = None
) -> Project:
    """Read a registry file.

    Args:
        trust_functions: whether a run may import what the file lists under `functions:`, the only code that it can
            name; None trusts a file in the working directory or below. Validating imports nothing in any case.

    Raises:
        RLHFError: it cannot be read at all; other problems wait for `validate`, or for the pipeline that meets them.
    """
    plugins = plugins or load_plugins()
    return Project(Registry.load(path, plugins), plugins, trust_functions)
