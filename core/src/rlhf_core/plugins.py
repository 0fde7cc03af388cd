"""Discovery and diagnosis of plugins: what is installed, what works, and why the rest does not.

On top of pluggy's manager, with a loader of our own: pluggy's lets one broken import kill the host, and skips the
second of two entry points of one name. Here every entry point is loaded on its own, a broken plugin is listed with its
reason, and it hurts only the pipelines that need it. Nothing is imported from the working directory.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pluggy

from . import __version__, builtin
from .errors import PluginError
from .importing import check_reference, did_you_mean, first_line, import_object, installed_only, is_loose
from .interfaces.specs import API_VERSION, ComponentSpec, Hooks, KindSpec

CORE = "rlhf-core"
DISABLE = "RLHF_DISABLE_PLUGINS"
HOOKS = [name for name in vars(Hooks) if name.startswith("rlhf_")]
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

FIRST_PARTY = {
    "rlhf-plugin-preference": {"feedback": ["preference", "strength"], "reward": ["preference"]},
    "rlhf-plugin-rating": {"feedback": ["rating"], "reward": ["rating"]},
    "rlhf-plugin-edit": {"feedback": ["edit"], "reward": ["edit"]},
    "rlhf-plugin-linear": {"reward": ["linear"]},
    "rlhf-plugin-rules": {
        "feedback": ["keywords", "sentiment"],
        "reward": ["keywords", "length", "regex", "repetition", "format", "answer", "metric", "classifier", "sentiment",
                   "coherence", "factual"],
    },
    "rlhf-plugin-irl": {"reward": ["irl"]},
    "rlhf-plugin-judge": {"feedback": ["judge"], "reward": ["judge"]},
    "rlhf-plugin-quality": {"feedback": ["quality", "counterfactual"]},
    "rlhf-plugin-shaping": {"shaper": ["whiten", "clip", "scale", "missing-eos", "length-penalty"]},
    "rlhf-plugin-ppo": {"optimizer": ["ppo"]},
}  # fmt: skip
KNOWN = {(kind, name): dist for dist, kinds in FIRST_PARTY.items() for kind, names in kinds.items() for name in names}
"""(kind, name) -> the distribution to install for it."""


@dataclass(frozen=True)
class PluginInfo:
    """One entry point of one distribution, and how it fared.

    status: "ok"; "broken"; "disabled" (never imported); "clash" (works, but for names that others offer too).
    reason: one line on why it is not ok. traceback: of what it raised itself, for `--debug`.
    components, kinds: what it offers; of a broken plugin, what could be read.
    """

    name: str
    distribution: str
    version: str
    status: Literal["ok", "broken", "disabled", "clash"] = "ok"
    reason: str = ""
    traceback: str = ""
    components: tuple[ComponentSpec, ...] = ()
    kinds: tuple[KindSpec, ...] = ()

    @property
    def identity(self) -> str:
        """Unique among everything installed; what pluggy's manager calls it."""
        return CORE if self.distribution == CORE else f"{self.distribution}:{self.name}"

    @property
    def usable(self) -> bool:
        return self.status in ("ok", "clash")

    def __str__(self) -> str:
        return f"{self.identity} {self.version}"


