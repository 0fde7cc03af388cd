"""The run report: one offline page with everything a person asks of a finished run.

`write_report` reads the files of a run directory and nothing else, so it can be written again at any time. All that
comes from models, data and configurations is untrusted text: it is escaped, and its control characters are taken out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from ..errors import RunError
from .directory import METRICS, PROVENANCE, REGISTRY, REPORT, SAMPLES, SUMMARY, TIMINGS, Log, write_atomically
from .profile import profiles
from .wording import Table, clean, date, duration, finite, fixed, mapping, number, places_of, real

if TYPE_CHECKING:
    from .plots import Plot

SHOWN_SAMPLES = 20

# how to read what sft and fit-reward measure on held-out examples
READINGS = {
    "loss": "lower is better",
    "perplexity": "1 would be perfect prediction",
    "accuracy": "share predicted right; between two responses 0.5 is guessing",
    "margin": "mean score of the better response minus that of the worse",
    "ece": "gap between confidence and accuracy; 0 is calibrated",
    "pairs": "pairs it was measured on",
}


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a finished run's directory, and return its path. Parts whose files are missing are
    left out.

    Raises:
        RunError: the directory has no summary.json, a file in it is damaged, or the page cannot be written.
    """
    page = Environment(autoescape=True, undefined=StrictUndefined, finalize=clean, trim_blocks=True, lstrip_blocks=True)
    page.filters.update(sha256=_sha256, number=number)
    template = page.from_string((files(__package__) / "report.html.j2").read_text(encoding="utf-8"))
    html = template.render(**_contents(directory))
    try:
        write_atomically(directory / REPORT, html)
    except RunError as error:
        raise RunError(
            f"report of {directory}",
            error.got,
            "a writable directory with room",
            "make room, and write it again; the run itself is complete",
        ) from error
    return directory / REPORT


def _contents(directory: Path) -> dict[str, Any]:
    """What the template shows."""
    summary, provenance = _json(directory, SUMMARY, needed=True), _json(directory, PROVENANCE)
    stages, timings = mapping(summary.get("stages")), _lines(directory, TIMINGS)
    pipeline, seed = summary.get("pipeline", "run"), summary.get("seed", 0)
    times = _times(timings, mapping(summary.get("seconds")))
    registry = directory / REGISTRY
    yaml = registry.read_text(encoding="utf-8", errors="replace") if registry.is_file() else ""
    declared = _declared(yaml)
    samples = [s for s in _lines(directory, SAMPLES) if "after" in s]
    return {
        "pipeline": pipeline,
        "seed": seed,
        "description": _description(declared),
        "version": mapping(provenance.get("versions")).get("rlhf-core"),
        "date": date(provenance.get("started")),
        "duration": duration(sum(t.seconds for t in times)),
        "stages": list(stages),
        "parameters": summary.get("parameters"),
        "trainable": summary.get("trainable"),
        "evaluations": [
            Table.of(name, mapping(result["metrics"]))
            for name, result in stages.items()
            if mapping(mapping(result).get("metrics"))
        ],
        "warnings": [str(w) for w in summary.get("warnings") or ()],
        "curves": _curves(_lines(directory, METRICS), stages),
        "samples": _samples(samples[:SHOWN_SAMPLES]),
        "more_samples": max(0, len(samples) - SHOWN_SAMPLES),
        "held_out": [
            HeldOut.of(name, mapping(result))
            for name, result in stages.items()
            if mapping(mapping(result).get("held_out"))
        ],
        "yaml": yaml,
        "facts": _facts(seed, provenance) + _code(declared),
        "files": mapping(provenance.get("files")),
        "times": times,
        "profiles": profiles(timings),
        "again": shlex.join(["rlhf", "run", str(pipeline), "--registry", REGISTRY, "--set", f"seed={seed}"]),
    }


# --- the parts of the page ---


@dataclass(frozen=True)
class Curves:
    """A stage's plots, and everything it logged: name, and its first, last, lowest and highest value."""

    stage: str
    place: str
    steps: int
    window: int
    plots: Sequence[Plot]
    table: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class HeldOut:
    """What sft or fit-reward measured on examples kept out of training: name, value, baseline's, how to read it."""

    stage: str
    about: str
    baseline: str
    rows: Sequence[tuple[str, str, str, str]]

    @classmethod
    def of(cls, stage: str, result: Mapping[str, Any]) -> HeldOut:
        about = [f"reward {result['reward']}"] if "reward" in result else []
        about += [f"{number(result['examples'])} training examples"] if "examples" in result else []
        baseline = mapping(result.get("baseline"))
        values, beside = _measures(result), _measures(baseline)
        rows = [(name, text, beside.get(name, ""), READINGS.get(name, "")) for name, text in values.items()]
        return cls(stage, ", ".join(about), str(baseline.get("reward", "")), rows)


def _measures(result: Mapping[str, Any]) -> dict[str, str]:
    values = {name: real(value) for name, value in mapping(result.get("held_out")).items()}
    return {
        name: fixed(value, 3) if value % 1 and 0.01 <= abs(value) < 1000 else number(value)
        for name, value in values.items()
    }


@dataclass(frozen=True)
class Time:
    """Time that a stage spent in steps, in all and per step."""

    stage: str
    steps: int
    seconds: float
    median: float

    @property
    def total(self) -> str:
        return duration(self.seconds)

    @property
    def step(self) -> str:
        return "–" if math.isnan(self.median) else f"{self.median:.3f} s" if self.median < 10 else duration(self.median)


