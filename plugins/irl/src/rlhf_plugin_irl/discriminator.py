"""Telling demonstrations from samples: the losses, the penalty, and the supervised task over contrasts of the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from rlhf_core.interfaces import LossSum, StepStats, SupervisedTask
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import softplus

if TYPE_CHECKING:
    from .null import NullCheck
    from .reward import IRLReward

SHRINKAGE = 5e-3
"""MaxEnt's weight of the squared reward, without which the reward would grow without end."""


@dataclass(frozen=True)
class Contrast:
    """A demonstration and a sample of the policy for the same prompt, each as the ids of the whole text.

    weight: how much both count. importance: how much likelier the policy is to say the sample now than when it did.
    """

    demonstration: list[int]
    sample: list[int]
    weight: float = 1.0
    importance: float = 1.0


def contrast_loss(
    demonstrations: Tensor,
    samples: Tensor,
    *,
    importance: Tensor | float = 1.0,
    maxent: bool = False,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of each contrast, (B,).

    The mean cross-entropy of the two labels, log 2 for a coin; its optimum is a text's log density among the
    demonstrations minus that among the samples. Under `maxent` the reward of the sample minus that of the
    demonstration, plus SHRINKAGE times the mean of their squares.

    Args:
        demonstrations, samples: (B,) logits (rewards under maxent).
        importance: (B,) or a number, factor of the samples' part of the loss.
        label_smoothing: one-sided: the label of demonstrations is 1 minus this.

    Source:
        Goodfellow et al. 2014 (arXiv:1406.2661); smoothing: Salimans et al. 2016 (arXiv:1606.03498), section 3.4;
        maxent: Ziebart et al. 2008; for language models Li et al. 2024 (arXiv:2405.17888).
    """
    if maxent:
        shrinkage = SHRINKAGE / 2 * (importance * samples**2 + demonstrations**2)
        return importance * samples - demonstrations + shrinkage
    expert = (1 - label_smoothing) * softplus(-demonstrations) + label_smoothing * softplus(demonstrations)
    return (expert + importance * softplus(samples)) / 2


def gail_reward(logits: Tensor) -> Tensor:
    """-log(1 - D) = softplus(logit), which is never negative. Ho & Ermon 2016 (arXiv:1606.03476)."""
    return softplus(logits)


class ContrastTask(SupervisedTask):
    """The weighted mean over contrasts of `contrast_loss`, plus the penalty.

    Args:
        reward: whose scores are trained. train, held_out: contrasts.
        null: adds to the evaluation what a reward learns where there is nothing to learn.
    """

    def __init__(
        self,
        reward: IRLReward,
        train: Sequence[Contrast],
        held_out: Sequence[Contrast] = (),
        null: NullCheck | None = None,
    ) -> None:
        self.reward, self.module = reward, reward.network
        self.train, self.held_out, self.null = train, held_out, null

    def size(self, example: Contrast) -> int:
        return 2 * max(len(example.demonstration), len(example.sample))

    def count(self, example: Contrast) -> float:
        return example.weight

    def loss(self, examples: Sequence[Contrast], log_ratios: Tensor | None = None, *, maxent: bool = False) -> LossSum:
        """`log_ratios`: (2B,) log-probability under the policy minus that under the reference, demonstrations first."""
        config, size = self.reward.config, len(examples)
        rewards, penalty = self._rewards(examples)  # (2B,), (B,) or None
        logits = rewards if log_ratios is None else rewards - log_ratios.to(rewards)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weight, importance = (
            logits.new_tensor([getattr(e, name) for e in examples]) for name in ("weight", "importance")
        )
        losses = contrast_loss(
            logits[:size],
            logits[size:],
            importance=importance,
            maxent=maxent,
            label_smoothing=config.label_smoothing,
        )
        named = {"demo_score": rewards[:size], "sample_score": rewards[size:], "accuracy": won(logits)}
        if penalty is not None:
            losses = losses + penalty
            named["penalty"] = penalty
        stats = {name: float((weight * values.detach()).sum()) for name, values in named.items()}
        return LossSum((weight * losses).sum(), float(weight.sum()), stats)

    def _rewards(self, examples: Sequence[Contrast]) -> tuple[Tensor, Tensor | None]:
        texts = [e.demonstration for e in examples] + [e.sample for e in examples]
        coefficient = self.reward.config.gradient_penalty
        if not coefficient:
            return self.reward.scores(texts), None
        rewards, squared = scores_and_gradients(self.reward, texts)
        return rewards, coefficient / 2 * squared[: len(examples)]

    def evaluate(self, examples: Sequence[Contrast]) -> StepStats:
        """Of contrasts without dropout: see the README; `null_*` if a null check was asked for."""
        reward, size = self.reward, len(examples)
        texts = [e.demonstration for e in examples] + [e.sample for e in examples]
        values = reward.predict(texts)[:, 0].float().cpu()
        lengths = torch.tensor([len(text) for text in texts])
        stats = {
            "accuracy": float(won(values).mean()),
            "loss": float(contrast_loss(values[:size], values[size:]).mean()),
            "demo_score": float(values[:size].mean()),
            "sample_score": float(values[size:].mean()),
            "longer": float(won(lengths).mean()),
            "deviation": reward.moments[1],
            "examples": float(size),
        }
        return stats if self.null is None else {**stats, **self.null.measure(reward)}


def won(values: Tensor) -> Tensor:
    """(2B,), demonstrations first, to (B,): 1 where the demonstration's is the higher, 1/2 where they are equal."""
    demonstrations, samples = values.detach().chunk(2)
    return (demonstrations > samples).float() + 0.5 * (demonstrations == samples).float()


def scores_and_gradients(reward: IRLReward, texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Scores (B,) and the squared norm (B,) of each score's gradient at the embeddings of its text, differentiable.

    Only at real texts, not between them: what lies between two sentences of different lengths is nothing that could be
    said, so this is R1 (Mescheder et al., 2018, arXiv:1801.04406, equation 9) and not the penalty of WGAN-GP.
    """
    caught: list[Tensor] = []

    def catch(module: object, inputs: object, output: Tensor) -> None:
        caught.append(output if output.requires_grad else output.requires_grad_())  # frozen embeddings have no graph

    trunk = reward.network.trunk
    handle = trunk.get_input_embeddings().register_forward_hook(catch)  # type: ignore[operator]
    try:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            scores = reward.scores(texts)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(scores.sum(), caught[0], create_graph=True)
    return scores, gradient.to(scores).square().sum((1, 2))
