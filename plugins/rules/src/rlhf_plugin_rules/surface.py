"""Three rules that score a response by its text alone; the prompt is not read."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core.errors import RewardError
from rlhf_core.interfaces import RewardModel
from rlhf_core.records import Sample, Scores, Span
from rlhf_core.segmentation import words

from .common import tensor
from .config import LengthConfig, RegexConfig, RepetitionConfig


class Length(RewardModel[LengthConfig]):
    """``max(floor, -scale * max(0, |n - target| / target - tolerance))``: 0 near the target, linear beyond.

    n counts words (see `words`) or characters (Unicode code points, without the white space around the response).
    """

    def score(self, samples: Sequence[Sample]) -> Scores:
        return Scores(tensor([self._reward(sample.response) for sample in samples], self.context))

    def _reward(self, response: str) -> float:
        c = self.config
        n = len(words(response)) if c.unit == "words" else len(response.strip())
        return max(c.floor, c.scale * min(0.0, c.tolerance - abs(n - c.target) / c.target))


class Regex(RewardModel[RegexConfig]):
    """`found` if the pattern matches, else `missing`.

    A match that `search` finds is a span that earns `found`, so the credit goes to where it ends. A pattern with nested
    repetition can take time exponential in the length of a response; it is stopped after `timeout`, with an error.
    """

    def score(self, samples: Sequence[Sample]) -> Scores:
        spans = [self._find(sample.response) for sample in samples]
        values = [self.config.missing if span is None else span.credit for span in spans]
        if self.config.match == "fullmatch":
            return Scores(tensor(values, self.context))
        return Scores(tensor(values, self.context), tuple((s,) if s and s.end > s.start else () for s in spans))

    def _find(self, response: str) -> Span | None:
        c = self.config
        try:
            if c.match == "search":
                match = c.compiled.search(response, timeout=c.timeout)
            else:
                match = c.compiled.fullmatch(response.strip(), timeout=c.timeout)
        except TimeoutError as error:
            raise RewardError(
                self.context.where,
                f"pattern {c.pattern!r} was still searching a response of {len(response)} characters after "
                f"{c.timeout:g} s",
                "a pattern without nested repetition",
                "write a+ for (a+)+ or (a|aa)+, or raise `timeout`",
            ) from error
        return Span(match.start(), match.end(), c.found) if match else None


class Repetition(RewardModel[RepetitionConfig]):
    """``-weight * (1 - distinct / total)`` over word n-grams; 0 for responses of fewer than n words."""

    def score(self, samples: Sequence[Sample]) -> Scores:
        return Scores(tensor([self._reward(sample.response) for sample in samples], self.context))

    def _reward(self, response: str) -> float:
        c = self.config
        tokens = words(response.casefold() if c.ignore_case else response)
        ngrams = list(zip(*(tokens[i:] for i in range(c.n)), strict=False))
        return c.weight * (len(set(ngrams)) / len(ngrams) - 1) if ngrams else 0.0
