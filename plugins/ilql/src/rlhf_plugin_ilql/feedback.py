"""What a person's feedback says a response is worth, from 0 to 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context
from rlhf_core.records import Comparison, Edit, Feedback, Rating, Sample, Sentiment

KINDS = ("rating", "comparison", "edit", "sentiment")
"""The kinds of feedback that say so."""


@dataclass(frozen=True)
class Judged:
    """A response, its reward from 0 to 1, and how much it counts."""

    sample: Sample
    reward: float
    weight: float


def judged(records: Iterable[Feedback], context: Context) -> list[Judged]:
    """Every response that `records` judge; those of weight 0 are left out, and so are kinds that judge none.

    Raises:
        DataError: there is none.
    """
    found: list[Judged] = []
    kinds: Counter[str] = Counter()
    for record in records:
        kinds[record.kind] += 1
        if record.weight > 0:
            found += [Judged(sample, reward, record.weight) for sample, reward in rewarded(record)]
    if not found:
        got = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(kinds.items()))
        raise DataError(
            context.where,
            f"no feedback with a reward: {got or 'no records at all'}",
            f"records of kind {', '.join(KINDS)}, with a weight above 0",
            "name a source of them in the stage's `feedback`",
        )
    if silent := sorted(kinds.keys() - set(KINDS)):
        context.warn(f"{context.where}: feedback of kind {', '.join(silent)} has no reward and is left out")
    if len({one.reward for one in found}) == 1:
        context.warn(
            f"{context.where}: all {len(found)} responses have the reward {found[0].reward:g}; there is nothing to "
            "prefer among them, so action values cannot steer to better ones"
        )
    return found


_LABELS = {"negative": 0.0, "neutral": 0.5, "positive": 1.0}


def rewarded(record: Feedback) -> Iterator[tuple[Sample, float]]:
    """The responses that `record` judges, each with its reward; of kinds beside `KINDS` none.

    - rating: the score's place on its scale. Aspects and spans are not read.
    - comparison: the share of the other responses that it beats; judged ties count half, and with a `confidence` of p
      a pair counts as won p times and lost 1 - p times. Ties that nobody judged are left out.
    - edit: the edited text 1, the original 0; an original that was left as it is 1.
    - sentiment: the score, else the label, negative 0, neutral 0.5, positive 1.
    """
    if isinstance(record, Rating):
        low, high = record.scale
        yield Sample(record.prompt, record.response), (record.score - low) / (high - low)
    elif isinstance(record, Comparison):
        for i, response in enumerate(record.responses):
            yield Sample(record.prompt, response), _share_won(record, i)
    elif isinstance(record, Edit):
        yield Sample(record.prompt, record.edited), 1.0
        if record.original != record.edited:
            yield Sample(record.prompt, record.original), 0.0
    elif isinstance(record, Sentiment):
        felt = _LABELS[record.label] if record.score is None else (record.score + 1) / 2
        yield Sample(record.prompt, record.response), felt


def _share_won(record: Comparison, place: int) -> float:
    """The share of the other responses that the one at `place` beats."""
    sure = 1.0 if record.confidence is None else record.confidence
    own = record.ranks[place]
    won = [
        0.5 if rank == own else sure if own < rank else 1 - sure
        for i, rank in enumerate(record.ranks)
        if i != place and (rank != own or record.ties_judged)
    ]
    return sum(won) / len(won) if won else 0.5
