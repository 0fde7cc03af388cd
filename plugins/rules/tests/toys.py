"""What the tests of this plugin share: scoring in one line, files, and rank correlation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rlhf_core.interfaces import Component, Context
from rlhf_core.records import Prompt, Sample, Scores

Rows = list[dict[str, Any]]


def build(component: type[Component[Any]], kind: str = "reward", **config: Any) -> Any:
    return component(component.Config(**config), Context(kind=kind, id="rule"))


def score(reward: type[Component[Any]], responses: list[str], fields: Any = None, **config: Any) -> Scores:
    """Scores of `responses` to one prompt that carries `fields`."""
    prompt = Prompt(text="Hello", fields=fields or {})
    scores: Scores = build(reward, **config).score([Sample(prompt, response) for response in responses])
    return scores


def values(reward: type[Component[Any]], *responses: str, fields: Any = None, **config: Any) -> list[float]:
    return score(reward, list(responses), fields, **config).values.tolist()


def credits(reward: type[Component[Any]], response: str, fields: Any = None, **config: Any) -> list[tuple[str, float]]:
    """The spans of a response as (text, credit)."""
    found = score(reward, [response], fields, **config).spans
    assert found is not None
    return [(response[s.start : s.end], s.credit) for s in found[0]]


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def ranks(numbers: list[float]) -> torch.Tensor:
    """The place of each number in their order; equal numbers share the mean of their places."""
    x = torch.tensor(numbers, dtype=torch.float64)
    return (x[:, None] > x).sum(1) + (x[:, None] == x).sum(1) / 2


def spearman(a: list[float], b: list[float]) -> float:
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]).double())[0, 1])
