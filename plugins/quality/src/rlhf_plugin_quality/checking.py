"""What `rlhf feedback check` does, but for printing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_core.errors import ConfigError, DataError
from rlhf_core.plugins import load_plugins
from rlhf_core.records import Feedback
from ruamel.yaml import YAML, YAMLError

from .config import Thresholds
from .examine import judge
from .files import FeedbackFile, Problem, validated
from .findings import Findings
from .ledger import Ledger
from .source import weighted


@dataclass(frozen=True, eq=False)
class Checked:
    """What the check of `file`, read by the source `use`, found. bad: rows that give no record. written: `--out`."""

    file: Path
    use: str
    thresholds: Thresholds
    findings: Findings
    bad: tuple[Problem, ...]
    dropped: tuple[Problem, ...]
    written: Path | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "file": str(self.file),
            "use": self.use,
            "thresholds": self.thresholds.model_dump(mode="json"),
            **self.findings.to_dict(),
            "bad_rows": [asdict(problem) for problem in self.bad],
            "dropped_records": [asdict(problem) for problem in self.dropped],
            "written": None if self.written is None else str(self.written),
        }


def run_check(
    file: Path,
    *,
    use: str | None = None,
    gold: Path | None = None,
    settings: tuple[str, ...] = (),
    columns: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
    out: Path | None = None,
) -> Checked:
    """Check `file`, as the command does; the texts are KEY=VALUE.

    Raises:
        DataError: a file cannot be read or holds nothing. ConfigError: a setting is wrong, or `out` cannot be written.
        PluginError: the source that reads the file is not installed.
    """
    plugins = load_plugins()
    config = validated(Thresholds, _values("--set", settings), "--set")
    names = dict(_split("--column", text) for text in columns)
    more = _values("--option", options)
    source = FeedbackFile(file, plugins, use, names, more)
    known = [] if gold is None else _gold(FeedbackFile(gold, plugins, None, names, {}))
    ledger = Ledger(config)
    for _, record in source:
        ledger.add(record)
    bad = tuple(source.bad)
    if not len(ledger) and not bad:
        raise DataError(str(file), "gives no feedback", "at least one record", "check the file")
    findings = judge(ledger, known)
    del ledger  # of some size
    return Checked(file, source.use, config, findings, bad, tuple(_second_pass(source, findings, out)), out)


def _gold(source: FeedbackFile) -> list[Feedback]:
    """The records of a file of gold questions, in which nothing may be wrong."""
    records = [record for _, record in source]
    for problem in source.bad:
        raise DataError(problem.where, problem.detail, "a gold question that can be read", "mend the row, or remove it")
    return records


def _second_pass(source: FeedbackFile, findings: Findings, out: Path | None) -> Iterator[Problem]:
    """The dropped records; on the way, those that pass are written to `out`."""
    factors = findings.factors()
    unfinished = None if out is None else out.with_name(f"{out.name}.tmp")
    try:
        file = None if unfinished is None else open(unfinished, "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}", f"cannot be written: {error}", "a file in a folder that is there") from error
    for index, (where, record) in enumerate(source):
        verdict = findings.verdict(index)
        if verdict is not None:
            yield Problem(where, record.annotator, verdict.reason, verdict.detail)
        elif file is not None:
            kept = weighted(record, factors[record.annotator]).model_dump(mode="json")
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")
    if file is not None and unfinished is not None and out is not None:
        file.close()
        unfinished.replace(out)


def _values(option: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE texts as a mapping, with values as in registry.yaml."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, text = _split(option, setting)
        reader = YAML(typ="safe", pure=True)
        reader.version = (1, 2)  # in which 3e-6 is a number and no a word
        try:
            values[key] = reader.load(text)
        except YAMLError as error:
            raise ConfigError(f"{option} {key}", f"{text!r} cannot be read", "a value as in registry.yaml") from error
    return values


def _split(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"{option} {text}", "has no value", f"the form {option} NAME=VALUE")
    return key, value
