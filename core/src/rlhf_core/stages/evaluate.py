"""Measuring the policy on prompts it was not trained on, beside the reference: before and after, prompt by prompt."""

from __future__ import annotations

import hashlib
from typing import Any

from ..errors import ConfigError
from ..interfaces import Run, Sampling, Stage, State, StepStats
from ..randomness import derive_seed
from ..rl.evaluation import Evaluation, evaluate, mean_and_error
from ..runs.directory import EVALUATIONS, write_json
from .common import build_sampler
from .config import EvaluateConfig


class Evaluate(Stage[EvaluateConfig]):
    """Every metric's mean with its standard error, and of the difference, paired by prompt and random numbers."""

    def setup(self, run: Run) -> None:
        config = self.config
        rewards = run.artefacts.get("rewards", {}) if config.rewards is None else config.rewards
        self.run = run
        self.sampling = config.sampling or Sampling(**run.artefacts.get("sampling", {}))
        self.metrics = {id: run.component("metric", id) for id in config.metrics}
        self.has_reference = "reference" in run.artefacts
        needs_reference = [id for id, metric in self.metrics.items() if metric.config.needs.reference]
        if needs_reference and not self.has_reference:
            raise ConfigError(
                f"{self.context.where} metrics",
                f"{needs_reference[0]!r} compares with a reference, and no optimize stage has fixed one",
                "an optimize stage before this one",
                f"add one, or leave out {needs_reference[0]!r}",
            )
        self.sampler = build_sampler(run, rewards, config.environment, forward_tokens=config.forward_tokens)
        source = run.component("prompts", config.prompts)
        self.prompts = [source[i] for i in range(len(source))]
        self.result: dict[str, Any] = {}

    @property
    def total(self) -> int:
        return 1

    def step(self, index: int) -> StepStats:
        seed = derive_seed(self.context.seed, "evaluate", self.context.id)
        after = evaluate(self.sampler, self.prompts, self.metrics, self.sampling, seed=seed)
        before = None
        if self.has_reference:
            before = evaluate(self.sampler, self.prompts, self.metrics, self.sampling, seed=seed, reference=True)
        self.result = {"metrics": self._table(before, after), "samples": self._samples(before, after)}
        if self.run.accelerator.is_main_process:
            self._write(after)
        return {f"evaluate/{name}": entry["after"]["mean"] for name, entry in self.result["metrics"].items()}

    def _write(self, after: Evaluation) -> None:
        """Every prompt's measurements, so that two runs can be compared prompt by prompt."""
        ids = [hashlib.sha256(prompt.render().encode()).hexdigest()[:16] for prompt in self.prompts]
        folder = self.run.directory / EVALUATIONS
        folder.mkdir(exist_ok=True)
        values = {name: [float(x) for x in values] for name, values in after.values.items()}
        write_json(folder / f"{self.context.id}.json", {"prompts": ids, "metrics": values})

    def _table(self, before: Evaluation | None, after: Evaluation) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for name, values in after.values.items():
            table[name] = {"after": mean_and_error(values), "higher_is_better": self.metrics[name].higher_is_better}
            if before is not None:
                table[name]["before"] = mean_and_error(before.values[name])
                table[name]["change"] = mean_and_error(values - before.values[name])
        return table

    def _samples(self, before: Evaluation | None, after: Evaluation) -> list[dict[str, Any]]:
        chosen = []
        for i in range(min(self.config.samples, len(self.prompts))):
            entry: dict[str, Any] = {"prompt": self.prompts[i].render()}
            for name, evaluation in (("before", before), ("after", after)):
                if evaluation is not None:
                    entry[name] = {
                        "response": evaluation.rollout.samples[i].response,
                        **{m: float(values[i]) for m, values in evaluation.values.items()},
                    }
            chosen.append(entry)
        return chosen

    def finish(self) -> dict[str, Any]:
        return self.result

    def state_dict(self) -> State:
        return {"result": self.result}

    def load_state_dict(self, state: State) -> None:
        self.result = state["result"]
