"""A language model as reward: it rates a response, or compares it with a given one.

Zheng et al. (2023), arXiv:2306.05685, "single answer grading" and "pairwise comparison"; unlike there, the judge gives
its verdict without an explanation, in JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context, RewardModel
from rlhf_core.records import Prompt, Sample, Scores

from .config import JudgeRewardConfig
from .judge import ORDER_DECIDES, Judge, Verdict


class JudgeReward(RewardModel[JudgeRewardConfig]):
    """A score from 0 to 1: the rating on its scale, or the probability of winning against the reference.

    It abstains where the judge's answer is not exactly the JSON that was asked for. Comparisons have the part
    `agreement`: 1 where both orders gave the same verdict, else 0.
    """

    def __init__(self, config: JudgeRewardConfig, context: Context) -> None:
        super().__init__(config, context)
        self._judge = Judge(config, context)

    def score(self, samples: Sequence[Sample]) -> Scores:
        verdicts = self._rate(samples) if self.config.mode == "rating" else self._compare(samples)
        self._judge.warn([v.reason for v in verdicts if v.value is None], len(verdicts), "abstained on")
        device = self.context.device
        values = torch.tensor([v.value or 0.0 for v in verdicts], dtype=torch.float32, device=device)  # (B,)
        abstained = torch.tensor([v.value is None for v in verdicts], dtype=torch.bool, device=device)
        if self.config.mode == "rating":
            return Scores(values, abstained=abstained)
        agreement = torch.tensor([float(v.agreed) for v in verdicts], device=device)
        return Scores(values, abstained=abstained, parts={"agreement": agreement})

    def _rate(self, samples: Sequence[Sample]) -> list[Verdict]:
        return self._judge.rate([(s.prompt, s.response) for s in samples], self.config.scale)

    def _compare(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts = self._judge.compare([(s.prompt, s.response, self._reference(s.prompt)) for s in samples])
        if self.config.on_disagreement == "average":
            return verdicts
        return [v if v.agreed or v.value is None else replace(v, value=None, reason=ORDER_DECIDES) for v in verdicts]

    def _reference(self, prompt: Prompt) -> str:
        name = self.config.against
        text = prompt.fields.get(name)
        if isinstance(text, str):
            return text
        raise DataError(
            f"{self.context.where} against",
            f"prompt {prompt.render()[-80:]!r} has {'no text in' if name in prompt.fields else 'no'} field {name!r}, "
            f"only {', '.join(map(repr, prompt.fields)) or 'none'}",
            "a response to compare with",
            "add the column to the prompts, name another field in `against`, or set mode: rating",
        )
