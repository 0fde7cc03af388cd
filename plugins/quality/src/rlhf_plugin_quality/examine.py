"""Quality control of records: the steps in their order, and what they found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rlhf_core.records import Feedback

from . import biases, consensus, findings, habits, reading
from .config import Thresholds
from .findings import Annotator, Findings, Share, Verdict
from .ledger import Ledger

Columns = dict[str, NDArray[Any]]


def examine(records: Iterable[Feedback], config: Thresholds, gold: Iterable[Feedback] = ()) -> Findings:
    """Look at all `records`, once, and say which to drop and how to weight the rest.

    Args:
        records: of any kinds, in the order in which they were given where they carry no time.
        config: what to look for.
        gold: records with known answers to some of the same items, whoever their annotator.
    """
    ledger = Ledger(config)
    for record in records:
        ledger.add(record)
    return judge(ledger, gold)


def judge(ledger: Ledger, gold: Iterable[Feedback] = ()) -> Findings:
    """The findings about the records of a filled `ledger`; `gold` as in `examine`."""
    inspection = _Inspection(ledger, gold)
    inspection.single_records()
    inspection.speed()
    inspection.constancy()
    inspection.gold_questions()
    inspection.disagreement()
    inspection.reliability()
    return inspection.findings()


@dataclass
class _Person:
    """What is known of one annotator so far; `verdict` once they are dropped."""

    seen: Annotator
    verdict: Verdict | None = None
    left: NDArray[Any] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class _Inspection:
    """The state between the steps: who and what is left."""

    def __init__(self, ledger: Ledger, gold: Iterable[Feedback]) -> None:
        self.ledger, self.config = ledger, ledger.config
        self.columns, self.judgements = ledger.records, ledger.judgements
        self.gold = habits.Gold(gold, self.config.gold_tolerance)
        self.alive = np.ones(len(ledger), dtype=bool)
        self.verdicts = [Verdict(findings.KEPT, "")]
        self.codes = np.zeros(len(ledger), dtype=np.uint32)
        self.notes: list[str] = []
        self.default_factor = 1.0
        counts = np.bincount(self.columns["annotator"] + 1, minlength=len(ledger.annotators) + 1)[1:]
        self.people = [
            _Person(Annotator(name, int(n), 0, True)) for name, n in zip(ledger.annotators, counts, strict=True)
        ]

    # --- records ------------------------------------------------------------------------------------------------------

    def single_records(self) -> None:
        """What is wrong with a record whoever gave it: invalid, or a duplicate of an earlier one."""
        problem = self.columns["problem"]
        if self.config.invalid == "drop":
            for code in np.unique(problem[problem > 0]).tolist():
                self._drop(np.flatnonzero(problem == code), findings.INVALID, reading.PROBLEMS[code])
        if self.config.duplicates == "drop":
            left = np.flatnonzero(self.alive)
            first = left[np.unique(self.columns["key"][left], return_index=True)[1]]
            again = np.setdiff1d(left, first, assume_unique=True)
            self._drop(again, findings.DUPLICATE, "the same answer to the same item by the same annotator")
        times = np.nan_to_num(self.columns["time"], nan=-np.inf)
        for number, index in habits.by_annotator(self.columns["annotator"], self.alive, times):
            few = len(index) < self.config.min_records
            person = self.people[number]
            person.seen, person.left = replace(person.seen, judged=len(index), few=few), index

    def _drop(self, index: NDArray[Any], reason: str, detail: str) -> Verdict:
        verdict = Verdict(reason, detail)
        self.codes[index], self.alive[index] = len(self.verdicts), False
        self.verdicts.append(verdict)
        return verdict

    # --- annotators ---------------------------------------------------------------------------------------------------

    def _drop_person(self, number: int, reason: str, detail: str) -> None:
        person = self.people[number]
        if person.verdict is None:
            person.verdict = self._drop(person.left, reason, detail)

    def _drop_unless_most(self, suspects: dict[int, str], judged: int, reason: str, note: str) -> None:
        """Drop the suspects, unless they are most of those who were judged: then it is not they who are odd."""
        if judged > 1 and len(suspects) > judged / 2:
            self.notes.append(f"{len(suspects)} of {judged} annotators {note}; none was dropped for it")
            return
        for number, detail in suspects.items():
            self._drop_person(number, reason, detail)

    def speed(self) -> None:
        """Too fast: the median time between two records of an annotator is below the floor."""
        suspects, judged, floor = {}, 0, self.config.min_seconds
        for number, person in enumerate(self.people):
            gap = habits.median_gap(self.columns["time"][person.left])
            person.seen = replace(person.seen, seconds=gap)
            if gap is not None and not person.seen.few:
                judged += 1
                if floor is not None and gap < floor:
                    suspects[number] = f"{gap:.2g} s between two records (median), floor {floor:g} s"
        self._drop_unless_most(
            suspects,
            judged,
            findings.TOO_FAST,
            f"have less than {floor or 0:g} s between two records, so times seem not to be those of the answers",
        )

    def constancy(self) -> None:
        """Constant: one answer nearly always, or many times in a row, where the crowd's habits do not explain it."""
        answers = habits.shown_answers(self.columns)
        given = [answers[person.left] for person in self.people]
        crowd = habits.Crowd(np.concatenate([np.zeros(0, dtype=np.uint64), *given]))
        shares, runs, judged = {}, {}, 0
        for number, person in enumerate(self.people):
            habit = habits.habit(given[number], crowd)
            if habit is None:
                continue
            person.seen = replace(person.seen, constant=habit.share, run=habit.run)
            if person.seen.few or habit.known < self.config.min_records:
                continue
            judged += 1
            share, run = self.config.constant_share, self.config.constant_run
            if share is not None and habit.share > share and not habit.explained_share:
                shares[number] = f"the same answer in {habit.share:.0%} of {habit.known} records"
            elif run is not None and habit.run >= run and not habit.explained_run:
                runs[number] = f"the same answer {habit.run} times in a row"
        for number, detail in shares.items():
            self._drop_person(number, findings.CONSTANT, detail)
        self._drop_unless_most(
            runs, judged, findings.CONSTANT, "give one answer many times in a row, so the records seem to be sorted"
        )

    def gold_questions(self) -> None:
        """Wrong on questions whose answer is known."""
        if not len(self.gold):
            return
        right = self.gold.right(self.judgements, self.ledger.measures, len(self.ledger))
        for number, person in enumerate(self.people):
            answered = right[person.left]
            share = Share(int((answered == 1).sum()), int((answered >= 0).sum()))
            if not share.of:
                continue
            person.seen = replace(person.seen, gold=share)
            if habits.gold_failed(share, self.config):
                low, high = share.interval
                self._drop_person(
                    number,
                    findings.GOLD,
                    f"{share.count} of {share.of} gold questions right ({low:.0%} to {high:.0%}), "
                    f"wanted {self.config.gold_accuracy:.0%}",
                )
        if (right < 0).all():
            self.notes.append("no record answers a gold question, which has the same prompt and the same responses")

    # --- the crowd ----------------------------------------------------------------------------------------------------

    def _gathered(self) -> list[consensus.Answers]:
        return consensus.gather(self.judgements, self.columns["annotator"], self.alive, self.ledger.measures)

    def disagreement(self) -> None:
        """How much higher alpha is without each annotator; where told so, the worst is dropped until nobody is left."""
        least, threshold = self.config.min_records, self.config.alpha_gain
        while True:
            left = {n for n, person in enumerate(self.people) if person.verdict is None and not person.seen.few}
            gains = consensus.alpha_gains(self._gathered(), left, least)
            for number, gain in gains.items():
                self.people[number].seen = replace(self.people[number].seen, alpha_gain=gain)
            worst = max(gains, key=lambda number: gains[number], default=None)
            if worst is None or threshold is None or gains[worst] <= threshold:
                return
            detail = f"alpha is {gains[worst]:.2f} higher without, allowed {threshold:g}"
            self._drop_person(worst, findings.DISAGREES, detail)

    def reliability(self) -> None:
        """What each annotator's records weigh."""
        if self.config.reliability == "none" or not self.people:
            return
        if self.config.reliability == "mace":
            consensus.need_crowd_kit("quality control")
        known = consensus.reliabilities(self._gathered(), self.config.reliability, self.config.min_records)
        if not known:
            least = self.config.min_records
            self.notes.append(f"no annotator shares {least} items with others, so weights stay as they are")
            return
        answers = sum(one.answers for one in known.values())
        self.default_factor = sum(one.value * one.answers for one in known.values()) / answers
        for number, one in known.items():
            seen = self.people[number].seen
            self.people[number].seen = replace(seen, accuracy=one.accuracy, reliability=one.value)

    # --- the whole ----------------------------------------------------------------------------------------------------

    def findings(self) -> Findings:
        counts = np.bincount(self.codes, minlength=len(self.verdicts)).tolist()
        dropped: Counter[str] = Counter()
        for verdict, n in list(zip(self.verdicts, counts, strict=True))[1:]:
            dropped[verdict.reason] += n
        return Findings(
            records=len(self.ledger),
            dropped={reason: n for reason, n in dropped.items() if n},
            annotators=tuple(replace(person.seen, verdict=person.verdict) for person in self.people),
            agreement=consensus.agreements(self._gathered()),
            position=biases.position_bias(self.columns, self.alive),
            length=biases.length_bias(self.columns, self.alive),
            length_score=biases.length_score(self.columns, self.alive),
            prompts=biases.prompts(self.ledger, self.columns, self.alive),
            coverage=biases.coverage(self.ledger, self.columns, self.alive),
            repeats=biases.repeats(self.columns, self.judgements, self._meant()),
            notes=tuple(self.notes),
            default_factor=self.default_factor,
            verdicts=tuple(self.verdicts),
            codes=self.codes,
        )

    def _meant(self) -> NDArray[Any]:
        """(N,) records of kept annotators with duplicates, unless the very same record stands there twice."""
        reasons = np.array([verdict.reason in (findings.KEPT, findings.DUPLICATE) for verdict in self.verdicts])
        once = np.zeros(len(self.ledger), dtype=bool)
        once[np.unique(self.columns["id"], return_index=True)[1]] = True
        out = [number for number, person in enumerate(self.people) if person.verdict is not None]
        meant: NDArray[Any] = reasons[self.codes] & once & ~np.isin(self.columns["annotator"], out)
        return meant
