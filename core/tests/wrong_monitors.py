"""Wrong monitors. Each fails one check, and what it derives from fails none."""

from __future__ import annotations

from typing import Any

from rlhf_core.interfaces import Monitor

from .wrong_everywhere import Plain


class Long(Monitor[Plain]):
    """A monitor as it should be: the longest response so far."""

    most = 0

    def wants_samples(self, step):
        return step % 2 == 0

    def look(self, seen):
        self.most = max([self.most, *(len(sample.response) for sample in seen.samples)])
        return f"a response of {self.most} characters" if self.most > 100 else None

    def state_dict(self):
        return {"most": self.most}

    def load_state_dict(self, state):
        self.most = state["most"]


class SaysTrue(Long):
    def look(self, seen):
        return super().look(seen) is not None or None


class WantsSome(Long):
    def wants_samples(self, step):
        return step % 2


class TakesStatistics(Long):
    def look(self, seen):
        seen.stats.pop("loss", None)
        return super().look(seen)


class NeedsSamples(Long):
    def look(self, seen):
        if self.wants_samples(seen.step):
            self.most = max(self.most, *(len(sample.response) for sample in seen.samples))
        return f"a response of {self.most} characters" if self.most > 100 else None


class ForgetsSteps(Long):
    steps = 0

    def look(self, seen):
        self.steps += 1
        return f"{self.steps} steps" if self.steps > 30 else None


RIGHT: list[tuple[str, type[Any]]] = [("monitor", Long)]
MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("monitor", SaysTrue, "answers_nothing_or_words", "it answers True; expected None, or one line of text"),
    ("monitor", WantsSome, "says_whether_it_wants_samples", "wants_samples(1) is 1, then 1; expected True or False"),
    ("monitor", TakesStatistics, "leaves_its_inputs_alone", "looking changes the statistics"),
    ("monitor", NeedsSamples, "bears_a_step_without_samples", "at step 2, without samples, it raises TypeError"),
    ("monitor", ForgetsSteps, "continues_after_a_checkpoint", "it answers otherwise at step 31; expected the same"),
]
