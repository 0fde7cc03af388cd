"""What the supervised loop trains: the task that a reward, a policy or a plugin gives it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .components import StepStats


@dataclass(frozen=True, eq=False)
class LossSum:
    """A loss summed, not averaged, over some examples, so that micro-batches and processes add up.

    total: scalar tensor with gradient. count: what to divide by (examples or tokens). stats: further sums over the
    same count, logged after division.
    """

    total: Tensor
    count: float
    stats: Mapping[str, float]


class SupervisedTask(ABC):
    """What the supervised loop trains: examples, a loss over them, and an evaluation on held-out ones.

    The loop owns order, batches, accumulation, the optimizer, clipping and schedule.
    """

    module: nn.Module
    """Trained are its parameters that require gradients."""
    train: Sequence[Any]
    held_out: Sequence[Any]

    @abstractmethod
    def size(self, example: Any) -> int | tuple[int, ...]:
        """Tokens of `example`, for the micro-batch budget; a tuple where its parts are padded apart."""

    @abstractmethod
    def count(self, example: Any) -> float:
        """What `example` adds to the denominator of the loss (1 for a mean over examples, tokens for a token mean)."""

    @abstractmethod
    def loss(self, examples: Sequence[Any]) -> LossSum:
        """The summed loss of `examples`, in training mode."""

    @abstractmethod
    def evaluate(self, examples: Sequence[Any]) -> StepStats:
        """Metrics of `examples`, without gradients."""
