"""A registry file in which a component is used as shortly as its config allows: the example of `rlhf describe`."""

from __future__ import annotations

import io
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from ..errors import PluginError
from ..interfaces.config import ModelName, RefTo, RelativePath
from ..plugins import Plugins

STAND_INS = {
    "policy": "causal-lm", "prompts": "jsonl", "feedback": "preference", "reward": "preference", "optimizer": "ppo",
    "environment": "single-turn", "metric": "kl", "shaper": "kl",
}  # fmt: skip
"""What an example takes where an option names a component of a kind; if it is not installed, the first that is."""
MOST_OPTIONS = 6  # that a config's own errors may ask for


class Example:
    """The registry file that uses one component, and what else has to be declared for it.

    Attributes:
        config: the options that were given, the required ones and those that the config's own errors ask for.
    """

    def __init__(self, plugins: Plugins, kind: str, name: str) -> None:
        self._plugins = plugins
        self._functions: dict[str, str] = {}
        self._components: dict[str, dict[str, Any]] = {}
        self._stages: list[Any] = []
        self.config = self._options(plugins.import_class(plugins.find(kind, name), "config"), name)
        if kind != "stage":
            self._declare(kind, f"my-{name}", name, self.config)
            return
        self._policy = self._component("policy")
        self._stages.append({name: _Flow(self.config)} if self.config else name)

    def __str__(self) -> str:
        """As YAML."""
        from ruamel.yaml import YAML

        document: dict[str, Any] = {"schema_version": 1}
        if self._functions:
            document["functions"] = self._functions
        if self._components:
            document["components"] = self._components
        if self._stages:
            document["pipelines"] = {"my-pipeline": {"policy": self._policy, "stages": self._stages}}
        yaml, out = YAML(), io.StringIO()
        yaml.width = 120
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.representer.add_representer(
            _Flow, lambda r, flow: r.represent_mapping("tag:yaml.org,2002:map", flow.data, flow_style=True)
        )
        yaml.dump(document, out)
        return out.getvalue()

    def _declare(self, kind: str, id: str, use: str, config: dict[str, Any]) -> None:
        self._components.setdefault(kind, {})[id] = _Flow({"use": use, **({"config": config} if config else {})})

    def _component(self, kind: str) -> str:
        """An id of some component of `kind`, declared if it needs options."""
        if kind == "function":
            self._functions["my_function"] = "my_functions.py:my_function"
            return "my_function"
        id = f"my-{kind}"
        names = self._plugins.names(kind) if kind in self._plugins.kinds else []
        if not names or id in self._components.get(kind, {}):
            return id
        name = STAND_INS[kind] if STAND_INS.get(kind) in names else names[0]
        try:
            config = self._options(self._plugins.import_class(self._plugins.find(kind, name), "config"), name)
        except PluginError:
            return id
        if not config:
            return name  # an id that is registered and not declared stands for its defaults
        self._declare(kind, id, name, config)
        return id

    def _options(self, config: type[BaseModel], name: str) -> dict[str, Any]:
        """The required options, and then, while the config refuses them, those that its errors name in backticks."""
        fields = config.model_fields
        given = {
            option: self._value(option, info.annotation, info.metadata)
            for option, info in fields.items()
            if info.is_required()
        }
        for _ in range(MOST_OPTIONS):
            try:
                config.model_validate(given)
            except ValidationError as error:
                words = [word for one in error.errors() for word in re.findall(r"`(\w+)`", one["msg"])]
                asked = [word for word in words if word in fields and word not in given]
                if not asked:
                    break
                option = name if name in asked else asked[0]
                given[option] = self._value(option, fields[option].annotation, fields[option].metadata)
            else:
                break
        return given

    def _value(self, option: str, annotation: Any, metadata: list[Any]) -> Any:
        """Something that an option of this type accepts."""
        origin, arguments = get_origin(annotation), get_args(annotation)
        for marker in metadata:
            if isinstance(marker, RefTo):
                return self._component(marker.kind)
        if origin is Annotated:
            return self._value(option, arguments[0], [*metadata, *arguments[1:]])
        if origin is Literal:
            return arguments[0]
        if origin in (Union, types.UnionType):
            return self._value(option, next(a for a in arguments if a is not types.NoneType), metadata)
        if origin is dict:
            return {self._value(option, arguments[0], []): self._value(option, arguments[1], [])}
        if origin in (list, tuple):
            return [self._value(option, a, []) for a in arguments if a is not ...][: None if origin is tuple else 1]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self._options(annotation, option)
        if annotation in (int, float):
            numbers = (100, 1, 0) if annotation is int else (1.0, 0.5, 0.0)
            return next((n for n in numbers if _accepts(annotation, metadata, n)), numbers[0])
        if annotation is bool:
            return True
        return _text(option, metadata)


class _Flow:
    """A mapping on one line: ``{use: ppo}``."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data


def _accepts(annotation: Any, metadata: list[Any], value: Any) -> bool:
    try:
        TypeAdapter(Annotated[annotation, *metadata] if metadata else annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _text(option: str, metadata: list[Any]) -> str:
    if is_a(RelativePath, metadata):
        return "data.jsonl"
    if is_a(ModelName, metadata):
        return "path/or/hub-id"
    return "http://localhost:8000/v1" if option == "url" else f"my-{option.replace('_', '-')}"


def is_a(alias: Any, metadata: list[Any]) -> bool:
    """Whether an option with this metadata was declared as `RelativePath` or `ModelName`."""
    return alias.__metadata__[0] in metadata
