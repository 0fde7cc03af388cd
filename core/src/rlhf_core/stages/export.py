"""Writing the policy as a plain Hugging Face model folder with a model card."""

from __future__ import annotations

import shutil
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
{loading}
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

| | |
|---|---|
| parameters | {parameters:,} |
| stages | {stages} |
| rewards | {rewards} |
| reference | {reference} |

{weights} The value head, the optimizer's state and the reward models are
not here. Trained on the feedback named in the run's `registry.yaml`; it repeats what that feedback rewards, its errors
included. Judge it on prompts of your own before anyone relies on it.
{steering}"""
WHOLE = """from transformers import AutoModelFor{head}, AutoTokenizer

model = AutoModelFor{head}.from_pretrained("path/to/this/folder")"""
ADAPTERS = """from peft import AutoPeftModelFor{head}
from transformers import AutoTokenizer

model = AutoPeftModelFor{head}.from_pretrained("path/to/this/folder")  # and the base that they were trained on"""
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

    @property
    def total(self) -> int:
        return 1

    def step(self, index: int) -> StepStats:
        """Write beside the folder, then rename: an interrupted export leaves nothing that looks whole."""
        if not self.run.accelerator.is_main_process:
            return {}
        if self.path.is_relative_to(self.run.directory):
            shutil.rmtree(self.path, ignore_errors=True)
        elif self.path.exists() and any(self.path.iterdir()):
            raise RunError(
                self.context.where,
                f"{self.path} is not empty",
                "a new or empty folder",
                "choose another path, or empty it",
            )
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        self.run.policy.export(unfinished, adapters=self.config.weights == "adapters")
        (unfinished / "README.md").write_text(self._card(), encoding="utf-8")
        if self.path.exists():
            self.path.rmdir()
        unfinished.rename(self.path)
        return {}

    def _card(self) -> str:
        run = self.run
        adapters = self.config.weights == "adapters"
        return CARD.format(
            loading=(ADAPTERS if adapters else WHOLE).format(head=run.policy.auto_head),
            weights=f"The weights are {self._weights()}.",
            name=f"{run.pipeline} ({run.policy.context.id})",
            pipeline=run.pipeline,
            seed=run.seed,
            parameters=run.policy.parameter_count,
            stages=", ".join(run.artefacts.get("stages_done", [])) or "none",
            rewards=", ".join(f"{id} x {w:g}" for id, w in run.artefacts.get("rewards", {}).items()) or "none",
            steering=STEERED.format(steering=run.policy.steering) if run.policy.steering else "",
            reference="the policy as optimize found it" if "reference" in run.artefacts else "none",
        )

    def _weights(self) -> str:
        if self.config.weights == "adapters":
            return "adapters alone: they go on the base that they were trained on"
        source = self.run.policy.exported_from
        merged = "complete: adapters, if any, are merged"
        return f"{merged} into {source}, not into the original ones" if source else merged

    def finish(self) -> dict[str, Any]:
        return {"path": str(self.path), "weights": self._weights()}
