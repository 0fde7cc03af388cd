"""Weights that are shared out over processes by torch's `fully_shard` (FSDP2), and put together again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


def is_shared_out(tensor: Any) -> bool:
    """Whether this process holds a part of `tensor` only."""
    if not isinstance(tensor, Tensor) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`. If it is shared out, every process has to ask for it at the same time."""
    if not is_shared_out(tensor):
        return tensor
    found: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return found


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of it, in the same memory."""
    if not is_shared_out(tensor):
        return tensor
    found: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return found


def as_shared_out(full: Tensor, like: Tensor) -> Tensor:
    """`full`, which every process has, cut as `like` is cut."""
    if not is_shared_out(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    full = full.to(device=like.device, dtype=like.dtype)
    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(full, mesh, placements, src_data_rank=None)  # nothing is sent


class Shards:
    """The layers of a model, each of whose weights are cut into as many parts as there are processes.

    Where a gradient is wanted a layer's weights are put together when it is their turn, and gradients are summed into
    parts. Without gradients they are whole from the first pass on: generation and scoring may then take as many
    passes in one process as they like, whatever the others do. What is not in a layer (embeddings, norms, heads) is in
    every process.
    """

    def __init__(self, trunk: nn.Module, layers: Sequence[nn.Module], accelerator: Accelerator) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        # its advice to others; nothing here changes what a layer returns in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        inside = {id(p) for layer in layers for p in layer.parameters()}
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        # the trunk holds no part itself: as the root it lets a layer's weights come while the one before computes
        rest = {p for p in trunk.parameters() if id(p) not in inside and not is_shared_out(p)}
        fully_shard(trunk, mesh=mesh, ignored_params=rest)
        self._layers: list[FSDPModule] = [layer for layer in layers if isinstance(layer, FSDPModule)]
        for part in self._layers:
            part.set_gradient_divide_factor(1.0)  # losses are parts of a sum already
            part.set_force_sum_reduction_for_comms(True)
        self._whole = False

    def gather(self) -> None:
        """Put all weights together; every process does it at the same time. Nothing if they are."""
        if not self._whole:
            self._whole = True
            for layer in self._layers:
                layer.set_reshard_after_forward(False, recurse=False)
                layer.unshard()

    def split(self) -> None:
        """Keep only this process's part; nothing is sent."""
        if self._whole:
            self._whole = False
            for layer in self._layers:
                layer.reshard()
                layer.set_reshard_after_forward(True, recurse=False)


def clip_norm(parameters: Iterable[nn.Parameter], most: float, accelerator: Accelerator | None) -> float:
    """Scale gradients so that their norm over all parameters, shared out or not, is at most `most`; the norm before."""
    params = [p for p in parameters if p.grad is not None]
    if accelerator is None or not any(is_shared_out(p) for p in params):
        return float(nn.utils.clip_grad_norm_(params, most))
    cut = [own_part(p.grad) for p in params if p.grad is not None and is_shared_out(p.grad)]
    common = [p.grad for p in params if p.grad is not None and not is_shared_out(p.grad)]
    parts = nn.utils.get_total_norm(cut).square()
    total = (accelerator.reduce(parts, reduction="sum") + nn.utils.get_total_norm(common).square()).sqrt()
    scale = (most / (total + 1e-6)).clamp(max=1.0)  # as torch does
    for grad in (*cut, *common):
        grad.mul_(scale.to(grad))
    return float(total)
