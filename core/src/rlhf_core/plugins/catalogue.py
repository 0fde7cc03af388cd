"""What is installed and what of it can be used; why the rest cannot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pluggy

from ..errors import PluginError, did_you_mean
from ..importing import first_line, import_object, installed_only
from ..interfaces.specs import ComponentSpec, KindSpec

CORE = "rlhf-core"
DISABLE = "RLHF_DISABLE_PLUGINS"

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
    "rlhf-plugin-monitors": {
        "monitor": ["gold", "disagreement", "kl-budget", "length-drift", "repetition-drift", "entropy-collapse",
                    "advantage-variance"],
    },
    "rlhf-plugin-shaping": {
        "shaper": ["clip", "scale", "prompt-baseline", "success-bonus", "missing-eos", "length-penalty", "overlong",
                   "whiten", "discount", "repetition-penalty", "spread", "potential"],
    },
    "rlhf-plugin-ppo": {"optimizer": ["ppo"]},
    "rlhf-plugin-reinforce": {"optimizer": ["reinforce"]},
    "rlhf-plugin-a2c": {"optimizer": ["a2c"]},
    "rlhf-plugin-acer": {"optimizer": ["acer"]},
    "rlhf-plugin-trpo": {"optimizer": ["trpo"]},
    "rlhf-plugin-vllm": {"engine": ["vllm"]},
    "rlhf-plugin-es": {"optimizer": ["es"]},
    "rlhf-plugin-ilql": {"optimizer": ["ilql"]},
    "rlhf-plugin-trl": {"stage": ["trl"]},
    "rlhf-plugin-qlora": {"policy": ["qlora"]},
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
        self._offers = offered(self.plugins)

    def find(self, kind: str, name: str) -> ComponentSpec:
        """The component that registry files call `name`.

        Raises `PluginError` saying why there is none: an unknown kind or name (did you mean ...?), a clash, a plugin
        that is broken, disabled or not installed (with the pip command).
        """
        self._check_kind(kind)
        where = component_name(kind, name)
        offers = self._offers.get((kind, name), [])
        if len(offers) == 1:
            return offers[0][1]
        if offers:
            raise PluginError(
                where,
                f"offered by {listed(info for info, _ in offers)}",
                "one distribution",
                f"uninstall one, or name it in {DISABLE}",
            )
        known = KNOWN.get((kind, name), "")
        family = [info for info in self.plugins if normal(info.distribution) == known]
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
            f"one of {listed(names)}",
            self._hints(name, [*names, *(n for k, n in KNOWN if k == kind)], self._elsewhere(kind, name)),
        )

    def _elsewhere(self, kind: str, name: str) -> str:
        """Where `name` is to be found after all: in another kind, or in what another component says that it does."""
        kinds = [other for other in self.kinds if (other, name) in self._offers]
        word = re.compile(rf"\b{re.escape(name)}\b", re.I)
        doers = [f"{kind} {s.name!r} ({s.summary})" for s in self.components(kind) if word.search(s.summary)]
        if kinds:
            return f"{name!r} is a component of kind {listed(kinds)}"
        return f"look at {listed(doers)}" if doers and len(name) > 2 else ""

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
        """The class or the Config of `spec`. Raises `PluginError` if it does not import or is not what it must be."""
        where, reference = f"{component_name(spec.kind, spec.name)} of {self._owner(spec)}", getattr(spec, role)
        with installed_only():
            found = import_object(reference, where)
        wanted = self.kinds[spec.kind].interface if role == "factory" else "rlhf_core.interfaces:Config"
        base = import_object(wanted, f"kind {spec.kind!r}")
        if not isinstance(found, type):
            got = f"{role} {reference} is of type {type(found).__name__}"
            raise PluginError(where, got, "a class", f"name a subclass of {wanted} in its ComponentSpec")
        if base not in found.__mro__:
            got = f"{role} {reference} is another kind of class"
            raise PluginError(
                where, got, f"a subclass of {wanted}", "derive it from that, or correct its ComponentSpec"
            )
        if abstract := getattr(found, "__abstractmethods__", ()):
            got = f"{role} {reference} does not implement {listed(sorted(abstract))}"
            raise PluginError(where, got, "no abstract method left", "implement what is missing")
        return found

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
        return self.check(spec for info in self.plugins if info.usable for spec in info.components)

    def check(self, specs: Iterable[ComponentSpec]) -> list[PluginError]:
        """`check_deep` for some components, each once: before the first of a pipeline's is built."""
        return [error for spec in dict.fromkeys(specs) for error in self.check_component(spec)]

    def examined(self) -> Plugins:
        """The same after `check_deep`: a plugin with a component that cannot be used is broken, for that reason."""
        found = []
        for info in self.plugins:
            errors = [e for spec in info.components if info.usable for e in self.check_component(spec)]
            found.append(replace(info, status="broken", reason=first_line(errors[0])) if errors else info)
        return Plugins(self.manager, found)

    def check_component(self, spec: ComponentSpec) -> Iterator[PluginError]:
        """Import the class and Config of one component and yield what is wrong with them."""
        classes = []
        roles: tuple[Literal["factory"], Literal["config"]] = ("factory", "config")
        for role in roles:
            try:
                classes.append(self.import_class(spec, role))
            except PluginError as error:
                yield error
        if len(classes) == 2 and (used := getattr(classes[0], "Config", classes[1])) is not classes[1]:
            where = f"{component_name(spec.kind, spec.name)} of {self._owner(spec)}"
            got = f"factory {spec.factory} is configured by {used.__qualname__}"
            hint = "name that class in the brackets of its base class, or the other in the spec"
            yield PluginError(where, got, spec.config, hint)

    def _check_kind(self, kind: str) -> None:
        if kind not in self.kinds:
            known = f"one of {listed(self.kinds)}"
            hints = self._hints(kind, self.kinds)
            raise PluginError(f"kind {kind!r}", "no installed plugin declares it", known, hints)

    def _hints(self, word: str, known: Iterable[str], better: str = "") -> str:
        lost = [f"{info} ({info.status}: {info.reason})" for info in self.plugins if not info.usable]
        maybe = f"or it belongs to a plugin that cannot be used: {listed(lost)}" if lost else ""
        return "; ".join(filter(None, [better or did_you_mean(word, known), maybe]))

    def _owner(self, spec: ComponentSpec) -> PluginInfo:
        for info in sorted(self.plugins, key=lambda info: not info.usable):
            if spec in info.components:
                return info
        raise PluginError(
            component_name(spec.kind, spec.name), "a spec of no installed plugin", "one that `find` returned"
        )


def offered(plugins: Iterable[PluginInfo]) -> dict[tuple[str, str], list[tuple[PluginInfo, ComponentSpec]]]:
    """(kind, name) -> who offers it; more than one is a clash."""
    offers: dict[tuple[str, str], list[tuple[PluginInfo, ComponentSpec]]] = {}
    for info in plugins:
        for spec in info.components if info.usable else ():
            offers.setdefault((spec.kind, spec.name), []).append((info, spec))
    return offers


def component_name(kind: str, name: str) -> str:
    return f"{kind} {name!r}"


def listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items)) or "none"


def normal(name: str) -> str:
    """Names of distributions as pip compares them."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
