"""What quality control found: immutable, and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .agreement import wilson_interval

KEPT, INVALID, DUPLICATE, TOO_FAST, CONSTANT, GOLD, DISAGREES = (
    "kept", "invalid", "duplicate", "too fast", "constant", "gold", "disagrees",
)  # fmt: skip


class Verdict(NamedTuple):
    """Why a record was dropped: `reason` is one of the words above, `detail` says more."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Share:
    """`count` of `of`, with the 95 % Wilson interval of the probability behind it."""

    count: int
    of: int

    @property
    def value(self) -> float:
        return self.count / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.count, self.of)

    def to_dict(self) -> dict[str, Any]:
        return {"count": self.count, "of": self.of, "share": self.value, "interval": list(self.interval)}


@dataclass(frozen=True)
class Bias:
    """A share that should be `expected`, and is biased where its interval leaves that out."""

    share: Share
    expected: float

    @property
    def found(self) -> bool:
        low, high = self.share.interval
        return self.share.of > 0 and not low <= self.expected <= high

    def to_dict(self) -> dict[str, Any]:
        return {**self.share.to_dict(), "expected": self.expected, "biased": self.found}


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho of `of` pairs, with the 95 % interval of Fisher's transformation."""

    rho: float
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        if self.of < 4 or abs(self.rho) >= 1:
            return (-1.0, 1.0) if self.of < 4 else (self.rho, self.rho)
        half = 1.959964 / float(np.sqrt(self.of - 3))
        low, high = np.tanh(np.arctanh(self.rho) + np.array([-half, half]))
        return float(low), float(high)

    @property
    def found(self) -> bool:
        low, high = self.interval
        return not low <= 0 <= high

    def to_dict(self) -> dict[str, Any]:
        return {"rho": self.rho, "of": self.of, "interval": list(self.interval), "biased": self.found}


@dataclass(frozen=True)
class Annotator:
    """One annotator. None: cannot be known, or too few records to say.

    records: all of them; judged: those left after invalid and duplicate ones. seconds: median time between two.
    constant: share of the commonest answer; run: the longest run of one answer. gold: right answers to gold questions.
    alpha_gain: how much higher Krippendorff's alpha is without them. accuracy: how often they give the true answer, by
    Dawid and Skene's model.
    reliability: what the weight of each record is multiplied by. verdict: why all records were dropped.
    """

    name: str
    records: int
    judged: int
    few: bool
    seconds: float | None = None
    constant: float | None = None
    run: int | None = None
    gold: Share | None = None
    alpha_gain: float | None = None
    accuracy: float | None = None
    reliability: float | None = None
    verdict: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        verdict = None if self.verdict is None else self.verdict._asdict()
        gold = None if self.gold is None else self.gold.to_dict()
        return {**asdict(replace(self, gold=None, verdict=None)), "gold": gold, "verdict": verdict}


@dataclass(frozen=True)
class Agreement:
    """Agreement on one kind of judgement (and scale): items with several answers, their answers, ordinal alpha."""

    measure: str
    items: int
    answers: int
    alpha: float | None


@dataclass(frozen=True)
class Prompts:
    """How varied the prompts are.

    near: distinct prompts that equal another one but for case, punctuation and space. distinct_bigrams: share of
    different word pairs among all, in the first 5,000 distinct prompts.
    """

    records: int
    distinct: int
    near: int
    distinct_bigrams: float | None


@dataclass(frozen=True)
class Coverage:
    """How evenly the values of prompt fields occur.

    counts: records by value, or by combination of values joined by " / ". evenness: their entropy relative to that of
    equal counts, 1 if all are as frequent. missing: combinations of values that occur, without a record.
    """

    fields: tuple[str, ...]
    counts: dict[str, int]
    evenness: float
    missing: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Findings:
    """All that was found; `verdict` and `factor` say what becomes of each record."""

    records: int
    dropped: dict[str, int]
    annotators: tuple[Annotator, ...]
    agreement: tuple[Agreement, ...]
    position: Bias | None
    length: Bias | None
    length_score: Correlation | None
    prompts: Prompts
    coverage: Coverage | None
    repeats: Share | None
    """Of one annotator's repeated answers to one item: how many differ from the first."""
    notes: tuple[str, ...]
    default_factor: float = 1.0
    verdicts: tuple[Verdict, ...] = field(default=(), repr=False)
    codes: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, dtype=np.uint32), repr=False)
    """(N,): index into `verdicts` of each record; the first is that of a kept one."""

    @property
    def kept(self) -> int:
        return self.records - sum(self.dropped.values())

    def verdict(self, index: int) -> Verdict | None:
        """Why record number `index` (from 0) was dropped; None: it was kept."""
        code = int(self.codes[index])
        return self.verdicts[code] if code else None

    def factors(self) -> dict[str | None, float]:
        """By annotator what weights are multiplied by; None stands for records without one."""
        by_name: dict[str | None, float] = {
            a.name: self.default_factor if a.reliability is None else a.reliability for a in self.annotators
        }
        return {**by_name, None: self.default_factor}

    def to_dict(self) -> dict[str, Any]:
        """JSON values; dropped records are not listed."""

        def maybe(value: Any) -> Any:
            return None if value is None else value.to_dict()

        return {
            "records": self.records,
            "kept": self.kept,
            "dropped": self.dropped,
            "annotators": [annotator.to_dict() for annotator in self.annotators],
            "agreement": [asdict(a) for a in self.agreement],
            "position": maybe(self.position),
            "length": maybe(self.length),
            "length_score": maybe(self.length_score),
            "prompts": asdict(self.prompts),
            "coverage": None if self.coverage is None else asdict(self.coverage),
            "repeats": maybe(self.repeats),
            "notes": list(self.notes),
        }
