"""Statements checked against a file of facts, by the words they use: no model, and no understanding either.

A sentence that names the subject of a fact and one of the phrases of its relation is a statement of that fact. What it
misses (pronouns, paraphrase, statements over two sentences) is not checked; the README lists its limits.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Context, RewardModel
from rlhf_core.records import Sample, Scores, Span

from .common import scores, texts_of
from .config import FactualConfig
from .facts import read_facts
from .statements import Checker


class Factual(RewardModel[FactualConfig]):
    """(supported - contradicted) / checked, from -1 to 1, over the facts that a response states.

    A fact counts once, however often it is stated, and a contradiction outweighs what else is said of it: so neither
    repeating what is true nor saying a thing and its opposite pays. The sentence that decided a fact is a span with
    its share of the score. Logged are `supported`, `contradicted` and `checked`.
    """

    def __init__(self, config: FactualConfig, context: Context) -> None:
        super().__init__(config, context)
        self._facts = read_facts(config.path, context.where)
        self._checkers: dict[tuple[str, ...], Checker] = {}
        keys = sorted({fact.key for fact in self._facts if fact.key is not None})
        if keys and config.key_field is None:
            raise ConfigError(context.where, f"facts with a `key`, such as {keys[0]!r}, in {config.path}",
                              "the field of the prompt that chooses them", "set key_field")  # fmt: skip

    def score(self, samples: Sequence[Sample]) -> Scores:
        values: list[float | None] = []
        spans: list[list[Span]] = []
        parts: dict[str, list[float]] = {"supported": [], "contradicted": [], "checked": []}
        for sample in samples:
            checker = self._checker(sample)
            verdicts = checker.verdicts(sample.response) if checker else []
            signs = [verdict for verdict, _ in verdicts]
            silent = checker is None or (not signs and self.config.on_unchecked == "abstain")
            values.append(None if silent else sum(signs) / max(len(signs), 1))
            spans.append([Span(*place, verdict / len(signs)) for verdict, place in verdicts if verdict])
            for name, count in zip(parts, (signs.count(1), signs.count(-1), len(signs)), strict=True):
                parts[name].append(float(count))
        return scores(values, self.context, spans=spans, parts=parts)

    def _checker(self, sample: Sample) -> Checker | None:
        """The facts of this prompt, ready to be looked for; None if it names none and that is allowed."""
        c = self.config
        keys: tuple[str, ...] | None = ()
        if c.key_field is not None:
            keys = texts_of(sample, c.key_field, "key_field", c.on_missing, self.context.where)
        if keys is None:
            return None
        if keys not in self._checkers:
            self._checkers[keys] = Checker([fact for fact in self._facts if fact.key is None or fact.key in keys])
        return self._checkers[keys]
