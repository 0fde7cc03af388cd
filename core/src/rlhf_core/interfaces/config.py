"""Configuration: one pydantic model per component, declared once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    model_validator,
)

from .deprecation import Deprecation, add_to_schema, check_deprecated, read_old_keys
from .schedule import Schedule, Scheduled, value_at, within


@dataclass(frozen=True)
class Needs:
    """What an algorithm wants in its rollouts; nothing that nobody needs is computed.

    logprobs: of the sampled tokens; where they are not wanted a policy may leave 0, and spare itself a pass if values
    come from a network of their own. values: V(s) per token. bootstrap: V after the last token. reference:
    log-probabilities of the reference.
    entropy: of each token's distribution. top_k: ids and log-probabilities of the k likeliest tokens.
    distribution: log-probabilities of the whole vocabulary, in an update only. heads: so many action-value heads of the
    policy, Q(s, .) over the vocabulary, and with them `hidden`: the states that heads read, in an update only.
    token_ends: how much of the text is there after each token. samples_per_prompt: at least so many, for group
    baselines.
    """

    logprobs: bool = True
    values: bool = False
    bootstrap: bool = False
    reference: bool = False
    entropy: bool = False
    top_k: int = 0
    distribution: bool = False
    heads: int = 0
    hidden: bool = False
    token_ends: bool = False
    samples_per_prompt: int = 1

    def __or__(self, other: Needs) -> Needs:
        """The union: what either needs."""
        return Needs(**{f.name: max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


class Config(BaseModel):
    """Base of every component's configuration: unknown keys are errors, and nothing changes after it is built.

    deprecated: old name of a field -> `Renamed` or `Retired`; it loads for one minor version, with a warning.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )  # built at first use: listing components must be quick
    deprecated: ClassVar[Mapping[str, Deprecation]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        check_deprecated(cls)

    @model_validator(mode="before")
    @classmethod
    def _read_old_keys(cls, data: Any) -> Any:
        return read_old_keys(cls, data)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core_schema)
        add_to_schema(cls, handler.resolve_ref_schema(schema))
        return schema

    @property
    def needs(self) -> Needs:
        """What the component reads from rollouts; optimizers, shapers and metrics say so here."""
        return Needs()


@dataclass(frozen=True)
class RefTo:
    """Marks a string as the id of a component of `kind`."""

    kind: str


# A config field of one of these types names a component; of a kind of your own: Annotated[str, RefTo("judge")]
PolicyRef = Annotated[str, RefTo("policy")]
PromptsRef = Annotated[str, RefTo("prompts")]
FeedbackRef = Annotated[str, RefTo("feedback")]
RewardRef = Annotated[str, RefTo("reward")]
ShaperRef = Annotated[str, RefTo("shaper")]
OptimizerRef = Annotated[str, RefTo("optimizer")]
EnvironmentRef = Annotated[str, RefTo("environment")]
EngineRef = Annotated[str, RefTo("engine")]
MetricRef = Annotated[str, RefTo("metric")]
MonitorRef = Annotated[str, RefTo("monitor")]
FunctionRef = Annotated[str, RefTo("function")]  # an entry of the registry's `functions:` section


def _from_root(value: str, info: ValidationInfo) -> str:
    """Make a relative path absolute, from the folder of the registry file (validation context "root")."""
    root = (info.context or {}).get("root")
    return str(Path(root, value).resolve()) if root else value


def _from_root_if_there(value: str, info: ValidationInfo) -> str:
    path = _from_root(value, info)
    return path if Path(path).exists() else value


RelativePath = Annotated[str, AfterValidator(_from_root)]
"""A path; relative ones in a registry file are relative to that file."""

ModelName = Annotated[str, AfterValidator(_from_root_if_there)]
"""A model folder if there is one at that path (relative to the registry file), else an id of the Hugging Face hub."""


def _annotated_refs(annotation: Any, value: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Follow `value` along its type `annotation` and yield every reference in it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kinds = [a.kind for a in arguments[1:] if isinstance(a, RefTo)]
        if kinds and isinstance(value, str):
            yield path, kinds[0], value
        else:
            yield from _annotated_refs(arguments[0], value, path)
    elif isinstance(value, BaseModel):
        yield from references(value, path)
    elif isinstance(value, dict) and len(arguments) == 2:
        for key, item in value.items():
            yield from _annotated_refs(arguments[0], key, f"{path}.{key}")
            yield from _annotated_refs(arguments[1], item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)) and arguments and origin in (list, tuple):
        for i, item in enumerate(value):
            yield from _annotated_refs(arguments[0], item, f"{path}.{i}")
    else:
        for argument in arguments:  # a union: at most one branch holds references for this value
            if get_origin(argument) is not Literal:
                yield from _annotated_refs(argument, value, path)


