"""From drafts to validated components: every reference followed, every problem collected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field

from ..errors import ConfigError, PluginError, RLHFError, did_you_mean
from ..interfaces.config import Config, RelativePath, StageConfig, references
from ..interfaces.specs import ComponentSpec, KindSpec
from . import environment
from .document import Document
from .draft import Built, Draft, Origin
from .functions import FunctionDecl, read_function
from .resolved import Declared
from .words import ID, ID_WORDS, dotted, expect_mapping, listed, show, suggest

FUNCTION = "function"
"""``FunctionRef`` names an entry of `functions:`; it is no kind of component."""

MAX_CHAIN = 50
"""How many components may name each other in a row."""

DECLARATION = ["use", "config", "load"]


class Catalogue(Protocol):
    """What is installed; `rlhf_core.plugins.Plugins` is one."""

    @property
    def kinds(self) -> Mapping[str, KindSpec]: ...

    def find(self, kind: str, name: str) -> ComponentSpec: ...

    def names(self, kind: str) -> list[str]: ...

    def import_class(self, spec: ComponentSpec, role: Literal["factory", "config"]) -> Any: ...


@dataclass
class Declaration:
    """A component as it was written, before validation; `where` says where."""

    use: Any
    load: Any
    config: Draft
    where: Origin
    place: str


class _Load(Config):
    path: RelativePath = Field(description="what an earlier run fitted")


class Resolver:
    """Resolves references into `components` and `functions`; what is wrong collects in `errors`, and what was written
    by a deprecated name in `notices`.

    Overrides change `declarations` before anything is resolved.
    """

    def __init__(self, document: Document, catalogue: Catalogue) -> None:
        self.document, self.catalogue = document, catalogue
        self.source, self.root = document.source, document.source.root
        self.errors: list[RLHFError] = []
        self.notices: list[str] = []
        self.declarations: dict[tuple[str, str], Declaration | None] = {}
        self.components: dict[tuple[str, str], Declared] = {}
        self.functions: dict[str, FunctionDecl] = {}
        self._seen: set[tuple[str, str]] = set()
        self._trail: list[tuple[tuple[str, str], str]] = []  # (component, where it was named), from the pipeline down

    # --- declarations ---

    def declaration(self, kind: str, id: str, asked: str) -> Declaration | None:
        """What the file, or a registered name, says about what `asked` names; None once its errors are noted."""
        if (kind, id) not in self.declarations:
            try:
                declared = id in self.document.components.get(kind, {})
                found = self._declared(kind, id) if declared else self._registered(kind, id, asked)
            except RLHFError as error:
                found = None
                self.errors.append(error)
            self.declarations[kind, id] = found
        return self.declarations[kind, id]

    def _declared(self, kind: str, id: str) -> Declaration:
        keys = ("components", kind, id)
        raw, where = self.document.components[kind][id], self.origin(*keys)
        if not isinstance(raw, dict):
            hint = f"write {{use: {raw}}}" if isinstance(raw, str) else "write {use: NAME, config: {...}}"
            raise ConfigError(where(()), f"got {show(raw)}", "a mapping with `use`", hint)
        for key in raw:
            if key not in DECLARATION:
                hint = did_you_mean(key, DECLARATION) or "settings go under `config`"
                raise ConfigError(where((key,)), f"unknown key {key!r}", fix=hint)
        if "use" not in raw:
            names = f"one of {listed(self.catalogue.names(kind))}"
            raise ConfigError(where(()), "`use` is missing", names, "add it")
        config = expect_mapping(raw.get("config"), where(("config",)))
        return Declaration(
            raw["use"], raw.get("load"), Draft(config, self.origin(*keys, "config")), where, self.source.place(keys)
        )

    def _registered(self, kind: str, id: str, asked: str) -> Declaration:
        """An id that is not declared but registered means its defaults."""
        try:
            self.catalogue.find(kind, id)
        except PluginError as error:
            ids = list(self.document.components.get(kind, {}))
            registered = self.catalogue.names(kind) if kind in self.catalogue.kinds else []
            known = [*ids, *registered]
            fix = error.fix if "pip install" in error.fix else did_you_mean(id, ids) or error.fix
            expected = f"one of {listed(known)}" if known else ""
            raise PluginError(asked, f"{kind} {id!r} is not declared, and {error.got}", expected, fix) from None
        if not ID.fullmatch(id):
            fix = f"declare it under components.{kind} by another id"
            raise ConfigError(asked, f"{id!r} cannot be an id", ID_WORDS, fix)

        def where(rest: tuple[str | int, ...]) -> str:
            return f"{asked} ({kind} {id!r} by its defaults) {dotted(*rest)}".rstrip()

        return Declaration(id, None, Draft({}, where), where, asked)

    def origin(self, *keys: str | int, label: str = "") -> Origin:
        """Where things below `keys` stand in the file, called by their keys, or by `label` in their place."""

        def where(rest: tuple[str | int, ...]) -> str:
            path = dotted(label, *rest) if label else dotted(*keys, *rest)
            return f"{self.source.place((*keys, *rest))} {path}"

        return where

    # --- components ---

    def component(self, kind: str, id: str, asked: str) -> None:
        """Resolve the component that `asked` names, and everything it names."""
        key, below = (kind, id), [item for item, _ in self._trail]
        if key in below:
            self._cycle(key, asked)
        if key in self._seen:
            return
        self._seen.add(key)
        if len(below) > MAX_CHAIN:
            got = f"a chain of {len(below)} components, each named by the one before, leads to {kind} {id!r}"
            self.errors.append(ConfigError(asked, got, f"at most {MAX_CHAIN}", "take some of them out"))
            return
        declaration = self.declaration(kind, id, asked)
        if declaration is None:
            return
        self._trail.append((key, asked))
        try:
            self._resolve(kind, id, declaration)
        finally:
            self._trail.pop()

    def _resolve(self, kind: str, id: str, declaration: Declaration) -> None:
        where = declaration.where
        spec, model = self.lookup(kind, declaration.use, where(("use",)))
        load, written_load = self._load(declaration)
        if spec is None or model is None:
            return
        built = self.build(declaration.config, model)
        if built is None:
            return
        written = {"use": spec.name, "config": built.written} | ({"load": written_load} if load else {})
        origins = {f"config.{path}": origin for path, origin in built.origins.items()}
        origins |= {key: where((key,)) for key in written if key != "config"}
        self.components[kind, id] = Declared(
            kind, id, spec.name, built.config, load, spec, declaration.place, written, origins
        )

    def lookup(self, kind: str, name: Any, where: str) -> tuple[ComponentSpec | None, type[Config] | None]:
        """The spec that registry files call `name`, and the class of its config; None once their errors are noted."""
        if not isinstance(name, str):
            self.errors.append(ConfigError(where, f"got {show(name)}", "a registered name"))
            return None, None
        try:
            spec = self.catalogue.find(kind, name)
            model = self.catalogue.import_class(spec, "config")
        except PluginError as error:
            self.errors.append(PluginError(where, f"{error.where}: {error.got}", error.expected, error.fix))
            return None, None
        base = StageConfig if kind == "stage" else Config
        if isinstance(model, type) and issubclass(model, base):
            return spec, model
        got, fix = f"the config of {kind} {name!r} is {show(model)}", "report it to the author of the plugin"
        self.errors.append(PluginError(where, got, f"a {base.__name__}", fix))
        return None, None

    def build(self, draft: Draft, model: type[Config]) -> Built | None:
        """Validate `draft` as `model` and resolve everything it names; None once its errors are noted."""
        built, errors = draft.build(model, self.root)
        self.errors += errors
        self.notices += draft.notices
        if config := built.config if built else draft.outline(model):
            self._follow(config, draft)
        return built

    def _load(self, declaration: Declaration) -> tuple[str | None, str | None]:
        """`load` as an absolute path, and as it is written."""
        raw, where = declaration.load, declaration.where(("load",))
        if raw is None:
            return None, None
        draft = Draft({"path": raw}, lambda _: where)
        built, errors = draft.build(_Load, self.root)
        self.errors += errors
        return (built.config.path, built.written["path"]) if built else (None, None)

    def _follow(self, config: Config, draft: Draft) -> None:
        for path, kind, id in references(config):
            keys, raw = draft.locate(path)
            where = draft.where(*keys)
            if any(fault and keys[: len(fault)] == fault for fault in draft.faults):
                continue
            if isinstance(raw, str) and environment.PLACEHOLDER.search(raw):
                got = f"which {kind} it is cannot come from the environment"
                self.errors.append(ConfigError(where, got, "an id", "write it out"))
            elif kind == FUNCTION:
                self.function(id, where)
            else:
                self.component(kind, id, where)

    def _cycle(self, key: tuple[str, str], asked: str) -> None:
        """Note a cycle, told from its first member by name, so that every way into it gives the same words."""
        items = [item for item, _ in self._trail]
        start = items.index(key)
        members = items[start:]
        named = [where for _, where in self._trail[start + 1 :]] + [asked]  # named[i]: where member i names the next
        first = members.index(min(members))
        turned = [*members[first:], *members[:first], members[first]]
        got = "components name each other in a circle: " + " -> ".join(f"{kind} {id!r}" for kind, id in turned)
        self.errors.append(ConfigError(named[first], got, fix="take one of these references out"))

    # --- functions ---

    def function(self, name: str, asked: str) -> None:
        """Resolve the function that `asked` names."""
        if (FUNCTION, name) in self._seen:
            return
        self._seen.add((FUNCTION, name))
        declared, origin = self.document.functions, self.origin("functions", name)
        try:
            if name not in declared:
                hint = suggest(name, declared) or f"write functions: {{{name}: path/file.py:callable}}"
                raise ConfigError(asked, f"there is no function {name!r}", fix=hint)
            decl = read_function(name, declared[name], origin(()), self.root)
        except ConfigError as error:
            self.errors.append(error)
            return
        self.functions[name] = decl
        self.errors += [ConfigError(origin(("kwargs", *keys)), *gap) for keys, gap in environment.gaps(decl.kwargs)]
