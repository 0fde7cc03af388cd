from __future__ import annotations

import json
import math
import random
import statistics
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
from rlhf_core.errors import RewardError, RunError
from rlhf_core.interfaces import Context, RewardShaper
from rlhf_core.records import Prompt, Rollout, Sample
from rlhf_plugin_shaping import rlhf_components
from rlhf_plugin_shaping.config import ClipConfig, LengthPenaltyConfig, MissingEOSConfig, ScaleConfig, WhitenConfig
from rlhf_plugin_shaping.shapers import Clip, LengthPenalty, MissingEOS, Scale, Whiten
from ruamel.yaml import YAML
from torch import Tensor

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ALL: list[tuple[type[RewardShaper[Any]], dict[str, Any]]] = [
    (Whiten, {}),
    (Whiten, {"shift_mean": True}),
    (Clip, {"low": 0.5, "high": 2}),
    (Scale, {}),
    (Scale, {"center": True, "clip": 0.5}),
    (MissingEOS, {}),
    (MissingEOS, {"replace": True}),
    (LengthPenalty, {}),
]
every_shaper = pytest.mark.parametrize(("cls", "config"), ALL, ids=lambda value: getattr(value, "__name__", str(value)))


def build(cls: type[RewardShaper[Any]], **config: Any) -> Any:
    return cls(cls.Config(**config), Context(kind="shaper", id="mine"))


def make_rollout(lengths: list[int], truncated: list[int] | None = None, abstained: list[int] | None = None) -> Rollout:
    """A rollout of responses of these lengths; the other lists name rows."""
    rows, width = len(lengths), max(lengths)
    attention = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    named = [torch.tensor([b in which for b in range(rows)]) for which in (truncated or [], abstained or [])]
    mask = attention & ~named[1][:, None]
    zeros = torch.zeros(rows, width, dtype=torch.int64)
    return Rollout(
        samples=(Sample(Prompt(text="Hi"), "there"),) * rows, prompt_ids=zeros[:, :1], prompt_mask=zeros[:, :1] == 0,
        response_ids=zeros, attention=attention, mask=mask, logprobs=zeros.float(), truncated=named[0],
        groups=torch.arange(rows), sample_ids=torch.arange(rows), abstained=None if abstained is None else named[1],
    )  # fmt: skip


def scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_import_are_light() -> None:
    (point,) = entry_points(group="rlhf", name="shaping")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize("spec", rlhf_components(), ids=lambda spec: spec.name)
def test_specs_resolve_and_the_readme_lists_every_option(spec: Any) -> None:
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert issubclass(factory, RewardShaper)
    assert factory.Config is config
    assert f"| `{spec.name}` | {factory.level} |" in README
    section = README.split(f"\n## {spec.name}\n")[1].split("\n## ")[0]
    for name, field in config.model_fields.items():
        assert field.description
        assert f"| `{name}` |" in section


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
def test_a_batch_in_which_all_abstain_is_left_at_0(cls: type[RewardShaper[Any]], config: dict[str, Any]) -> None:
    rollout = make_rollout([2, 2], truncated=[0], abstained=[0, 1])
    rewards = torch.zeros((2, 2) if cls.level == "token" else (2,))
    shaped, stats = build(cls, **config).shape(rewards, rollout)
    assert torch.equal(shaped, rewards)
    assert all(map(math.isfinite, stats.values()))


# --- whiten ----------------------------------------------------------------------------------------------------------