def _curves(metrics: Iterable[Mapping[str, Any]], results: Mapping[str, Any]) -> list[Curves]:
    """Stages that logged something: those that optimize first, the others in the order of the run."""
    from .plots import Plots, logs_of  # matplotlib takes half a second to import
    from .svg import window

    order = list(results)
    plots, found = Plots(), []
    for log in logs_of(metrics):
        mixed = mapping(mapping(results.get(log.name)).get("rewards"))
        place = f"stage {order.index(log.name) + 1} of {len(order)}" if log.name in order else ""
        rows = [
            (name, [number(value) for value in (known[0], known[-1], min(known), max(known))])
            for name, values in log.values.items()
            if (known := finite(values))
        ]
        if rows and not all(name.startswith("evaluate/") for name in log.values):
            count = len(log.steps)
            found.append(Curves(log.name, place, count, window(count), plots.of(log, mixed), rows))
    optimized = {c.stage for c in found if any(row[0] == "reward/score" for row in c.table)}
    return sorted(found, key=lambda c: c.stage not in optimized)


def _samples(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Samples with their metric values as text, each metric with the same decimals everywhere."""
    sides = [mapping(sample.get(side)) for sample in samples for side in ("before", "after")]
    names = dict.fromkeys(name for side in sides for name in side if name != "response")
    places = {}
    for name in names:
        values = finite(real(side.get(name)) for side in sides)
        most = max(map(abs, values), default=0.0)
        places[name] = 0 if all(v == int(v) for v in values) else places_of(most, 3 if most >= 1 else 2)
    shown = []
    for sample in samples:
        entry: dict[str, Any] = {"stage": sample.get("stage", ""), "prompt": str(sample.get("prompt", "")), "sides": []}
        for key in ("before", "after"):
            if key in sample:
                side = mapping(sample[key])
                shown_values = [(name, fixed(real(side[name]), places[name])) for name in names if name in side]
                entry["sides"].append({"key": key, "response": str(side.get("response", "")), "values": shown_values})
        shown.append(entry)
    return shown


def _times(timings: Sequence[Mapping[str, Any]], summed: Mapping[str, Any]) -> list[Time]:
    """Time per stage from timings.jsonl, or from the summary where that is missing."""
    seconds: dict[str, list[float]] = {}
    for line in timings:
        seconds.setdefault(str(line.get("stage", "")), []).append(real(line.get("seconds")))
    times = [Time(name, len(v), sum(finite(v)), median(finite(v) or [math.nan])) for name, v in seconds.items()]
    return times or [Time(name, 0, real(value), math.nan) for name, value in summed.items()]


def _facts(seed: Any, provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the numbers come from: what it was, and its value in words."""
    machine, versions, git = (mapping(provenance.get(key)) for key in ("machine", "versions", "git"))
    state = f"commit {git.get('commit')}" if git else "no commit known"
    state += ", with uncommitted changes" if git.get("changed") else ""
    parts = [str(machine[key]) for key in ("processor", "device", "system") if machine.get(key)]
    parts += [f"{machine['threads']} threads"] if "threads" in machine else []
    facts = [
        ("seed", str(seed)),
        ("started", date(provenance.get("started"))),
        ("command", shlex.join(map(str, provenance.get("command") or ()))),
        ("git", state if "git" in provenance else ""),
        ("machine", ", ".join(parts)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(name, value) for name, value in facts if value]


# --- reading ---


def _json(directory: Path, name: str, *, needed: bool = False) -> dict[str, Any]:
    path = directory / name
    if not path.is_file() and not needed:
        return {}
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RunError(
            f"report of {directory}",
            f"{name} cannot be read: {error}",
            "the files of a finished run",
            "finish the run with --resume, or name another directory",
        ) from error


def _lines(directory: Path, name: str) -> list[dict[str, Any]]:
    try:
        return [mapping(line) for line in Log(directory / name)]
    except (OSError, ValueError) as error:
        raise RunError(
            f"report of {directory}",
            f"{name} cannot be read: {error}",
            "one JSON object per line",
            "repair or remove the file, and write the report again",
        ) from error


def _declared(yaml: str) -> dict[str, Any]:
    """What the resolved registry says, or nothing where it is damaged."""
    from ruamel.yaml import YAML, YAMLError

    try:
        return mapping(YAML(typ="safe").load(yaml))
    except (YAMLError, ValueError):
        return {}


def _description(registry: Mapping[str, Any]) -> str:
    """The pipeline's description, if it has one."""
    pipelines = mapping(registry.get("pipelines")).values()
    return str(next((mapping(p)["description"] for p in pipelines if mapping(p).get("description")), ""))


def _code(registry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What ran besides installed distributions: functions, and code that came with a model."""
    named = [mapping(f).get("factory", f) for f in mapping(registry.get("functions")).values()]
    functions = [("functions", ", ".join(map(str, named)))] if named else []
    trusting = [
        f"{kind} {id}: {model or 'its model'}"
        for kind, ids in mapping(registry.get("components")).items()
        for id, declared in mapping(ids).items()
        for model in _trusted(mapping(declared).get("config"))
    ]
    return functions + ([("code of models", "; ".join(trusting) + " (trust_remote_code)")] if trusting else [])


def _trusted(config: Any) -> list[Any]:
    """The models, anywhere in `config`, whose own code was run."""
    if isinstance(config, list):
        return [model for item in config for model in _trusted(item)]
    own = [mapping(config).get("model")] if mapping(config).get("trust_remote_code") else []
    return own + [model for item in mapping(config).values() for model in _trusted(item)]


def _sha256(style: str) -> str:
    """The hash of a style sheet, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(style).encode()).digest()).decode()
