"""Stages, and what they may use of the run they are in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .components import Component, Policy, StepStats
from .config import Config

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

    from ..records import Sample
    from .context import Context

C = TypeVar("C", bound=Config)


class Run(Protocol):
    """What a stage and a listener may use of the run they are in."""

    pipeline: str
    directory: Path
    seed: int
    dry_run: bool
    context: Context
    accelerator: Accelerator
    artefacts: dict[str, Any]
    """JSON values handed on from stage to stage, such as the reference's folder and the rewards in use."""

    @property
    def policy(self) -> Policy[Any]: ...

    def component(self, kind: str, id: str) -> Any: ...

    def warn(self, message: str) -> None:
        """Show `message` once, and put it into the report."""

    def keep(self, component: Component[Any]) -> None:
        """Write the component's state into the run directory for good: what `load:` reads."""


class Stage(Component[C]):
    """One stage of a pipeline. The runner loops, logs, checkpoints and evaluates; the stage does the steps."""

    @abstractmethod
    def setup(self, run: Run) -> None:
        """Build what is needed; the stage's `state_dict` is loaded after this on resume."""

    @property
    @abstractmethod
    def total(self) -> int:
        """How many steps there are, known after `setup`."""

    @abstractmethod
    def step(self, index: int) -> StepStats:
        """Do step `index`, from 0."""

    def evaluate(self) -> StepStats:
        """Metrics during the stage, where its config says `evaluate_every`."""
        return {}

    def shown(self) -> tuple[Sequence[Sample], Sequence[float]]:
        """What the policy answered in the last step, with its scores before shaping: what monitors are shown."""
        return (), ()

    def components(self) -> dict[str, Component[Any]]:
        """The components whose state changes during the stage, by checkpoint key."""
        return {}

    def trained(self) -> Component[Any] | None:
        """The component whose weights `best` keeps; None: the policy."""
        return None

    def finish(self) -> dict[str, Any]:
        """What the stage leaves for later stages and for summary.json: JSON values."""
        return {}
