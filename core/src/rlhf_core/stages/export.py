"""Writing the policy as a plain Hugging Face model folder with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import RunError
from ..interfaces import Run, Stage, StepStats
from .config import ExportConfig

CARD = """---
library_name: transformers
tags: [rlhf, rlhf-core]
---

# {name}

A language model trained with [rlhf-core](https://pypi.org/project/rlhf-core/): pipeline `{pipeline}`, seed {seed}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

| | |
|---|---|
| parameters | {parameters:,} |
| stages | {stages} |
| rewards | {rewards} |
| reference | {reference} |

The weights are complete: adapters, if any, are merged. The value head, the optimizer's state and the reward models are
not here. Trained on the feedback named in the run's `registry.yaml`; it repeats what that feedback rewards, its errors
included. Judge it on prompts of your own before anyone relies on it.
{steering}"""
STEERED = """
Decoding was steered by action values ({steering:g} x Q). They are not in this folder: the figures of the run are those
of the steered policy, and this model answers without it.
"""


class Export(Stage[ExportConfig]):
    """One step: write the folder."""

    def setup(self, run: Run) -> None:
        self.run = run
        elsewhere = self.config.path if not run.dry_run else None
        self.path = Path(elsewhere) if elsewhere else run.directory / "export"
        if elsewhere and self.path.exists() and any(self.path.iterdir()):
            raise RunError(
                self.context.where,
                f"{self.path} is not empty",
                "a new or empty folder",
                "choose another path, or empty it",
            )

    @property
    def total(self) -> int:
        return 1

    def step(self, index: int) -> StepStats:
        if self.run.accelerator.is_main_process:
            self.run.policy.export(self.path)
            (self.path / "README.md").write_text(self._card(), encoding="utf-8")
        return {}

    def _card(self) -> str:
        run = self.run
        return CARD.format(
            name=f"{run.pipeline} ({run.policy.context.id})",
            pipeline=run.pipeline,
            seed=run.seed,
            parameters=run.policy.parameter_count,
            stages=", ".join(run.artefacts.get("stages_done", [])) or "none",
            rewards=", ".join(f"{id} x {w:g}" for id, w in run.artefacts.get("rewards", {}).items()) or "none",
            steering=STEERED.format(steering=run.policy.steering) if run.policy.steering else "",
            reference="the policy as optimize found it" if "reference" in run.artefacts else "none",
        )

    def finish(self) -> dict[str, Any]:
        return {"path": str(self.path)}
