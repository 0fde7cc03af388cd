"""Options of quality control and of counterfactual augmentation. Light: imports no torch and no numpy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from rlhf_core.interfaces import Config, FeedbackRef


def _several(value: Any) -> Any:
    """One id is a list of one."""
    return (value,) if isinstance(value, str) else value


def _some(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("name at least one feedback source")
    return values


Sources = Annotated[tuple[FeedbackRef, ...], BeforeValidator(_several), AfterValidator(_some)]


class Thresholds(Config):
    """What quality control looks for, in this order. A threshold that is null is not applied."""

    invalid: Literal["drop", "keep"] = Field(
        default="drop", description="records that say nothing: an empty prompt or response, an edit without a change"
    )
    duplicates: Literal["drop", "keep"] = Field(
        default="drop", description="the same answer to the same item by the same annotator, after the first"
    )
    min_records: int = Field(
        default=10,
        ge=1,
        description="an annotator with fewer records is too few to judge: neither dropped nor weighted",
    )
    min_seconds: float | None = Field(
        default=1.0, gt=0, description="an annotator whose median time between two records is shorter is dropped"
    )
    constant_share: float | None = Field(
        default=0.95, gt=0.5, le=1, description="an annotator who gives one answer in a larger share is dropped"
    )
    constant_run: int | None = Field(
        default=30, ge=2, description="an annotator who gives one answer so many times in a row is dropped"
    )
    gold_accuracy: float = Field(
        default=0.6, gt=0, lt=1, description="an annotator less often right on gold questions is dropped"
    )
    gold_bound: Literal["upper", "lower"] = Field(
        default="upper",
        description="which end of the 95 % Wilson interval must reach it: upper drops whom it proves bad, "
        "lower keeps only whom it proves good",
    )
    gold_min: int = Field(default=5, ge=1, description="gold answers from which on an annotator is judged by them")
    gold_tolerance: float = Field(
        default=0.25, ge=0, lt=1, description="a rating this near to the gold one is right, in widths of the scale"
    )
    alpha_gain: float | None = Field(
        default=None, gt=0, description="an annotator without whom Krippendorff's alpha is higher by more is dropped"
    )
    reliability: Literal["none", "dawid-skene", "mace"] = Field(
        default="dawid-skene",
        description="what weights are multiplied by; mace needs crowd-kit (pip install 'rlhf-plugin-quality[crowd]')",
    )
    position_field: str = Field(
        default="first",
        description="prompt field that says which response was shown first: its index, or chosen or rejected",
    )
    coverage: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        default=(), description="prompt fields whose values, alone or combined, the prompts should cover evenly"
    )

    @model_validator(mode="after")
    def _each_once(self) -> Thresholds:
        if len(set(self.coverage)) < len(self.coverage):
            raise ValueError(f"`coverage` names a field twice: {', '.join(self.coverage)}")
        return self


class QualityConfig(Thresholds):
    """Other feedback without its bad records and annotators, weighted by reliability."""

    feedback: Sources = Field(description="the feedback to check: an id, or several whose records are taken together")
    gold: FeedbackRef | None = Field(
        default=None, description="feedback with known answers to some of the same items; the questions stay in"
    )


Pair = tuple[str, str]


class CounterfactualConfig(Config):
    """Other feedback, and beside each record its twin with the terms of each pair swapped."""

    feedback: Sources = Field(description="the feedback to augment: an id, or several")
    language: Literal["en", "zh", "both"] = Field(
        default="both", description="which built-in pairs are swapped where `swaps` gives none"
    )
    swaps: tuple[Pair, ...] | None = Field(
        default=None, description="pairs of terms that change places, in the place of the built-in ones"
    )
    leave: tuple[str, ...] = Field(
        default=(), description="words that stay as they are though a term is in them, added to the built-in ones"
    )
    keep_original: bool = Field(
        default=True, description="give each record and then its twin; false: the twin alone, where there is one"
    )

    @field_validator("swaps")
    @classmethod
    def _one_partner_each(cls, swaps: tuple[Pair, ...] | None) -> tuple[Pair, ...] | None:
        seen: set[str] = set()
        for pair in swaps or ():
            for term in pair:
                if not term.strip():
                    raise ValueError(f"the pair {list(pair)} has an empty term")
                if term.casefold() in seen:
                    raise ValueError(f"{term!r} is there twice, so what it is swapped with is not clear; keep one pair")
                seen.add(term.casefold())
        if swaps == ():
            raise ValueError("an empty list swaps nothing; leave `swaps` out for the built-in pairs")
        return swaps

    @field_validator("leave")
    @classmethod
    def _no_empty_word(cls, leave: tuple[str, ...]) -> tuple[str, ...]:
        if any(not word.strip() for word in leave):
            raise ValueError("`leave` has an empty word; remove it")
        return leave
