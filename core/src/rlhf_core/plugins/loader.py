"""Loading of plugins: each entry point on its own, whatever it does.

On top of pluggy's manager, with a loader of our own: pluggy's lets one broken import kill the host, and skips the
second of two entry points of one name. Here a broken plugin is listed with its reason, and it hurts only the pipelines
that need it. Nothing is imported from the working directory.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pluggy

from .. import __version__, builtin
from ..errors import PluginError, did_you_mean
from ..importing import check_reference, first_line, installed_only, is_loose
from ..interfaces.specs import API_VERSION, ComponentSpec, Hooks, KindSpec
from .catalogue import CORE, DISABLE, PluginInfo, Plugins, component_name, listed, normal, offered

HOOKS = [name for name in vars(Hooks) if name.startswith("rlhf_")]
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def load_plugins(*, disable: Iterable[str] | None = None) -> Plugins:
    """Find and load what is installed. Never raises because of a plugin: see `Plugins.plugins` for how each fared.

    Args:
        disable: distributions or entry points to leave alone (not even imported), or "all"; by default what the
            environment variable RLHF_DISABLE_PLUGINS lists, separated by commas. The built-ins stay.
    """
    source, names = ("disable", disable) if disable is not None else (DISABLE, os.environ.get(DISABLE, ""))
    off = {normal(name) for name in (names.split(",") if isinstance(names, str) else names)} - {""}
    manager = pluggy.PluginManager("rlhf")
    manager.add_hookspecs(Hooks)
    plugins = [_load(manager, PluginInfo(CORE, CORE, __version__), lambda: builtin)]
    with installed_only():
        for info, load in sorted(_discover(), key=lambda found: found[0].identity):
            if off & {"all", normal(info.name), normal(info.distribution)}:
                plugins.append(replace(info, status="disabled", reason=f"turned off by {source}"))
            else:
                plugins.append(_load(manager, info, load))
    while found := [(i, error) for i, info in enumerate(plugins) if (error := _conflict(info, plugins))]:
        for i, error in found:  # a broken plugin takes its kinds along, which may break others: look again
            plugins[i] = _broken(manager, plugins[i], error)
    clashes = {key: [info for info, _ in offers] for key, offers in offered(plugins).items() if len(offers) > 1}
    for i, info in enumerate(plugins):
        mine = [
            f"{component_name(*key)} is offered by {listed(owners)}"
            for key, owners in clashes.items()
            if info in owners
        ]
        if mine:
            plugins[i] = replace(info, status="clash", reason="; ".join(mine))
    return Plugins(manager, plugins)


def _discover() -> Iterator[tuple[PluginInfo, Callable[[], Any]]]:
    """Every entry point of group "rlhf", with what loads it; nothing is imported yet."""
    from importlib import metadata

    seen = {CORE}
    for distribution in metadata.distributions(path=[entry for entry in sys.path if not is_loose(entry)]):
        try:
            if "[rlhf]" not in (distribution.read_text("entry_points.txt") or ""):
                continue
            about = distribution.metadata
            name, version, needed = about["Name"], about["Version"], about.get_all("Requires-Dist") or []
            points = distribution.entry_points.select(group="rlhf")
        except Exception:  # what an interrupted `pip uninstall` leaves behind is not installed
            continue
        if name and normal(name) not in seen:  # the first on the path wins, as for imports
            seen.add(normal(name))
            yield from ((PluginInfo(p.name, name, version), partial(_import, p.load, needed)) for p in points)


def _import(load: Callable[[], Any], needed: list[str]) -> Any:
    """Import a plugin, unless it was written for another core: what it then lacks would be named, not why."""
    for text in needed:
        if normal(re.split(r"[^\w.-]", text.strip(), maxsplit=1)[0]) == CORE:
            from packaging.requirements import Requirement

            requirement = Requirement(text)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and not requirement.specifier.contains(__version__, prereleases=True):
                wanted = f"{CORE}{requirement.specifier}"
                raise PluginError(CORE, f"{__version__} is installed", wanted, f"pip install -U '{wanted}'")
    return load()


def _load(manager: pluggy.PluginManager, info: PluginInfo, load: Callable[[], Any]) -> PluginInfo:
    """Import, register and question one plugin, whatever it does."""
    try:
        plugin = load()
        _register(manager, info, plugin)
        info = replace(info, kinds=_answers(manager, plugin, "rlhf_kinds", KindSpec))
        info = replace(info, components=_answers(manager, plugin, "rlhf_components", ComponentSpec))
        for kind in info.kinds:
            _check(info, kind)
        for spec in info.components:
            _check(info, spec)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too, and what test frameworks raise to skip
        return _broken(manager, info, error)
    return info


def _register(manager: pluggy.PluginManager, info: PluginInfo, plugin: Any) -> None:
    """Register `plugin` once every hook in it is one that will be called."""
    if manager.is_registered(plugin):
        raise PluginError("entry point", f"loads the same object as {manager.get_name(plugin)}", fix="remove one")
    implemented = False
    for name in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, name)
        if options is None:
            if name in HOOKS and callable(getattr(plugin, name)):
                raise PluginError(f"hook {name!r}", "not marked", fix="decorate it with @rlhf_core.hookimpl")
            continue
        hook, implemented = options.get("specname") or name, True
        if hook not in HOOKS and not options.get("optionalhook"):
            raise PluginError(
                f"hook {hook!r}", "no hook of this rlhf-core", f"one of {listed(HOOKS)}", did_you_mean(hook, HOOKS)
            )
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(f"hook {hook!r}", "a wrapper", "a plain function", "leave out wrapper=True")
    if not implemented:
        raise PluginError(
            "entry point",
            f"loads {plugin!r}, which implements no hook",
            f"one of {listed(HOOKS)}",
            "decorate it with @rlhf_core.hookimpl",
        )
    manager.register(plugin, info.identity)


def _answers(manager: pluggy.PluginManager, plugin: Any, hook: str, wanted: type[Any]) -> tuple[Any, ...]:
    """What `plugin` alone answers to `hook`: a list of `wanted`."""
    answers: list[Any] = []
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is plugin:
            answer = implementation.function()
            strays = [item for item in answer if not isinstance(item, wanted)] if isinstance(answer, list) else [answer]
            if strays:
                inside = "a list with " if isinstance(answer, list) else ""
                raise PluginError(
                    f"hook {hook!r}",
                    f"returned {inside}{type(strays[0]).__name__}",
                    f"a list of {wanted.__name__}",
                    f"return [{wanted.__name__}(...), ...]",
                )
            answers += answer
    return tuple(answers)


def _check(info: PluginInfo, item: ComponentSpec | KindSpec) -> None:
    """Refuse a spec that was written for another interface or is malformed."""
    fields: dict[str, Any] = vars(item)
    where = component_name(fields.get("kind", "kind"), item.name)
    version = fields.get("api_version", API_VERSION)
    if isinstance(version, int) and version != API_VERSION:
        old = CORE if version > API_VERSION else info.distribution
        raise PluginError(
            where,
            f"needs plugin interface {version}; this rlhf-core has {API_VERSION}",
            fix=f"upgrade {old} (pip install -U {old})",
        )
    for field, value in fields.items():
        wanted: type[Any] = int if field == "api_version" else str
        if not isinstance(value, wanted):
            raise PluginError(where, f"{field} is of type {type(value).__name__}", wanted.__name__)
        if field in ("factory", "config", "interface"):
            check_reference(where, value)
    if not NAME.fullmatch(item.name):
        better = re.sub(r"[^a-z0-9_-]+", "-", item.name.lower()).strip("-_")
        hint = f"call it {better!r}" if better else "rename it"
        raise PluginError(where, "this name cannot be used", "lower-case letters, digits, '_' and '-'", hint)


def _conflict(info: PluginInfo, plugins: list[PluginInfo]) -> PluginError | None:
    """What makes a plugin, fine by itself, unusable beside the others."""
    if info.status != "ok":
        return None
    ok = [other for other in plugins if other.status == "ok"]
    known = dict.fromkeys(kind.name for other in ok for kind in other.kinds)
    for kind in info.kinds:
        others = [other for other in ok for k in other.kinds if k.name == kind.name and k.interface != kind.interface]
        if others and info.distribution != CORE:
            return PluginError(
                f"kind {kind.name!r}",
                f"{listed(others)} declares it with another interface",
                "one interface per kind",
                f"rename it, or name one of them in {DISABLE}",
            )
    for spec in info.components:
        where = component_name(spec.kind, spec.name)
        if spec.kind not in known:
            lost = [other for other in plugins if spec.kind in (kind.name for kind in other.kinds)]
            hint = did_you_mean(spec.kind, known) or "install what declares it, or declare it in the hook rlhf_kinds"
            hint = f"{lost[0]} declares it, but is {lost[0].status}: {lost[0].reason}" if lost else hint
            return PluginError(where, f"{spec.kind!r} is no kind of component", f"one of {listed(known)}", hint)
        siblings = [s for other in ok if other.distribution == info.distribution for s in other.components]
        if sum((s.kind, s.name) == (spec.kind, spec.name) for s in siblings) > 1:
            got = f"offered more than once by {info.distribution}"
            return PluginError(where, got, "one component of that name", "rename one of them")
    return None


def _broken(manager: pluggy.PluginManager, info: PluginInfo, error: BaseException) -> PluginInfo:
    import traceback

    if manager.has_plugin(info.identity):
        manager.unregister(name=info.identity)
    trace = "" if isinstance(error, PluginError) else "".join(traceback.format_exception(error))
    return replace(info, status="broken", reason=first_line(error), traceback=trace)
