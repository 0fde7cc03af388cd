"""Text metrics as rewards: BLEU and chrF by sacrebleu, ROUGE by rouge-score, against a reference of the prompt.

Papineni et al. (2002); Popović (2015); Lin (2004). They judge one response at a time, so BLEU is sentence BLEU: with
exponential smoothing (Chen and Cherry, 2014, method 3) and the effective order for short texts, as sacrebleu has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from rlhf_core.interfaces import Context, RewardModel
from rlhf_core.records import Sample, Scores
from rlhf_core.segmentation import words

from .common import scores, texts_of
from .config import MetricConfig
from .text import script

TOKENIZERS = {"spaced": "13a", "chinese": "zh", "unspaced": "char"}
"""By the script of the reference: sacrebleu's default, its Chinese one, and characters for Japanese, Thai and so on."""


class Metric(RewardModel[MetricConfig]):
    """How like its reference a response is, from 0 to 1; with several references, BLEU and chrF count a match with any
    of them, and ROUGE takes the likest.

    `signatures` says how the scores so far were computed, in the words of sacrebleu, to be reported with them.
    """

    def __init__(self, config: MetricConfig, context: Context) -> None:
        super().__init__(config, context)
        self._scorers: dict[str, Any] = {}
        self._signatures: set[str] = set()

    @property
    def signatures(self) -> tuple[str, ...]:
        """One for each tokenizer and number of references that was met."""
        return tuple(sorted(self._signatures))

    def score(self, samples: Sequence[Sample]) -> Scores:
        return scores([self._value(sample) for sample in samples], self.context)

    def _value(self, sample: Sample) -> float | None:
        c = self.config
        references = texts_of(sample, c.reference, "reference", c.on_missing, self.context.where)
        if references is None:
            return None
        if c.metric.startswith("rouge"):
            return self._rouge(sample.response, references)
        tokenizer = "none"
        if c.metric == "bleu":  # chosen by the reference, so that no response can choose how it is cut
            tokenizer = TOKENIZERS[script(" ".join(references))] if c.tokenizer == "auto" else c.tokenizer
        scorer = self._scorers.get(tokenizer) or self._sacrebleu(tokenizer)
        value = scorer.sentence_score(sample.response, list(references)).score / 100
        self._signatures.add(f"{c.metric}|{scorer.get_signature().format()}")
        return float(min(value, 1.0))  # 1 is 1.0000000000000004

    def _sacrebleu(self, tokenizer: str) -> Any:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        scorer = CHRF() if self.config.metric == "chrf" else BLEU(tokenize=tokenizer, effective_order=True)
        self._scorers[tokenizer] = scorer
        return scorer

    def _rouge(self, response: str, references: Sequence[str]) -> float:
        if "rouge" not in self._scorers:
            from rouge_score.rouge_scorer import RougeScorer

            self._scorers["rouge"] = RougeScorer([self.config.metric], tokenizer=_Words())
            self._signatures.add(
                f"{self.config.metric}|measure:f|case:lower|stem:no|tok:words|version:{version('rouge-score')}"
            )
        return float(self._scorers["rouge"].score_multi(references, response)[self.config.metric].fmeasure)


class _Words:
    """The words of `segmentation` as rouge-score wants a tokenizer; its own one drops all but a-z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return [word.casefold() for word in words(text)]
