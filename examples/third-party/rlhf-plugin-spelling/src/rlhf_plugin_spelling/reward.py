"""The reward `spelling`, over the dictionaries of pyspellchecker."""

import re
from collections.abc import Sequence

import torch
from rlhf_core.interfaces import Context, RewardModel
from rlhf_core.records import Sample, Scores, Span
from spellchecker import SpellChecker

from .config import SpellingRewardConfig

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # letters, and apostrophes between them


class SpellingReward(RewardModel[SpellingRewardConfig]):
    """The share of words that are spelt right, 0 to 1; each wrong word pays for itself, at its own place."""

    def __init__(self, config: SpellingRewardConfig, context: Context) -> None:
        super().__init__(config, context)
        self.dictionary = SpellChecker(language=config.language)
        self.dictionary.word_frequency.load_words(config.known)

    def score(self, samples: Sequence[Sample]) -> Scores:
        spans = [self._errors(sample.response) for sample in samples]
        values = [
            1.0 + sum(span.credit for span in errors) if WORD.search(sample.response) else self.config.silence
            for sample, errors in zip(samples, spans, strict=True)
        ]
        return Scores(torch.tensor(values, dtype=torch.float32, device=self.context.device), tuple(spans))

    def _errors(self, text: str) -> tuple[Span, ...]:
        """The wrong words of `text`; the more words it has, the less each costs."""
        words = [(found.span(), found[0].replace("’", "'")) for found in WORD.finditer(text)]
        wrong = self.dictionary.unknown([word for _, word in words])
        return tuple(Span(*place, credit=-1 / len(words)) for place, word in words if word.lower() in wrong)
