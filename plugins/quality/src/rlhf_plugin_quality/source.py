"""The feedback source `quality`: other feedback, checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context, FeedbackSource
from rlhf_core.records import Feedback

from .config import QualityConfig
from .consensus import need_crowd_kit
from .examine import judge
from .findings import Findings
from .ledger import Ledger


class Quality(FeedbackSource[QualityConfig]):
    """The records of other sources that pass, their weights multiplied by the reliability of their annotators.

    Two passes: the first time it is iterated, the sources are read once to find out (`findings`), and then again to
    yield; after that only to yield. Inside a run every dropped record is written, with its reason, to
    ``quality-ID.jsonl`` in the run directory.
    """

    streaming = False

    def __init__(self, config: QualityConfig, context: Context) -> None:
        super().__init__(config, context)
        self._feedback: list[FeedbackSource[Any]] = [context.component("feedback", id) for id in config.feedback]
        self._gold: Iterable[Feedback] = () if config.gold is None else context.component("feedback", config.gold)
        if config.reliability == "mace":
            need_crowd_kit(context.where)

    @property
    def dropped(self) -> dict[str, int]:
        """How many records were dropped, by reason."""
        return self.findings.dropped

    @cached_property
    def findings(self) -> Findings:
        """What was found; reads all sources at the first use.

        Raises:
            DataError: the sources give no record, or none that passes.
        """
        ledger = Ledger(self.config)
        for group, source in enumerate(self._feedback):
            for record in source:
                ledger.add(record, group)
        found = judge(ledger, self._gold)
        for note in found.notes:
            self.context.warn(f"{self.context.where}: {note}")
        names = ", ".join(self.config.feedback)
        if not found.records:
            raise DataError(self.context.where, f"{names} gives no feedback", "at least one record", "check the source")
        log = self._write(ledger, found)
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.dropped.items())
        if not found.kept:
            raise DataError(
                self.context.where,
                f"none of the {found.records} records of {names} passes ({reasons})",
                "at least one",
                f"look at {log or '`rlhf feedback check`'}, and loosen the thresholds or mend the data",
            )
        if found.dropped:
            gone = f"{found.records - found.kept} of {found.records} records ({reasons})"
            self.context.warn(f"{self.context.where}: dropped {gone}" + (f"; listed in {log}" if log else ""))
        return found

    def __iter__(self) -> Iterator[Feedback]:
        found = self.findings
        self.skipped = found.records - found.kept
        factors, count = found.factors(), 0
        for count, record in enumerate(self._records(), 1):
            if count > found.records or record.annotator not in factors:
                raise self._changed(f"record {count} was not there")
            if found.verdict(count - 1) is None:
                yield weighted(record, factors[record.annotator])
        if count < found.records:
            raise self._changed(f"{count} records instead of {found.records}")

    def _records(self) -> Iterator[Feedback]:
        return chain.from_iterable(self._feedback)

    def _changed(self, got: str) -> DataError:
        return DataError(
            self.context.where,
            f"the sources changed since they were checked: {got}",
            "the same records each time they are read",
            "leave the files alone during a run, and start it again",
        )

    def _write(self, ledger: Ledger, found: Findings) -> Path | None:
        """Every dropped record with its reason; None outside a run."""
        if self.context.directory is None or not found.dropped:
            return None
        path = Path(self.context.directory, f"quality-{self.context.id}.jsonl")
        if self.context.accelerator is None or self.context.accelerator.is_main_process:
            unfinished = path.with_suffix(".jsonl.tmp")
            with open(unfinished, "w", encoding="utf-8") as file:
                for line in _dropped_lines(ledger, found, self.config.feedback):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            unfinished.replace(path)
        return path


def weighted(record: Feedback, factor: float) -> Feedback:
    """`record` with its weight multiplied by `factor`."""
    return record if factor == 1 else record.model_copy(update={"weight": record.weight * factor})


def _dropped_lines(ledger: Ledger, found: Findings, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    columns, annotators = ledger.records, ledger.annotators
    for index in np.flatnonzero(found.codes).tolist():
        verdict, group, number = (
            found.verdicts[found.codes[index]],
            columns["group"][index],
            columns["annotator"][index],
        )
        yield {
            "where": f"feedback {names[group]!r} record {index - np.searchsorted(columns['group'], group) + 1}",
            "id": f"{int(columns['id'][index]):016x}",
            "annotator": annotators[number] if number >= 0 else None,
            "reason": verdict.reason,
            "detail": verdict.detail,
        }
