"""The commands of `rlhf`. Nothing here imports torch until a pipeline runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..interfaces import PHASES
from ..plugins import Plugins, load_plugins

Registry = Annotated[Path, typer.Option("--registry", "-r", help="the registry file")]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="a.b.c=d",
        help="change a value: stages.ID.KEY, KIND.ID.KEY or a pipeline setting such as seed; may be repeated",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-functions",
        help="import what `functions:` lists though the registry file lies outside the current directory",
    ),
]


def build_app() -> typer.Typer:
    """The application with the commands of all plugins."""
    from .plugin_author import add_author_commands
    from .trace import add_trace_commands

    plugins = load_plugins()
    app = typer.Typer(
        name="rlhf",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=True,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        help="RLHF from swappable parts: compose a pipeline in registry.yaml, and run it.",
    )
    app.callback()(_global_options)
    _add_run_commands(app, plugins)
    _add_look_commands(app, plugins)
    add_trace_commands(app)
    add_author_commands(app, plugins)
    for problem in plugins.notify("rlhf_commands", app=app):
        typer.echo(f"warning: {problem}", err=True)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlhf-core {__version__}")
        raise typer.Exit


def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Options of every command; `main` reads --debug itself."""


def _add_run_commands(app: typer.Typer, plugins: Plugins) -> None:
    @app.command()
    def init(
        directory: Annotated[Path, typer.Argument(help="where to put it")] = Path(),
        force: Annotated[bool, typer.Option("--force", help="overwrite files that are there")] = False,
    ) -> None:
        """Write a registry.yaml, with a little data, that runs with what is installed."""
        from .starter import write_starter

        pipeline, files = write_starter(directory, plugins, force=force)
        for file in files:
            typer.echo(f"wrote {file}")
        place = "" if directory.resolve() == Path.cwd() else f"cd {directory} && "
        typer.echo(f"next: {place}rlhf run {pipeline}")

    @app.command()
    def run(
        context: typer.Context,
        pipeline: Annotated[str, typer.Argument(help="a pipeline of the registry file")],
        registry: Registry = Path("registry.yaml"),
        out: Annotated[
            Path | None,
            typer.Option(
                "--out",
                "-o",
                help="the run directory; by default runs/PIPELINE/TIME; with --resume the pipeline's latest",
            ),
        ] = None,
        set_: Setting = None,
        resume: Annotated[
            bool, typer.Option("--resume", help="go on from the last checkpoint, by the run directory's registry.yaml")
        ] = False,
        checkpoint: Annotated[
            str | None,
            typer.Option(
                "--checkpoint", metavar="NAME", help="with --resume: from this checkpoint, such as 000050-optimize-50"
            ),
        ] = None,
        allow_config_change: Annotated[
            bool,
            typer.Option(
                "--allow-config-change",
                help="with --resume: though --set or an edited registry.yaml say otherwise than the checkpoint, "
                "if that cannot have changed a number so far",
            ),
        ] = False,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run",
                help="try each stage with small steps, and say what the run would take: sizes, memory, time, warnings",
            ),
        ] = False,
        profile: Annotated[
            bool,
            typer.Option(
                "--profile",
                help="write into timings.jsonl and the report where each step's time went, and show it at the end:"
                + "".join(f"\n\n[bold]{phase}[/bold]: {what}" for phase, what in PHASES.items()),
            ),
        ] = False,
        trust_functions: Trust = False,
    ) -> None:
        """Run a pipeline."""
        from ..api import load, resume_run
        from ..errors import ConfigError
        from ..runs.display import Display

        settings, display, trusted = set_ or [], Display(), trust_functions or None
        if not resume and (checkpoint or allow_config_change):
            option = "--checkpoint" if checkpoint else "--allow-config-change"
            raise ConfigError(option, "without --resume", "a run to go on with", "add --resume, or leave it out")
        if resume:
            source = context.get_parameter_source("registry")
            named = source is not None and source.name == "COMMANDLINE"
            result = resume_run(
                pipeline,
                out=out,
                registry=registry if named else None,
                overrides=settings,
                checkpoint=checkpoint,
                allow_config_change=allow_config_change,
                profile=profile,
                display=display,
                plugins=plugins,
                trust_functions=trusted,
            )
        elif dry_run:
            from .dry_run import show_dry_run

            project = load(registry, plugins, trusted)
            result = project.run(pipeline, overrides=settings, dry_run=True, profile=profile, display=display)
            if not display.console.quiet:  # the main process alone
                show_dry_run(result.summary)
            return
        else:
            result = load(registry, plugins, trusted).run(
                pipeline, out=out, overrides=settings, profile=profile, display=display
            )
        for stage in result.summary["stages"].values():
            if "metrics" in stage:
                display.result(stage["metrics"])
            elif stage.get("held_out") and "reward" in stage:
                display.fitted(stage)
        display.finish(result.directory, result.summary, result.report)

    @app.command()
    def replay(
        folder: Annotated[Path, typer.Argument(help="failures/step-N of a run directory, as the error named it")],
        trust_functions: Trust = False,
    ) -> None:
        """Compute a batch again whose loss was not finite, sample by sample."""
        from ..api import replay as again
        from .tables import replay_table

        replay_table(again(folder, plugins, trust_functions or None))

    @app.command()
    def validate(registry: Registry = Path("registry.yaml")) -> None:
        """Check a registry file: all problems at once, with their lines."""
        from ..api import load
        from ..errors import RegistryErrors

        project = load(registry, plugins)
        problems = project.validate()
        if problems:
            raise RegistryErrors(problems)
        typer.echo(f"{registry}: {len(project.pipelines)} pipelines, no problems")

    @app.command()
    def show(
        pipeline: Annotated[str | None, typer.Argument(help="a pipeline; without it, the list of them")] = None,
        registry: Registry = Path("registry.yaml"),
        set_: Setting = None,
    ) -> None:
        """Show a pipeline with everything resolved: defaults, overrides, absolute paths."""
        from ..api import load

        project = load(registry, plugins)
        if pipeline is None:
            from .tables import pipeline_table

            pipeline_table(project.registry)
            return
        from ruamel.yaml import YAML

        YAML().dump(project.resolve(pipeline, set_ or []).to_dict(), typer.get_text_stream("stdout"))