def test_whiten_by_hand() -> None:
    rewards, rollout = torch.tensor([[1.0, 3.0], [5.0, 0.0]]), make_rollout([2, 1])  # mean 3, variance 8 / 2
    shaped, stats = build(Whiten).shape(rewards, rollout)
    torch.testing.assert_close(shaped, torch.tensor([[2.0, 3.0], [4.0, 0.0]]))
    assert stats == {"shaping/whiten_mean": 3, "shaping/whiten_std": 2}
    shaped, _ = build(Whiten, shift_mean=True).shape(rewards, rollout)
    torch.testing.assert_close(shaped, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    shaped, stats = build(Whiten, unbiased=False).shape(rewards, rollout)  # variance 8 / 3
    assert stats["shaping/whiten_std"] == pytest.approx(1.632993)
    assert shaped[1, 0] == pytest.approx(3 + 2 / 1.632993)


def test_whiten_agrees_with_verl() -> None:
    """masked_whiten of verl/utils/torch_functional.py at b178a3cd, run on these inputs."""
    x = [[0.8, -0.5, 1.2, -1.1, 0, 0], [0.3, -1.4, 0.6, -0.2, 0.9, -0.7], [-2.0, 0.4, 0, 0, 0, 0]]
    expected = [
        [0.791172720022, -0.496640946556, 1.18742307897, -1.09101648498, 0, 0],
        [0.295859771338, -1.38820425419, 0.593047540549, -0.199453177345, 0.890235309759, -0.694766126029],
        [-1.98257979261, 0.394922361075, 0, 0, 0, 0],
    ]
    shaped, _ = build(Whiten).shape(torch.tensor(x, dtype=torch.float64), make_rollout([4, 6, 2]))
    # verl's mean has 1e-8 in its denominator
    torch.testing.assert_close(shaped, torch.tensor(expected, dtype=torch.float64), atol=1e-8, rtol=0)


def test_whiten_leaves_constant_rewards_and_a_single_token_alone() -> None:
    for rewards, rollout in ((torch.full((2, 2), 0.3), make_rollout([2, 2])), (scores(5)[:, None], make_rollout([1]))):
        torch.testing.assert_close(build(Whiten).shape(rewards, rollout)[0], rewards)


# --- clip ------------------------------------------------------------------------------------------------------------


def test_clip_by_hand() -> None:
    shaped, stats = build(Clip, low=-1, high=2).shape(scores(-3, -1, 0.5, 7), make_rollout([1] * 4))
    assert shaped.tolist() == [-1, -1, 0.5, 2]
    assert stats == {"shaping/clipped": 0.5}


@pytest.mark.parametrize(("low", "high"), [(2, 1), (1, 1)])
def test_clip_bounds_must_be_ordered(low: float, high: float) -> None:
    with pytest.raises(
        ValidationError, match=rf"got low {low} and high {high}, expected low < high; raise high or lower"
    ):
        ClipConfig(low=low, high=high)


# --- scale -----------------------------------------------------------------------------------------------------------


def test_scale_takes_in_the_batch_before_it_divides() -> None:
    scale = build(Scale)
    first, stats = scale.shape(scores(1, 3), make_rollout([1, 1]))  # mean 2, variance 2
    torch.testing.assert_close(first, scores(1, 3) / 2**0.5)
    assert stats == {"shaping/scale_mean": 2, "shaping/scale_std": 2**0.5}
    second, stats = scale.shape(scores(5, 7), make_rollout([1, 1]))  # of 1, 3, 5, 7: mean 4, variance 20 / 3
    torch.testing.assert_close(second, scores(1.93649, 2.71109))
    assert stats["shaping/scale_mean"] == 4


def test_scale_centers_and_clips() -> None:
    shaped, _ = build(Scale, center=True).shape(scores(1, 2, 3), make_rollout([1] * 3))
    assert shaped.tolist() == [-1, 0, 1]
    shaped, stats = build(Scale, center=True, clip=0.5).shape(scores(1, 2, 3), make_rollout([1] * 3))
    assert shaped.tolist() == [-0.5, 0, 0.5]
    assert stats["shaping/scale_clipped"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("center", "expected"), [(False, 4), (True, 0)])
def test_scale_is_finite_without_spread(center: bool, expected: float) -> None:
    scale = build(Scale, center=center)
    assert scale.shape(scores(4), make_rollout([1]))[0].tolist() == [expected]  # one score: MOSS-RLHF gives nan
    assert scale.shape(scores(4, 4, 4), make_rollout([1] * 3))[0].tolist() == [expected] * 3
    tenths = build(Scale)
    for _ in range(50):
        shaped, _ = tenths.shape(scores(*[0.1] * 7), make_rollout([1] * 7))
    torch.testing.assert_close(shaped, scores(*[0.1] * 7))  # rounding is not spread


def test_scale_moments_are_those_of_all_scores_so_far() -> None:
    draw = random.Random(0)
    batches = [[draw.gauss(1e4, 3) for _ in range(draw.randint(1, 9))] for _ in range(40)]
    everything = [score for batch in batches for score in batch]
    scale = build(Scale)
    for batch in batches:
        scale.shape(torch.tensor(batch, dtype=torch.float64), make_rollout([1] * len(batch)))
    assert scale.count == len(everything)
    assert scale.mean == pytest.approx(statistics.fmean(everything), rel=1e-14)
    assert scale.std == pytest.approx(statistics.stdev(everything), rel=1e-10)


def test_scale_keeps_abstained_samples_out_of_the_moments() -> None:
    scale = build(Scale, center=True)
    shaped, _ = scale.shape(scores(0, 1, 2, 3), make_rollout([1] * 4, abstained=[0]))
    assert shaped.tolist() == [0, -1, 0, 1]
    assert scale.state_dict() == {"count": 3, "mean": 2.0, "m2": 2.0}


def test_scale_resumes_bit_for_bit() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(5) * 3 + 1 for _ in range(6)]
    rollout = make_rollout([1] * 5)
    whole, half, resumed = (build(Scale, center=True) for _ in range(3))
    expected = [whole.shape(batch, rollout) for batch in batches]
    for batch in batches[:3]:
        half.shape(batch, rollout)
    resumed.load_state_dict(json.loads(json.dumps(half.state_dict())))
    for batch, (shaped, stats) in zip(batches[3:], expected[3:], strict=True):
        again, stats_again = resumed.shape(batch, rollout)
        assert torch.equal(again, shaped)
        assert stats_again == stats
    assert resumed.state_dict() == whole.state_dict()


