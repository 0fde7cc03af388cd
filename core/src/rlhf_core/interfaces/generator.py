"""Engines: what draws responses on behalf of a policy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .components import C, Component, Policy
from .config import Sampling

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Drawn:
    """Sampled responses, and what the engine recorded of them; None where it did not.

    Attributes:
        ids: (B, T) int64, right-padded. attention: (B, T) bool, True on drawn tokens, end of text included.
        truncated: (B,) bool, cut at the length limit.
        logprobs: (B, T) float32 under the full softmax at the sampling temperature, 0 in padding. An engine that
            computes with other weights or in another precision than the policy does leaves them out: the policy then
            evaluates what was drawn itself.
        behaviour: (B, T) float32 under what was drawn from, if that is less than the full softmax.
        values: (B, T) float32, V before each token, of a critic on the policy's own trunk.
    """

    ids: Tensor
    attention: Tensor
    truncated: Tensor
    logprobs: Tensor | None = None
    behaviour: Tensor | None = None
    values: Tensor | None = None


class Generator(Component[C]):
    """An engine: draws responses with the weights that a policy has now. What stands behind `Policy.generate`."""

    @abstractmethod
    def draw(
        self,
        policy: Policy[Any],
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        sample_ids: Sequence[int],
    ) -> Drawn:
        """One response to each of B prompts, given as token ids.

        Weights may have changed since the last call, by a step of an optimizer or because the reference speaks. An
        engine of our own draws token t of sample b from the uniform number (seed, sample_ids[b], t), whatever else is
        in the batch; one that cannot is seeded with `seed`, and says so in its description.

        Raises:
            ConfigError: the engine cannot draw for such a policy or in such a way.
        """
