"""What an algorithm's `prepare` and `loss` answer, looked over where a mistake can still be named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..interfaces import Outputs
from ..records import Rollout

OWN = ("loss", "approx_kl")  # statistics that the base logs itself


@contextmanager
def asked_for(where: str, method: str, rollout: Rollout, new: Outputs | None = None) -> Iterator[None]:
    """Inside, an error about None says which data was not asked for.

    Raises:
        ConfigError: a TypeError or AttributeError about None was raised inside.
    """
    try:
        yield
    except (AttributeError, TypeError) as error:
        if "NoneType" not in str(error):
            raise
        missing = [f"rollout.{name}" for name in _empty(rollout)] + [f"new.{name}" for name in _empty(new)]
        raise ConfigError(
            where,
            f"{method}() works with something that is None: {error}",
            "data that the optimizer asks for",
            f"ask for it in the `needs` of its config; not there now: {', '.join(missing)}",
        ) from error


def _empty(data: Rollout | Outputs | None) -> list[str]:
    return [name for name, value in vars(data).items() if value is None] if data is not None else []


def checked_entries(where: str, entries: Any, rows: int) -> Mapping[str, Tensor]:
    """What `prepare` returned.

    Raises:
        ConfigError: it is no mapping of tensors with a row per sample.
    """
    if not isinstance(entries, Mapping):
        raise ConfigError(
            where, f"prepare() returned {_kind(entries)}", "tensors by name", 'return {"advantages": advantages}'
        )
    for name, value in entries.items():
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != rows:
            raise ConfigError(
                where,
                f"prepare() returned {_kind(value)} as {name!r}",
                f"a tensor with a row for each of the {rows} samples",
                "let shapes be (B,) or (B, T)",
            )
    return entries


def checked_loss(where: str, answer: Any) -> tuple[Tensor, Mapping[str, Any]]:
    """What `loss` returned.

    Raises:
        ConfigError: it is no scalar loss with a gradient beside statistics that are numbers of its own names.
    """
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Mapping):
        got = ", ".join(map(_kind, answer)) if isinstance(answer, tuple) else _kind(answer)
        raise ConfigError(where, f"loss() returned {got}", "the loss and a mapping of statistics", "return loss, {}")
    loss, stats = answer
    if not isinstance(loss, Tensor) or loss.dim() or (torch.is_grad_enabled() and not loss.requires_grad):
        lost = " without a gradient" if isinstance(loss, Tensor) and not loss.requires_grad else ""
        raise ConfigError(
            where,
            f"loss() returned {_kind(loss)}{lost} as the loss",
            "a scalar that depends on new.logprobs",
            "end with batch.token_mean(...) or batch.sample_mean(...)",
        )
    for name, value in stats.items():
        if name in OWN:
            raise ConfigError(
                where, f"loss() returned a statistic {name!r}", "another name", "leave it out: it is logged"
            )
        if not (isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)):
            raise ConfigError(
                where,
                f"loss() returned {_kind(value)} as the statistic {name!r}",
                "one number",
                "write batch.sample_mean(x.detach()) or batch.token_mean(x.detach())",
            )
    return loss, stats


def _kind(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
