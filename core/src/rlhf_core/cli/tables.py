"""Tables that the commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import RLHFError
from ..plugins import PluginInfo, Plugins

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from ..registry import Registry, ResolvedPipeline

console = Console(highlight=False)
STATUS = {"ok": "green", "broken": "red", "clash": "red", "disabled": "yellow"}


def plugin_rows(plugins: Plugins) -> list[dict[str, Any]]:
    """The plugins as JSON."""
    return [
        {
            "name": p.name,
            "distribution": p.distribution,
            "version": p.version,
            "status": p.status,
            "reason": p.reason,
            "components": [f"{c.kind}/{c.name}" for c in p.components],
            "kinds": [k.name for k in p.kinds],
        }
        for p in plugins.plugins
    ]


def plugin_table(plugins: Plugins, problems: list[Any], *, deep: bool) -> None:
    """One row per plugin, and the findings of a deep check below."""
    table = Table("distribution", "version", "status", "adds")
    for plugin in plugins.plugins:
        status = f"[{STATUS[plugin.status]}]{plugin.status}[/]"
        table.add_row(plugin.distribution, plugin.version, status, escape(_adds(plugin)))
    console.print(table)
    for problem in problems:
        console.print(f"[red]error:[/red] {escape(str(problem))}", soft_wrap=True)
    if deep and not problems:
        console.print("every class imports and implements its interface")


def _adds(plugin: PluginInfo) -> str:
    if plugin.status in ("broken", "clash") and plugin.reason:
        return plugin.reason
    by_kind: dict[str, list[str]] = {}
    for spec in plugin.components:
        by_kind.setdefault(spec.kind, []).append(spec.name)
    return "\n".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind.items())


def component_table(plugins: Plugins, kind: str | None) -> None:
    """Every component with its summary."""
    table = Table("kind", "name", "summary", "from")
    for spec in plugins.components(kind):
        table.add_row(spec.kind, f"[bold]{spec.name}[/bold]", escape(spec.summary), plugins.distribution(spec)[0])
    console.print(table)


def describe_component(plugins: Plugins, kind: str, name: str) -> None:
    """Options with types, defaults and meaning, and an example entry."""
    spec = plugins.find(kind, name)
    config = plugins.import_class(spec, "config")
    distribution, version = plugins.distribution(spec)
    console.print(f"[bold]{kind} {name}[/bold] ({distribution} {version}): {escape(spec.summary)}")
    if config.__doc__:
        console.print(escape(config.__doc__.strip()))
    table = Table("option", "type", "default", "meaning")
    for option, info in config.model_fields.items():
        table.add_row(option, escape(_type(info)), escape(_default(info)), escape(info.description or ""))
    console.print(table)
    required = {option: f"<{_type(info)}>" for option, info in config.model_fields.items() if info.is_required()}
    inner = ", ".join(f"{option}: {value}" for option, value in required.items())
    console.print("in registry.yaml:")
    if kind == "stage":
        console.print(escape(f"  stages:\n    - {name}: {{{inner}}}"), soft_wrap=True)
    else:
        entry = f"{{use: {name}, config: {{{inner}}}}}" if inner else f"{{use: {name}}}"
        console.print(escape(f"  components:\n    {kind}:\n      my-{name}: {entry}"), soft_wrap=True)


def _type(info: FieldInfo) -> str:
    from ..interfaces.config import RefTo

    for marker in info.metadata:
        if isinstance(marker, RefTo):
            return f"{marker.kind} id"
    return type_name(info.annotation)


def type_name(annotation: Any) -> str:
    """A type as a person would write it."""
    import types
    from typing import Annotated, Literal, Union, get_args, get_origin

    from ..interfaces.config import RefTo

    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kinds = [a.kind for a in arguments[1:] if isinstance(a, RefTo)]
        return f"{kinds[0]} id" if kinds else type_name(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(a) for a in arguments if a is not type(None))
    if origin in (list, tuple):
        return f"list of {type_name(arguments[0])}" if arguments else "list"
    if origin is dict:
        return f"{type_name(arguments[0])} -> {type_name(arguments[1])}"
    return str(getattr(annotation, "__name__", annotation))


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "(required)"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "-"
    return str(value) if not hasattr(value, "model_dump") else "(its defaults)"


def pipeline_table(registry: Registry) -> None:
    """The pipelines of a registry file, with their stages; a broken one shows its first problem."""
    table = Table("pipeline", "stages", "what it does")
    for name in registry.pipelines:
        try:
            resolved = registry.resolve(name)
        except RLHFError as error:
            table.add_row(name, "[red]broken[/red]", escape(str(error).splitlines()[0]))
            continue
        stages = " -> ".join(stage.id for stage in resolved.stages)
        table.add_row(name, stages, escape(resolved.settings.description))
    console.print(table)


def replay_table(rows: list[dict[str, Any]]) -> None:
    """What each sample of a failed batch adds to the loss; those that are not finite in red."""
    table = Table("", "response", "loss", "log-probabilities", "not finite", title="a batch whose loss was not finite",
                  title_justify="left")  # fmt: skip
    for number, row in enumerate(rows):
        loss, span = row["loss"], row["logprobs"]
        wrong = bool(row["not_finite"]) or (loss is not None and not abs(loss) < float("inf"))
        table.add_row(
            str(number),
            escape(row["response"][:60]),
            "-" if loss is None else f"{loss:.4g}",
            "-" if span is None else f"{span[0]:.4g} to {span[1]:.4g}",
            ", ".join(row["not_finite"]) or "-",
            style="red" if wrong else "",
        )
    console.print(table)


def dry_run_table(summary: dict[str, Any], resolved: ResolvedPipeline) -> None:
    """What one step of every stage took, and what all of them would."""
    table = Table(
        "stage", "steps", "one step", "all steps", title="dry run: one step of every stage", title_justify="left"
    )
    total = 0.0
    for stage in resolved.stages:
        steps, seconds = summary["steps"][stage.id], summary["seconds"].get(stage.id, 0.0)
        total += steps * seconds
        table.add_row(stage.id, str(steps), f"{seconds:.2f} s", f"{steps * seconds:.0f} s")
    console.print(table)
    console.print(
        f"policy: {summary['parameters']:,} parameters, {summary['trainable']:,} trained; "
        f"about {total:.0f} s in all, set-up and evaluations not counted"
    )
