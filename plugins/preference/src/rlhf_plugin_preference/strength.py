"""Cleaning comparisons by their preference strength, as an ensemble of reward models sees it.

Wang et al. (2024), "Secrets of RLHF in Large Language Models Part II: Reward Modeling", arXiv:2401.06080, section 2:
the strength of a comparison is the mean over models of r(better) - r(worse). Where it is far below 0 the order is
probably wrong, around 0 nobody knows. Departures from the report:

- There every model is trained on all comparisons and judges those it was trained on. A small model, or several passes,
  learn wrong orders by heart; so here each model leaves out a share of prompts of its own, and a comparison is judged
  by the models that have not seen its prompt.
- Prompts that the reward itself keeps out of training pass as they are: what is measured on them must stay what people
  said.
- Smoothing uses the ensemble's own probability that the order is right, at least one half.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_core.interfaces import Context, FeedbackSource
from rlhf_core.records import Comparison, Feedback, Sample
from rlhf_core.training import fit_task

from .config import StrengthConfig
from .reward import PreferenceReward

LEFT_OUT = 0.3  # share of prompts that a model of the ensemble is not trained on


class Strength(FeedbackSource[StrengthConfig]):
    """The records of another source in its order, some comparisons flipped, smoothed or dropped.

    Holds all in memory. Rankings, ties and other kinds of feedback pass as they are; `counts` says afterwards what
    became of the rest. Strengths are kept in the run directory, so that a resumed run does not
    train the ensemble again.
    """

    streaming = False

    counts: dict[str, int]

    def __init__(self, config: StrengthConfig, context: Context) -> None:
        super().__init__(config, context)
        self._feedback: FeedbackSource[Any] = context.component("feedback", config.feedback)

    def __iter__(self) -> Iterator[Feedback]:
        records = list(self._feedback)
        judged = [r for r in records if isinstance(r, Comparison) and self._can_be_judged(r)]
        strengths = self._strengths(judged)
        order = sorted(strengths, key=lambda id: strengths[id][0])
        lowest = round(self.config.lowest_share * len(order))
        next_to = lowest + round(self.config.ambiguous_share * len(order))
        fate = dict.fromkeys(order[:lowest], self.config.lowest) | dict.fromkeys(
            order[lowest:next_to], self.config.ambiguous
        )
        self.counts = {"flip": 0, "smooth": 0, "drop": 0, "keep": 0}
        for record in records:
            if isinstance(record, Comparison) and record.id in strengths:
                cleaned = self._cleaned(record, fate.get(record.id, "keep"), *strengths[record.id])
                if cleaned is not None:
                    yield cleaned
            else:
                yield record

    def _cleaned(self, record: Comparison, action: str, mean: float, probability: float) -> Comparison | None:
        """What becomes of a comparison whose strength is `mean`; None if it is dropped."""
        if action == "flip" and mean >= 0:
            action = "keep"  # the ensemble agrees with it after all
        self.counts[action] += 1
        if action == "drop":
            return None
        changes: dict[str, Any] = {}
        if action == "flip":
            changes = {"ranks": record.ranks[::-1], "margin": None}
            mean = -mean
        elif action == "smooth":
            changes = {"confidence": max(probability, 0.5)}
        if self.config.margin and mean > 0:
            changes["margin"] = mean
        return record.model_copy(update=changes)

    def _can_be_judged(self, record: Comparison) -> bool:
        """Whether it is an ordered pair that the reward is going to be trained on."""
        held_out = record.prompt.in_share(self.config.member.held_out)
        return len(record.responses) == 2 and len(set(record.ranks)) == 2 and not held_out

    def _strengths(self, records: list[Comparison]) -> dict[str, tuple[float, float]]:
        """Comparison id -> (mean difference, mean probability of its order), over the models that did not see it."""
        path = self._cache(records)
        if path is not None and path.is_file():
            return {id: (mean, p) for id, mean, p in json.loads(path.read_text(encoding="utf-8"))}
        found: dict[str, list[float]] = {}
        config = self.config.member.model_copy(update={"held_out": 0.0})
        for member in range(self.config.members):
            seen = [record for record in records if not self._left_out(record, member)]
            unseen = [record for record in records if self._left_out(record, member)]
            if not seen or not unseen:
                continue
            model = PreferenceReward(config, self.context.named("reward", f"{self.context.id}-{member}"))
            fit_task(model.task(seen), config, model.context)
            better = model.score([Sample(r.prompt, r.best) for r in unseen]).values
            worse = model.score([Sample(r.prompt, next(r.pairs())[1]) for r in unseen]).values
            for record, difference in zip(unseen, (better - worse).tolist(), strict=True):
                found.setdefault(record.id, []).append(difference)
        strengths = {
            id: (math.fsum(all) / len(all), math.fsum(1 / (1 + math.exp(-d)) for d in all) / len(all))
            for id, all in found.items()
        }
        if path is not None:
            path.write_text(json.dumps([[id, *values] for id, values in strengths.items()]), encoding="utf-8")
        return strengths

    def _left_out(self, record: Comparison, member: int) -> bool:
        """Whether `member` is not trained on this prompt; a hash decides, another one for each member."""
        text = json.dumps([record.prompt.messages, self.context.stream("member", member)], ensure_ascii=False)
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 < LEFT_OUT

    def _cache(self, records: list[Comparison]) -> Path | None:
        """Where the strengths of just these comparisons under just this ensemble are kept."""
        if self.context.directory is None:
            return None
        ensemble = self.config.model_dump(mode="json", include={"member", "members"})
        content = json.dumps([ensemble, [r.id for r in records], self.context.seed])
        return self.context.directory / f"strength-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