class Plugins:
    """Everything installed: `plugins` as they fared, `kinds` by name, and the components that can be used.

    `manager` is pluggy's, with the usable plugins registered; call event hooks through `notify`.
    """

    def __init__(self, manager: pluggy.PluginManager, plugins: Iterable[PluginInfo]) -> None:
        self.manager = manager
        self.plugins = tuple(plugins)
        self.kinds = {kind.name: kind for info in self.plugins if info.usable for kind in info.kinds}
        self._offers = _offers(self.plugins)

    def find(self, kind: str, name: str) -> ComponentSpec:
        """The component that registry files call `name`.

        Raises `PluginError` saying why there is none: an unknown kind or name (did you mean ...?), a clash, a plugin
        that is broken, disabled or not installed (with the pip command).
        """
        self._check_kind(kind)
        where = _where(kind, name)
        offers = self._offers.get((kind, name), [])
        if len(offers) == 1:
            return offers[0][1]
        if offers:
            raise PluginError(
                where,
                f"offered by {_listed(info for info, _ in offers)}",
                "one distribution",
                f"uninstall one, or name it in {DISABLE}",
            )
        known = KNOWN.get((kind, name), "")
        family = [info for info in self.plugins if _normal(info.distribution) == known]
        readers = [info for info in self.plugins if any((s.kind, s.name) == (kind, name) for s in info.components)]
        for info in (*readers, *family):
            if not info.usable:
                raise PluginError(
                    where,
                    f"belongs to {info}, which is {info.status}: {info.reason}",
                    fix="repair or enable it; `rlhf plugins` lists all",
                )
        if known:
            state = f"of which {family[0].version} is installed, without it" if family else "which is not installed"
            raise PluginError(where, f"belongs to {known}, {state}", fix=f"pip install -U {known}")
        names = self.names(kind)
        raise PluginError(
            where,
            "no installed plugin offers it",
            f"one of {_listed(names)}",
            self._hints(name, [*names, *(n for k, n in KNOWN if k == kind)]),
        )

    def names(self, kind: str) -> list[str]:
        """The names that `find` knows for `kind`, sorted. Raises `PluginError` if there is no such kind."""
        return [spec.name for spec in self.components(kind)]

    def components(self, kind: str | None = None) -> list[ComponentSpec]:
        """The usable components, of one kind or all, in order. Raises `PluginError` if there is no such kind."""
        if kind is not None:
            self._check_kind(kind)
        order = list(self.kinds)
        alone = [offers[0][1] for offers in self._offers.values() if len(offers) == 1]
        return sorted((s for s in alone if kind in (None, s.kind)), key=lambda s: (order.index(s.kind), s.name))

    def distribution(self, spec: ComponentSpec) -> tuple[str, str]:
        """Name and version of the distribution that `spec` came from. Raises `PluginError` if it is none of ours."""
        info = self._owner(spec)
        return info.distribution, info.version

    def import_class(self, spec: ComponentSpec, role: Literal["factory", "config"]) -> Any:
        """The class or the Config of `spec`. Raises `PluginError` naming the component and its distribution."""
        with installed_only():
            return import_object(getattr(spec, role), f"{_where(spec.kind, spec.name)} of {self._owner(spec)}")

    def notify(self, hook: str, **arguments: Any) -> list[str]:
        """Call every implementation of an event hook on its own; one line for each that raised, naming the plugin."""
        errors = []
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            values = [arguments[name] for name in implementation.argnames]
            try:
                implementation.function(*values)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                errors.append(f"plugin {implementation.plugin_name}: {hook} failed: {first_line(error)}")
        return errors

    def check_deep(self) -> list[PluginError]:
        """Import every class and Config and compare them with what their kind asks for; all that is wrong."""
        specs = [spec for info in self.plugins if info.usable for spec in info.components]
        return [error for spec in specs for error in self.check_component(spec)]

    def check_component(self, spec: ComponentSpec) -> Iterator[PluginError]:
        """Import the class and Config of one component and yield what is wrong with them."""
        where, classes = f"{_where(spec.kind, spec.name)} of {self._owner(spec)}", []
        roles: list[tuple[Literal["factory", "config"], str]]
        roles = [("factory", self.kinds[spec.kind].interface), ("config", "rlhf_core.interfaces:Config")]
        for role, wanted in roles:
            reference = getattr(spec, role)
            try:
                base, cls = import_object(wanted, f"kind {spec.kind!r}"), self.import_class(spec, role)
            except PluginError as error:
                yield error
                continue
            if not isinstance(cls, type):
                yield PluginError(where, f"{role} {reference} is of type {type(cls).__name__}", "a class")
            elif base not in cls.__mro__:
                yield PluginError(where, f"{role} {reference} is another kind of class", f"a subclass of {wanted}")
            elif abstract := getattr(cls, "__abstractmethods__", ()):
                yield PluginError(
                    where,
                    f"{role} {reference} does not implement {_listed(sorted(abstract))}",
                    "no abstract method left",
                )
            else:
                classes.append(cls)
        if len(classes) == 2 and (used := getattr(classes[0], "Config", classes[1])) is not classes[1]:
            yield PluginError(
                where,
                f"factory {spec.factory} is configured by {used.__qualname__}",
                spec.config,
                "name that class in the brackets of its base class, or the other in the spec",
            )

    def _check_kind(self, kind: str) -> None:
        if kind not in self.kinds:
            raise PluginError(
                f"kind {kind!r}",
                "no installed plugin declares it",
                f"one of {_listed(self.kinds)}",
                self._hints(kind, self.kinds),
            )

    def _hints(self, word: str, known: Iterable[str]) -> str:
        lost = [f"{info} ({info.status}: {info.reason})" for info in self.plugins if not info.usable]
        maybe = f"or it belongs to a plugin that cannot be used: {_listed(lost)}" if lost else ""
        return "; ".join(filter(None, [did_you_mean(word, known), maybe]))

    def _owner(self, spec: ComponentSpec) -> PluginInfo:
        for info in sorted(self.plugins, key=lambda info: not info.usable):
            if spec in info.components:
                return info
        raise PluginError(_where(spec.kind, spec.name), "a spec of no installed plugin", "one that `find` returned")


# --- loading ---------------------------------------------------------------------------------------------------------


