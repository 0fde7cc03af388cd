"""Our rewards as one reward function of TRL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rlhf_core.interfaces import RewardModel, StepStats
from rlhf_core.policies import Codec
from rlhf_core.records import Prompt, Sample
from rlhf_core.rl import checked_scores
from torch import Tensor


class Scorer:
    """Weighs rewards as `optimize` does, and remembers what it saw since `clear` for the log.

    Where any reward abstains there is no score: TRL takes such a response out of its group's baseline and gives it no
    advantage.
    """

    def __init__(
        self,
        models: Mapping[str, RewardModel[Any]],
        weights: Mapping[str, float],
        prompts: Sequence[Prompt],
        codec: Codec,
    ) -> None:
        self.models, self.weights, self.prompts, self.codec = models, weights, prompts, codec
        self.clear()

    def clear(self) -> None:
        """Forget what was scored."""
        self._totals: list[Tensor] = []
        self._parts: dict[str, list[Tensor]] = {name: [] for name in self.models}
        self._lengths: list[int] = []
        self._truncated: list[bool] = []

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], completion_ids: Sequence[Sequence[int]],
        index: Sequence[int], **columns: Any,
    ) -> list[float | None]:  # fmt: skip
        """One score per completion, None where a reward abstains; `index` is the place of its prompt.

        Raises:
            RewardError: a reward gave the wrong number of scores, or one that is not finite.
        """
        samples = [
            Sample(self.prompts[i], self.codec.decode(ids), tuple(ids))
            for i, ids in zip(index, completion_ids, strict=True)
        ]
        total = torch.zeros(len(samples))
        silent = torch.zeros(len(samples), dtype=torch.bool)
        for name, model in self.models.items():
            scores = checked_scores(model, samples)
            values = scores.values.float().cpu()
            abstained = torch.zeros_like(silent) if scores.abstained is None else scores.abstained.cpu()
            self._parts[name].append(values.masked_fill(abstained, torch.nan))
            total += self.weights[name] * values.masked_fill(abstained, 0.0)
            silent |= abstained
        self._totals.append(total.masked_fill(silent, torch.nan))
        self._lengths += [len(ids) for ids in completion_ids]
        self._truncated += [ids[-1] != self.codec.eos for ids in completion_ids]
        return [None if quiet else value for value, quiet in zip(total.tolist(), silent.tolist(), strict=True)]

    def stats(self) -> StepStats:
        """What `optimize` logs of rewards and responses; nothing if no response was drawn."""
        if not self._totals:
            return {}
        count = len(self._lengths)
        stats: StepStats = {
            "response/length": sum(self._lengths) / count,
            "response/truncated": sum(self._truncated) / count,
        }
        score = _known(self._totals)
        if len(score):
            stats["reward/score"] = float(score.mean())
            stats["reward/score_std"] = float(score.std()) if len(score) > 1 else 0.0
        for name, parts in self._parts.items():
            values = _known(parts)
            if len(values):
                stats[f"reward/{name}"] = float(values.mean())
            if len(values) < count:
                stats[f"reward/{name}/abstained"] = float(count - len(values))
        return stats


def _known(parts: Sequence[Tensor]) -> Tensor:
    values = torch.cat(list(parts))
    return values[~values.isnan()]
