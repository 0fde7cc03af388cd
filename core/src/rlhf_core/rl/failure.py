"""A batch whose loss was not finite: written into the run directory, so that it can be looked at and computed again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import NumericalError, RunError
from ..interfaces import Context, Policy, State
from ..records import Prompt, Rollout, Sample
from ..runs import checkpoint

FOLDER = "failures"


def refusal(
    context: Context,
    policy: Policy[Any],
    rollout: Rollout,
    prepared: Mapping[str, Tensor],
    what: str,
    step: int,
    update: State | None = None,
) -> NumericalError:
    """The error to raise instead of an update; what it needs to be understood is written to ``failures/`` first.

    Args:
        context: of the optimizer. rollout, prepared: the batch, with what the optimizer made of it.
        what: what was not finite, such as "loss nan". step: of the stage, from 0.
        update: what else the loss depends on, for who computes it again; `scores`: the least and greatest of the step.
    """
    update = update or {}
    span = " (this step's scores: {:.4g} to {:.4g})".format(*update["scores"]) if "scores" in update else ""
    kept = "no weight was changed by it; the last checkpoint is whole"
    fix = f"lower learning_rate, or look for extreme rewards{span}; {kept}"
    if context.directory is not None:
        rank = context.accelerator.process_index if context.accelerator else 0
        folder = context.directory / FOLDER / f"step-{step + 1:06d}{f'-{rank}' if rank else ''}"
        state = _state(context, policy, rollout, prepared, what)
        checkpoint.save(folder, {**state, "update": update})
        fix = f"see which samples did it with `rlhf replay {folder}`; then {fix}"
    return NumericalError(context.where, f"{what} at step {step + 1}", "finite numbers", fix)


def of_all(mine: NumericalError | None, context: Context) -> NumericalError:
    """The first error that a process has, in all of them alike; every process asks at the same time."""
    told = [None if mine is None else (mine.got, mine.fix)]
    if context.accelerator is not None and context.accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        told = gather_object(told)
    got, fix = next((words for words in told if words is not None), ("a sum that is not finite", ""))
    return NumericalError(context.where, got, "finite numbers", fix)


def _state(context: Context, policy: Policy[Any], rollout: Rollout, prepared: Mapping[str, Tensor], what: str) -> State:
    samples = [
        {"prompt": sample.prompt.model_dump(mode="json"), "response": sample.response} for sample in rollout.samples
    ]
    return {
        "optimizer": context.id,
        "what": what,
        "policy": policy.state_dict(),
        "samples": samples,
        "temperature": rollout.temperature,
        "rollout": rollout.tensors(),
        "prepared": dict(prepared),
    }


class FailedBatch:
    """What `refusal` wrote.

    Raises:
        RunError: there is nothing of the kind in `folder`.
    """

    def __init__(self, folder: Path) -> None:
        state = checkpoint.load(folder)
        if "rollout" not in state:
            raise RunError(str(folder), "holds no batch", f"a folder under {FOLDER}/ of a run directory")
        self.optimizer, self.what = str(state["optimizer"]), str(state["what"])
        self.policy: State = state["policy"]
        self.update: State = state["update"]
        self.prepared: dict[str, Tensor] = state["prepared"]
        samples = [
            Sample(
                Prompt.model_validate(sample["prompt"]),
                sample["response"],
                tuple(state["rollout"]["response_ids"][row][state["rollout"]["attention"][row]].tolist()),
            )
            for row, sample in enumerate(state["samples"])
        ]
        self.rollout = Rollout(samples=tuple(samples), temperature=state["temperature"], **state["rollout"])

    def not_finite(self, row: int) -> list[str]:
        """The entries of sample `row` that hold a number that is not finite where its mask allows one."""
        mask = self.rollout.mask
        found = []
        for name, tensor in {**self.rollout.tensors(), **self.prepared}.items():
            entry = tensor[row]
            if entry.is_floating_point():
                if tensor.shape[:2] == mask.shape:
                    entry = entry[mask[row]]
                if not bool(torch.isfinite(entry).all()):
                    found.append(name)
        return found
