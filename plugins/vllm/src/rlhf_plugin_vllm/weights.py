"""What a server is sent: the weights of the plain language model, by the names that transformers gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Print: TypeAlias = tuple[tuple[str, ...], tuple[int, ...]]
"""Which weights, and for each a sum of its bits."""


def fingerprint(network: Any) -> Print:
    """What tells whether the policy's own weights are those of another time.

    The weights themselves are read. torch's counter of changes does not do: fused AdamW and bitsandbytes' optimizers
    leave it as it is, and so does writing to `.data`. Frozen weights never change and are not read; where no adapter
    speaks, there are no others.
    """
    weights = dict(network.policy_weights())
    sums = [_bits(weight) for weight in weights.values()]
    total = torch.stack(sums).tolist() if sums else []  # one transfer from the device
    return tuple(weights), tuple(total)


def _bits(weight: Tensor) -> Tensor:
    """The sum of the bit patterns of `weight` as whole numbers, modulo 2^64."""
    whole = weight.detach().contiguous()
    return whole.view(BITS[whole.element_size()]).sum(dtype=torch.int64)


@torch.no_grad()
def plain_weights(network: Any) -> dict[str, Tensor]:
    """The language model that speaks now as a model without adapters: names and tensors, tied weights once.

    The adapter of the network's role is merged into the base (none with the role of nobody), and 4-bit weights are made
    whole.
    """
    model = network.model
    if network.base is None:
        return {name: parameter.detach() for name, parameter in model.named_parameters()}
    merged: dict[str, Tensor] = network.base.merged(network.role)
    return {name: merged[name] for name in _plain_names(name for name, _ in model.named_parameters())}


def _plain_names(names: Iterable[str]) -> list[str]:
    """Names of parameters as they are without adapters around the layers."""
    return [name.replace(".base_layer", "") for name in names if ".lora_" not in name]
