"""A reward from demonstrations alone: inverse reinforcement learning on whole responses.

Of an expert who maximises reward at a price on drifting from the reference, pi_E ~ pi_ref exp(r / beta), the reward is
r / beta = log pi_E - log pi_ref + c(prompt): what tells demonstrations from samples of the reference is the reward. It
is known up to a constant per prompt, so each demonstration is set against samples for the same prompt.

- one-shot: a classifier, fitted once; its logit is the reward.
- airl (Fu et al., 2018, arXiv:1710.11248, equation 5): goes on while the policy learns. The classifier's logit is
  r(x, y) - [log pi(y|x) - log pi_ref(y|x)], at 0 once the policy has become the expert, with r still there. Relative to
  the reference and of whole responses; the paper's f - log pi, token by token, learns r / beta + log pi_ref.
- maxent (Ziebart et al., 2008): raises demonstrations and lowers samples; asks for no log-probabilities.
- gail (Ho and Ermon, 2016, arXiv:1606.03476): softplus of the logit between demonstrations and today's samples. It
  fades as the policy becomes the expert.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.interfaces import Context, LossSum, OnlineReward, Schedule, State, StepStats, SupervisedTask
from rlhf_core.memory import lower, within_memory
from rlhf_core.randomness import seed_everything
from rlhf_core.records import Demonstration, Feedback, Rollout, Sample, Scores
from rlhf_core.rewards import TextReward
from rlhf_core.training import GradientSteps, backward, by_tokens, share, summed
from torch import Tensor

from .config import IRLRewardConfig
from .discriminator import Contrast, ContrastTask, gail_reward
from .null import NullCheck
from .samples import Drawn, bare, draw, of_all, read, written

LogProbs = Callable[[Sequence[Sample]], tuple[Tensor, Tensor]]

YARDSTICK = 256
"""Samples that scores are standardised over."""
LARGEST = 5.0
"""What an old sample may count at most for having become likelier."""


class IRLReward(TextReward[IRLRewardConfig], OnlineReward[IRLRewardConfig]):
    """Scores a response by how much it looks like a demonstration rather than like the policy it began with."""

    def __init__(self, config: IRLRewardConfig, context: Context) -> None:
        super().__init__(config, context)
        self.updates = 0
        self.replay: list[Drawn] = []
        self.yardstick: list[Sample] = []
        self._gradient: GradientSteps | None = None
        self._moments: tuple[float, float] | None = None

    # --- scores ---

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> Scores:
        mean, deviation = self.moments
        return Scores((self._raw(samples) - mean) / deviation)

    def _raw(self, samples: Sequence[Sample]) -> Tensor:
        """(B,) float32, before standardisation."""
        values = self.predict([self.encode(s.prompt, s.response) for s in samples])[:, 0].float()
        return gail_reward(values) if self.config.algorithm == "gail" else values

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and deviation of today's reward over the yardstick: the same whatever batch is scored."""
        if not self.config.standardise or not self.yardstick:
            return 0.0, 1.0
        if self._moments is None:
            raw = self._raw(self.yardstick).double()
            deviation = float(raw.std(correction=0))
            self._moments = float(raw.mean()), deviation if deviation > 1e-6 else 1.0
        return self._moments

    def scores(self, texts: Sequence[list[int]]) -> Tensor:
        self._moments = None  # asked for in training: the weights are about to change
        return super().scores(texts)

    # --- learning before the policy does ---

    def task(self, feedback: Iterable[Feedback]) -> SupervisedTask:
        """Demonstrations against samples of the policy as it is now, for the same prompts.

        Raises:
            ConfigError: no policy to sample from. DataError: no demonstrations, or feedback of another kind.
        """
        config = self.config
        sides = self._demonstrations(feedback)
        records = [record for side in sides for record in side]
        each = config.samples_per_demonstration
        drawn = iter(draw(self, [r.prompt for r in records for _ in range(each + config.null_check)]))
        real: list[list[Contrast]] = [[], []]
        null: list[list[Contrast]] = [[], []]
        samples: list[list[Sample]] = [[], []]
        for part, side in enumerate(sides):
            for record in side:
                texts = [next(drawn) for _ in range(each + config.null_check)]
                expert = self.encode(record.prompt, record.response)
                ids = [self.encode(record.prompt, text) for text in texts]
                real[part] += [Contrast(expert, other, record.weight / each) for other in ids[:each]]
                samples[part] += [Sample(record.prompt, text) for text in texts[:each]]
                if config.null_check:
                    null[part].append(Contrast(ids[each], ids[0], record.weight))
        self.yardstick, self._moments = [bare(sample) for sample in [*samples[1], *samples[0]][:YARDSTICK]], None
        check = NullCheck(self, null[0], null[1]) if config.null_check else None
        return ContrastTask(self, real[0], real[1], check)

    def _demonstrations(self, feedback: Iterable[Feedback]) -> tuple[list[Demonstration], list[Demonstration]]:
        """Those to learn from and those held out."""
        train, held_out = self.split(feedback, (Demonstration,), lambda record: [record])
        if not train:
            raise DataError(
                self.context.where,
                f"no demonstrations to learn from ({len(held_out)} held out)",
                "at least one",
                "give more demonstrations, or a smaller held_out share",
            )
        return train, held_out

    # --- learning while the policy does ---

    @cached_property
    def _experts(self) -> dict[Any, list[Demonstration]]:
        """Demonstrations by prompt, and all of them under None."""
        train, _ = self._demonstrations(self.context.component("feedback", str(self.config.demonstrations)))
        grouped: dict[Any, list[Demonstration]] = {None: train}
        for record in train:
            grouped.setdefault(record.prompt.text, []).append(record)
        return grouped

    def update(self, rollout: Rollout, score_logprobs: LogProbs) -> StepStats:
        """Some updates on demonstrations against samples of this rollout and of earlier ones.

        Raises:
            ConfigError: one-shot, and no fit-reward stage came before. DataError: no demonstrations.
        """
        if self.config.algorithm == "one-shot":
            if not self.yardstick:
                raise ConfigError(
                    self.context.where,
                    "one-shot has learnt from no demonstrations",
                    "a fit-reward stage before `optimize`",
                    "add the stage, or choose an algorithm that learns in `optimize`, such as airl",
                )
            return {}
        fresh = of_all(self._drawn(rollout.samples, score_logprobs), self.context.accelerator)
        if not self.yardstick:
            self.yardstick = [drawn.sample for drawn in fresh[:YARDSTICK]]
        whole: dict[str, float] = {}
        for _ in range(self.config.updates_per_step):
            for name, value in self._update(fresh, score_logprobs).items():
                whole[name] = whole.get(name, 0.0) + value / self.config.updates_per_step
        self.replay = [*self.replay, *fresh][-self.config.replay_size :]
        return {**whole, "deviation": self.moments[1]}

    def _drawn(self, samples: Sequence[Sample], score_logprobs: LogProbs) -> list[Drawn]:
        mine = [bare(sample) for sample in samples]
        if self.config.algorithm != "airl" or not mine:
            return [Drawn(sample) for sample in mine]
        ratios = self._log_ratios(mine, score_logprobs).tolist()
        return [Drawn(sample, ratio) for sample, ratio in zip(mine, ratios, strict=True)]

    def _update(self, fresh: Sequence[Drawn], score_logprobs: LogProbs) -> StepStats:
        config, stream = self.config, self.context.stream("update", self.updates)
        pairs = self._matched(fresh, random.Random(stream))
        contrasts = [
            Contrast(self.encode(r.prompt, r.response), self.encode(d.sample.prompt, d.sample.response), r.weight)
            for r, d in pairs
        ]
        count = sum(contrast.weight for contrast in contrasts)
        mine = share(len(pairs), self.context.accelerator)
        ratios: Tensor | None = None  # (2, B) of this process's share
        if config.algorithm == "airl" and len(mine):
            experts = [Sample(pairs[i][0].prompt, pairs[i][0].response) for i in mine]
            drawn = [pairs[i][1] for i in mine]
            ratios = self._log_ratios([*experts, *(d.sample for d in drawn)], score_logprobs).view(2, -1)
            for i, then, now in zip(mine, drawn, ratios[1].tolist(), strict=True):
                contrasts[i] = replace(contrasts[i], importance=min(math.exp(now - then.log_ratio), LARGEST))
        task = ContrastTask(self, contrasts, [])
        maxent = config.algorithm == "maxent"

        def loss(rows: list[int]) -> LossSum:
            own = None if ratios is None else ratios[:, [row - mine.start for row in rows]].flatten()
            return task.loss([contrasts[row] for row in rows], own, maxent=maxent)

        parts = by_tokens([task.size(c) for c in contrasts], config.micro_batch_tokens, mine)
        seed_everything(stream)  # dropout repeats
        self.network.train()
        try:
            what = f"{len(mine)} pairs of texts"
            with within_memory(self.context, "update", what, self._smaller(), lambda: self._steps().clear()):
                sums = backward(map(loss, parts), count)
        finally:
            self.network.eval()
        stats = {**summed(sums, self.context.accelerator), "grad_norm": self._steps().step()["grad_norm"]}
        self.updates += 1
        return stats

    def _smaller(self) -> Iterator[str | None]:
        """What to lower where memory is short."""
        config, where = self.config, self.context.where
        yield lower("micro_batch_tokens", config.micro_batch_tokens, where)
        yield lower("max_tokens", config.max_tokens, where)

    def _matched(self, fresh: Sequence[Drawn], rng: random.Random) -> list[tuple[Demonstration, Drawn]]:
        """A batch of samples, old and fresh, each with a demonstration: of the same prompt where there is one."""
        old = min(round(self.config.batch_size * self.config.replay), len(self.replay))
        new = min(self.config.batch_size - old, len(fresh))
        experts = self._experts
        return [
            (rng.choice(experts.get(drawn.sample.prompt.text) or experts[None]), drawn)
            for drawn in rng.sample(self.replay, old) + rng.sample(fresh, new)
        ]

    @torch.no_grad()
    def _log_ratios(self, samples: Sequence[Sample], score_logprobs: LogProbs) -> Tensor:
        """(B,): log pi - log pi_ref, held within `max_log_ratio`."""
        policy, reference = score_logprobs(samples)
        return (policy - reference).clamp(-self.config.max_log_ratio, self.config.max_log_ratio)

    def _steps(self) -> GradientSteps:
        """AdamW of the updates in `optimize`; how many there will be is not known, so its rate stays the same."""
        if self._gradient is None:
            rate = self.config.learning_rate
            rate = self.config.update_learning_rate or (rate.start if isinstance(rate, Schedule) else rate)
            settings = self.config.model_copy(update={"learning_rate": rate})
            trained = [p for p in self.network.parameters() if p.requires_grad]
            self._gradient = GradientSteps(trained, settings, 1, self.context)
        return self._gradient

    # --- state ---

    def state_dict(self) -> State:
        mean, deviation = self.moments
        return {
            **super().state_dict(),
            "moments": {"mean": mean, "deviation": deviation},
            "yardstick": [written(sample) for sample in self.yardstick],
            "replay": [[*written(drawn.sample), drawn.log_ratio] for drawn in self.replay],
            "updates": self.updates,
            "gradient": None if self._gradient is None else self._gradient.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._moments = float(state["moments"]["mean"]), float(state["moments"]["deviation"])
        self.yardstick = [read(text, response) for text, response in state["yardstick"]]
        self.replay = [Drawn(read(text, response), float(ratio)) for text, response, ratio in state["replay"]]
        self.updates, self._gradient = int(state["updates"]), None
        if state["gradient"] is not None:
            self._steps().load_state_dict(state["gradient"])
