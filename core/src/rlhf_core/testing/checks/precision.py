"""Device and precision: a component works where its context says, in the precision that it says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...interfaces import Needs, Policy
from ..answers import SHORT
from ..compare import nudge
from ..kit import check_example
from ..records import example_prompts, example_samples
from ..rollouts import example_rollout
from ..subjects import Example, NotApplicable
from ..toys import example_data, tiny_context, tiny_policy


def places() -> list[dict[str, str]]:
    """Devices and dtypes to try; float32 on the CPU is where all other checks are."""
    found = [{"device": "cpu", "dtype": dtype} for dtype in ("float64", "bfloat16")]
    if torch.cuda.is_available():
        found += [{"device": "cuda", "dtype": dtype} for dtype in ("float32", "bfloat16")]
    return found


@check_example("policy", "optimizer", "reward", "metric")
def works_in_its_dtype(example: Example) -> None:
    """In float64 and bfloat16, and where there is one on a GPU, it works, stays there, and gives finite floats."""
    kind, works, refusals = example.subject.spec.kind, False, []
    for place in places():
        if kind == "optimizer" and place["dtype"] == "float64":
            continue  # the other checks of a step are in float64
        try:
            _CHECKS[kind](example, place)
        except ConfigError as error:
            refusals.append(error)
        except (RuntimeError, TypeError, ValueError) as error:
            example.fail(
                f"{type(error).__name__} {_in(place)}: {error}",
                "a component that works there, or a ConfigError that says why not",
                "make tensors with context.device and context.torch_dtype, or like those given",
            )
        else:
            works = True
    if not works:
        raise NotApplicable(f"it refuses: {refusals[0]}")


def _in(place: dict[str, str]) -> str:
    return f"in {place['dtype']} on {place['device']}"


def _check_result(example: Example, place: dict[str, str], values: Tensor, finite: Tensor) -> None:
    if not values.is_floating_point() or not bool(finite.all()):
        example.fail(f"{values.dtype}, of which {int(finite.sum())} of {len(finite)} are finite, {_in(place)}",
                     "finite floats")  # fmt: skip


def _reward(example: Example, place: dict[str, str]) -> None:
    with torch.no_grad():
        scores = example.build(**place).score(example_samples())
    silent = torch.zeros_like(scores.values, dtype=torch.bool) if scores.abstained is None else scores.abstained
    _check_result(example, place, scores.values, scores.values.isfinite() | silent.to(scores.values.device))


def _metric(example: Example, place: dict[str, str]) -> None:
    values = example.build(**place).measure(example_rollout().to(place["device"]))
    _check_result(example, place, values, ~values.isinf())


def _policy(example: Example, place: dict[str, str]) -> None:
    policy: Policy[Any] = example.build(**place)
    _check_parameters(example, policy.module, place)
    rollout = policy.generate(example_prompts()[:2], SHORT, seed=1)
    logprobs = policy.forward(rollout, Needs()).logprobs[rollout.attention]
    _check_result(example, place, logprobs, logprobs.isfinite())
    if logprobs.device.type != place["device"]:
        example.fail(f"log-probabilities on {logprobs.device} {_in(place)}", "results where the policy lives")
    torch.autograd.backward(logprobs.sum())
    for name, p in policy.module.named_parameters():
        if p.grad is not None and not bool(p.grad.isfinite().all()):
            example.fail(f"the gradient of {name} is not finite {_in(place)}", "finite gradients")


def _check_parameters(example: Example, module: nn.Module, place: dict[str, str]) -> None:
    """They are where the context says, and as it says; what is trained may be in float32 instead of bfloat16."""
    parameters = dict(module.named_parameters())
    quantised = any(not p.is_floating_point() for p in parameters.values())  # says itself in what it computes
    for name, p in parameters.items():
        allowed = [f"torch.{place['dtype']}"]
        if p.requires_grad and place["dtype"] == "bfloat16":
            allowed.append("torch.float32")
        if p.device.type != place["device"] or not (quantised or str(p.dtype) in allowed):
            example.fail(
                f"{name} is {p.dtype} on {p.device} {_in(place)}",
                "parameters of the dtype and on the device of the context",
                "load with dtype=context.torch_dtype, and move to context.device",
            )


def _optimizer(example: Example, place: dict[str, str]) -> None:
    policy = tiny_policy(tiny_context("policy", **place))
    nudge(policy.module)
    policy.set_reference("stage-start")
    optimizer = example.build(**place)
    optimizer.bind(policy, 1)
    data = example_data(policy, optimizer.config.needs, max_new_tokens=3)
    data.begin(0)
    before = _kept(policy.module)
    optimizer.step(data)
    if _kept(policy.module) != before:
        example.fail(
            f"a step changes the dtype or device of parameters {_in(place)}",
            "parameters as they were",
            "update weights in place: p.copy_(...), not p.data = ...",
        )
    if not all(bool(p.isfinite().all()) for p in policy.module.parameters()):
        example.fail(f"weights that are not finite after a step {_in(place)}", "finite weights", "guard the division")


def _kept(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    return {name: (p.dtype, p.device) for name, p in module.named_parameters()}


_CHECKS = {"policy": _policy, "optimizer": _optimizer, "reward": _reward, "metric": _metric}
