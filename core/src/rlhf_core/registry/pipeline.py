"""One pipeline: its parent's settings, its own, its overrides, then those of the command line; then resolved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import ConfigError, RegistryErrors, RLHFError
from ..interfaces.config import Config, references
from ..interfaces.levels import misplaced
from ..plugins.source import level
from .document import Document
from .draft import Draft, Origin
from .reader import parse_value
from .resolve import Catalogue, Resolver
from .resolved import ResolvedPipeline, ResolvedStage
from .settings import NOT_SETTABLE, PipelineSettings
from .words import ID, ID_WORDS, dotted, expect_mapping, listed, show, suggest

Overrides: TypeAlias = Iterable["str | tuple[str, Any]"] | Mapping[str, Any]
"""``["stages.optimize.steps=5"]``, or (path, value) pairs, or a mapping of them."""

SETTABLE = [name for name in PipelineSettings.model_fields if name not in NOT_SETTABLE]


@dataclass
class _Stage:
    """A stage as it was written, before validation."""

    name: str
    config: Draft

    @property
    def id(self) -> Any:
        own = self.config.data.get("id")
        return self.name if own is None else own


class PipelineResolver:
    """Resolves the pipeline `name`; `errors` and `notices` are about it and what it reaches."""

    def __init__(self, document: Document, catalogue: Catalogue, name: str) -> None:
        self.document, self.name = document, name
        self.resolver = Resolver(document, catalogue)
        self.errors, self.notices = self.resolver.errors, self.resolver.notices
        self.kinds = [kind for kind in catalogue.kinds if kind != "stage"]
        self.settings = Draft({}, self.resolver.origin("pipelines", name))
        self.stages: list[_Stage] = []
        self._to_be_used: list[tuple[str, str, str]] = []  # (kind, id, where) of components that overrides name

    def resolve(self, overrides: Overrides = ()) -> ResolvedPipeline | None:
        """The pipeline, or None once its errors are noted."""
        overrides = list(overrides.items() if isinstance(overrides, Mapping) else overrides)
        try:
            self._add_parent()
            self._add(self.name, strict=not overrides)  # ``--set`` may swap out what the file's overrides are about
        except RLHFError as error:  # without its settings, whatever else is wrong is no news
            self.errors.append(error)
            return None
        for item in overrides:
            self._attempt(self._add_setting, item)
        settings = self.resolver.build(self.settings, PipelineSettings)
        self._check_ids()
        stages = [stage for draft in self.stages if (stage := self._stage(draft))]
        if not self.errors:
            self._check_use()
        if self.errors or settings is None:
            return None
        written = {key: value for key, value in settings.written.items() if key in SETTABLE and key != "stages"}
        complete = settings.config.model_copy(update={"stages": tuple({s.name: dict(s.written)} for s in stages)})
        source = self.document.source
        return ResolvedPipeline(
            self.name,
            complete,
            tuple(stages),
            self.resolver.components,
            self.resolver.functions,
            tuple(self.document.requires),
            source.root,
            source.path,
            written,
            settings.origins,
        )

    def _attempt(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except RLHFError as error:
            self.errors.append(error)

    # --- layers ---

    def _raw(self, name: str) -> dict[str, Any]:
        return expect_mapping(self.document.pipelines[name], self.document.source.where("pipelines", name))

    def _add_parent(self) -> None:
        parent, pipelines = self._raw(self.name).get("extends"), self.document.pipelines
        if parent is None:
            return
        where = self.document.source.where("pipelines", self.name, "extends")
        if not isinstance(parent, str):
            raise ConfigError(where, f"got {show(parent)}", "the name of one pipeline")
        if parent not in pipelines:
            others = [name for name in pipelines if name != self.name]
            raise ConfigError(where, f"there is no pipeline {parent!r}", fix=suggest(parent, others))
        if parent == self.name:
            raise ConfigError(where, "a pipeline cannot extend itself")
        if grandparent := self._raw(parent).get("extends"):
            raise ConfigError(
                where,
                f"{parent!r} itself extends {grandparent!r}",
                "one level only",
                f"extend {grandparent!r} and repeat the overrides of {parent!r}",
            )
        self._add(parent)

    def _add(self, name: str, strict: bool = False) -> None:
        """Add the settings of the pipeline `name`, then its overrides."""
        raw, origin = self._raw(name), self.resolver.origin

        def place(i: int, stage: str, id: Any) -> Origin:
            return origin("pipelines", name, "stages", i, stage, label=f"pipelines.{name}.stages.{id}")

        for key, value in raw.items():
            if key == "stages":
                self._attempt(self._set_stages, value, origin("pipelines", name, "stages"), place)
            elif key not in NOT_SETTABLE:
                self.settings.set([key], value, origin("pipelines", name, key))
        overrides = expect_mapping(raw.get("override"), self.document.source.where("pipelines", name, "override"))
        for path, value in overrides.items():
            self._attempt(self._apply, path, value, origin("pipelines", name, "override", path), strict)

    def _add_setting(self, item: str | tuple[str, Any]) -> None:
        """Apply one ``--set``."""
        if isinstance(item, str):
            path, equals, text = item.partition("=")
            if not equals:
                raise ConfigError(f"--set {item}", "has no value", "PATH=VALUE, such as stages.optimize.steps=10")
        elif isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], str):
            path, text = item
        else:
            raise ConfigError("overrides", f"got {show(item)}", "PATH=VALUE or (path, value)")
        path = path.strip()

        def origin(rest: tuple[str | int, ...]) -> str:
            return f"--set {dotted(path, *rest)}"

        try:
            value = parse_value(text, origin(())) if isinstance(item, str) else text
        except RegistryErrors as errors:
            first = errors.errors[0]
            raise ConfigError(origin(()), f"{text!r} is not YAML: {first.got}", first.expected, first.fix) from None
        self._apply(path, value, origin)

    # --- the path language ---

    def _apply(self, path: str, value: Any, origin: Origin, strict: bool = True) -> None:
        """Set one value by its path; `strict` if the pipeline has to use what it is set on.

        Raises `ConfigError` if nothing is there.
        """
        head, *rest = parts = path.split(".")
        where = origin(())
        if "" in parts:
            raise ConfigError(where, f"{path!r} is not a path", "keys joined by dots, such as stages.optimize.steps")
        if head == "stages" and rest:
            ids = [str(stage.id) for stage in self.stages]
            if rest[0] not in ids:
                raise ConfigError(where, f"there is no stage {rest[0]!r}", fix=suggest(rest[0], ids))
            self._expect_key(path, rest, where)
            self.stages[ids.index(rest[0])].config.set(rest[1:], value, origin)
        elif head in self.kinds and rest:
            self._expect_key(path, rest, where)
            if declaration := self.resolver.declaration(head, rest[0], where):
                declaration.config.set(rest[1:], value, origin)
            if strict:
                self._to_be_used.append((head, rest[0], where))
        elif path == "stages":
            self._set_stages(value, origin, lambda i, stage, id: lambda rest: origin((id, *rest)))
        elif head in SETTABLE:
            self.settings.set(parts, value, origin)
        else:
            hint = suggest(head, [*SETTABLE, *self.kinds])
            if head == "components" and len(parts) > 3:
                hint = f"write {dotted(*parts[1:3], *(parts[4:] if parts[3] == 'config' else parts[3:]))}"
            raise ConfigError(where, f"there is no {head!r} to set", "stages.ID.KEY, KIND.ID.KEY or a setting", hint)

    def _expect_key(self, path: str, rest: list[str], where: str) -> None:
        if len(rest) < 2:
            raise ConfigError(where, f"{path} is a whole, not a setting", f"{path}.KEY", "name one of its settings")

    def _set_stages(self, raw: Any, origin: Origin, place: Callable[[int, str, Any], Origin]) -> None:
        """Read a list of stages; `place(index, name, id)` says where the settings of one stand."""
        self.stages = []
        if not isinstance(raw, list):
            raise ConfigError(origin(()), f"got {show(raw)}", "a list of stages", "begin each with `- `")
        for i, item in enumerate(raw):
            pair = {item: None} if isinstance(item, str) else item
            if not isinstance(pair, dict) or len(pair) != 1:
                got = f"got the keys {listed(pair)}" if isinstance(pair, dict) else f"got {show(pair)}"
                hint = "indent the settings further than the name" if isinstance(pair, dict) else ""
                expected = "one stage: `name: {settings}`, or just the name"
                self.errors.append(ConfigError(origin((i,)), got, expected, hint))
                continue
            name, settings = next(iter(pair.items()))
            own = settings.get("id") if isinstance(settings, dict) else None
            where = place(i, name, own or name)
            try:
                self.stages.append(_Stage(name, Draft(expect_mapping(settings, where(())), where)))
            except ConfigError as error:
                self.errors.append(error)

    # --- resolving ---

    def _stage(self, draft: _Stage) -> ResolvedStage | None:
        spec, model = self.resolver.lookup("stage", draft.name, draft.config.where())
        if spec is None or model is None:
            return None
        place, place_of_id = draft.config.where(), draft.config.where("id")
        draft.config.set(["id"], draft.id, lambda _: place_of_id)
        built = self.resolver.build(draft.config, model)
        if built is None:
            return None
        self._check_shapers(draft.config, built.config)
        return ResolvedStage(draft.id, draft.name, built.config, spec, place, built.written, built.origins)

    def _check_ids(self) -> None:
        if not self.stages and not self.errors:
            self.errors.append(ConfigError(self.settings.where("stages"), "there are no stages", "at least one"))
        ids: set[str] = set()
        for stage in self.stages:
            where = stage.config.where("id")
            if not isinstance(stage.id, str):
                continue  # its config says so
            if not ID.fullmatch(stage.id):
                self.errors.append(ConfigError(where, f"{stage.id!r} cannot be the id of a stage", ID_WORDS))
            elif stage.id in ids:
                hint = "give one of them an `id` of its own"
                self.errors.append(ConfigError(where, f"an earlier stage is called {stage.id!r} too", fix=hint))
            else:
                ids.add(stage.id)

    def _check_shapers(self, draft: Draft, config: Config) -> None:
        """Shapers of scores come before those of tokens: found before a run begins, not when the stage does."""
        levels: dict[str, list[tuple[str, str]]] = {}  # by the setting that lists them
        for path, kind, id in references(config):
            if kind == "shaper" and (shaper := self.resolver.components.get((kind, id))):
                levels.setdefault(path.partition(".")[0], []).append((id, level(shaper.spec.factory)))
        for setting, given in levels.items():
            if error := misplaced(draft.where(setting), given):
                self.errors.append(error)

    def _check_use(self) -> None:
        """An override of something the pipeline never uses is a slip, not a wish."""
        for kind, id, where in self._to_be_used:
            if (kind, id) not in self.resolver.components:
                used = [i for k, i in self.resolver.components if k == kind]
                got = f"pipeline {self.name!r} does not use {kind} {id!r}"
                self.errors.append(ConfigError(where, got, fix=f"it uses {listed(used)}" if used else ""))
