"""REINFORCE: its distribution and configuration, advantages by hand, drawing again, state, and bad input."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.api import load
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Context, Needs, Outputs
from rlhf_core.records import Rollout
from rlhf_core.rl import Batch
from rlhf_core.runs import checkpoint
from rlhf_plugin_reinforce import rlhf_components
from rlhf_plugin_reinforce.config import ReinforceConfig
from rlhf_plugin_reinforce.optimizer import Reinforce
from torch import Tensor

from .toys import Given, Table, gradient, language_model, made_up, make, sampled, tree_rewards

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_config_import_no_torch() -> None:
    (point,) = entry_points(group="rlhf", name="reinforce")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_spec_resolves() -> None:
    (spec,) = rlhf_components()
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert (factory, config, factory.Config) == (Reinforce, ReinforceConfig, ReinforceConfig)


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(README.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    (tmp_path / "rewards.py").write_text("def short(prompts, completions, **columns): return []", encoding="utf-8")
    assert load(tmp_path / "registry.yaml").validate() == []


# --- configuration ---------------------------------------------------------------------------------------------------


def test_what_is_asked_of_rollouts() -> None:
    assert ReinforceConfig().needs == Needs()
    assert ReinforceConfig(kl_coef=0.04).needs == Needs(reference=True)
    assert ReinforceConfig(kl_coef={"schedule": "linear", "start": 0.04}).needs == Needs(reference=True)
    for baseline in ("group", "leave-one-out"):
        assert ReinforceConfig(baseline=baseline, samples_per_prompt=2).needs == Needs(samples_per_prompt=2)
    assert make().update_needs == Needs()
    assert make(entropy_coef=0.1).update_needs == Needs(entropy=True)


FALLING = {"schedule": "linear", "start": 0.1, "end": -0.1}


@pytest.mark.parametrize(("config", "words"), [
    ({"baseline": "mean"}, "Input should be 'none', 'moving-average', 'greedy', 'leave-one-out', 'group' or 'batch'"),
    ({"scale": "std"}, "scale: std needs baseline: group, got baseline: moving-average"),
    ({"baseline": "leave-one-out", "samples_per_prompt": 4, "scale": "std"}, "scale: std needs baseline: group, got baseline: leave-one-out"),
    ({"clip_high": 0.28}, "clip_high needs `clip`, the lower bound; usual: clip: 0.2"),
    ({"clip": 1.0}, "clip.*\n.*got 1, expected a number below 1"),
    ({"clip": 0}, "got 0, expected a number above 0"),
    ({"clip": 0.2, "clip_high": 0}, r"clip_high.*\n.*got 0, expected a number above 0"),
    ({"clip": {"schedule": "linear", "start": 0.2}}, "got end 0 of the linear schedule, expected a number above 0"),
    ({"kl_coef": -1}, "got -1, expected 0 or more"),
    ({"entropy_coef": FALLING}, r"got end -0\.1 of the linear schedule, expected 0 or more"),
    ({"kl_estimator": "k1"}, "Input should be 'k2' or 'k3'"),
    ({"resample": 1}, "resample needs groups, got baseline: moving-average; use baseline: group or leave-one-out"),
    ({"baseline": "group", "samples_per_prompt": 2, "gamma": 0.9}, r"got gamma 0\.9 with baseline: group, which takes a response as one action: "
                                          "there is nothing to discount; leave out gamma"),
    ({"aggregation": "seq-mean-token-sum-norm"}, "got aggregation: seq-mean-token-sum-norm and norm_tokens: null; .*"
                                                 "it needs one: give the stage's max_new_tokens"),
    ({"norm_tokens": 64}, "got aggregation: seq-mean-token-sum and norm_tokens: 64; norm_tokens is what"),
    ({"baseline_decay": 1}, "less than 1"),
    ({"minibatch_size": 33}, r"minibatch_size \(33\) exceeds the samples of a step"),
    ({"critic": 1}, "critic\n.*Extra inputs are not permitted"),
])  # fmt: skip
def test_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ReinforceConfig(**config)


@pytest.mark.parametrize("baseline", ["group", "leave-one-out"])
def test_a_group_baseline_with_one_sample_per_prompt(baseline: str) -> None:
    words = (
        "samples_per_prompt is 1, and its baseline compares at least 2 samples of one prompt; set samples_per_prompt: 4"
    )
    with pytest.raises(ValidationError, match=words):
        ReinforceConfig(baseline=baseline, samples_per_prompt=1)


def test_several_epochs_without_a_clip_warn() -> None:
    with pytest.warns(UserWarning, match="optimizer 'mine': 3 epochs without a clip: after the first the samples are"):
        make(epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(epochs=3, clip=0.2)
        make(epochs=1)


def test_a_rollout_without_rewards() -> None:
    rollout = made_up([[1.0]], [[1]]).replace(rewards=None)
    with pytest.raises(
        ConfigError, match="optimizer 'mine': a rollout without rewards; expected scored and shaped samples"
    ):
        make().prepare(rollout)


# --- advantages by hand ----------------------------------------------------------------------------------------------


def advantages(rollout: Rollout, **config: Any) -> list[list[float]]:
    found: Tensor = make(**config).prepare(rollout)["advantages"]
    return found.tolist()


def test_without_a_baseline_it_is_the_return_from_each_token_on() -> None:
    rollout = made_up([[3, 4, 5, 4]], [[1] * 4])
    assert advantages(rollout, baseline="none", gamma=0.9)[0] == pytest.approx([13.566, 11.74, 8.6, 4])
    assert advantages(rollout, baseline="none")[0] == [16, 13, 9, 4]


def test_rewards_at_the_end_pay_every_token_the_score() -> None:
    rollout = made_up([[0, 0, 5], [0, 2, 9]], [[1, 1, 1], [1, 1, 0]])
    assert advantages(rollout, baseline="none") == [[5, 5, 5], [2, 2, 0]]


def test_the_moving_average_is_of_past_steps() -> None:
    optimizer = make(baseline="moving-average", baseline_decay=0.75, minibatch_size=2)
    seen = []
    for scores in ([2.0, 4.0], [7.0, 9.0], [0.0, 0.0]):
        data = Given(paid(*scores))
        seen.append((optimizer.step(data)["baseline/mean"], optimizer.average))
    # the first step has none, then 3; 3 + (8 - 3) / 4; 4.25 + (0 - 4.25) / 4
    assert seen == [(0, 3), (3, 4.25), (4.25, pytest.approx(3.1875))]
    assert optimizer.prepare(paid(1.0))["advantages"].tolist() == [[1 - optimizer.average, 0, 0]]


def paid(*scores: float) -> Rollout:
    """Responses of one token, which has ended them."""
    policy = Table(len(scores))
    rollout = sampled(policy, 1, tree_rewards())
    mask = torch.tensor([[True, False, False]] * len(scores))
    rewards = torch.tensor([[score, 0, 0] for score in scores], dtype=torch.float64)
    return rollout.replace(
        mask=mask, attention=mask, rewards=rewards, score=rewards.sum(1), prompt_ids=0 * rollout.prompt_ids
    )


def test_without_a_baseline_no_step_is_compared_with_those_before() -> None:
    optimizer = make(baseline="none", minibatch_size=2)
    assert [optimizer.step(Given(paid(2.0, 4.0)))["baseline/mean"] for _ in range(2)] == [0, 0]
    assert optimizer.prepare(paid(5.0))["advantages"].tolist() == [[5, 0, 0]]


def test_an_abstained_step_leaves_the_moving_average() -> None:
    optimizer = make(baseline="moving-average", minibatch_size=2)
    optimizer.step(Given(paid(2.0, 4.0)))
    nothing = paid(0.0, 0.0)
    stats = optimizer.step(Given(nothing.replace(mask=nothing.mask & False)))
    assert optimizer.average == 3
    assert all(math.isfinite(value) for value in stats.values())


def test_greedy_responses_are_asked_for_as_the_stage_samples_and_come_first() -> None:
    optimizer = make(
        Table(2), baseline="greedy", prompts_per_step=2, samples_per_prompt=2, minibatch_size=4, kl_coef=0.1
    )
    greedy = made_up([[0, 5], [1, 1]], [[1, 1], [1, 1]])
    data = Given(made_up([[0, 6], [1, 4], [2, 0], [0, 9]], [[1, 1], [1, 1], [1, 0], [1, 1]]), greedy)
    rollout = optimizer.sample(data)
    (prompts, first), (again, second) = data.asked
    assert first["sampling"] == data.sampling.model_copy(update={"temperature": 0.0})
    assert (first["sampling"].max_new_tokens, first["sampling"].stop) == (7, ("!",))
    assert first["needs"] == Needs(), "its returns are all that is used"
    assert "sampling" not in second
    assert second["samples_per_prompt"] == 2
    assert prompts is again
    # the greedy responses earned 5 and 2, for the prompt of the first two samples and for that of the others
    assert optimizer.prepare(rollout)["advantages"].tolist() == [[1, 1], [0, -1], [0, 0], [7, 7]]
    assert optimizer.prepare(rollout.select([3, 0, 2, 1]))["advantages"].tolist() == [[7, 7], [1, 1], [0, 0], [0, -1]]
    assert optimizer.stats["baseline/mean"] == 3.5


def test_without_an_opinion_on_the_greedy_response_there_is_nothing_to_compare_with() -> None:
    optimizer = make(baseline="greedy", samples_per_prompt=1)
    optimizer.sample(Given(made_up([[0.0], [0.0]], [[1], [1]]), made_up([[0.0], [2.0]], [[0], [1]])))
    assert optimizer.prepare(made_up([[5.0], [5.0]], [[1], [1]]))["advantages"].tolist() == [[0], [3]]


def test_leave_one_out_and_group_by_hand() -> None:
    # scores 1, 3, 8 of one prompt and 2, 2 of the other; the third response has two tokens with a hole between
    rollout = made_up([[1, 0, 0], [3, 0, 0], [3, 0, 5], [2, 0, 0], [2, 0, 0]],
                      [[1, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 0], [1, 0, 0]], [7, 7, 7, 3, 3])  # fmt: skip
    others = [[1 - 5.5, 0, 0], [3 - 4.5, 0, 0], [6, 0, 6], [0, 0, 0], [0, 0, 0]]
    assert advantages(rollout, baseline="leave-one-out") == others
    assert advantages(rollout, baseline="group") == [[-3, 0, 0], [-1, 0, 0], [4, 0, 4], [0, 0, 0], [0, 0, 0]]
    spread = 13**0.5  # (9 + 1 + 16) / 2
    scaled = advantages(rollout, baseline="group", scale="std", scale_eps=1e-12)
    assert scaled[2] == pytest.approx([4 / spread, 0, 4 / spread])
    whole = 7.7**0.5  # scores 1, 3, 8, 2, 2: mean 3.2, squares 4.84, 0.04, 23.04, 1.44, 1.44, over 4
    assert advantages(rollout, baseline="group", scale="batch-std", scale_eps=1e-12)[2][0] == pytest.approx(4 / whole)


@pytest.mark.parametrize(("baseline", "expected"), [
    ("leave-one-out", [[0, -4, -4], [4, 4, 0]]), ("greedy", [[0, 2, 1], [6, 3, 0]]),
])  # fmt: skip
def test_a_response_that_another_speaker_begins_earns_what_its_own_tokens_earn(baseline: str, expected: Any) -> None:
    rollout = made_up([[0, 1, 2], [3, 4, 0]], [[0, 1, 1], [1, 1, 0]], [0, 0])  # 3 and 7
    optimizer = make(baseline=baseline, samples_per_prompt=2)
    optimizer.greedy = torch.tensor([1.0])
    assert optimizer.prepare(rollout)["advantages"].tolist() == expected
    assert optimizer.mean_return == 5


def test_an_abstained_sample_counts_in_no_deviation() -> None:
    rollout = made_up([[1.0], [3.0], [0.0]], [[1], [1], [0]], [0, 0, -3])
    optimizer = make(baseline="group", scale="batch-std", scale_eps=1e-12)
    found = optimizer.prepare(rollout)["advantages"].tolist()
    assert found == [[pytest.approx(-1 / 2**0.5)], [pytest.approx(1 / 2**0.5)], [0]]
    assert optimizer.stats["baseline/no_signal"] == 0, "nor among those that teach nothing"


def test_batch_whitens_returns_over_all_tokens() -> None:
    found = torch.tensor(advantages(made_up([[1, 2, 0], [0, -3, 9]], [[1, 1, 0], [1, 1, 0]]), baseline="batch"))
    # returns 3, 2, -3, -3: mean -1/4, unbiased variance (10.5625 + 5.0625 + 2 x 7.5625) / 3
    spread = (30.75 / 3) ** 0.5
    expected = [[3.25 / spread, 2.25 / spread, 0], [-2.75 / spread, -2.75 / spread, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_what_stands_outside_the_mask_does_not_matter() -> None:
    junk = math.nan
    clean = made_up([[1, 0, 2], [4, 0, 0]], [[1, 0, 1], [1, 0, 0]], [0, 0])
    dirty = made_up([[1, junk, 2], [4, junk, junk]], [[1, 0, 1], [1, 0, 0]], [0, 0])
    for baseline in ("none", "moving-average", "leave-one-out", "group", "batch"):
        assert advantages(clean, baseline=baseline) == advantages(dirty, baseline=baseline)


# --- the loss, token by token ----------------------------------------------------------------------------------------


def loss_gradients(ahead: Any, ratios: Any, mask: Any = None, *, entries: Any = None, step: Any = (0, 1),
                   **config: Any) -> tuple[Any, dict[str, float]]:  # fmt: skip
    """d loss / d logprobs of tokens whose probability has changed by `ratios`."""
    optimizer = make(**config)
    optimizer.progress = step
    mask = torch.ones_like(torch.tensor(ratios)) if mask is None else torch.tensor(mask)
    rollout = made_up(torch.zeros(mask.shape), mask)
    rollout = rollout.replace(logprobs=-torch.tensor(ratios, dtype=torch.float64).log(), **(entries or {}))
    logprobs = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    prepared = {"advantages": torch.tensor(ahead, dtype=torch.float64)}
    entropy = torch.tensor([[1.0, 3.0]]).double() if config.get("entropy_coef") else None
    batch = Batch(rollout, prepared, float(rollout.mask.sum()), float(rollout.mask.any(1).sum()))
    loss, stats = optimizer.loss(batch, Outputs(logprobs, entropy=entropy))
    loss.backward()
    return logprobs.grad.tolist(), {name: float(value) for name, value in {**stats, "loss": loss.detach()}.items()}


def test_without_a_clip_no_ratio_enters() -> None:
    found, stats = loss_gradients([[1.0, -2.0]], [[5.0, 0.1]])
    assert found[0] == [-1, 2]
    assert stats["policy/ratio"] == pytest.approx(2.55)
    assert "policy/clip_fraction" not in stats


def test_the_clip_holds_back_what_has_gone_far_enough() -> None:
    ahead, ratios = [[1, 1, 1, -1, -1, -1]], [[1.1, 1.3, 0.7, 1.3, 0.7, 5]]
    found, stats = loss_gradients(ahead, ratios, clip=0.2, aggregation="token-mean")
    assert found[0] == pytest.approx([-1.1 / 6, 0, -0.7 / 6, 1.3 / 6, 0, 5 / 6])
    assert stats["policy/clip_fraction"] == pytest.approx(2 / 6)
    found, stats = loss_gradients(ahead, ratios, clip=0.2, clip_high=0.4, aggregation="token-mean")
    assert found[0][1] == pytest.approx(-1.3 / 6), "the upper bound of DAPO lies further away"
    assert found[0][4] == 0
    assert stats["policy/clip_fraction"] == pytest.approx(1 / 6)
    _, stats = loss_gradients([[0.0, 0.0]], [[5.0, 0.1]], clip=0.2)
    assert stats["policy/clip_fraction"] == 0, "nothing asks to go anywhere"


def test_a_scheduled_clip_closes() -> None:
    clip = {"schedule": "linear", "start": 0.4, "end": 0.2}
    at_first, at_last = (loss_gradients([[1.0]], [[1.3]], clip=clip, step=(s, 10))[0] for s in (0, 9))
    assert at_first == [[pytest.approx(-1.3)]]
    assert at_last == [[0]]
    upper = {"clip": 0.1, "clip_high": clip}
    at_first, at_last = (loss_gradients([[1.0]], [[1.3]], **upper, step=(s, 10))[0] for s in (0, 9))
    assert at_first == [[pytest.approx(-1.3)]]
    assert at_last == [[0]]


@pytest.mark.parametrize(("mode", "expected"), [
    ({"aggregation": "token-mean"}, [[-1 / 4] * 3, [-1 / 4, 0, 0]]),
    ({"aggregation": "seq-mean-token-mean"}, [[-1 / 6] * 3, [-1 / 2, 0, 0]]),
    ({"aggregation": "seq-mean-token-sum"}, [[-1 / 2] * 3, [-1 / 2, 0, 0]]),
    ({"aggregation": "seq-mean-token-sum-norm", "norm_tokens": 5}, [[-1 / 10] * 3, [-1 / 10, 0, 0]]),
])  # fmt: skip
@pytest.mark.parametrize("clip", [None, 0.2])
def test_how_token_losses_become_one_number(mode: dict[str, Any], expected: Any, clip: Any) -> None:
    """Responses of three tokens and of one."""
    found, stats = loss_gradients([[1.0] * 3, [1.0, 0, 0]], [[1.0] * 3] * 2, [[1, 1, 1], [1, 0, 0]], **mode, clip=clip)
    assert found == [pytest.approx(row) for row in expected]
    assert stats["policy/ratio"] == pytest.approx(1), "statistics are means over tokens in every mode"


def test_the_kl_to_the_reference_by_hand() -> None:
    reference = {"reference_logprobs": -torch.tensor([[2.0, 0.5]], dtype=torch.float64).log()}  # p / q is 2 and 1/2
    found, stats = loss_gradients([[0.0, 0.0]], [[1.0, 1.0]], kl_coef=0.1, entries=reference)
    assert found[0] == pytest.approx([0.1 * (1 - 1 / 2), 0.1 * (1 - 2)])  # k3: 1 - q / p
    k3 = [1 / 2 - 1 + math.log(2), 2 - 1 - math.log(2)]
    assert stats["policy/kl_reference"] == pytest.approx(sum(k3) / 2)
    assert stats["loss"] == pytest.approx(0.1 * sum(k3))
    found, _ = loss_gradients([[0.0, 0.0]], [[1.0, 1.0]], kl_coef=0.1, kl_estimator="k2", entries=reference)
    assert found[0] == pytest.approx([0.1 * math.log(2), -0.1 * math.log(2)])  # log p / q
    fading = {"schedule": "linear", "start": 0.1, "end": 0.0}
    halfway, _ = loss_gradients([[0.0, 0.0]], [[1.0, 1.0]], kl_coef=fading, step=(5, 10), entries=reference)
    assert halfway[0] == pytest.approx([0.025, -0.05])


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_nan_in_masked_references_reaches_no_gradient(estimator: str) -> None:
    reference = {"reference_logprobs": torch.tensor([[0.0, math.nan]])}
    options = {"kl_coef": 0.1, "kl_estimator": estimator, "entries": reference}
    found, _ = loss_gradients([[1.0, 0.0]], [[1.0, 1.0]], [[1, 0]], **options)
    assert found == [[-1, 0]]


def test_the_entropy_bonus_is_aggregated_like_the_rest() -> None:
    _, stats = loss_gradients([[0.0, 0.0]], [[1.0, 1.0]], entropy_coef=0.1)
    assert stats["loss"] == pytest.approx(-0.4)  # entropies 1 and 3, summed over the response
    assert stats["policy/entropy_exact"] == 2
    _, stats = loss_gradients([[0.0, 0.0]], [[1.0, 1.0]], entropy_coef=0.1, aggregation="token-mean")
    assert stats["loss"] == pytest.approx(-0.2)
    fading = {"schedule": "linear", "start": 0.1, "end": 0.0}
    _, stats = loss_gradients([[0.0, 0.0]], [[1.0, 1.0]], entropy_coef=fading, step=(5, 10))
    assert stats["loss"] == pytest.approx(-0.2)


# --- drawing again ---------------------------------------------------------------------------------------------------


class Draws(Given):
    """One rollout after another."""

    def __init__(self, *draws: Rollout) -> None:
        super().__init__(draws[0])
        self.draws = iter(draws)

    def rollout(self, prompts: Any, **options: Any) -> Rollout:
        self.asked.append((prompts, options))
        return next(self.draws)


def drawn(*groups: tuple[float, ...]) -> Rollout:
    """Groups with these scores, as a stage numbers them; a nan: the reward abstained, so it is a group of its own."""
    scores = torch.tensor([score for group in groups for score in group], dtype=torch.float64)
    numbers = [-1 - i if scores[i].isnan() else i // len(groups[0]) for i in range(len(scores))]
    return made_up(scores.nan_to_num(0.0)[:, None], ~scores.isnan()[:, None], numbers)


def again(*draws: Rollout, resample: int = 3) -> tuple[Reinforce, Draws, Rollout]:
    optimizer = make(baseline="group", prompts_per_step=3, samples_per_prompt=2, resample=resample)
    data = Draws(*draws)
    return optimizer, data, optimizer.sample(data)


def test_groups_of_equal_scores_give_way_to_other_prompts() -> None:
    optimizer, data, rollout = again(drawn((1, 1), (0, 1), (0, 0)), drawn((2, 3), (5, 5)), drawn((0, 4)))
    assert [prompts for prompts, _ in data.asked] == [3, 2, 1], "as many as are missing"
    assert rollout.score.tolist() == [0, 1, 2, 3, 0, 4]
    assert [rollout.groups.tolist().count(group) for group in rollout.groups.tolist()] == [2] * 6
    assert len(set(rollout.sample_ids.tolist())) == 6
    assert optimizer.prepare(rollout)["advantages"].tolist() == [[-0.5], [0.5], [-0.5], [0.5], [-2], [2]]
    assert optimizer.stats["baseline/draws"] == 3
    assert optimizer.stats["baseline/groups_missing"] == optimizer.stats["baseline/no_signal"] == 0


def test_it_goes_on_with_what_it_has_after_the_last_draw() -> None:
    optimizer, data, rollout = again(drawn((1, 1), (0, 1), (0, 0)), drawn((3, 3), (5, 5)), resample=1)
    assert len(data.asked) == 2
    assert rollout.score.tolist() == [0, 1]
    assert optimizer.stats == {"baseline/draws": 2, "baseline/groups_missing": 2}


def test_without_any_group_that_varies_it_keeps_the_last_draw_and_learns_nothing() -> None:
    optimizer, _, rollout = again(drawn((1, 1), (0, 0), (0, 0)), drawn((3, 3), (5, 5), (7, 7)), resample=1)
    assert rollout.score.tolist() == [3, 3, 5, 5, 7, 7]
    assert not optimizer.prepare(rollout)["advantages"].any()
    assert optimizer.stats["baseline/no_signal"] == 1


def test_abstained_samples_make_no_group_vary() -> None:
    nan = math.nan
    _, _, rollout = again(drawn((1, nan), (0, 1), (nan, nan)), drawn((2, 3), (5, 5)), drawn((0, 4)))
    assert rollout.score.tolist() == [0, 1, 2, 3, 0, 4]


def test_by_default_nothing_is_drawn_again() -> None:
    optimizer = make(baseline="group", prompts_per_step=3, samples_per_prompt=2)
    data = Draws(drawn((1, 1), (0, 1), (0, 0)))
    assert len(optimizer.sample(data)) == 6


# --- a whole step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [
    {"baseline": "leave-one-out"}, {"baseline": "group", "scale": "std", "aggregation": "seq-mean-token-mean"},
    {"baseline": "batch", "aggregation": "token-mean"},
    {"baseline": "group", "aggregation": "seq-mean-token-sum-norm", "norm_tokens": 7},
])  # fmt: skip
def test_micro_batches_order_and_padding_change_nothing(config: dict[str, Any]) -> None:
    policy = Table(6)
    rollout = sampled(policy, 4, tree_rewards(), seed=2)
    rollout = rollout.replace(reference_logprobs=rollout.logprobs + 0.1)
    assert len(set(rollout.lengths.tolist())) == 3
    sizes = {"prompts_per_step": 6, "samples_per_prompt": 4, "clip": 0.2, "kl_coef": 0.1, "entropy_coef": 0.1, **config}
    whole = gradient(policy, make(policy, **sizes), Given(rollout))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    wide = {name: torch.nn.functional.pad(tensor, (0, 2)) for name, tensor in rollout.tensors().items()
            if tensor.dim() > 1 and not name.startswith("prompt")}  # fmt: skip
    for changes, other in (
        ({"micro_batch_tokens": 1}, rollout),
        ({}, rollout.select(order)),
        ({}, rollout.replace(**wide)),
    ):
        found = gradient(policy, make(policy, **{**sizes, **changes}), Given(other))
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-12)


def test_better_than_the_baseline_becomes_likelier() -> None:
    policy = Table()
    rollout = paid(5.0, 1.0).replace(groups=torch.tensor([0, 0]), response_ids=torch.tensor([[0, 2, 2], [1, 2, 2]]))
    before = policy.table[0, 0].log_softmax(-1).detach()
    make(policy, baseline="leave-one-out", minibatch_size=2, learning_rate=0.1).step(Given(rollout))
    change = policy.table[0, 0].log_softmax(-1).detach() - before
    assert change[0] > 0 > change[1]


def test_state_continues_bit_for_bit(tmp_path: Path) -> None:
    config = {"baseline": "moving-average", "prompts_per_step": 4, "minibatch_size": 2, "learning_rate": 0.1, "clip": 0.2,
              "epochs": 2}  # fmt: skip
    steps = [sampled(Table(4), 1, tree_rewards(), seed) for seed in range(3)]

    def run(optimizer: Reinforce, rollouts: list[Rollout]) -> None:
        for rollout in rollouts:
            optimizer.step(Given(rollout))

    policy, other = Table(4), Table(4)
    optimizer = make(policy, **config)
    run(optimizer, steps[:2])
    checkpoint.save(tmp_path / "state", {"optimizer": optimizer.state_dict()})
    with torch.no_grad():
        other.table.copy_(policy.table)
    resumed = make(other, **config)
    resumed.load_state_dict(checkpoint.load(tmp_path / "state")["optimizer"])
    assert (resumed.average, resumed.averaged) == (optimizer.average, 2)
    run(optimizer, steps[2:])
    run(resumed, steps[2:])
    assert torch.equal(policy.table, other.table)
    assert resumed.average == optimizer.average


def test_with_a_stage_every_baseline_takes_a_step_and_what_it_logs_is_in_the_readme() -> None:
    seen: set[str] = set()
    for config in ({"baseline": "none"}, {"baseline": "moving-average"}, {"baseline": "greedy", "samples_per_prompt": 2},
                   {"baseline": "group", "resample": 1, "kl_coef": 0.1, "entropy_coef": 0.1, "clip": 0.2}):  # fmt: skip
        _, optimizer, data = language_model(lambda text: "e" in text, 4, **config, prompts_per_step=4)
        stats = optimizer.step(data)
        assert all(math.isfinite(value) for value in stats.values())
        seen |= stats.keys()
    assert all(f"`{name}`" in README for name in seen)


def test_from_python_without_a_registry() -> None:
    optimizer = Reinforce(ReinforceConfig(), Context())
    policy = Table(32)
    optimizer.bind(policy, 1)
    assert optimizer.step(Given(sampled(policy, 1, tree_rewards())))["policy/updates"] == 1


def test_greedy_responses_of_a_language_model() -> None:
    """Of a stage's prompts, in their order: the baseline is the number of characters that a greedy response has."""
    policy, optimizer, data = language_model(len, 5, baseline="greedy", prompts_per_step=4, samples_per_prompt=2)
    rollout = optimizer.sample(data)
    prompts = [rollout.samples[i].prompt for i in range(0, 8, 2)]
    assert len({prompt.text for prompt in prompts}) == 4
    greedy = policy.generate(prompts, data.sampling.model_copy(update={"temperature": 0.0}), seed=99)
    assert optimizer.greedy.tolist() == [len(sample.response) for sample in greedy.samples]
    baseline = optimizer.greedy.repeat_interleave(2)
    expected = (rollout.score - baseline)[:, None].where(rollout.mask, 0.0)
    torch.testing.assert_close(optimizer.prepare(rollout)["advantages"], expected)
