"""What holds the rows that are being decoded: their cache, and the step from tokens to the next logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..interfaces import Policy
from .network import PolicyNetwork
from .text import Codec, pad_left


def opened(policy: Policy[Any], where: str) -> tuple[PolicyNetwork, Codec]:
    """The network and the codec of a policy of the core, for the engine `where`.

    Raises:
        ConfigError: it is another's.
    """
    network, codec = getattr(policy, "network", None), getattr(policy, "codec", None)
    if not isinstance(network, PolicyNetwork) or not isinstance(codec, Codec):
        raise ConfigError(
            where,
            f"a policy of class {type(policy).__name__}",
            "one of the core's, whose network it can read",
            "let the policy draw by itself",
        )
    return network, codec


class Decoder(ABC):
    """Rows that are decoded together. Row i is the i-th of those that are there, in the order of `add` and `keep`.

    `add` and `step` return the logits (n, V) in float32 or wider, unsteered, and the states (n, D) that the heads read.
    """

    refills: bool
    """Whether rows can be added while others are there."""
    patience: float
    """The share of rows that may be done before `keep` pays."""
    pure: bool = False
    """Whether all that it computes is its own, so that torch need not keep the books for gradients to come. A model of
    transformers may hold on to what it computes."""

    @abstractmethod
    def add(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Read prompts into new rows, behind those that are there."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """From now on row i is what row ``rows[i]`` was; the others are gone."""

    @abstractmethod
    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Read one token (n,) per row."""


class CacheDecoder(Decoder):
    """Any model of transformers, over its own cache: rows are padded on the left and share one time.

    Its cache is copied whole where rows leave, so they do so once a quarter of them is done.
    """

    refills = False
    patience = 0.25

    def __init__(self, network: PolicyNetwork, pad: int, device: str) -> None:
        self.network, self.pad, self.device = network, pad, device
        self.cache: Any = None

    def add(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids, self.mask = pad_left(prompts, self.pad, self.device)
        return self._read(ids, None)

    def keep(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        if len(rows):
            self.cache.batch_select_indices(rows)

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        return self._read(tokens[:, None], self.cache)

    def _read(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        logits, states, self.cache = self.network.step(ids, self.mask, cache)
        if not hasattr(self.cache, "batch_select_indices"):
            self.patience = 1.0  # a cache that cannot let rows go
        return logits, states
