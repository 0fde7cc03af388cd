"""What differs between two runs: settings, data, versions, and results, paired by prompt where both measured it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from ..errors import RunError
from .directory import EVALUATIONS, PROVENANCE, SUMMARY
from .lineage import manifests

LEVEL = 0.95
WIDTH = NormalDist().inv_cdf((1 + LEVEL) / 2)
"""Standard errors on either side of the interval of `LEVEL`."""


@dataclass(frozen=True)
class Change:
    """A value that is another in each run; None where one run has none. origins: where each was written."""

    what: str
    a: Any
    b: Any
    origins: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Result:
    """A metric of an evaluate stage in both runs: means, and the mean of B - A with its 95 % interval.

    paired: over how many prompts that both measured; 0: over two independent samples.
    """

    stage: str
    metric: str
    a: float
    b: float
    change: float
    low: float
    high: float
    paired: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """All of it. unfinished: which runs have no results yet."""

    config: list[Change] = field(default_factory=list)
    data: list[Change] = field(default_factory=list)
    versions: list[Change] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)


def difference(a: Path, b: Path) -> Difference:
    """Compare two run directories.

    Raises:
        RunError: one of them holds no run.
    """
    heads = [_head(run) for run in (a, b)]
    summaries = [_json(run / SUMMARY) for run in (a, b)]
    unfinished = [str(run) for run, summary in zip((a, b), summaries, strict=True) if not summary]
    return Difference(
        config=list(_config(*(head.get("config", {}) for head in heads))),
        data=[*_changes("", *map(_data, (a, b), heads))],
        versions=[*_changes("", *map(_surroundings, heads))],
        results=list(_results(a, b, *summaries)),
        unfinished=unfinished,
    )


def _head(run: Path) -> dict[str, Any]:
    if not (run / PROVENANCE).is_file():
        raise RunError(f"diff {run}", "holds no run", f"a directory with {PROVENANCE}", "name two run directories")
    return _json(run / PROVENANCE)


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"diff {path}", f"cannot be read: {error}", "what a run wrote") from error
    return found


def _config(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    none: dict[str, Any] = {"value": None, "origin": ""}
    for path in sorted({*a, *b}):
        left, right = a.get(path, none), b.get(path, none)
        if left["value"] != right["value"] or (path in a) != (path in b):
            yield Change(path, left["value"], right["value"], (left["origin"], right["origin"]))


def _changes(prefix: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    for key in sorted({*a, *b}):
        if a.get(key) != b.get(key):
            yield Change(f"{prefix}{key}", a.get(key), b.get(key))


def _data(run: Path, head: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files by name, and of the records that each stage read."""
    found: dict[str, str] = {}
    for path, value in head.get("files", {}).items():
        name = f"file {Path(path).name}"
        found[name if name not in found else f"file {path}"] = value
    for manifest in manifests(run):
        for source, read in manifest["inputs"]["feedback"].items():
            found[f"feedback {source} in {manifest['stage']}"] = f"{read['records']} records, {read['sha256']}"
    return found


def _surroundings(head: Mapping[str, Any]) -> dict[str, Any]:
    git = head.get("git") or {}
    named = {"git commit": git.get("commit"), "git changed": git.get("changed")}
    machine = {f"machine {key}": value for key, value in head.get("machine", {}).items()}
    return {**head.get("versions", {}), **machine, **named}


# --- results ---------------------------------------------------------------------------------------------------------


def _results(a: Path, b: Path, *summaries: Mapping[str, Any]) -> Iterator[Result]:
    left, right = (summary.get("stages", {}) for summary in summaries)
    for stage in left:
        one, two = (stages.get(stage, {}).get("metrics", {}) for stages in (left, right))
        each = [_json(run / EVALUATIONS / f"{stage}.json") for run in (a, b)]
        for metric in one:
            if metric in two:
                pairs = list(_pairs(metric, *each))
                yield _result(stage, metric, one[metric]["after"], two[metric]["after"], pairs)


def _pairs(metric: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """The measurements of prompts that both runs have; one that stands twice is paired in order."""
    waiting: dict[tuple[str, int], float] = {}
    for values, other in ((a, False), (b, True)):
        count: dict[str, int] = {}
        for prompt, value in zip(values.get("prompts", ()), values.get("metrics", {}).get(metric, ()), strict=False):
            count[prompt] = count.get(prompt, 0) + 1
            key = prompt, count[prompt]
            if value is None:
                continue
            if not other:
                waiting[key] = value
            elif key in waiting:
                yield waiting[key], value


def _result(
    stage: str, metric: str, a: Mapping[str, Any], b: Mapping[str, Any], pairs: list[tuple[float, float]]
) -> Result:
    if len(pairs) > 1:
        changes = [right - left for left, right in pairs]
        mean, error = fmean(changes), stdev(changes) / math.sqrt(len(changes))
        means = fmean(left for left, _ in pairs), fmean(right for _, right in pairs)
    else:
        pairs = []
        means = _number(a["mean"]), _number(b["mean"])
        mean, error = means[1] - means[0], math.hypot(_number(a["error"]), _number(b["error"]))
    return Result(stage, metric, *means, mean, mean - WIDTH * error, mean + WIDTH * error, len(pairs))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
