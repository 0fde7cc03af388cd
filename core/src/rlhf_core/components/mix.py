"""The `mix` reward: several rewards as one, for a pipeline that wants more than the weighted sum of its `rewards`.

With v_k the value of component k, w_k its weight and z_k = (v_k - mean_k) / std_k its scaled value, the score is

    sum      sum_k w_k z_k
    product  prod_k v_k ^ w_k, meant for values in [0, 1]: a single 0 makes the whole 0
    minimum  min_k w_k z_k
    gate     the sum; but where v_gate < threshold, `below`, or by default z_gate: safety overrides the rest, like the
             piecewise reward of Llama 2 (Touvron et al., 2023, section 3.2.3)

Scales are those of the config; the others are measured by a fit-reward stage, over the responses of its feedback, and
then stay as they are, so that a response gets the same score in every batch. Before that, z_k = v_k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, RewardError
from ..interfaces import Context, OnlineReward, RewardModel, State, StepStats
from ..records import Comparison, Edit, Feedback, Sample, Scores, Span
from .config import MixConfig, Scale
from .scoring import checked_scores, show

BATCH = 256  # responses that are scored at once while scales are measured


class Mix(RewardModel[MixConfig]):
    """One score of K rewards.

    A sample on which any of them abstains is abstained, except that where the gate is closed only the gate counts.
    Spans earn what their component makes of them in the score: all do in a sum, those of the least in a minimum, none
    in a product. `parts` holds the value of every component, unscaled, and 0 where it abstains.

    The state is the measured scales. Components are fitted, kept and loaded each by itself.
    """

    def __init__(self, config: MixConfig, context: Context) -> None:
        super().__init__(config, context)
        self.models: dict[str, RewardModel[Any]] = {id: context.component("reward", id) for id in config.components}
        for id, model in self.models.items():
            if isinstance(model, OnlineReward):
                raise ConfigError(
                    context.where,
                    f"reward {id!r} learns while the policy does, and would not inside a mix",
                    "rewards that are fitted beforehand, or not at all",
                    f"put {id!r} under `rewards` of the optimize stage, beside the mix",
                )
        self.measured: dict[str, Scale] = {}

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Score B samples.

        Raises:
            RewardError: a component gave no finite score, or with combine: product one below 0.
        """
        if not samples:
            return Scores(torch.zeros(0))
        said = [checked_scores(model, samples) for model in self.models.values()]
        silent = torch.stack([_silent(scores) for scores in said])  # (K, B) bool
        raw = torch.stack([_values(scores) for scores in said])  # (K, B), 0 where silent
        values, share = self._combined(samples, raw)  # (B,), (K, B)
        abstained = silent[[id in self.config.rewards for id in self.models]].any(0)
        if self.config.gate is not None:
            gate, closed = self._gate(raw)
            abstained = silent[gate] | (abstained & ~closed)
        parts = dict(zip(self.models, raw, strict=True))
        for id, scores in zip(self.models, said, strict=True):
            parts |= {f"{id}/{name}": part for name, part in scores.parts.items()}
        spans = _spans(said, share.masked_fill(abstained, 0.0))
        return Scores(values.masked_fill(abstained, 0.0), spans, abstained, parts)

    def _combined(self, samples: Sequence[Sample], raw: Tensor) -> tuple[Tensor, Tensor]:
        """The scores (B,) of values (K, B), and the share (K, B) of each value in them: by how much the score grows
        with it."""
        weight = torch.tensor([[self.config.rewards.get(id, 0.0)] for id in self.models])  # (K, 1)
        if self.config.combine == "product":
            self._check_product(samples, raw)
            return raw.pow(weight).prod(0), torch.zeros_like(raw)
        scales = [self.scale(id) for id in self.models]
        std = torch.tensor([[scale.std] for scale in scales])
        scaled = (raw - torch.tensor([[scale.mean] for scale in scales])) / std
        share = (weight / std).expand_as(raw)
        if self.config.combine == "minimum":
            values, least = (weight * scaled).min(0)
            return values, share.masked_fill(torch.arange(len(raw))[:, None] != least, 0.0)
        values = (weight * scaled).sum(0)
        if self.config.combine == "gate":
            gate, closed = self._gate(raw)
            below = self.config.below
            values = torch.where(closed, scaled[gate] if below is None else torch.tensor(below), values)
            share = share.masked_fill(closed, 0.0)
            if below is None:
                share[gate] += closed / std[gate]
        return values, share

    def _gate(self, raw: Tensor) -> tuple[int, Tensor]:
        """Which row of `raw` is the gate's, and where (B,) it is closed."""
        gate = list(self.models).index(str(self.config.gate))
        return gate, raw[gate] < float(self.config.threshold or 0.0)

    def _check_product(self, samples: Sequence[Sample], raw: Tensor) -> None:
        for k, i in (raw < 0).nonzero()[:1].tolist():
            raise RewardError(
                self.context.where,
                f"reward {list(self.models)[k]!r} gives {float(raw[k, i]):g} for sample {i}: {show(samples[i])}",
                "values of 0 or more in a product",
                "use combine: sum, or a reward that gives probabilities",
            )

    # --- scales ---

    def scale(self, id: str) -> Scale:
        """How the values of component `id` are scaled: as the config says, as measured, or not at all."""
        return self.config.scale.get(id) or self.measured.get(id) or Scale()

    @property
    def _unscaled(self) -> list[str]:
        return [id for id in self.models if id not in self.config.scale]

    def fit(self, feedback: Iterable[Feedback]) -> StepStats:
        """Measure mean and deviation of every component that has no `scale`, over all responses in `feedback`, which
        count as much as their records weigh.

        Raises:
            ConfigError: there is nothing to measure.
            DataError: `feedback` has no responses, or a component says the same of them all.
        """
        if self.config.combine == "product" or not self._unscaled:
            raise ConfigError(self.context.where, "has no scale to measure", fix="leave out its fit-reward stage")
        sums = {id: torch.zeros(3, dtype=torch.float64) for id in self._unscaled}  # of w, w v and w v^2
        count = 0
        responses = _responses(feedback)
        while batch := list(islice(responses, BATCH)):
            samples = [sample for sample, _ in batch]
            count += len(batch)
            for id in sums:
                scores = checked_scores(self.models[id], samples)
                w = torch.tensor([weight for _, weight in batch], dtype=torch.float64).masked_fill(_silent(scores), 0.0)
                v = _values(scores).double()
                sums[id] += torch.stack([w.sum(), (w * v).sum(), (w * v * v).sum()])
        self.measured = {id: self._scale(id, *total.tolist()) for id, total in sums.items()}
        stats = {f"{id}/{name}": value for id, scale in self.measured.items() for name, value in scale}
        return {"responses": float(count), **stats}

    def _scale(self, id: str, weight: float, total: float, squares: float) -> Scale:
        if weight == 0:
            raise DataError(
                self.context.where,
                f"reward {id!r} has no opinion on any response in the feedback",
                "responses to measure its scale over",
                f"take other feedback, or write scale: {{{id}: {{mean: 0, std: 1}}}}",
            )
        mean = total / weight
        std = max(squares / weight - mean**2, 0.0) ** 0.5
        if std <= 1e-6 * abs(mean):  # no more than rounding of float32
            raise DataError(
                self.context.where,
                f"reward {id!r} gives {mean:g} to every response in the feedback",
                "values that differ, to measure its scale over",
                f"take other feedback, or write scale: {{{id}: {{mean: 0, std: 1}}}}",
            )
        return Scale(mean=mean, std=std)

    def state_dict(self) -> State:
        return {"scale": {id: [scale.mean, scale.std] for id, scale in self.measured.items()}}

    def load_state_dict(self, state: State) -> None:
        found = {id: Scale(mean=mean, std=std) for id, (mean, std) in state["scale"].items()}
        if found and found.keys() != set(self._unscaled):
            raise ConfigError(
                self.context.where,
                f"the scales to load are those of {', '.join(found)}",
                f"those of {', '.join(self._unscaled) or 'none'}",
                "load a mix of the same rewards, or measure the scales anew",
            )
        self.measured = found


