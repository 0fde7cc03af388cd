"""The config object of a TRL trainer: what the user gave, checked, and what the stage says itself."""

from __future__ import annotations

import dataclasses
import importlib
import typing
import warnings
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from rlhf_core.errors import ConfigError, did_you_mean
from rlhf_core.interfaces import Context

from .config import GROUP, OWNED, TRLConfig

NAMES = {"rloo": "RLOO", "grpo": "GRPO", "dpo": "DPO", "kto": "KTO", "sft": "SFT"}


def trl_class(trainer: str, suffix: str) -> Any:
    """``trl.RLOOConfig`` and the like."""
    return getattr(importlib.import_module("trl"), NAMES[trainer] + suffix)


def build_arguments(config: TRLConfig, context: Context, folder: Path) -> Any:
    """The TRL config of the trainer.

    Raises:
        ConfigError: an argument that TRL does not know, of a wrong type, or that it refuses; another device.
    """
    kind = trl_class(config.trainer, "Config")
    _check(kind, config.arguments, context.where)
    values = {**_defaults(config, context), **config.arguments, **_owned(config, context, folder)}
    known = {field.name for field in dataclasses.fields(kind)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # names that TRL itself still uses
        try:
            args = kind(**{name: value for name, value in values.items() if name in known})
        except (ValueError, TypeError, ImportError, NotImplementedError) as error:
            raise refused(context.where, kind, error) from error
    ours, theirs = torch.device(context.device), args.device
    if (ours.type, ours.index or 0) != (theirs.type, theirs.index or 0):
        raise ConfigError(
            context.where,
            f"the policy is on {ours}, and TRL trains on {theirs}",
            "one device",
            "let the run see no other, with CUDA_VISIBLE_DEVICES, and set device: auto",
        )
    return args


def refused(where: str, kind: Any, error: Exception) -> ConfigError:
    """What TRL says against its arguments, as an error of ours."""
    got = f"{kind.__name__} refuses them: {' '.join(str(error).split())}"
    return ConfigError(f"{where} arguments", got, "what TRL's documentation allows")


def _check(kind: Any, arguments: dict[str, Any], where: str) -> None:
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    hints = typing.get_type_hints(kind)
    for name, value in arguments.items():
        if name not in known:
            free = [other for other in known if other not in OWNED]
            raise ConfigError(
                f"{where} arguments.{name}", f"{kind.__name__} has no such field", "one of its fields",
                did_you_mean(name, free),
            )  # fmt: skip
        try:
            TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            expected = str(hints[name]).replace("<class '", "").replace("'>", "")
            got = f"{value!r}: {error.errors()[0]['msg']}"
            raise ConfigError(f"{where} arguments.{name}", got, expected) from error


def _defaults(config: TRLConfig, context: Context) -> dict[str, Any]:
    """Where our defaults are not TRL's; `arguments` may say otherwise."""
    values: dict[str, Any] = {"dataloader_pin_memory": not context.device.startswith("cpu")}
    if "activation_checkpointing" not in config.arguments:
        values["gradient_checkpointing"] = False  # it trades time for memory, which is the user's to choose
    if config.trainer not in GROUP:
        values["max_length"] = None  # the policy's context is the limit, as in `sft`
        # KTO pairs every row with its neighbour in a training batch; measuring must not tear them apart
        values["per_device_eval_batch_size"] = config.arguments.get("per_device_train_batch_size", 8)
    return values


def _owned(config: TRLConfig, context: Context, folder: Path) -> dict[str, Any]:
    """What the stage and the run decide."""
    mixed = context.accelerator is not None and context.accelerator.mixed_precision == "bf16"
    sampling = config.sampling
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": config.steps,
        "seed": context.stream("trl") % 2**31,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": mixed,
        "fp16": False,
        "use_cpu": context.device.startswith("cpu"),
        "accelerator_config": {"use_configured_state": True},  # by default TRL would reset the run's own accelerator
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
    }
    if config.trainer in GROUP:
        values.update(
            remove_unused_columns=False,  # `index` leads back to the prompt's fields
            max_completion_length=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
        if sampling.min_new_tokens:
            given = config.arguments.get("generation_kwargs") or {}
            values["generation_kwargs"] = {**given, "min_new_tokens": sampling.min_new_tokens}
    return values
