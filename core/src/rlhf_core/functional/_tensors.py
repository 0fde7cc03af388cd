"""What the functions share: argument checks, precision, and arithmetic that stays finite."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor


def check(function: str, shape: torch.Size, **tensors: Tensor) -> None:
    """Refuse tensors of another shape."""
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"{function}: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")


def choose(function: str, argument: str, got: str, kinds: object) -> None:
    """Refuse a name that the Literal `kinds` does not list."""
    if got not in get_args(kinds):
        raise ValueError(f"{function}: {argument} is {got!r}, expected one of {', '.join(get_args(kinds))}")


def wide(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def like(result: Tensor, x: Tensor) -> Tensor:
    """Hand a widened result back in the dtype of x, unless x was not of a floating dtype."""
    return result.to(x.dtype) if x.is_floating_point() else result


def valid(x: Tensor, mask: Tensor) -> Tensor:
    """Widen x and put 0 at masked positions; by selection, since 0 * nan is nan, in gradients too."""
    return torch.where(mask.bool(), wide(x), 0.0)


def divide(total: Tensor, count: Tensor | float) -> Tensor:
    """Divide a sum by its count; where the count is 0 the sum is empty, and stays 0."""
    count = torch.as_tensor(count, dtype=total.dtype, device=total.device)
    return total / count.masked_fill(count == 0, 1.0)


def sqrt(x: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    return x.masked_fill(x <= 0, 1.0).sqrt().masked_fill(x <= 0, 0.0)
