"""Options of the rules that read nothing but the response: keywords, length, regex, repetition."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from rlhf_core.interfaces import Config


def _as_weights(value: Any) -> Any:
    """A mapping from keyword to weight; in a list every keyword weighs 1. Inner and outer space is made even."""
    is_list, is_mapping = isinstance(value, (list, tuple)), isinstance(value, dict)
    if not is_list and not is_mapping:
        raise ValueError(f"got {value!r}, expected a list of words, or a mapping from word to weight")
    if others := [word for word in value if not isinstance(word, str)]:
        raise ValueError(f"got {others[0]!r}, expected a word or phrase; put quotes around it")
    weights: dict[str, Any] = {}
    for word in value:
        keyword = " ".join(word.split())
        if not keyword:
            raise ValueError(f"got the empty word {word!r}, which is everywhere; remove it")
        if keyword in weights:
            raise ValueError(f"{keyword!r} is there twice; keep one")
        weights[keyword] = value[word] if is_mapping else 1.0
    return weights


Weight = Annotated[float, Field(gt=0)]
Lexicon = Annotated[
    dict[str, Weight],
    BeforeValidator(_as_weights, json_schema_input_type=list[str] | dict[str, Weight]),
]


class KeywordsConfig(Config):
    """Sum of the weights of preferred words found, minus those of avoided words found; given here, learnt, or both."""

    prefer: Lexicon = Field(default_factory=dict, description="words or phrases that earn their weight; a list: 1 each")
    avoid: Lexicon = Field(default_factory=dict, description="words or phrases that cost their weight; a list: 1 each")
    max_count: int = Field(default=1, ge=1, description="hits of one keyword that count; later ones are free")
    ignore_case: bool = Field(default=True, description="whether Please is also please")
    whole_words: bool = Field(
        default=True, description="no hits inside longer words, where words have spaces between them; false: anywhere"
    )
    min_count: int = Field(default=2, ge=1, description="learnt are words that at least so many records name")
    shrinkage: float = Field(
        default=1.0,
        ge=0,
        description="doubt in a learnt weight, in multiples of the votes that a learnt word has on average",
    )
    held_out: float = Field(default=0.1, ge=0, lt=1, description="share of prompts kept out of the fit to check it")

    @model_validator(mode="after")
    def _each_once(self) -> KeywordsConfig:
        seen: dict[str, str] = {}
        for word in (*self.prefer, *self.avoid):
            key = self.key(word)
            if key in seen:
                raise ValueError(f"{seen[key]!r} and {word!r} are one keyword, listed twice; keep one of them")
            seen[key] = word
        return self

    def key(self, word: str) -> str:
        """What `word` is counted as: without case, unless case matters."""
        return word.casefold() if self.ignore_case else word

    @property
    def weights(self) -> dict[str, float]:
        """Every keyword given here, with what a hit earns (positive) or costs (negative)."""
        return self.prefer | {word: -weight for word, weight in self.avoid.items()}


class LengthConfig(Config):
    """``max(floor, -scale * max(0, |n - target| / target - tolerance))`` for a response of length n."""

    target: int = Field(gt=0, description="the wanted length")
    unit: Literal["words", "characters"] = Field(
        default="words", description="what is counted; as words, each Chinese or Japanese character is one"
    )
    tolerance: float = Field(
        default=0.0, ge=0, description="relative distance from the target that is free (0.1: 10 %)"
    )
    scale: float = Field(default=1.0, gt=0, description="what each further relative distance of 1 costs")
    floor: float = Field(default=-1.0, lt=0, description="lowest possible reward")


class RegexConfig(Config):
    """One value if the pattern matches, another if not."""

    flags: tuple[Literal["ignorecase", "multiline", "dotall", "verbose", "ascii"], ...] = Field(
        default=(), description="flags of the pattern, named as in Python's re"
    )
    pattern: str = Field(min_length=1, description="regular expression, in the syntax of Python's re")
    match: Literal["search", "fullmatch"] = Field(
        default="search", description="anywhere in the response, or all of it (without the white space around it)"
    )
    found: float = Field(default=1.0, description="reward if the pattern matches")
    missing: float = Field(default=0.0, description="reward if it does not")
    timeout: float = Field(default=5.0, gt=0, description="seconds of CPU on one response after which the run stops")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str, info: ValidationInfo) -> str:
        import regex

        try:
            _compile(pattern, info.data.get("flags", ()))
        except regex.error as error:
            raise ValueError(
                f"got {pattern!r}, which is not a regular expression: {error.msg} at position {error.pos}, "
                f"after {pattern[: error.pos]!r}"
            ) from error
        return pattern

    @cached_property
    def compiled(self) -> Any:
        """The pattern, ready for use."""
        return _compile(self.pattern, self.flags)


def _compile(pattern: str, flags: tuple[str, ...]) -> Any:
    import regex  # here, because whoever merely lists components should not wait for it

    return regex.compile(pattern, flags=sum(getattr(regex, flag.upper()) for flag in set(flags)))


class RepetitionConfig(Config):
    """``-weight * (1 - distinct / total)`` over the word n-grams of a response; 0 if it has none."""

    n: int = Field(default=3, ge=1, description="words per n-gram")
    weight: float = Field(default=1.0, gt=0, description="penalty if nearly all n-grams are repetitions")
    ignore_case: bool = Field(default=True, description="whether Thank you repeats thank you")
