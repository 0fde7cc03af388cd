"""Samples of a policy: drawn, gathered from all processes, and written into a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_core.errors import ConfigError
from rlhf_core.records import Prompt, Sample
from rlhf_core.training import share

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .reward import IRLReward

T = TypeVar("T")

ROWS = 128
"""Samples drawn at a time."""


def draw(reward: IRLReward, prompts: Sequence[Prompt]) -> list[str]:
    """One response to each prompt of the policy that `samples_from` names, drawn by all processes together.

    Raises:
        ConfigError: it names none.
    """
    config, context = reward.config, reward.context
    if config.samples_from is None:
        raise ConfigError(
            context.where,
            "no policy to draw samples from in its fit-reward stage",
            "`samples_from`: the policy that will be optimised",
            "name it, or leave out the stage",
        )
    policy = context.component("policy", config.samples_from)
    seed = context.stream("samples")
    mine = share(len(prompts), context.accelerator)
    texts: list[str] = []
    for start in range(0, len(mine), ROWS):
        rows = mine[start : start + ROWS]
        rollout = policy.generate([prompts[i] for i in rows], config.sampling, seed=seed, sample_ids=list(rows))
        texts += [sample.response for sample in rollout.samples]
    return of_all(texts, context.accelerator)


def of_all(mine: list[T], accelerator: Accelerator | None) -> list[T]:
    """The lists of all processes as one, in order of rank."""
    if accelerator is None or accelerator.num_processes == 1:
        return mine
    from accelerate.utils import gather_object

    whole: list[T] = gather_object(mine)
    return whole


@dataclass(frozen=True)
class Drawn:
    """A sample, and log pi - log pi_ref of it when it was drawn (0 where nobody asks)."""

    sample: Sample
    log_ratio: float = 0.0


def bare(sample: Sample) -> Sample:
    """Only what is scored: the texts."""
    return Sample(Prompt(text=sample.prompt.text), sample.response)


def written(sample: Sample) -> list[Any]:
    """A bare sample as JSON."""
    return [sample.prompt.model_dump(mode="json")["text"], sample.response]


def read(text: Any, response: str) -> Sample:
    """What `written` wrote."""
    return Sample(Prompt(text=text), response)
