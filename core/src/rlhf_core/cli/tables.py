"""Tables that the commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..errors import RLHFError
from ..plugins import CORE, PluginInfo, Plugins
from ..terminal import Console

if TYPE_CHECKING:
    from ..registry import Registry

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
            "kinds": [k.name for k in p.kinds],
            "components": [f"{c.kind}/{c.name}" for c in p.components],
            "hooks": _hooks(plugins, p),
        }
        for p in plugins.plugins
    ]


def plugin_table(plugins: Plugins, problems: list[Any], *, deep: bool) -> None:
    """One row per plugin, why it cannot be used in it, and the findings of a deep check below."""
    table = Table("distribution", "version", "status", "adds", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    distributions = [plugin.distribution for plugin in plugins.plugins]
    for plugin, row in zip(plugins.plugins, plugin_rows(plugins), strict=True):
        several = distributions.count(plugin.distribution) > 1
        name = plugin.distribution + (f"\n[dim]:{plugin.name}[/dim]" if several else "")
        color = STATUS[plugin.status]
        reason = [f"[{color}]{escape(plugin.reason)}[/]"] if plugin.reason else []
        adds = "\n".join([*map(escape, _adds(plugin, row)), *reason])
        table.add_row(name, plugin.version, f"[{color}]{plugin.status}[/]", adds)
    console.print(table)
    for problem in problems:
        console.print(f"[red]error:[/red] {escape(str(problem))}", soft_wrap=True)
    if deep and not problems:
        console.print("every class imports and implements its interface")


def _adds(plugin: PluginInfo, row: dict[str, Any]) -> list[str]:
    """A line of names for each kind, then new kinds and hooks."""
    by_kind: dict[str, list[str]] = {}
    for spec in plugin.components:
        by_kind.setdefault(spec.kind, []).append(spec.name)
    by_kind |= {"new kinds" if plugin.distribution != CORE else "kinds": row["kinds"], "hooks": row["hooks"]}
    return [f"{kind}: {', '.join(names)}" for kind, names in by_kind.items() if names]


def _hooks(plugins: Plugins, info: PluginInfo) -> list[str]:
    """The hooks that a plugin answers besides saying what it offers."""
    plugin = plugins.manager.get_plugin(info.identity)
    callers = plugins.manager.get_hookcallers(plugin) or [] if plugin is not None else []
    return sorted(caller.name for caller in callers if caller.name not in ("rlhf_components", "rlhf_kinds"))


def component_table(plugins: Plugins, kind: str | None) -> None:
    """Every component with its summary, under its kind."""
    for group in [kind] if kind is not None else plugins.kinds:
        table = Table.grid(padding=(0, 2))
        for spec in plugins.components(group):
            distribution, _ = plugins.distribution(spec)
            table.add_row(f"  {spec.name}", f"{escape(spec.summary)} [dim]({distribution})[/dim]")
        console.print(f"[bold]{group}[/bold]: {escape(plugins.kinds[group].summary)}")
        console.print(table)


def pipeline_table(registry: Registry) -> None:
    """The pipelines of a registry file, with their stages; a broken one shows its first problem."""
    table = Table("pipeline", "stages", "what it does")
    for name in registry.pipelines:
        try:
            resolved = registry.resolve(name)
        except RLHFError as error:
            table.add_row(escape(name), "[red]broken[/red]", escape(str(error).splitlines()[0]))
            continue
        stages = " -> ".join(stage.id for stage in resolved.stages)
        table.add_row(escape(name), escape(stages), escape(resolved.settings.description))
    console.print(table)


def replay_table(rows: list[dict[str, Any]]) -> None:
    """What each sample of a failed batch adds to its loss; those that are not finite in red."""
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    caption = f"loss of the batch, the sum: {sum(losses):.6g}" if losses else None
    table = Table("", "response", "score", "loss", "log-probabilities", "not finite", caption=caption,
                  title="the batch that stopped the run", title_justify="left", caption_justify="left")  # fmt: skip
    for number, row in enumerate(rows):
        loss, span = row["loss"], row["logprobs"]
        wrong = bool(row["not_finite"]) or (loss is not None and not abs(loss) < float("inf"))
        table.add_row(
            str(number),
            escape(" ".join(row["response"].split())[:60]),
            "-" if row["score"] is None else f"{row['score']:.4g}",
            "-" if loss is None else f"{loss:.4g}",
            "-" if span is None else f"{span[0]:.4g} to {span[1]:.4g}",
            ", ".join(row["not_finite"]) or "-",
            style="red" if wrong else "",
        )
    console.print(table)
