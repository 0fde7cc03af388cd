"""The distribution, and what holds for all shapers."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.interfaces import RewardShaper, Schedule
from rlhf_core.runs import checkpoint
from rlhf_plugin_shaping import rlhf_components
from rlhf_plugin_shaping.config import (
    ClipConfig,
    DiscountConfig,
    LengthPenaltyConfig,
    MissingEOSConfig,
    OverlongConfig,
    PotentialConfig,
    PromptBaselineConfig,
    RepetitionPenaltyConfig,
    ScaleConfig,
    SpreadConfig,
    SuccessBonusConfig,
    WhitenConfig,
)
from rlhf_plugin_shaping.lengths import LengthPenalty, Overlong
from rlhf_plugin_shaping.scores import SuccessBonus
from rlhf_plugin_shaping.tokens import RepetitionPenalty
from ruamel.yaml import YAML

from .toys import ALL, build, every_shaper, make_rollout, scores

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_import_are_light() -> None:
    (point,) = entry_points(group="rlhf", name="shaping")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize("spec", rlhf_components(), ids=lambda spec: spec.name)
def test_specs_resolve_and_the_readme_knows_them(spec: Any) -> None:
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert issubclass(factory, RewardShaper)
    assert factory.Config is config
    assert factory in [cls for cls, _ in ALL]
    assert f"| `{spec.name}` | {factory.level} |" in README
    section = README.split(f"\n## {spec.name}\n")[1].split("\n## ")[0]
    for name, field in config.model_fields.items():
        assert field.description
        assert f"| `{name}` |" in section
    shaper = build(factory, **next(options for cls, options in ALL if cls is factory))
    rewards = torch.zeros((1, 2) if factory.level == "token" else (1,))
    for name in shaper.shape(rewards, make_rollout([2]))[1]:
        assert f"`{name}`" in section


def test_the_example_of_the_readme_is_valid() -> None:
    example = YAML(typ="safe").load(StringIO(README.split("```yaml\n")[1].split("```")[0]))
    configs = {spec.name: spec.config for spec in rlhf_components()}
    used = {entry["use"]: entry.get("config", {}) for entry in example["components"]["shaper"].values()}
    assert used.keys() == configs.keys()
    for name, config in used.items():
        module, cls = configs[name].split(":")
        getattr(import_module(module), cls)(**config)


# --- what holds for all ----------------------------------------------------------------------------------------------


@every_shaper
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_contract(cls: type[RewardShaper[Any]], config: dict[str, Any], dtype: torch.dtype) -> None:
    rollout = make_rollout([3, 1, 4, 2], truncated=[2, 3], abstained=[3])
    rewards = torch.tensor([1.0, -2.0, 3.0, 0.0], dtype=dtype)
    if cls.level == "token":
        rewards = rewards[:, None] * rollout.mask * torch.tensor([1, 2, 3, 4])
    before = rewards.clone()
    shaped, stats = build(cls, **config).shape(rewards, rollout)
    assert torch.equal(rewards, before)
    assert (shaped.dtype, shaped.shape) == (dtype, rewards.shape)
    assert not torch.equal(shaped, rewards)
    assert torch.isfinite(shaped).all()
    assert not shaped[3].any(), "abstained stays 0"
    if cls.level == "token":
        assert not shaped[~rollout.mask].any()
    assert stats
    assert all(name.startswith("shaping/") and type(value) is float for name, value in stats.items())


@every_shaper
def test_abstained_samples_change_nothing_for_the_others(cls: type[RewardShaper[Any]], config: dict[str, Any]) -> None:
    rewards = scores(1, -2, 3)
    with_abstained = scores(0, 1, -2, 3)
    if cls.level == "token":
        rewards, with_abstained = rewards[:, None], with_abstained[:, None]
    alone, stats = build(cls, **config).shape(rewards, make_rollout([1, 1, 1], truncated=[1]))
    rollout = make_rollout([1, 1, 1, 1], truncated=[0, 2], abstained=[0])
    beside, stats_beside = build(cls, **config).shape(with_abstained, rollout)
    assert torch.equal(beside[1:], alone)
    assert stats_beside == stats


@every_shaper
def test_junk_where_nothing_counts_changes_nothing(cls: type[RewardShaper[Any]], config: dict[str, Any]) -> None:
    """Of abstained samples, and for token shapers outside the mask."""
    rollout = make_rollout([3, 1, 4, 2], truncated=[2, 3], abstained=[3])
    rewards, live = torch.tensor([1.0, -2.0, 3.0, 0.0]), rollout.mask.any(1)
    if cls.level == "token":
        rewards, live = rewards[:, None] * rollout.mask, rollout.mask
    clean, stats = build(cls, **config).shape(rewards, rollout)
    for junk in (1e6, float("nan")):
        shaped, stats_with_junk = build(cls, **config).shape(rewards.where(live, junk), rollout)
        assert torch.equal(shaped, clean)
        assert stats_with_junk == stats


@every_shaper
def test_a_batch_in_which_all_abstain_is_left_at_0(cls: type[RewardShaper[Any]], config: dict[str, Any]) -> None:
    rollout = make_rollout([2, 2], truncated=[0], abstained=[0, 1])
    rewards = torch.zeros((2, 2) if cls.level == "token" else (2,))
    shaped, stats = build(cls, **config).shape(rewards, rollout)
    assert torch.equal(shaped, rewards)
    assert all(map(math.isfinite, stats.values()))


def batches(cls: type[RewardShaper[Any]], count: int) -> list[Any]:
    """Random rewards of six ragged samples each, with their rollouts; prompts come again."""
    noise = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        lengths = torch.randint(1, 7, (6,), generator=noise).tolist()
        prompts = [f"prompt {i}" for i in torch.randint(4, (6,), generator=noise).tolist()]
        rollout = make_rollout(lengths, truncated=[2], abstained=[4], prompts=prompts)
        ids = torch.randint(2, rollout.mask.shape, generator=noise)
        shape = tuple(rollout.mask.shape) if cls.level == "token" else (6,)
        live = rollout.mask if cls.level == "token" else rollout.mask.any(1)
        made.append((torch.randn(shape, generator=noise) * live, rollout.replace(response_ids=ids)))
    return made


@every_shaper
def test_the_order_of_a_batch_does_not_matter(cls: type[RewardShaper[Any]], config: dict[str, Any]) -> None:
    straight, mixed = build(cls, **config), build(cls, **config)
    for step, (rewards, rollout) in enumerate(batches(cls, 3)):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(step)).tolist()
        straight.progress = mixed.progress = (step, 3)
        shaped, stats = straight.shape(rewards, rollout)
        again, stats_again = mixed.shape(rewards[order], rollout.select(order))
        torch.testing.assert_close(again, shaped[order], rtol=1e-5, atol=1e-6)
        assert stats_again == pytest.approx(stats, rel=1e-5)


@every_shaper
def test_resuming_continues_bit_for_bit(cls: type[RewardShaper[Any]], config: dict[str, Any], tmp_path: Path) -> None:
    whole, resumed = build(cls, **config), build(cls, **config)
    for step, (rewards, rollout) in enumerate(batches(cls, 6)):
        whole.progress = resumed.progress = (step, 6)
        if step == 3:
            resumed.load_state_dict(checkpoint.load(tmp_path / "state"))
        shaped, stats = whole.shape(rewards, rollout)
        if step == 2:
            checkpoint.save(tmp_path / "state", whole.state_dict())
        if step >= 3:
            again, stats_again = resumed.shape(rewards, rollout)
            assert torch.equal(again, shaped)
            assert stats_again == stats
    assert resumed.state_dict() == whole.state_dict()


# --- schedules and bad configurations --------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "config", "option"), [
    (LengthPenalty, {}, "coef"),
    (Overlong, {"max_tokens": 4, "buffer": 4}, "coef"),
    (SuccessBonus, {"threshold": 0}, "bonus"),
    (RepetitionPenalty, {"n": 1}, "coef"),
])  # fmt: skip
def test_coefficients_follow_their_schedule(cls: Any, config: dict[str, Any], option: str) -> None:
    shaper = build(cls, **config, **{option: {"schedule": "linear", "start": 1.0, "end": 0.0}})
    plain = build(cls, **config, **{option: 1.0})
    assert isinstance(getattr(shaper.config, option), Schedule)
    rollout = make_rollout([3, 2])
    rewards = torch.zeros(2, 3) if cls.level == "token" else torch.zeros(2)
    full = plain.shape(rewards, rollout)[0]
    assert full.any()
    for step, expected in ((0, 1.0), (1, 0.75), (3, 0.25)):
        shaper.progress = (step, 4)
        torch.testing.assert_close(shaper.shape(rewards, rollout)[0], expected * full)


@pytest.mark.parametrize(("config", "values", "words"), [
    (MissingEOSConfig, {"penalty": -1}, "greater than or equal to 0"),
    (LengthPenaltyConfig, {"coef": -1}, "got -1, expected 0 or more"),
    (LengthPenaltyConfig, {"coef": {"schedule": "linear", "start": 1, "end": -1}}, "got end -1 of the linear schedule"),
    (LengthPenaltyConfig, {"free_tokens": -1}, "greater than or equal to 0"),
    (OverlongConfig, {"buffer": 4}, "max_tokens\n.*Field required"),
    (OverlongConfig, {"max_tokens": 4, "buffer": 0}, "greater than or equal to 1"),
    (OverlongConfig, {"max_tokens": 4, "buffer": 5},
     "got a buffer of 5 tokens before max_tokens 4, expected at most max_tokens; lower buffer"),
    (WhitenConfig, {"eps": 0}, "greater than 0"),
    (ClipConfig, {"hihg": 1}, "Extra inputs are not permitted"),
    (ClipConfig, {"low": 2, "high": 1}, "got low 2 and high 1, expected low < high; raise high or lower low"),
    (ClipConfig, {"low": 1, "high": 1}, "got low 1 and high 1, expected low < high"),
    (ScaleConfig, {"clip": 0}, "greater than 0"),
    (PromptBaselineConfig, {"decay": 0}, "greater than 0"),
    (PromptBaselineConfig, {"decay": 1.1}, "less than or equal to 1"),
    (SuccessBonusConfig, {}, "threshold\n.*Field required"),
    (SuccessBonusConfig, {"threshold": 0, "bonus": -1}, "got -1, expected 0 or more"),
    (DiscountConfig, {"gamma": 1.01}, "less than or equal to 1"),
    (RepetitionPenaltyConfig, {"n": 0}, "greater than or equal to 1"),
    (SpreadConfig, {"decay": 0}, "greater than 0"),
    (PotentialConfig, {}, "reward\n.*Field required"),
    (PotentialConfig, {"reward": "a", "every": 0}, "greater than or equal to 1"),
    (PotentialConfig, {"reward": "a", "coef": 0}, "greater than 0"),
])  # fmt: skip
def test_config_errors(config: Any, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(**values)