def references(config: BaseModel, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Every component that `config` names, as (path inside the config, kind, id)."""
    for name, info in type(config).model_fields.items():
        annotation: Any = info.annotation
        for marker in info.metadata:
            if isinstance(marker, RefTo):
                annotation = Annotated[annotation, marker]
        yield from _annotated_refs(annotation, getattr(config, name), f"{path}.{name}" if path else name)


class Sampling(Config):
    """How responses are drawn."""

    max_new_tokens: int = Field(default=64, ge=1, description="longest response, in tokens")
    min_new_tokens: int = Field(default=0, ge=0, description="end of text cannot be drawn before this many tokens")
    temperature: Annotated[Scheduled, within(ge=0)] = Field(
        default=1.0, description="softmax temperature; 0 takes the likeliest token; may be a schedule in `optimize`"
    )
    top_k: int = Field(default=0, ge=0, description="draw among the k likeliest tokens; 0: all")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="draw among the likeliest tokens that hold this mass; 1: all"
    )
    stop: tuple[str, ...] = Field(default=(), description="strings that end a response; they are cut from its text")

    @model_validator(mode="after")
    def _consistent(self) -> Sampling:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) exceeds max_new_tokens ({self.max_new_tokens})")
        if "" in self.stop:
            raise ValueError("a stop string must not be empty")
        if isinstance(self.temperature, Schedule) and 0 in self.temperature.bounds:
            raise ValueError(
                f"got a schedule of the temperature between {' and '.join(map(str, self.temperature.bounds))}, "
                "expected values above 0: at 0 nothing is drawn and nothing can be learnt; give `end`"
            )
        return self

    def at(self, step: int, total: int) -> Sampling:
        """The sampling at `step` (from 0) of `total`, without schedules."""
        return self.model_copy(update={"temperature": value_at(self.temperature, step, total)})

    @property
    def heat(self) -> float:
        """The temperature as a number: of a schedule its first."""
        return value_at(self.temperature, 0, 1)

    @property
    def truncates(self) -> bool:
        """Whether tokens are drawn from less than the full softmax."""
        return self.top_k > 0 or self.top_p < 1 or self.heat == 0 or self.min_new_tokens > 0


class OptimizerSettings(Config):
    """Settings of AdamW and its learning-rate schedule, shared by everything that is trained by gradients."""

    learning_rate: Annotated[Scheduled, within(ge=0)] = Field(
        default=1e-4, description="learning rate of AdamW, or a schedule of it, counted in updates of the weights"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's moment coefficients")
    adam_eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    adamw: Literal["full", "8bit", "paged", "paged-8bit"] = Field(
        default="full",
        description="how AdamW keeps its moments: full; 8bit: in a quarter of the memory, those of tensors below 4096 "
        "numbers in 32 bit; paged: in main memory while a GPU has no room; or both",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this global norm")


class SupervisedConfig(OptimizerSettings):
    """Settings of the supervised loop: sft, gradient-trained rewards, pre-training."""

    epochs: int = Field(default=1, ge=1, description="passes over the examples")
    batch_size: int = Field(default=32, ge=1, description="examples per optimizer step, over all processes")
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="most tokens, padding included, in one forward pass"
    )
    held_out: float = Field(
        default=0.1, ge=0, lt=1, description="share of prompts kept out of training for the evaluation"
    )


class SourceConfig(Config):
    """Where rows come from and what their columns are called. Give `path` or `dataset`."""

    path: RelativePath | None = Field(
        default=None, description="a file: .jsonl, .json, .csv or .tsv, plain or .gz, or .parquet; any other is JSONL"
    )
    dataset: str | None = Field(
        default=None, description="a dataset of the Hugging Face hub, or any path `datasets` loads"
    )
    name: str | None = Field(default=None, description="configuration (subset) of the dataset")
    split: str = Field(default="train", description="split of the dataset")
    data_dir: str | None = Field(default=None, description="folder inside the dataset")
    revision: str | None = Field(default=None, description="commit or tag of the dataset")
    limit: int | None = Field(default=None, ge=1, description="read at most this many rows")
    columns: dict[str, str] = Field(default_factory=dict, description="our name for a column -> the file's name for it")
    fields: tuple[str, ...] | None = Field(
        default=None,
        description="columns handed on with the prompt to rewards and metrics; by default all that are left",
    )
    on_bad_record: Literal["raise", "skip"] = Field(
        default="raise", description="stop at a bad row, or count and skip it"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if self.path is None and self.dataset is None:
            raise ValueError("give `path` (a file) or `dataset` (a hub id)")
        return self


class Until(Config):
    """When a stage may stop before its last step."""

    metric: str = Field(description="a metric of the evaluation during the stage")
    at_least: float = Field(description="the value it has to reach")
    patience: int = Field(default=1, ge=1, description="at this many evaluations in a row")


class StageConfig(Config):
    """What every stage can be told."""

    id: str | None = Field(default=None, description="name of the stage in this pipeline; by default its `use` name")
    evaluate_every: int = Field(default=0, ge=0, description="evaluate during the stage every so many steps; 0: never")
    best: str | None = Field(
        default=None, description="keep the weights of the evaluation at which this metric was highest; -NAME: lowest"
    )
    until: Until | None = Field(default=None, description="stop early once a metric is reached")
    monitors: dict[MonitorRef, Literal["warn", "stop"]] = Field(
        default_factory=dict,
        description="who watches the stage, and what an alarm does: warn, or stop the run after a checkpoint",
    )

    @model_validator(mode="after")
    def _evaluation_is_on(self) -> StageConfig:
        if (self.best or self.until) and not self.evaluate_every:
            raise ValueError("`best` and `until` look at evaluations during the stage; set `evaluate_every`")
        return self