def _silent(scores: Scores) -> Tensor:
    """(B,) bool: where a component abstains."""
    if scores.abstained is None:
        return torch.zeros(len(scores.values), dtype=torch.bool)
    return scores.abstained.cpu()


def _values(scores: Scores) -> Tensor:
    """(B,) float32: what a component says, 0 where it abstains."""
    return scores.values.detach().to("cpu", torch.float32).masked_fill(_silent(scores), 0.0)


def _spans(said: Sequence[Scores], share: Tensor) -> tuple[tuple[Span, ...], ...] | None:
    """The spans of all components, each with its share (K, B) of the score."""
    if all(scores.spans is None for scores in said):
        return None
    return tuple(
        tuple(
            Span(span.start, span.end, span.credit * rate)
            for scores, rate in zip(said, rates, strict=True)
            for span in (scores.spans[i] if scores.spans and rate else ())
        )
        for i, rates in enumerate(share.T.tolist())
    )


def _responses(feedback: Iterable[Feedback]) -> Iterator[tuple[Sample, float]]:
    """Every response that the records speak of, and what it weighs."""
    for record in feedback:
        match record:
            case Comparison():
                texts = record.responses
            case Edit():
                texts = (record.original, record.edited)
            case _:
                texts = () if record.response is None else (record.response,)
        for text in texts:
            yield Sample(record.prompt, text), record.weight
