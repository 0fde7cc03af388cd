"""From feedback records to the rows that TRL's offline trainers learn from.

A row holds token ids, encoded as the policy samples: the prompt, and the response closed by end of text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from rlhf_core.policies import Codec, encode_demonstration
from rlhf_core.records import Comparison, Demonstration, Edit, Feedback, Prompt, Rating, Sentiment

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A row for TRL, how much it counts, and the prompt that decides whether it is kept out of training."""

    row: Row
    weight: float
    prompt: Prompt


@dataclass(frozen=True)
class Encoder:
    """The policy's tokenizer; responses are cut after `longest` tokens."""

    codec: Codec
    longest: int | None = None

    def __call__(self, prompt: Prompt, *responses: str) -> tuple[list[int], list[list[int]]]:
        """Ids of the prompt, and of each response with its end of text.

        Raises:
            DataError: together they exceed the context.
        """
        ids = [self.codec.encode_response(prompt, response)[: self.longest] for response in responses]
        return self.codec.encode_prompt(prompt, max(map(len, ids))), ids


def pairs(record: Feedback) -> Iterator[tuple[str, str, float]]:
    """(better, worse, weight) of a record; ties give none.

    An order that is right with probability c counts c times as it stands and 1 - c times the other way round: that is
    the expected loss.
    """
    if isinstance(record, Comparison):
        sure = 1.0 if record.confidence is None else record.confidence
        for better, worse in record.pairs():
            yield better, worse, record.weight * sure
            yield worse, better, record.weight * (1 - sure)
    elif isinstance(record, Edit) and record.edited != record.original:
        yield record.edited, record.original, record.weight


def verdicts(record: Feedback) -> Iterator[tuple[str, bool, float]]:
    """(response, whether it is desirable, weight) of a record.

    A rating above the middle of its scale is desirable, one below is not; of a comparison the first and the last
    places count, of an edit both texts. What is neither gives none.
    """
    if isinstance(record, Rating) and record.score != sum(record.scale) / 2:
        yield record.response, record.score > sum(record.scale) / 2, record.weight
    elif isinstance(record, Sentiment) and record.label != "neutral":
        yield record.response, record.label == "positive", record.weight
    elif isinstance(record, Edit) and record.edited != record.original:
        yield record.edited, True, record.weight
        yield record.original, False, record.weight
    elif isinstance(record, Comparison) and len(set(record.ranks)) > 1:
        sure = 1.0 if record.confidence is None else record.confidence
        for response, rank in zip(record.responses, record.ranks, strict=True):
            if rank in (min(record.ranks), max(record.ranks)):
                best = rank == min(record.ranks)
                yield response, best, record.weight * sure
                yield response, not best, record.weight * (1 - sure)


def _preferences(record: Feedback, encode: Encoder) -> Iterator[Example]:
    for better, worse, weight in pairs(record):
        if weight > 0:
            prompt, (chosen, rejected) = encode(record.prompt, better, worse)
            row = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            yield Example(row, weight, record.prompt)


def _judgements(record: Feedback, encode: Encoder) -> Iterator[Example]:
    for response, label, weight in verdicts(record):
        if weight > 0:
            prompt, (ids,) = encode(record.prompt, response)
            yield Example({"prompt_ids": prompt, "completion_ids": ids, "label": label}, weight, record.prompt)


def _imitations(record: Feedback, encode: Encoder) -> Iterator[Example]:
    """As the `sft` stage: the best of a comparison, the edited text of an edit. Tokens to be avoided are left out."""
    if isinstance(record, (Comparison, Edit)):
        response = record.best if isinstance(record, Comparison) else record.edited
        record = Demonstration(prompt=record.prompt, response=response, weight=record.weight)
    if isinstance(record, Demonstration) and record.weight > 0:
        tokens = encode_demonstration(record, encode.codec, encode.longest)
        factors = tokens.factors or [1.0] * len(tokens.response)
        learnt = [id if factor > 0 else -100 for id, factor in zip(tokens.response, factors, strict=True)]
        row = {"input_ids": tokens.prompt + tokens.response, "labels": [-100] * len(tokens.prompt) + learnt}
        yield Example(row, record.weight, record.prompt)


READERS: Mapping[str, Callable[[Feedback, Encoder], Iterator[Example]]] = {
    "dpo": _preferences,
    "kto": _judgements,
    "sft": _imitations,
}
USABLE = {
    "dpo": "comparisons that are not all ties, or edits",
    "kto": "ratings, sentiments, comparisons or edits that are not undecided",
    "sft": "demonstrations, comparisons or edits",
}


def examples(trainer: str, records: Iterable[Feedback], encode: Encoder) -> list[Example]:
    """What `trainer` can learn from in `records`, in their order."""
    return [example for record in records for example in READERS[trainer](record, encode)]


def unheard(trainer: str, records: Sequence[Feedback]) -> list[str]:
    """What records say and the trainer cannot use, in words."""
    said = []
    if trainer == "dpo" and any(isinstance(r, Comparison) and r.margin is not None for r in records):
        said.append("margins of comparisons")
    if trainer == "sft" and any(isinstance(r, Demonstration) and r.spans for r in records):
        said.append("weights of spans (those of 0 or less are left out of the loss)")
    return said


def shuffled(chosen: Sequence[Example], seed: int) -> list[Row]:
    """The rows in random order, each as often as its weight says, on average over seeds.

    TRL counts all rows alike, so weights become numbers of copies (systematic resampling: the expected number is the
    weight over the mean weight of a prompt's records, and the number is one of the two whole numbers around it). With
    equal weights every row is there once.
    """
    total = sum(example.weight for example in chosen)
    even = len({example.weight for example in chosen}) == 1
    rng = random.Random(seed)
    start = rng.random()
    ends = [int(start + done * len(chosen) / total) for done in accumulate(e.weight for e in chosen)]
    copies = [1] * len(chosen) if even else [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    rows = [example.row for example, count in zip(chosen, copies, strict=True) for _ in range(count)]
    rng.shuffle(rows)
    return rows


def with_neighbours(rows: Sequence[Row], batch: int) -> list[Row]:
    """Rows for KTO's estimate of the KL divergence: to each prompt the completion of the row before it in its batch.

    This is what TRL's own preparation does, which takes text and is not used here.
    """
    found: list[Row] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        found += [{**row, "KL_completion_ids": part[i - 1]["completion_ids"]} for i, row in enumerate(part)]
    return found
