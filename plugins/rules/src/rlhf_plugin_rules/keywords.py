"""A lexicon as a reward: written down, learnt from what people want and do not want, or both."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import fsum

from rlhf_core import records
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.interfaces import Context, RewardModel, State, StepStats
from rlhf_core.records import Feedback, Sample, Scores, Span

from .common import scores
from .config import KeywordsConfig
from .text import Finder


class Keywords(RewardModel[KeywordsConfig]):
    """Weights of preferred keywords found, minus weights of avoided ones.

    The response is read from left to right and the longest keyword at a place wins; what it covers belongs to it
    alone, also beyond `max_count`. So with `avoid: [not happy]` and `prefer: [happy]`, "not happy" only costs. Every
    hit that counts is a span, and the spans add up to the score.

    A learnt word weighs ``(wanted - unwanted) / (wanted + unwanted + doubt)``, where a record votes with its weight and
    the doubt is `shrinkage` times the votes of an average word: between -1 and 1, and near 0 for what people disagree
    on or seldom care to name. A word that the config lists keeps the weight it has there.
    """

    def __init__(self, config: KeywordsConfig, context: Context) -> None:
        super().__init__(config, context)
        self._use({})

    def _use(self, learnt: dict[str, float]) -> None:
        self.learnt = learnt
        given = {self.config.key(word) for word in self.config.weights}
        new = {word: weight for word, weight in learnt.items() if word not in given and weight}
        self._weights = self.config.weights | new
        self._find = Finder(self._weights, ignore_case=self.config.ignore_case, whole_words=self.config.whole_words)

    def score(self, samples: Sequence[Sample]) -> Scores:
        if not self.config.weights and not self.learnt:
            raise ConfigError(
                self.context.where,
                "has no keywords yet",
                "words under `prefer` or `avoid`, or words learnt from feedback",
                "list some, or add a fit-reward stage with a feedback source of keywords",
            )
        spans = [list(self._hits(sample.response)) for sample in samples]
        return scores([fsum(span.credit for span in row) for row in spans], self.context, spans=spans)

    def _hits(self, response: str) -> Iterator[Span]:
        count: Counter[str] = Counter()
        for keyword, start, end in self._find(response):
            count[keyword] += 1
            if count[keyword] <= self.config.max_count:
                yield Span(start, end, self._weights[keyword])

    def fit(self, feedback: Iterable[Feedback]) -> StepStats:
        """Learn a weight per word; one pass, and memory for the words only.

        Returns:
            `words` learnt from `records`; and of the votes in held-out prompts the share for words that have a weight
            (`coverage`), and of those the share on the side of the weight (`agreement`).

        Raises:
            DataError: a record is no Keywords, or has an empty word; or no word was named often enough.
        """
        votes: dict[str, _Votes] = defaultdict(_Votes)
        held_out: dict[str, _Votes] = defaultdict(_Votes)
        count = 0
        for record in feedback:
            side = held_out if record.prompt.in_share(self.config.held_out) else votes
            count += side is votes
            for word, wanted in self._named(record):
                side[word].add(wanted, record.weight)
        c = self.config
        kept = {word: v for word, v in sorted(votes.items()) if v.records >= c.min_count}
        if not kept:
            raise DataError(
                self.context.where,
                f"no word is named by {c.min_count} of {count} records",
                "words that people agree on",
                "give more feedback, or lower min_count",
            )
        doubt = c.shrinkage * fsum(v.total for v in kept.values()) / len(kept)
        self._use({word: (v.wanted - v.unwanted) / (v.total + doubt) for word, v in kept.items()})
        return {"words": float(len(kept)), "records": float(count), **self._check(held_out)}

    def _named(self, record: Feedback) -> Iterator[tuple[str, bool]]:
        """Each word of a record once, and whether it is wanted."""
        if not isinstance(record, records.Keywords):
            raise DataError(self.context.where, f"feedback of kind {record.kind!r}", "keywords",
                            "name a feedback source of keywords in the fit-reward stage")  # fmt: skip
        for words, wanted in ((record.wanted, True), (record.unwanted, False)):
            keys = {self.config.key(" ".join(word.split())) for word in words}
            if "" in keys:
                raise DataError(self.context.where, f"an empty word in the record of prompt "
                                f"{record.prompt.render()[:60]!r}", "words that are not empty",
                                "remove it from the feedback")  # fmt: skip
            yield from ((key, wanted) for key in sorted(keys))

    def _check(self, held_out: dict[str, _Votes]) -> StepStats:
        weights = {self.config.key(word): weight for word, weight in self._weights.items()}
        total = fsum(v.total for v in held_out.values())
        known = {word: v for word, v in held_out.items() if word in weights}
        judged = fsum(v.total for v in known.values())
        agreed = fsum(v.wanted if weights[word] > 0 else v.unwanted for word, v in known.items())
        return ({"coverage": judged / total} if total else {}) | ({"agreement": agreed / judged} if judged else {})

    def state_dict(self) -> State:
        return {"words": list(self.learnt), "weights": list(self.learnt.values())}

    def load_state_dict(self, state: State) -> None:
        self._use(dict(zip(state["words"], state["weights"], strict=True)))


class _Votes:
    """Who wants a word and who does not, by weight, and how many records name it."""

    def __init__(self) -> None:
        self.wanted = self.unwanted = 0.0
        self.records = 0

    def add(self, wanted: bool, weight: float) -> None:
        if wanted:
            self.wanted += weight
        else:
            self.unwanted += weight
        self.records += weight > 0

    @property
    def total(self) -> float:
        return self.wanted + self.unwanted
