"""Building a TRL trainer around the policy's own weights."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rlhf_core.errors import NumericalError
from rlhf_core.interfaces import StepStats
from rlhf_core.policies import CausalLM, Codec
from torch import nn
from transformers import GenerationConfig, TrainerCallback

from .arguments import refused, trl_class
from .turns import Pause

logging.getLogger("trl").setLevel(logging.ERROR)  # it repeats whole responses for every one that has no score


def training_copy(lm: nn.Module, codec: Codec, role: str = "default") -> Any:
    """The modules of `lm` copied, and its very own parameters in them; of adapters only `role`'s.

    TRL replaces `forward`, switches dropout and checkpointing, adds adapters and writes into configs. All of that
    stays in the copy; what it learns is in the policy at once.
    """
    model: Any = copy.deepcopy(lm, {id(p): p for p in lm.parameters()})
    for other in set(getattr(model, "peft_config", {})) - {role}:  # those of a critic or a reward on the same base
        model.delete_adapter(other)
    # one end of text, as the policy has it: chat models often name more
    model.generation_config = GenerationConfig(eos_token_id=codec.eos, pad_token_id=codec.pad)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" in inspect.signature(plain.base_model.forward).parameters:
        plain.base_model.register_forward_pre_hook(_count_real_tokens, with_kwargs=True)
    return model


def _count_real_tokens(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Positions that do not count left padding: TRL gives none, and learnt positions (GPT-2) would be off."""
    mask = kwargs.get("attention_mask")
    fresh = kwargs.get("position_ids") is None and kwargs.get("past_key_values") is None
    if fresh and isinstance(mask, torch.Tensor) and mask.dim() == 2 and not bool(mask[:, 0].all()):
        kwargs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    return args, kwargs


def build_trainer(
    trainer: str,
    args: Any,
    policy: CausalLM,
    *,
    rows: Sequence[dict[str, Any]],
    kept_out: Sequence[dict[str, Any]] = (),
    prompt_ids: Mapping[str, list[int]] | None = None,
    reward: Any = None,
) -> Any:
    """A trainer over `rows`, whose reference is the policy's.

    Args:
        args: the trainer's TRL config. kept_out: rows that its `evaluate` measures.
        prompt_ids: token ids of each row's prompt, for trainers that sample. reward: their reward function.

    Raises:
        ConfigError: TRL refuses the arguments.
    """
    from datasets import Dataset

    model = training_copy(policy.network.lm, policy.codec, policy.network.role)
    options: dict[str, Any] = {"reward_funcs": reward} if reward is not None else {}
    if kept_out:
        options["eval_dataset"] = Dataset.from_list(list(kept_out))
    dataset = Dataset.from_list(list(rows))
    compares = trainer in ("dpo", "kto") or bool(getattr(args, "beta", 0.0))
    with _speaking_as_reference(policy, model, Path(args.output_dir) if compares else None), quiet():
        try:
            built = _ours(trainer, prompt_ids)(
                model=model,
                args=args,
                train_dataset=dataset,
                processing_class=copy.deepcopy(policy.tokenizer),
                **options,
            )
        except (ValueError, TypeError, ImportError, NotImplementedError) as error:
            raise refused(policy.context.where, type(args), error) from error
    from transformers import PrinterCallback

    built.remove_callback(PrinterCallback)
    return built


def _ours(trainer: str, prompt_ids: Mapping[str, list[int]] | None) -> Any:
    """The trainer's class, fed with the policy's own token ids, and without telemetry."""

    def tokenize_prompts(self: Any, prompts: Sequence[str]) -> Any:
        return [(prompt_ids or {})[prompt] for prompt in prompts], None, {}

    def prepare_dataset(self: Any, dataset: Any, *args: Any) -> Any:
        return dataset

    own: dict[str, Any] = {"_send_telemetry": lambda self: None}
    if prompt_ids is not None:
        own["_tokenize_prompts"] = tokenize_prompts
    elif trainer != "sft":  # SFTTrainer takes ids as they are, and may pack them
        own["_prepare_dataset"] = prepare_dataset
    base = trl_class(trainer, "Trainer")
    return type(base.__name__, (base,), own)


@contextmanager
def _speaking_as_reference(policy: CausalLM, model: Any, folder: Path | None) -> Iterator[None]:
    """While a trainer is built, where it looks for a reference there is the policy's.

    With adapters TRL copies them as it finds them into a second, frozen set. Otherwise it loads the model from where
    the config says it came from, so the reference is written into `folder` (None: it will not be asked for).
    """
    with policy.as_reference():
        if policy.config.lora is None and folder is not None:
            policy.export(folder / "reference")
            model.config._name_or_path = str(folder / "reference")
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of `datasets`, and no warnings of what will change in libraries that call each other."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Hands over after every step of a trainer, and stops it before it takes a step into nowhere."""

    def __init__(self, pause: Pause[StepStats], where: str) -> None:
        self.pause, self.where = pause, where
        self.told = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise NumericalError(
                    f"{self.where} step {state.global_step + 1}",
                    f"the gradient of {name} is not finite",
                    "a finite gradient; the weights are as they were before this step",
                    "lower arguments.learning_rate, or look at what the rewards give",
                )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if state.global_step == self.told:
            return  # the summary at the end, or an evaluation
        self.told = state.global_step
        stats = {
            f"trl/{name}": value for name, value in logs.items() if name != "step_time"
        }  # the run has its own clock
        if not self.pause({k: float(v) for k, v in stats.items() if isinstance(v, (int, float)) and math.isfinite(v)}):
            control.should_training_stop = True
