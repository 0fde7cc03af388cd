"""Comparing what components return: bit for bit, or within rounding."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..interfaces import State
from ..records import Rollout
from ..records.rollout import PROMPT_COLUMNS
from ..runs import checkpoint


def same(a: Any, b: Any) -> bool:
    """Whether nested data is equal bit for bit, types of tensors included; lists and tuples are one, as in JSON."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b or (a != a and b != b))


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference between two tensors; infinite if their shapes differ, 0 where both are nan."""
    if a.shape != b.shape:
        return float("inf")
    x, y = a.detach().double().cpu(), b.detach().double().cpu()
    apart = (x - y).abs().masked_fill((x == y) | (x.isnan() & y.isnan()), 0.0)
    return float(apart.nan_to_num(nan=float("inf")).max()) if apart.numel() else 0.0


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors agree to `tolerance`, relative to the largest number if that is above 1."""
    finite = a.detach().double()[a.detach().isfinite()].abs()
    return difference(a, b) <= tolerance * max(1.0, float(finite.max()) if len(finite) else 1.0)


def copied(value: Any) -> Any:
    """Nested data with tensors of its own."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(item) for item in value]
    return value


def through_checkpoint(state: State) -> State:
    """`state` saved and loaded as the runner does it. Raises TypeError for what a checkpoint cannot hold."""
    with tempfile.TemporaryDirectory(prefix="rlhf-conformance-") as folder:
        checkpoint.save(Path(folder, "state"), state)
        return checkpoint.load(Path(folder, "state"))


def weights(module: nn.Module) -> Tensor:
    """All parameters in one vector, a copy."""
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def nudge(module: nn.Module, seed: int = 0, scale: float = 0.1) -> None:
    """Move the trainable parameters, as training would, so that nothing is as it was made."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(scale * torch.randn(p.shape, generator=noise, dtype=torch.float64).to(p))


def padded(rollout: Rollout, *, prompt: int = 0, response: int = 0) -> Rollout:
    """The same rollout with so many more columns of padding, left of prompts and right of responses."""

    def widened() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in rollout.tensors().items():
            if tensor.dim() > 1:
                pad = (prompt, 0) if name in PROMPT_COLUMNS else (0, response)
                yield name, nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + pad)

    return rollout.replace(**dict(widened()))