def _add_look_commands(app: typer.Typer, plugins: Plugins) -> None:
    @app.command()
    def components(kind: Annotated[str | None, typer.Argument(help="only this kind")] = None) -> None:
        """List the installed components."""
        from .tables import component_table

        component_table(plugins, kind)

    @app.command()
    def describe(
        kind: Annotated[str, typer.Argument(help="such as reward; `rlhf components` lists them")],
        name: Annotated[str, typer.Argument(help="what registry files write after `use`")],
        as_markdown: Annotated[bool, typer.Option("--markdown", help="print its page of the reference")] = False,
    ) -> None:
        """Show what a component does, its options, and how a registry file names it."""
        from .describe import describe as look_up
        from .render import markdown, show

        found = look_up(plugins, kind, name)
        if as_markdown:
            typer.echo(markdown(found), nl=False)
        else:
            show(found)

    @app.command("plugins")
    def list_plugins(
        deep: Annotated[bool, typer.Option("--deep", help="import every class and check it (imports torch)")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    ) -> None:
        """List the installed plugins, and what is wrong with broken ones."""
        from .tables import plugin_rows, plugin_table

        problems = plugins.check_deep() if deep else []
        looked_over = plugins.examined() if deep else plugins
        if as_json:
            found = {"plugins": plugin_rows(looked_over), "problems": [str(p) for p in problems]}
            typer.echo(json.dumps(found, indent=2))
        else:
            plugin_table(looked_over, problems, deep=deep)
        if problems:
            raise typer.Exit(1)

    @app.command()
    def schema(out: Annotated[Path | None, typer.Option("--out", "-o", help="write it to this file")] = None) -> None:
        """Print the JSON Schema of registry.yaml for everything installed, for completion in editors."""
        from ..registry import json_schema

        text = json.dumps(json_schema(plugins), indent=2, ensure_ascii=False) + "\n"
        if out is None:
            typer.echo(text, nl=False)
        else:
            out.write_text(text, encoding="utf-8")
