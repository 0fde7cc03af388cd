"""What several rules do: read a field of the prompt, and put their verdicts into `Scores`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from rlhf_core.errors import RewardError
from rlhf_core.interfaces import Context
from rlhf_core.records import Sample, Scores, Span
from torch import Tensor

Spans = Sequence[Sequence[Span]]


def tensor(values: Sequence[float], context: Context) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=context.device)  # (B,)


def scores(
    values: Sequence[float | None],
    context: Context,
    *,
    spans: Spans | None = None,
    parts: Mapping[str, Sequence[float]] | None = None,
) -> Scores:
    """`Scores` of B values, of which None means no opinion."""
    silent = [value is None for value in values]
    return Scores(
        tensor([0.0 if value is None else value for value in values], context),
        spans=None if spans is None else tuple(tuple(row) for row in spans),
        abstained=torch.tensor(silent, device=context.device) if any(silent) else None,
        parts={name: tensor(column, context) for name, column in (parts or {}).items()},
    )


def texts_of(
    sample: Sample, field: str, option: str, on_missing: Literal["raise", "abstain"], where: str
) -> tuple[str, ...] | None:
    """The texts in `field` of the sample's prompt, numbers as text; None if there is none and that is allowed.

    Args:
        field: a name in ``prompt.fields``; its value is a text, a number, or a list of them.
        option: how the config calls it, for the message.
        on_missing: whether a prompt without it is an error.
        where: the component, for the message.

    Raises:
        RewardError: the field is missing, empty, or neither text nor number.
    """
    value: Any = sample.prompt.fields.get(field)
    texts = [_text(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
    if texts and all(text and text.strip() for text in texts):
        return tuple(str(text) for text in texts)
    missing = value is None or value == [] or (isinstance(value, str) and not value.strip())
    if missing and on_missing == "abstain":
        return None
    names = ", ".join(map(repr, sample.prompt.fields)) or "none"
    raise RewardError(
        f"{where} prompt {sample.prompt.render()[-60:]!r}",
        (f"no field {field!r}, only {names}" if field not in sample.prompt.fields else f"field {field!r} is {value!r}"),
        "a text, a number, or a list of them, none empty",
        f"name the field in `{option}`, keep the column in the prompt source"
        + (", or set on_missing: abstain" if missing else ""),
    )


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
