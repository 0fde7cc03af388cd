"""Taking gradient steps: AdamW, schedule, clipping, and the sum of gradients over processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from ..errors import NumericalError
from ..interfaces import Context, LossSum, OptimizerSettings, Schedule, State, value_at
from ..memory import within_memory
from .adamw import make_adamw, moments, restore
from .sharding import clip_norm, is_shared_out

if TYPE_CHECKING:
    from accelerate import Accelerator


Rate: TypeAlias = "tuple[Sequence[nn.Parameter], float | Schedule]"
"""Parameters, and their learning rate."""


class GradientSteps:
    """AdamW over some parameters with the settings' schedule, and with rates of their own for `rates`.

    Its moments are kept as ``settings.adamw`` says; a checkpoint restores them bit for bit. Losses are normalised by
    counts of the whole optimizer step, so gradients of micro-batches and of processes are summed, never averaged.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        settings: OptimizerSettings,
        total: int,
        context: Context,
        rates: Sequence[Rate] = (),
    ) -> None:
        self.parameters = list(parameters)
        self.settings, self.total, self.context = settings, max(total, 1), context
        self.taken = 0
        apart = {id(p) for group, _ in rates for p in group}
        rest = [p for p in self.parameters if id(p) not in apart]
        self._rates = [settings.learning_rate, *(rate for _, rate in rates)]
        groups = (rest, *(group for group, _ in rates))
        self.optimizer = make_adamw(groups, settings, self.learning_rate, context)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return value_at(self.settings.learning_rate, self.taken, self.total)

    def step(self, frozen: Sequence[nn.Parameter] = ()) -> dict[str, float]:
        """Sum gradients over processes, clip their global norm, step and clear them; `frozen` ones stay as they are.

        Raises:
            NumericalError: the gradient is not finite; the weights are left as they were.
            OutOfMemory: there is no room for the moments.
        """
        for parameter in frozen:
            parameter.grad = None
        self._sum_over_processes(frozen)
        norm = clip_norm(self.parameters, self.settings.max_grad_norm, self.context.accelerator)
        if not math.isfinite(norm):
            self.clear()
            raise NumericalError(
                self.context.where,
                f"gradient norm {norm} at update {self.taken}",
                "a finite loss",
                "lower learning_rate, or look for extreme rewards; the last checkpoint is whole",
            )
        rate = self.learning_rate
        for group, option in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = value_at(option, self.taken, self.total)
        with within_memory(self.context, "AdamW step", self._weights, self._smaller(), self.clear):
            self.optimizer.step()
        self.clear()
        self.taken += 1
        return {"grad_norm": norm, "learning_rate": rate}

    def _weights(self) -> str:
        return f"{sum(p.numel() for p in self.parameters)} weights"

    def _smaller(self) -> Iterator[str]:
        """Advice for less room for the moments."""
        smallest = "8bit" if self.parameters[0].device.type == "cpu" else "paged-8bit"
        if self.settings.adamw not in (smallest, "paged-8bit"):
            yield f"set `adamw: {smallest}` in {self.context.where} (now {self.settings.adamw})"

    def clear(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def _sum_over_processes(self, frozen: Sequence[nn.Parameter]) -> None:
        accelerator = self.context.accelerator
        if accelerator is None or accelerator.num_processes == 1:
            return
        skipped = {id(p) for p in frozen}
        for parameter in self.parameters:
            if id(parameter) not in skipped and not is_shared_out(parameter):  # those are summed in backward
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = accelerator.reduce(grad, reduction="sum")

    def state_dict(self) -> State:
        return {"taken": self.taken, **moments(self.optimizer)}

    def load_state_dict(self, state: State) -> None:
        self.taken = int(state["taken"])
        restore(self.optimizer, state, self.context.where)


def backward(losses: Iterable[LossSum], count: float) -> dict[str, float]:
    """Backward through parts of one optimizer step, each as soon as it is there; its statistics, `loss` among them.

    Args:
        losses: of the parts. count: of the whole step, over all parts and processes: what their sums are divided by.
    """
    sums: dict[str, float] = {}
    for loss in losses:
        (loss.total / count).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": float(loss.total.detach()), **loss.stats}.items():
            sums[name] = sums.get(name, 0.0) + value / count
    return sums


def summed(stats: dict[str, float], accelerator: Accelerator | None) -> dict[str, float]:
    """Statistics that are parts of sums, added up over processes."""
    if accelerator is None or accelerator.num_processes == 1:
        return stats
    from accelerate.utils import gather_object

    total: dict[str, float] = {}
    for part in gather_object([stats]):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def as_floats(stats: Mapping[str, Any]) -> dict[str, float]:
    """Plain numbers from tensors or numbers."""
    return {name: value.item() if isinstance(value, torch.Tensor) else float(value) for name, value in stats.items()}
