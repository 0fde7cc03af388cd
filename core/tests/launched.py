"""What a test has several processes do: runs one after the other, and the gradients of every update of each."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator
from rlhf_core.api import load
from rlhf_core.errors import RLHFError
from rlhf_core.rl import on_policy
from rlhf_core.training import gradient
from rlhf_core.training.sharding import is_shared_out, whole
from safetensors.torch import save_file


def spoilt(where, answer):
    """A loss that is not a number."""
    return answer[0] * math.nan, answer[1]


def run(folder, name, overrides):
    """Run `tiny` into `folder/name`; its gradients go into `folder/name.safetensors` as UPDATE.PARAMETER, how
    many parameters are shared out into `folder/name.shared-out`, an error into `folder/name.RANK`."""
    clip, caught, updates, shared_out = gradient.clip_norm, {}, itertools.count(), []

    def watched(parameters, most, accelerator):
        update = next(updates)
        shared_out.append(sum(map(is_shared_out, parameters)))
        caught.update({f"{update}.{i}": whole(p.grad).clone() for i, p in enumerate(parameters) if p.grad is not None})
        return clip(parameters, most, accelerator)

    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    try:
        with mock.patch.object(gradient, "clip_norm", watched):
            load().run("tiny", out=folder / name, overrides=overrides)
    except (RLHFError, SystemExit) as error:
        (folder / f"{name}.{rank}").write_text(f"{type(error).__name__}: {error}")
    if rank == 0 and caught:
        save_file({key: tensor.contiguous() for key, tensor in caught.items()}, folder / f"{name}.safetensors")
        (folder / f"{name}.shared-out").write_text(str(max(shared_out)))


if __name__ == "__main__":
    # which would end the group of processes with the first run
    with mock.patch.object(Accelerator, "end_training", lambda self: None):
        for job, settings in json.loads(Path(sys.argv[2]).read_text()).items():
            checked = spoilt if job == "nan" and os.environ["RANK"] == "1" else on_policy.checked_loss
            with mock.patch.object(on_policy, "checked_loss", checked):
                run(Path(sys.argv[1]), job, settings)
