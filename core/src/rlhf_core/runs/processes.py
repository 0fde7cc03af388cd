"""The processes of a run: one, or several by `torchrun` or `accelerate launch`."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, PluginError, RLHFError, RunError
from ..registry import PipelineSettings, ResolvedPipeline

if TYPE_CHECKING:
    from accelerate import Accelerator


def start(resolved: ResolvedPipeline) -> Accelerator:
    """The accelerator that the pipeline's settings ask for; over several processes they meet here.

    Raises:
        ConfigError, PluginError: a tracker is unknown, or its library is not installed.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    settings = resolved.settings
    trackers = [_known_tracker(name, resolved.name) for name in settings.trackers]
    # without an accelerator several processes only find each other if told that they are on CPUs
    lonely = settings.device == "auto" and not torch.accelerator.is_available() and "RANK" in os.environ
    AcceleratorState._reset_state()  # a second run in one process may want another precision
    on_cpu = settings.device == "cpu" or lonely
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if _in_bf16(settings, on_cpu) else "no",
        log_with=trackers or None,
        project_dir="." if trackers else None,  # moved into the run directory once there is one
    )


def _in_bf16(settings: PipelineSettings, on_cpu: bool) -> bool:
    """Whether products are in bfloat16; by default only over float32 parameters, others keep to what they are."""
    import torch

    if settings.precision != "auto":
        return settings.precision == "bf16"
    if settings.dtype != "float32":
        return False
    if on_cpu or not torch.accelerator.is_available():
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def agree(accelerator: Accelerator, choose: Callable[[], Path]) -> Path:
    """The directory that the main process chooses, or its error, in every process.

    Raises:
        RLHFError: what `choose` raised, in all processes alike.
    """
    if accelerator.num_processes == 1:
        return choose()
    from accelerate.utils import broadcast_object_list

    answer: list[str | None] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = str(choose())
        except RLHFError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        where, _, what = answer[1].partition(": ")
        raise RunError(where, what)
    return Path(str(answer[0]))


@contextmanager
def together(accelerator: Accelerator, directory: Path, resume: str) -> Iterator[None]:
    """Inside, what goes wrong in one process or in all of them is told once, and ends them all.

    Args:
        resume: the command to go on with.

    Raises:
        RunError: another process has died, so that this one waits for it in vain.
        SystemExit: somebody has told it already.
    """
    if accelerator.num_processes == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        lost = isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of the launcher, which ends us all: first this is told
        if not _first(directory) and (lost or isinstance(error, RLHFError)):
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        if not lost:
            raise
        rank, size = accelerator.process_index, accelerator.num_processes
        raise RunError(
            f"run {directory}",
            f"process {rank} of {size} waited in vain for another one, which has died",
            f"{size} processes that are alive",
            "look for what that one said; one that is killed without a word was mostly out of memory. Go on with this, "
            f"launched as before: {resume}",
        ) from error


LOST = "gloo", "NCCL", "Connection closed by peer", "Connection reset by peer"  # in what a broken connection says


def _first(directory: Path) -> bool:
    """Whether no other process of the run has had an error yet; the launcher counts, which outlives each of them."""
    from torch.distributed.distributed_c10d import _get_default_store

    try:
        return int(_get_default_store().add(f"rlhf_core/errors/{directory}", 1)) == 1
    except RuntimeError:  # nobody is there to count any more: better twice than never
        return True


def _known_tracker(name: str, pipeline: str) -> str:
    """`name`, if accelerate knows it and its library is installed.

    Raises:
        ConfigError, PluginError: it is not.
    """

    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    known = {str(getattr(kind, "value", kind)) for kind in LOGGER_TYPE_TO_CLASS}
    if name not in known:
        raise ConfigError(f"pipeline {pipeline!r} trackers", repr(name), f"one of {', '.join(sorted(known))}")
    module = {"comet_ml": "comet_ml"}.get(name, name)
    if importlib.util.find_spec(module) is None:
        raise PluginError(f"pipeline {pipeline!r} trackers", f"{name!r} is not installed", fix=f"pip install {name}")
    return name
