"""Writing the policy as a plain Hugging Face model folder with a model card."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..interfaces import Run, Stage, StepStats
from ..terminal import plain
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


def as_text(text: str) -> str:
    """`text` as Markdown shows it, on one line: neither markup nor HTML, and no link."""
    escaped = html.escape(" ".join(plain(text).split()), quote=False)
    return re.sub(r"[\\`*_{}\[\]!|~@]|:(?=//)", lambda found: f"&#{ord(found[0])};", escaped)


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
        self.run.policy.gather()
        if not self.run.accelerator.is_main_process:
            return {}
        if self.path.is_relative_to(self.run.directory) or self._mine.is_file():
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
        self._mine.touch()
        unfinished.rename(self.path)
        return {}

    @property
    def _mine(self) -> Path:
        """There once the folder is this run's."""
        return self.run.directory / f".{self.context.id}.exported"

    def _card(self) -> str:
        run = self.run
        adapters = self.config.weights == "adapters"
        rewards = [f"{as_text(id)} x {w:g}" for id, w in run.artefacts.get("rewards", {}).items()]
        return CARD.format(
            loading=(ADAPTERS if adapters else WHOLE).format(head=run.policy.auto_head),
            weights=f"The weights are {self._weights()}.",
            name=as_text(f"{run.pipeline} ({run.policy.context.id})"),
            pipeline=re.sub(r"[`\s]+", " ", plain(run.pipeline)),  # in a code span nothing else means anything
            seed=run.seed,
            parameters=run.policy.parameter_count,
            stages=as_text(", ".join(run.artefacts.get("stages_done", []))) or "none",
            rewards=", ".join(rewards) or "none",
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