def test_scale_errors() -> None:
    scale = build(Scale)
    with pytest.raises(RewardError) as error:
        scale.shape(scores(1, float("nan")), make_rollout([1, 1]))
    assert str(error.value) == (
        "shaper 'mine': got a score that is not finite among 2; expected finite scores; "
        "look at the rewards, and at the shapers before this one"
    )
    assert scale.state_dict() == {"count": 0, "mean": 0.0, "m2": 0.0}, "the moments are not poisoned"
    with pytest.raises(RunError) as wrong:
        scale.load_state_dict({"coef": 0.1})
    assert str(wrong.value) == (
        "shaper 'mine': got a state with coef; expected count, mean, m2; "
        "resume with the shapers that the run was started with"
    )
    with pytest.raises(ValidationError, match="greater than 0"):
        ScaleConfig(clip=0)


# --- missing-eos and length-penalty ----------------------------------------------------------------------------------


def test_missing_eos_by_hand() -> None:
    rollout = make_rollout([2, 3, 3], truncated=[1, 2])
    shaped, stats = build(MissingEOS, penalty=1.5).shape(scores(1, 2, -1), rollout)
    assert shaped.tolist() == [1, 0.5, -2.5]
    assert stats["shaping/missing_eos"] == pytest.approx(2 / 3)
    assert build(MissingEOS, penalty=1.5, replace=True).shape(scores(1, 2, -1), rollout)[0].tolist() == [1, -1.5, -1.5]


def test_length_penalty_by_hand() -> None:
    shaped, stats = build(LengthPenalty, coef=0.5, free_tokens=2).shape(scores(1, 1, 1), make_rollout([1, 2, 5]))
    assert shaped.tolist() == [1, 1, -0.5]
    assert stats == {"shaping/length_penalty": 0.5}


@pytest.mark.parametrize(("config", "values", "words"), [
    (MissingEOSConfig, {"penalty": -1}, "greater than or equal to 0"),
    (LengthPenaltyConfig, {"coef": 0}, "greater than 0"),
    (LengthPenaltyConfig, {"free_tokens": -1}, "greater than or equal to 0"),
    (WhitenConfig, {"eps": 0}, "greater than 0"),
    (ClipConfig, {"hihg": 1}, "Extra inputs are not permitted"),
])  # fmt: skip
def test_config_errors(config: Any, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(**values)
