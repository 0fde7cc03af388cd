"""Options of the rewards that check a response: its form, its answer, its facts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from rlhf_core.interfaces import Config, RelativePath

JsonType = Literal["any", "string", "number", "integer", "boolean", "array", "object", "null"]
OnMissing = Literal["raise", "abstain"]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.-]*$")]
Range = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


def _as_types(value: Any) -> Any:
    """A list of keys: of any type each."""
    return dict.fromkeys(value, "any") if isinstance(value, (list, tuple)) else value


class FormatConfig(Config):
    """The share of checks that a response passes, on a scale from `missing` to `found`."""

    tags: tuple[Tag, ...] = Field(
        default=(), description="names of tags that stand there once each, in this order, such as [think, answer]"
    )
    text_around: bool = Field(default=False, description="whether text may stand outside `tags`")
    json_keys: Annotated[
        dict[str, JsonType] | None,
        BeforeValidator(_as_types, json_schema_input_type=list[str] | dict[str, JsonType] | None),
    ] = Field(
        default=None,
        description="the response is a JSON object with these keys; a mapping says their types; empty: any object",
    )
    json_tag: Tag | None = Field(default=None, description="the tag inside which the JSON stands; by default no tag")
    sentences: Range | None = Field(default=None, description="fewest and most sentences")
    bullets: Range | None = Field(
        default=None, description="fewest and most list items: lines that begin with -, * or 1."
    )
    found: float = Field(default=1.0, description="reward if every check passes")
    missing: float = Field(default=0.0, description="reward if none does")

    @field_validator("sentences", "bullets")
    @classmethod
    def _ascending(cls, ends: tuple[int, int] | None) -> tuple[int, int] | None:
        if ends is not None and ends[0] > ends[1]:
            raise ValueError(f"got {list(ends)}, expected the fewest first and then the most")
        return ends

    @model_validator(mode="after")
    def _some_check(self) -> FormatConfig:
        if not self.tags and self.json_keys is None and self.sentences is None and self.bullets is None:
            raise ValueError("nothing to check; give `tags`, `json_keys`, `sentences` or `bullets`")
        if len(set(self.tags)) < len(self.tags):
            raise ValueError(f"got {list(self.tags)}, expected each tag once")
        if self.text_around and not self.tags:
            raise ValueError("`text_around` says what may stand around `tags`; give some")
        if self.json_tag is not None and self.json_keys is None:
            raise ValueError("`json_tag` says where the JSON is; give `json_keys`, empty for any object")
        return self


class AnswerConfig(Config):
    """Whether the answer that a response gives is one of those its prompt accepts."""

    field: str = Field(
        default="answer",
        min_length=1,
        description="field of the prompt with the right answer, or a list of accepted ones",
    )
    field_marker: str | None = Field(
        default=None, min_length=1, description="in that field the answer comes after this text (GSM8K: '####')"
    )
    extract: Literal["boxed", "last-number", "tag", "after", "whole"] = Field(
        default="boxed", description="where a response gives its answer"
    )
    tag: Tag = Field(default="answer", description="for `extract: tag`: the last <TAG>...</TAG> holds the answer")
    markers: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("Answer:", "答案:", "答案是"),
        min_length=1,
        description="for `extract: after`: the rest of the line after the last of these is the answer",
    )
    compare: Literal["exact", "numeric", "choice"] = Field(
        default="exact", description="as text, as numbers, or as the letter of a choice"
    )
    tolerance: float = Field(
        default=1e-6, ge=0, lt=1, description="for `compare: numeric`: relative error that is still right"
    )
    correct: float = Field(default=1.0, description="reward of a right answer")
    wrong: float = Field(default=0.0, description="reward of a wrong one")
    missing: float = Field(default=0.0, description="reward of a response that gives no answer")
    on_missing: OnMissing = Field(
        default="raise", description="stop at a prompt without the field, or have no opinion on its responses"
    )

    @model_validator(mode="after")
    def _numbers_are_numbers(self) -> AnswerConfig:
        if self.extract == "last-number" and self.compare != "numeric":
            raise ValueError(
                f"`extract: last-number` finds numbers, `compare: {self.compare}` takes them as text; "
                "set `compare: numeric`"
            )
        return self


class FactualConfig(Config):
    """Statements that a file of facts supports, minus those that it contradicts, as a share of all it can check."""

    path: RelativePath = Field(description="JSONL file of facts: subject, relation, object, perhaps not_object and key")
    key_field: str | None = Field(
        default=None, min_length=1, description="field of the prompt that chooses facts: those with its value as `key`"
    )
    on_unchecked: Literal["zero", "abstain"] = Field(
        default="zero", description="a response without a statement that can be checked gets 0, or no opinion"
    )
    on_missing: OnMissing = Field(
        default="raise", description="stop at a prompt without `key_field`, or have no opinion on its responses"
    )
