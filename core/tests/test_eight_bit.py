"""AdamW with moments in 8 bits and with moments that can be paged out: by config, and through checkpoints."""

from __future__ import annotations

import importlib
import logging
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_core import importing
from rlhf_core.errors import ConfigError
from rlhf_core.importing import bitsandbytes
from rlhf_core.interfaces import Context, OptimizerSettings
from rlhf_core.runs import checkpoint
from rlhf_core.training import GradientSteps
from torch import nn

KINDS = ["full", "8bit", "paged", "paged-8bit"]
LARGE, SMALL = 4096, 64
"""The first size that is kept in 8 bits, and one that is not."""


class Fit:
    """A linear map from 64 inputs to 64 outputs with a bias, fitted to another one by full-batch gradients."""

    def __init__(self, kind: str = "full", dtype: torch.dtype = torch.float32, **settings: Any) -> None:
        drawn = torch.Generator().manual_seed(0)
        self.x = torch.randn(256, 64, generator=drawn)
        truth = torch.randn(64, 64, generator=drawn) / 8
        self.y = self.x @ truth.T + 0.5
        self.weight = nn.Parameter((torch.randn(64, 64, generator=drawn) / 8).to(dtype))
        self.bias = nn.Parameter(torch.zeros(64, dtype=dtype))
        self.warnings: list[str] = []
        context = Context(kind="optimizer", id="ours", warn=self.warnings.append)
        options = {"learning_rate": 3e-3, "max_grad_norm": 1e9, **settings}
        rates = options.pop("rates", None)
        self.steps = GradientSteps(
            [self.weight, self.bias],
            OptimizerSettings(adamw=kind, **options),
            total=10,
            context=context,
            rates=[([self.bias], rates)] if rates is not None else (),
        )

    def loss(self) -> torch.Tensor:
        return (self.x @ self.weight.float().T + self.bias.float() - self.y).square().mean()

    def step(self, count: int = 1) -> float:
        loss = self.loss()
        for _ in range(count):
            loss = self.loss()
            loss.backward()
            self.steps.step()
        return float(loss.detach())

    @property
    def weights(self) -> list[torch.Tensor]:
        return [self.weight.detach(), self.bias.detach()]


def moments(fit: Fit, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """What is kept for one parameter alone."""
    state = fit.steps.optimizer.state[parameter]
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and "qmap" not in k and k != "step"}