def load_plugins(*, disable: Iterable[str] | None = None) -> Plugins:
    """Find and load what is installed. Never raises because of a plugin: see `Plugins.plugins` for how each fared.

    Args:
        disable: distributions or entry points to leave alone (not even imported), or "all"; by default what the
            environment variable RLHF_DISABLE_PLUGINS lists, separated by commas. The built-ins stay.
    """
    source, names = ("disable", disable) if disable is not None else (DISABLE, os.environ.get(DISABLE, ""))
    off = {_normal(name) for name in (names.split(",") if isinstance(names, str) else names)} - {""}
    manager = pluggy.PluginManager("rlhf")
    manager.add_hookspecs(Hooks)
    plugins = [_load(manager, PluginInfo(CORE, CORE, __version__), lambda: builtin)]
    with installed_only():
        for info, load in sorted(_discover(), key=lambda found: found[0].identity):
            if off & {"all", _normal(info.name), _normal(info.distribution)}:
                plugins.append(replace(info, status="disabled", reason=f"turned off by {source}"))
            else:
                plugins.append(_load(manager, info, load))
    while found := [(i, error) for i, info in enumerate(plugins) if (error := _conflict(info, plugins))]:
        for i, error in found:  # a broken plugin takes its kinds along, which may break others: look again
            plugins[i] = _broken(manager, plugins[i], error)
    clashes = {key: [info for info, _ in offers] for key, offers in _offers(plugins).items() if len(offers) > 1}
    for i, info in enumerate(plugins):
        mine = [f"{_where(*key)} is offered by {_listed(owners)}" for key, owners in clashes.items() if info in owners]
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
            name, version = distribution.metadata["Name"], distribution.metadata["Version"]
            loaders = {point.name: point.load for point in distribution.entry_points.select(group="rlhf")}
        except Exception:  # what an interrupted `pip uninstall` leaves behind is not installed
            continue
        if name and _normal(name) not in seen:  # the first on the path wins, as for imports
            seen.add(_normal(name))
            yield from ((PluginInfo(point, name, version), load) for point, load in loaders.items())


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
                f"hook {hook!r}", "no hook of this rlhf-core", f"one of {_listed(HOOKS)}", did_you_mean(hook, HOOKS)
            )
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(f"hook {hook!r}", "a wrapper", "a plain function", "leave out wrapper=True")
    if not implemented:
        raise PluginError(
            "entry point",
            f"loads {plugin!r}, which implements no hook",
            f"one of {_listed(HOOKS)}",
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
                    f"hook {hook!r}", f"returned {inside}{type(strays[0]).__name__}", f"a list of {wanted.__name__}"
                )
            answers += answer
    return tuple(answers)


def _check(info: PluginInfo, item: ComponentSpec | KindSpec) -> None:
    """Refuse a spec that was written for another interface or is malformed."""
    fields: dict[str, Any] = vars(item)
    where = _where(fields.get("kind", "kind"), item.name)
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
        raise PluginError(where, "this name cannot be used", "lower-case letters, digits, '_' and '-'")


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
                f"{_listed(others)} declares it with another interface",
                "one interface per kind",
                f"rename it, or name one of them in {DISABLE}",
            )
    for spec in info.components:
        where = _where(spec.kind, spec.name)
        if spec.kind not in known:
            lost = [other for other in plugins if spec.kind in (kind.name for kind in other.kinds)]
            hint = f"{lost[0]} declares it, but is broken: {lost[0].reason}" if lost else did_you_mean(spec.kind, known)
            return PluginError(where, f"{spec.kind!r} is no kind of component", f"one of {_listed(known)}", hint)
        siblings = [s for other in ok if other.distribution == info.distribution for s in other.components]
        if sum((s.kind, s.name) == (spec.kind, spec.name) for s in siblings) > 1:
            return PluginError(where, f"offered more than once by {info.distribution}", "one component of that name")
    return None


def _offers(plugins: Iterable[PluginInfo]) -> dict[tuple[str, str], list[tuple[PluginInfo, ComponentSpec]]]:
    """(kind, name) -> who offers it; more than one is a clash."""
    offers: dict[tuple[str, str], list[tuple[PluginInfo, ComponentSpec]]] = {}
    for info in plugins:
        for spec in info.components if info.usable else ():
            offers.setdefault((spec.kind, spec.name), []).append((info, spec))
    return offers


def _broken(manager: pluggy.PluginManager, info: PluginInfo, error: BaseException) -> PluginInfo:
    import traceback

    if manager.has_plugin(info.identity):
        manager.unregister(name=info.identity)
    trace = "" if isinstance(error, PluginError) else "".join(traceback.format_exception(error))
    return replace(info, status="broken", reason=first_line(error), traceback=trace)


# --- importing -------------------------------------------------------------------------------------------------------


def _where(kind: str, name: str) -> str:
    return f"{kind} {name!r}"


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items)) or "none"


def _normal(name: str) -> str:
    """Names of distributions as pip compares them."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
