"""What a linear model learns from: pairs of responses, or responses with a number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rlhf_core.errors import DataError
from rlhf_core.records import Comparison, Edit, Feedback, Prompt, Rating, Sample, Sentiment

FAMILIES = {"comparison": "pairs", "edit": "pairs", "rating": "ratings", "sentiment": "sentiment"}
LABELS = {"positive": 1.0, "neutral": 0.0, "negative": -1.0}


@dataclass
class Examples:
    """Samples, and what was said of them; one of `pairs` and `targets` is empty.

    pairs: positions in `samples` of a better and a worse response. confidences: for each pair the probability that its
    order is right. targets: a number for each sample. weights, prompts: of each pair or target its weight, and the
    number of its prompt.
    """

    samples: list[Sample] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    _numbers: dict[object, int] = field(default_factory=dict)

    def add(self, record: Feedback) -> None:
        if isinstance(record, Rating):
            low, high = record.scale
            self._add_target(record, record.response, (record.score - low) / (high - low))
        elif isinstance(record, Sentiment):
            self._add_target(record, record.response, LABELS[record.label] if record.score is None else record.score)
        elif isinstance(record, Comparison):
            confidence = 1.0 if record.confidence is None else record.confidence
            self._add_pairs(record, record.responses, list(record.pairs()), confidence)
        elif isinstance(record, Edit) and record.edited != record.original:
            both = (record.edited, record.original)
            self._add_pairs(record, both, [both], 1.0)

    def _add_target(self, record: Rating | Sentiment, response: str, target: float) -> None:
        self.samples.append(Sample(record.prompt, response))
        self.prompts.append(self._number(record.prompt))
        self.targets.append(target)
        self.weights.append(record.weight)

    def _add_pairs(
        self, record: Comparison | Edit, responses: tuple[str, ...], pairs: list[tuple[str, str]], confidence: float
    ) -> None:
        if not pairs:
            return  # all equal
        place = {response: len(self.samples) + i for i, response in enumerate(responses)}
        self.samples += [Sample(record.prompt, response) for response in responses]
        self.pairs += [(place[better], place[worse]) for better, worse in pairs]
        self.prompts += [self._number(record.prompt)] * len(pairs)
        self.confidences += [confidence] * len(pairs)
        self.weights += [record.weight] * len(pairs)

    def _number(self, prompt: Prompt) -> int:
        return self._numbers.setdefault(prompt.text, len(self._numbers))


def read(feedback: Iterable[Feedback], held_out: float, where: str) -> tuple[Examples, Examples, str]:
    """Training and held-out examples, split by prompt, and their family; records of weight 0 are left out.

    Raises:
        DataError: a kind that cannot be learnt from, kinds that do not go together, or nothing to learn.
    """
    sides = Examples(), Examples()
    first: Feedback | None = None
    rewrites = False  # demonstrations beside edits: what was written anew is no edit
    for record in feedback:
        if record.kind == "demonstration":
            rewrites = True
            continue
        if record.kind not in FAMILIES:
            raise _stranger(record.kind, where)
        first = first or record
        if FAMILIES[record.kind] != FAMILIES[first.kind]:
            raise DataError(where, f"feedback of kinds {first.kind!r} and {record.kind!r} in one fit",
                            "comparisons or edits, or else ratings, or else sentiment: their units differ",
                            "fit one reward on each and mix them")  # fmt: skip
        if record.weight > 0:
            sides[record.prompt.in_share(held_out)].add(record)
    if first is None and rewrites:
        raise _stranger("demonstration", where)
    family = "" if first is None else FAMILIES[first.kind]
    _check(sides[0], family, where)
    return *sides, family


def _stranger(kind: str, where: str) -> DataError:
    return DataError(where, f"feedback of kind {kind!r}", "comparisons or edits, or else ratings, or else sentiment",
                     "name a feedback source of one of these in the fit-reward stage")  # fmt: skip


def _check(train: Examples, family: str, where: str) -> None:
    more = "give more feedback, or a smaller held_out share"
    if family == "pairs" and len(train.pairs) < 2:
        raise DataError(where, f"{len(train.pairs)} pairs to train on; a tie or an unchanged edit is none",
                        "at least two", more)  # fmt: skip
    if not train.weights:
        raise DataError(where, "no record is left to train on", "at least one", more)
    if family != "pairs" and len(set(train.targets)) == 1:
        raise DataError(where, f"every one of {len(train.targets)} training records has the same value",
                        "records that differ in what they say", more)  # fmt: skip