def size(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_eight_bits_take_a_quarter() -> None:
    full, eight = Fit("full"), Fit("8bit")
    for fit in (full, eight):
        fit.step()
        assert fit.weight.numel() == LARGE and fit.bias.numel() == SMALL
    assert size([*moments(full, full.weight).values()]) == 8 * LARGE
    # a byte for each of two moments, and for each block of 256 of either a scale of 4 bytes
    assert size([*moments(eight, eight.weight).values()]) == 2 * LARGE + 2 * 4 * LARGE // 256
    assert {name for name, t in moments(eight, eight.weight).items() if t.dtype == torch.uint8} == {"state1", "state2"}
    assert size([*moments(eight, eight.bias).values()]) == 8 * SMALL  # too small to be worth it


def test_paged_ones_are_in_32_bits_whatever_the_weights_are_in() -> None:
    fit = Fit("paged", dtype=torch.bfloat16)
    fit.step()
    assert {t.dtype for t in moments(fit, fit.weight).values()} == {torch.float32}


def test_without_a_gpu_there_is_nothing_to_page_and_one_warning(recwarn: pytest.WarningsRecorder) -> None:
    for kind in ("paged", "paged-8bit"):
        fit = Fit(kind)
        fit.step(3)
        assert fit.warnings == [
            f"optimizer 'ours' adamw: {kind}: on a CPU the moments are in main memory as it is; nothing is paged"
        ]
    assert [str(w.message) for w in recwarn] == []
    assert Fit("8bit").warnings == Fit("full").warnings == []


# --- what is learnt ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_first_step_is_adamw_s(kind: str) -> None:
    full, other = Fit("full"), Fit(kind)
    before = full.weight.detach().clone()
    for fit in (full, other):
        fit.step()
    moved = full.weight.detach() - before
    assert float(moved.abs().median()) == pytest.approx(3e-3, rel=1e-4)  # as far as the rate says
    for ours, theirs in zip(full.weights, other.weights, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_it_learns_as_adamw_does(kind: str) -> None:
    full, other = Fit("full"), Fit(kind)
    before = float(full.loss().detach())
    ours, theirs = full.step(60), other.step(60)
    assert ours < 0.2 * before
    assert theirs == pytest.approx(ours, rel=0.05)
    assert (theirs == pytest.approx(ours, rel=1e-4)) == (kind == "paged")  # 8 bits are felt


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_is_decoupled(kind: str) -> None:
    """Without a gradient to speak of only the decay is left: every step takes rate x decay of each weight."""
    fit = Fit(kind, weight_decay=0.5, learning_rate=0.1)
    start = fit.weight.detach().clone()
    for _ in range(2):
        (0.0 * fit.weight.sum() + 0.0 * fit.bias.sum()).backward()
        fit.steps.step()
    torch.testing.assert_close(fit.weight.detach(), start * 0.95**2)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_and_schedules_set_the_rate_of_every_step(kind: str) -> None:
    """The first steps of Adam on one and the same gradient are as long as the rate."""
    fit = Fit(kind, learning_rate={"schedule": "linear", "start": 0.1}, rates=1e-3)
    for step in range(3):
        before = [w.clone() for w in fit.weights]
        (fit.weight.sum() + fit.bias.sum()).backward()
        stats = fit.steps.step()
        assert stats["learning_rate"] == pytest.approx(0.1 * (1 - step / 10))
        for old, new, rate in zip(before, fit.weights, (0.1 * (1 - step / 10), 1e-3), strict=True):
            torch.testing.assert_close(old - new, torch.full_like(old, rate), rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_for_a_step_stays(kind: str) -> None:
    fit = Fit(kind)
    before = fit.weight.detach().clone()
    fit.loss().backward()
    fit.steps.step(frozen=[fit.weight])
    assert torch.equal(fit.weight.detach(), before) and bool(fit.bias.detach().any())


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_run_has_the_same_bits(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    whole, first, second = Fit(kind, dtype), Fit(kind, dtype), Fit(kind, dtype)
    whole.step(5)
    first.step(3)
    checkpoint.save(tmp_path / "saved", {"steps": first.steps.state_dict(), "weights": first.weights})
    saved = checkpoint.load(tmp_path / "saved")
    second.step()  # what it was before does not matter
    with torch.no_grad():
        for own, then in zip((second.weight, second.bias), saved["weights"], strict=True):
            own.copy_(then)
    second.steps.load_state_dict(saved["steps"])
    for parameter, other in ((first.weight, second.weight), (first.bias, second.bias)):
        kept = moments(second, other)
        for name, tensor in moments(first, parameter).items():
            assert kept[name].dtype == tensor.dtype and torch.equal(kept[name], tensor), name
    second.step(2)
    assert second.steps.taken == 5
    for a, b in zip(whole.weights, second.weights, strict=True):
        assert torch.equal(a, b)


def test_what_eight_bits_stand_for_is_part_of_the_checkpoint() -> None:
    old, new = Fit("8bit"), Fit("8bit")
    old.step()
    state = old.steps.state_dict()
    assert {name: t.shape for name, t in state["maps"].items()} == {"dynamic": (256,), "udynamic": (256,)}
    state["maps"] = {name: t / 2 for name, t in state["maps"].items()}  # as another version might have them
    new.steps.load_state_dict(state)
    kept = new.steps.optimizer.state[new.weight]
    assert torch.equal(kept["qmap1"], state["maps"]["dynamic"]) and torch.equal(
        kept["qmap2"], state["maps"]["udynamic"]
    )


def test_moments_are_kept_one_way_throughout_a_run() -> None:
    words = r"optimizer 'ours' checkpoint: moments that were kept another way; expected those of the same `adamw`"
    for saved, wanted in (("full", "8bit"), ("8bit", "full"), ("8bit", "paged"), ("paged", "paged-8bit")):
        old, new = Fit(saved), Fit(wanted)
        old.step()
        with pytest.raises(ConfigError, match=words):
            new.steps.load_state_dict(old.steps.state_dict())
    old, new = Fit("8bit"), Fit("paged-8bit")  # the same moments: where they lie is the machine's affair
    old.step()
    new.steps.load_state_dict(old.steps.state_dict())


# --- bad input --------------------------------------------------------------------------------------------------------


def test_float64_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"optimizer 'ours' adamw: weights in float64, and .* float32; .* set it to full"
    ):
        Fit("8bit", dtype=torch.float64)


def test_a_device_that_cannot_do_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise NotImplementedError("no kernel for this device\nand a long tail")

    monkeypatch.setattr(bitsandbytes("test").optim.AdamW8bit, "step", refuse)
    with pytest.raises(
        ConfigError, match="cannot update float32 weights on cpu: NotImplementedError: no kernel for this d"
    ) as error:
        Fit("8bit")
    assert "tail" not in str(error.value)


def test_without_the_library_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert Fit("full").step() > 0
    with pytest.raises(ConfigError, match=r"^optimizer 'ours' adamw: bitsandbytes is not installed; expected the library .*; "
                                          r"pip install rlhf-plugin-qlora$"):  # fmt: skip
        Fit("8bit")


def test_a_library_that_breaks_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> types.ModuleType:
        raise OSError("libcudart.so.12: cannot open shared object file\nand a long tail")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(
        ConfigError, match=r"cannot be used here: OSError: libcudart.so.12: cannot open shared object file; "
    ):
        bitsandbytes("policy 'lm' quantization")


def test_a_library_without_its_native_half_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    bitsandbytes("test")
    extension = importlib.import_module("bitsandbytes.cextension")
    stub = extension.ErrorHandlerMockBNBNativeLibrary("no binary for CUDA 99.9")
    monkeypatch.setattr(extension, "lib", stub)
    assert bitsandbytes("test").__name__ == "bitsandbytes"  # a CPU does without
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(
        ConfigError, match=r"cannot be used here: no binary for CUDA 99\.9; .*; pip install -U bitsandbytes"
    ):
        bitsandbytes("test")


def test_the_import_is_quiet_and_leaves_the_logger_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = bitsandbytes("test")
    real = importlib.import_module

    def noisy(name: str) -> types.ModuleType:
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("a kernel could not be downloaded")
        return real(name)

    monkeypatch.setattr(importing.importlib, "import_module", noisy)
    logger = logging.getLogger("bitsandbytes")
    logger.setLevel(logging.INFO)
    try:
        assert bitsandbytes("test") is library
        assert caplog.records == [] and logger.level == logging.INFO
    finally:
        logger.setLevel(logging.NOTSET)
