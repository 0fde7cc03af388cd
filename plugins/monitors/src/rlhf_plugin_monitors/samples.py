"""Monitors of the samples themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pvariance

from rlhf_core.interfaces import Observation
from rlhf_core.records import Sample
from rlhf_core.segmentation import words

from .config import AdvantageVarianceConfig, RepetitionDriftConfig
from .statistics import Drift


def repeated(text: str, n: int) -> float:
    """Share of the n-grams of words that stand earlier in the text already; nan if there are fewer than two."""
    said = words(text.casefold())
    grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else math.nan


def spread(samples: Sequence[Sample], scores: Sequence[float]) -> float:
    """Variance of scores about the mean of their prompt where prompts have several samples each, else about the mean
    of all; nan for fewer than two. Of k samples of a prompt the sum of squares is divided by k - 1."""
    groups: dict[str, list[float]] = {}
    for sample, score in zip(samples, scores, strict=True):
        groups.setdefault(sample.prompt.render(), []).append(score)
    several = [group for group in groups.values() if len(group) > 1]
    if len(several) < len(groups) / 2:
        several = [list(scores)] if len(scores) > 1 else []
    freedom = sum(len(group) - 1 for group in several)
    return sum(pvariance(group) * len(group) for group in several) / freedom if freedom else math.nan


class RepetitionDrift(Drift[RepetitionDriftConfig]):
    """A policy that has found a word or a phrase that pays says it again and again."""

    def wants_samples(self, step: int) -> bool:
        return True

    def look(self, seen: Observation) -> str | None:
        shares = [share for s in seen.samples if not math.isnan(share := repeated(s.response, self.config.n))]
        if not self.series.add(fmean(shares) if shares else math.nan):
            return None
        level, now = self.series.level, self.series.now
        if now - level <= self.config.rise or self.series.z < self.config.z:
            return None
        by_share = [(share, s.response) for s in seen.samples if (share := repeated(s.response, self.config.n)) >= 0]
        example = f", such as {max(by_share)[1].strip()[:60]!r}" if by_share else ""
        return (
            f"{now:.0%} of {self.config.n}-grams repeat earlier ones of the response, {level:.0%} in the first "
            f"{self.config.warmup} steps{example}"
        )


class AdvantageVariance(Drift[AdvantageVarianceConfig]):
    """Without variance there is nothing to learn from; with far more of it than at first a few samples drive it all."""

    def wants_samples(self, step: int) -> bool:
        return True

    def look(self, seen: Observation) -> str | None:
        if not self.series.add(spread(seen.samples, seen.scores)):
            return None
        level, now, factor = self.series.level, self.series.now, self.config.factor
        if level / factor <= now <= level * factor or abs(self.series.z) < self.config.z:
            return None
        return f"scores have a variance of {now:.3g}, {level:.3g} in the first {self.config.warmup} steps"
