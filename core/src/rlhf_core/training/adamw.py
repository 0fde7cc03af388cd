"""AdamW in full, with moments of 8 bits, and with moments that a GPU can page out: by torch, or by bitsandbytes.

In 8 bits both moments are quantised in blocks of 256 numbers (Dettmers et al., 2021, arXiv:2110.02861): 2.03 bytes per
weight, against 8. Tensors of less than 4096 numbers keep them in 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..importing import bitsandbytes, first_line
from ..interfaces import Context, OptimizerSettings, State
from .sharding import as_shared_out, is_shared_out, whole


def make_adamw(
    groups: Sequence[Sequence[nn.Parameter]], settings: OptimizerSettings, rate: float, context: Context
) -> torch.optim.Optimizer:
    """AdamW over groups of parameters, as `settings.adamw` says.

    Raises:
        ConfigError: bitsandbytes is asked for, and is not there or cannot do it.
    """
    options: dict[str, Any] = {
        "lr": rate, "betas": settings.betas, "eps": settings.adam_eps, "weight_decay": settings.weight_decay,
    }  # fmt: skip
    params = [{"params": list(group)} for group in groups]
    shared_out = any(is_shared_out(parameter) for group in groups for parameter in group)
    if shared_out and settings.adamw != "full":
        raise ConfigError(
            f"{context.where} adamw",
            f"{settings.adamw} for weights that are shared out over processes",
            "full: each process keeps the moments of its own part",
            "leave adamw out, or `sharded` of the policy",
        )
    if shared_out:  # parts and whole weights cannot go through one call
        return torch.optim.AdamW(params, **options, foreach=False, fused=False)
    if settings.adamw == "full":
        return torch.optim.AdamW(params, **options, fused=True)  # in place: no temporaries of the size of the weights
    where = f"{context.where} adamw"
    library = bitsandbytes(where)
    kind = library.optim.AdamW8bit if settings.adamw.endswith("8bit") else library.optim.AdamW
    first = next((parameter for group in groups for parameter in group), None)
    if first is not None:
        _try_out(kind, first, where, settings.adamw)
    paged = settings.adamw.startswith("paged")
    if paged and first is not None and first.device.type == "cpu":
        context.warn(f"{where}: {settings.adamw}: on a CPU the moments are in main memory as it is; nothing is paged")
        paged = False
    optimizer: torch.optim.Optimizer = kind(params, **options, is_paged=paged)
    return optimizer


def _try_out(kind: Any, parameter: nn.Parameter, where: str, said: str) -> None:
    """A step on weights like `parameter`: whether a device can do it depends on its age and on the library's."""
    got = ""
    if parameter.dtype == torch.float64:
        got = "weights in float64, and bitsandbytes computes in float32"
    else:
        trial = nn.Parameter(torch.zeros(4096, dtype=parameter.dtype, device=parameter.device))
        trial.grad = torch.zeros_like(trial)
        try:
            kind([trial]).step()
        except Exception as error:
            dtype = str(parameter.dtype).removeprefix("torch.")
            got = f"bitsandbytes cannot update {dtype} weights on {parameter.device.type}: {first_line(error)}"
    if got:
        raise ConfigError(where, got, f"a device and precision for adamw: {said}", "leave adamw out, or set it to full")


def moments(optimizer: torch.optim.Optimizer) -> State:
    """The state of every parameter that has one, by its number, and what 8-bit numbers stand for."""
    numbers: dict[Tensor, str] = {parameter: str(number) for number, (_, _, parameter) in enumerate(_places(optimizer))}
    shared = ("qmap1", "qmap2")  # the same tensors for all parameters: saved once
    found: State = {
        "moments": {
            numbers[parameter]: {
                name: whole(value) if isinstance(value, Tensor) else value
                for name, value in state.items()
                if name not in shared
            }
            for parameter, state in optimizer.state.items()
        }
    }
    maps = getattr(optimizer, "name2qmap", {})
    return {**found, "maps": dict(maps)} if maps else found


def restore(optimizer: torch.optim.Optimizer, state: State, where: str) -> None:
    """Put back what `moments` gave, bit for bit.

    Raises:
        ConfigError: it was saved under another setting of `adamw`.
    """
    saved: Mapping[str, Mapping[str, Any]] = state["moments"]
    if isinstance(optimizer, torch.optim.AdamW):
        if any("exp_avg" not in one for one in saved.values()):
            raise _misfit(where)
        places = _places(optimizer)
        all_of_it = optimizer.state_dict()
        all_of_it["state"] = {
            int(number): {
                name: as_shared_out(value, places[int(number)][2]) if name.startswith("exp_avg") else value
                for name, value in one.items()
            }
            for number, one in saved.items()
        }
        optimizer.load_state_dict(all_of_it)
        return
    library: Any = optimizer  # its own load_state_dict would undo the paging
    library.state.clear()
    library.name2qmap.update(state.get("maps", {}))
    places = _places(optimizer)
    for number, one in saved.items():
        group, place, parameter = places[int(number)]
        library.init_state(library.param_groups[group], parameter, group, place)
        own = library.state[parameter]
        if own.keys() - {"qmap1", "qmap2"} != one.keys():
            raise _misfit(where)
        for name, value in one.items():
            if isinstance(value, Tensor):
                own[name].copy_(value)
            else:
                own[name] = value


def _places(optimizer: torch.optim.Optimizer) -> list[tuple[int, int, nn.Parameter]]:
    """(group, place in it, parameter) in the order of their numbers."""
    return [
        (number, place, parameter)
        for number, group in enumerate(optimizer.param_groups)
        for place, parameter in enumerate(group["params"])
    ]


def _misfit(where: str) -> ConfigError:
    return ConfigError(
        f"{where} checkpoint",
        "moments that were kept another way",
        "those of the same `adamw`",
        "go on with the setting that the run was started with",
    )
