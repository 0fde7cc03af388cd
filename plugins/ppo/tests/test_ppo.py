"""PPO: hand-computed cases, gradients against autograd, what must not change anything, and that it learns."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.api import load
from rlhf_core.errors import ConfigError, NumericalError
from rlhf_core.interfaces import Context, Needs, Outputs, Schedule
from rlhf_core.records import Prompt, Rollout
from rlhf_core.rl import Batch
from rlhf_core.rl.evaluation import mean_and_error
from rlhf_core.runs import checkpoint
from rlhf_plugin_ppo import rlhf_components
from rlhf_plugin_ppo.config import PPOConfig
from rlhf_plugin_ppo.optimizer import PPO
from torch import Tensor

from .toys import (
    Given,
    distance,
    gradients,
    made_up,
    make_policy,
    make_ppo,
    nudge,
    sampled,
    stage_data,
    train,
    weights,
)

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the weights that are not the same bit for bit."""
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_config_import_no_torch() -> None:
    (point,) = entry_points(group="rlhf", name="ppo")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_spec_resolves() -> None:
    (spec,) = rlhf_components()
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert (factory, config, factory.Config) == (PPO, PPOConfig, PPOConfig)


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(README.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    (tmp_path / "rewards.py").write_text("def short(prompts, completions, **columns): return []", encoding="utf-8")
    assert load(tmp_path / "registry.yaml").validate() == []


# --- configuration ---------------------------------------------------------------------------------------------------


def test_what_is_asked_of_rollouts() -> None:
    assert PPOConfig().needs == Needs(values=True)
    assert PPOConfig(bootstrap_truncated=True).needs == Needs(values=True, bootstrap=True)
    assert make_ppo(make_policy()).update_needs == Needs(values=True)
    both = make_ppo(make_policy(), entropy_coef=0.01, bootstrap_truncated=True)
    assert both.update_needs == Needs(values=True, entropy=True), "V beyond a cut is asked for once, not per update"


@pytest.mark.parametrize(("config", "words"), [
    ({"clip": 1.0}, r"clip\n.*got 1, expected a number below 1"),
    ({"clip": 0}, r"clip\n.*got 0, expected a number above 0"),
    ({"clip": {"schedule": "linear", "start": 0.2, "end": -0.1}},
     r"clip\n.*got end -0\.1 of the linear schedule, expected a number above 0"),
    ({"entropy_coef": {"schedule": "cosine", "start": 0.1, "end": -0.1}},
     r"entropy_coef\n.*got end -0\.1 of the cosine schedule, expected 0 or more"),
    ({"clip_high": 0}, r"clip_high.*\n.*got 0, expected a number above 0"),
    ({"policy_coef": -0.1}, r"policy_coef\n.*greater than or equal to 0"),
    ({"ptx_coef": {"schedule": "linear", "start": 0.1, "end": -0.1}},
     r"ptx_coef\n.*got end -0\.1 of the linear schedule, expected 0 or more"),
    ({"value_learning_rate": {"schedule": "linear", "start": 1, "end": -1}},
     r"value_learning_rate.*\n.*got end -1 of the linear schedule, expected 0 or more"),
    ({"value_clip": 0}, r"value_clip\n.*greater than 0"),
    ({"advantage_clip": 0}, r"advantage_clip\n.*greater than 0"),
    ({"dual_clip": 1}, "greater than 1"),
    ({"gamma": 1.01}, "less than or equal to 1"),
    ({"lam": -0.1}, "greater than or equal to 0"),
    ({"value_coef": 0}, "greater than 0"),
    ({"minibatch_size": 33}, r"minibatch_size \(33\) exceeds the samples of a step \(32 = prompts_per_step x "
                             r"samples_per_prompt\); lower it, or sample more"),
    ({"learning_rat": 1e-3}, "learning_rat\n.*Extra inputs are not permitted"),
])  # fmt: skip
def test_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PPOConfig(**config)


def test_the_upper_clip_may_exceed_1() -> None:
    assert PPOConfig(clip_high=3.0, clip=0.9).clip_high == 3.0


def test_lambda_follows_the_critic_unless_it_is_set() -> None:
    shared, separate = make_policy(critic="shared"), make_policy(critic="separate")
    assert make_ppo(shared).lam == 1.0
    assert make_ppo(separate).lam == 0.95
    assert make_ppo(shared, lam=0.0).lam == 0.0
    assert make_ppo(separate, lam=1.0).lam == 1.0


# --- advantages and returns ------------------------------------------------------------------------------------------


def ppo_of(**config: Any) -> PPO:
    return make_ppo(make_policy(), **{"whiten_advantages": False, "gamma": 0.9, "lam": 1.0, **config})


def close(found: Tensor, *expected: float) -> None:
    torch.testing.assert_close(found, torch.tensor([expected]).to(found), atol=1e-5, rtol=1e-6)


def test_returns_by_hand() -> None:
    ppo = ppo_of()  # 4; 5 + 0.9 x 4; 4 + 0.9 x 8.6; 3 + 0.9 x 11.74
    prepared = ppo.prepare(made_up([[3, 4, 5, 4]], [[1.0, 2, 3, 4]], [[1, 1, 1, 1]]))
    close(prepared["returns"], 13.566, 11.74, 8.6, 4)
    close(prepared["advantages"], 12.566, 11.74 - 2, 5.6, 0)
    assert ppo.returns == pytest.approx((13.566 + 11.74 + 8.6 + 4) / 4)


def test_at_lambda_0_the_advantage_is_the_td_error() -> None:
    prepared = ppo_of(lam=0.0).prepare(made_up([[3, 4, 5, 4]], [[10, 9.5, 6, 4.5]], [[1, 1, 1, 1]]))
    close(prepared["advantages"], 3 + 8.55 - 10, 4 + 5.4 - 9.5, 5 + 4.05 - 6, 4 - 4.5)


def test_gae_by_hand() -> None:
    prepared = ppo_of(gamma=1.0, lam=0.5).prepare(made_up([[0.0, 0, 1]], [[0.5, 0.5, 0.5]], [[1, 1, 1]]))
    close(prepared["advantages"], 0.125, 0.25, 0.5)  # deltas 0, 0, 0.5
    close(prepared["returns"], 0.625, 0.75, 1)


def test_another_speakers_turn_is_stepped_over() -> None:
    junk = math.nan
    ppo = ppo_of()
    prepared = ppo.prepare(made_up([[4, junk, 5, 4, junk]], [[2.0, junk, 3, 4, junk]], [[1, 0, 1, 1, 0]]))
    close(prepared["returns"], 11.74, 0, 8.6, 4, 0)
    close(prepared["advantages"], 9.74, 0, 5.6, 0, 0)
    assert ppo.returns == pytest.approx((11.74 + 8.6 + 4) / 3)


@pytest.mark.parametrize(("wanted", "truncated", "expected"), [
    (True, True, (20.127, 19.03, 16.7, 13)),  # 4 + 0.9 x 10; 5 + 0.9 x 13; ...
    (True, False, (13.566, 11.74, 8.6, 4)),  # it ended: nothing comes after
    (False, True, (13.566, 11.74, 8.6, 4)),  # the policy handed the value out, but nobody asked for it
])  # fmt: skip
def test_bootstrap_beyond_a_cut_where_it_is_asked_for(wanted: bool, truncated: bool, expected: Any) -> None:
    rollout = made_up([[3, 4, 5, 4]], [[1.0, 2, 3, 4]], [[1] * 4], bootstrap=[10.0], truncated=[truncated])
    close(ppo_of(bootstrap_truncated=wanted).prepare(rollout)["returns"], *expected)


def test_the_built_in_policys_values_beyond_a_cut_stay_out_unless_asked_for() -> None:
    """causal-lm computes V after the last token with all other values."""
    returns = {}
    for wanted in (False, True):
        policy = make_policy()
        policy.prepare(Needs(values=True))
        torch.nn.init.ones_(policy.network.value_head.bias)  # V = 1 everywhere
        ppo = make_ppo(policy, bootstrap_truncated=wanted, prompts_per_step=8, minibatch_size=8, lam=1.0)
        stats = train(ppo, stage_data(policy, ppo, lambda completions, **_: [0.0] * len(completions), ["a"]), 1)[0]
        returns[wanted] = stats["value/returns"]
        assert stats["response/truncated"] == 1
    assert returns == {False: 0, True: 1}


def test_a_bootstrap_that_does_not_count_may_be_junk() -> None:
    rollout = made_up([[1.0], [1.0]], [[0.0], [0.0]], [[1], [1]], bootstrap=[math.nan, 10.0], truncated=[False, True])
    assert ppo_of(bootstrap_truncated=True).prepare(rollout)["returns"].tolist() == [[1], [10]]


def test_whitened_advantages_have_mean_0_and_variance_1_over_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 6, 7, generator=generator)
    mask = (torch.rand(6, 7, generator=generator) < 0.6).int()
    rollout = made_up((5 * rewards + 3).tolist(), values.tolist(), mask.tolist())
    advantages = make_ppo(make_policy()).prepare(rollout)["advantages"]
    inside = advantages[mask.bool()]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-6)
    assert float(inside.var()) == pytest.approx(1, abs=1e-5)
    assert not advantages[~mask.bool()].any()


def test_explained_variance_of_the_returns_by_the_values() -> None:
    """Returns 1, 3, 5 have variance 4, what is left of them 4/3; the other way round all of it would be left."""
    ppo = ppo_of()
    ppo.prepare(made_up([[1.0], [3.0], [5.0], [9.0]], [[1.0], [3.0], [3.0], [0.0]], [[1], [1], [1], [0]]))
    assert ppo.explained == pytest.approx(2 / 3)


def test_a_rollout_without_values_is_an_error_in_words() -> None:
    rollout = made_up([[1.0]], [[0.0]], [[1]])
    words = "optimizer 'mine': a rollout without rewards, values, or the value beyond a cut; expected all that"
    for config, changes in (({}, {"values": None}), ({}, {"rewards": None}), ({"bootstrap_truncated": True}, {})):
        with pytest.raises(ConfigError, match=words):
            ppo_of(**config).prepare(rollout.replace(**changes))
    ppo = ppo_of()
    batch = Batch(rollout, ppo.prepare(rollout), 1.0, 1.0)
    with pytest.raises(ConfigError, match="optimizer 'mine': policy 'toy' gives no values; expected a policy"):
        ppo.loss(batch, Outputs(logprobs=torch.zeros(1, 1)))


# --- the loss, token by token ----------------------------------------------------------------------------------------


def loss_gradients(advantages: list[float], ratios: list[float], *, entropy: list[float] | None = None,
                   step: tuple[int, int] = (0, 1), **config: Any) -> tuple[list[float], dict[str, Any]]:  # fmt: skip
    """d loss / d logprobs of tokens whose probability has changed by `ratios`, the critic being right."""
    n = len(advantages)
    rollout = made_up([[0.0] * n], [[0.0] * n], [[1] * n])
    rollout = rollout.replace(logprobs=-torch.tensor([ratios]).log())
    entries = {"advantages": torch.tensor([advantages]), "returns": torch.zeros(1, n)}
    logprobs = torch.zeros(1, n, requires_grad=True)
    new = Outputs(logprobs, values=torch.zeros(1, n), entropy=None if entropy is None else torch.tensor([entropy]))
    ppo = ppo_of(**config)
    ppo.progress = step
    loss, stats = ppo.loss(Batch(rollout, entries, float(n), 1.0), new)
    loss.backward()
    assert logprobs.grad is not None
    return logprobs.grad[0].tolist(), {**stats, "loss": loss.detach()}


def test_no_gradient_exactly_where_the_clip_is_active() -> None:
    advantages, ratios = [1, 1, 1, -1, -1, -1], [1.1, 1.3, 0.7, 1.3, 0.7, 5]
    found, stats = loss_gradients(advantages, ratios)
    # beyond the clip on the side that the advantage asks for: 0; else -A x ratio / tokens, however far away
    assert found == pytest.approx([-1.1 / 6, 0, -0.7 / 6, 1.3 / 6, 0, 5 / 6])
    assert found[1] == found[4] == 0
    assert float(stats["policy/clip_fraction"]) == pytest.approx(2 / 6)
    assert float(stats["policy/ratio"]) == pytest.approx(10.1 / 6)
    # -1.1, -1.2 (clipped), -0.7, 1.3, 0.8 (clipped), 5
    assert float(stats["policy/surrogate"]) == float(stats["loss"]) == pytest.approx((-3 + 1.3 + 0.8 + 5) / 6)
    assert "policy/dual_clip_fraction" not in stats


def test_dual_clip_bounds_the_loss_of_bad_tokens_that_became_likely() -> None:
    found, stats = loss_gradients([1, -1, -1], [5, 2.9, 5], dual_clip=3)
    assert found == pytest.approx([0, 2.9 / 3, 0])
    assert float(stats["policy/dual_clip_fraction"]) == pytest.approx(1 / 3)
    assert float(stats["loss"]) == pytest.approx((-1.2 + 2.9 + 3) / 3)


def test_the_upper_clip_can_be_another_one() -> None:
    assert loss_gradients([1, -1], [1.3, 0.7], clip_high=0.4)[0] == pytest.approx([-1.3 / 2, 0])


def test_clips_and_the_entropy_bonus_follow_their_schedules() -> None:
    def gradient(step: int, **config: Any) -> Any:
        return loss_gradients([1, -1], [1.3, 0.7], step=(step, 10), **config)[0]

    closing = Schedule(schedule="linear", start=0.4, end=0.2)
    within, beyond = [-1.3 / 2, 0.7 / 2], [0, 0]
    for step, expected in ((0, within), (9, beyond)):  # 0.4 and 0.22 of room
        assert gradient(step, clip=closing) == pytest.approx(expected)
        assert gradient(step, clip=0.1, clip_high=closing) == pytest.approx([expected[0], 0])
        assert gradient(step, clip=closing, clip_high=0.1) == pytest.approx([0, expected[1]])
    fading = Schedule(schedule="linear", start=0.2, end=0.1)
    for step, coef in ((0, 0.2), (5, 0.15)):
        _, stats = loss_gradients([0, 0], [1, 1], entropy=[1, 3], entropy_coef=fading, step=(step, 10))
        assert float(stats["loss"]) == pytest.approx(-2 * coef)


def test_values_are_pulled_towards_the_returns_and_not_where_clipped() -> None:
    rollout = made_up([[0.0] * 3], [[0.0] * 3], [[1] * 3])
    entries = {"advantages": torch.zeros(1, 3), "returns": torch.tensor([[1.0, -1, 1]])}
    # moved by 0.5, beyond the clip of 0.2, towards the return; by 0.5 away from it; by 0.1
    for clip, expected in ((0.2, [0, 1.5, -0.9]), (None, [-0.5, 1.5, -0.9])):
        values = torch.tensor([[0.5, 0.5, 0.1]], requires_grad=True)
        loss, stats = ppo_of(value_coef=0.5, value_clip=clip).loss(
            Batch(rollout, entries, 3.0, 1.0), Outputs(torch.zeros(1, 3), values=values)
        )
        loss.backward()
        assert values.grad is not None
        assert values.grad[0].tolist() == pytest.approx([0.5 * e / 3 for e in expected])  # coefficient x (V - R) / n
        assert float(stats["value/clip_fraction"]) == pytest.approx(1 / 3 if clip else 0)


def test_the_entropy_bonus_is_a_mean_over_tokens() -> None:
    _, stats = loss_gradients([0, 0], [1, 1], entropy=[1, 3], entropy_coef=0.1)
    assert float(stats["policy/entropy_exact"]) == 2
    assert float(stats["loss"]) == pytest.approx(-0.2)


# --- gradients of a whole policy -------------------------------------------------------------------------------------


def double_policy(critic: str = "shared", architecture: str = "llama") -> Any:
    policy = make_policy(architecture, critic, dtype="float64")
    policy.prepare(Needs(values=True))
    nudge(policy)
    return policy


def by_autograd(policy: Any, rollout: Rollout, token_loss: Any) -> dict[str, Tensor]:
    """Gradients of the mean of ``token_loss(row, t, logprob, value)`` over tokens, one row at a time."""
    for row in range(len(rollout)):
        alone = rollout.select([row])
        out = policy.forward(alone, Needs(values=True))
        terms = [token_loss(row, t, out.logprobs[0, t], out.values[0, t])
                 for t in range(alone.mask.shape[1]) if alone.mask[0, t]]  # fmt: skip
        (sum(terms) / int(rollout.mask.sum())).backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in policy.module.named_parameters()}
    policy.module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(("architecture", "critic"), [("llama", "shared"), ("gpt2", "separate")])
def test_at_ratio_1_the_gradient_is_the_policy_gradient_plus_that_of_the_value_error(
    architecture: str, critic: str
) -> None:
    policy = double_policy(critic, architecture)
    rollout = sampled(policy)
    ppo = make_ppo(policy, gamma=0.9, lam=0.8, value_coef=0.3, whiten_advantages=False)
    # the textbook sum, not the recursion: A_t = sum_k (gamma lam)^k delta_{t+k}
    advantages = {}
    for row, n in enumerate(rollout.lengths.tolist()):
        r, v = rollout.rewards[row].tolist(), [*rollout.values[row, :n].tolist(), 0.0]
        deltas = [r[t] + 0.9 * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            advantages[row, t] = sum(0.72**k * delta for k, delta in enumerate(deltas[t:]))

    def token_loss(row: int, t: int, logprob: Tensor, value: Tensor) -> Tensor:
        target = advantages[row, t] + float(rollout.values[row, t])
        return -advantages[row, t] * logprob + 0.3 * 0.5 * (value - target) ** 2

    expected = by_autograd(policy, rollout, token_loss)
    assert sum(float(g.abs().sum()) for g in expected.values()) > 0
    assert distance(expected, gradients(policy, ppo, rollout)) < 1e-10


def test_clipped_tokens_pass_no_gradient_to_the_weights() -> None:
    policy = double_policy()
    rollout = sampled(policy)
    ppo = make_ppo(policy)
    advantages = ppo.prepare(rollout)["advantages"]
    clipped = (torch.arange(rollout.mask.shape[1]) % 2 == 0) & rollout.mask
    # e^0.4 beyond the clip, where the advantage wanted to go; or as far on the other side, where min takes the ratio
    step = 0.4 * advantages.sign()
    old = torch.where(clipped, rollout.logprobs - step, rollout.logprobs + step)
    rollout = rollout.replace(logprobs=old)
    returns = ppo.prepare(rollout)["returns"]

    def token_loss(row: int, t: int, logprob: Tensor, value: Tensor) -> Tensor:
        loss = 0.25 * (value - returns[row, t]) ** 2
        return loss if clipped[row, t] else loss - advantages[row, t] * (logprob - old[row, t]).exp()

    assert distance(by_autograd(policy, rollout, token_loss), gradients(policy, ppo, rollout)) < 1e-10


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_micro_batches_change_nothing(dtype: str, tolerance: float) -> None:
    """8 micro-batches of 1 are 1 of 8, on ragged lengths: a mean of means would differ."""
    found, after = [], []
    for tokens in (1, 60, 1_000_000):
        policy = make_policy(critic="separate", dtype=dtype)
        policy.prepare(Needs(values=True))
        nudge(policy)
        rollout = sampled(policy)
        assert len(set(rollout.lengths.tolist())) > 4
        config = {"micro_batch_tokens": tokens, "entropy_coef": 0.05, "dual_clip": 3.0}
        found.append(gradients(policy, make_ppo(policy, **config), rollout))
        make_ppo(policy, **config, minibatch_size=5, epochs=2, learning_rate=1e-3).step(Given(rollout))
        after.append(weights(policy))
    assert moved(weights(make_policy(critic="separate", dtype=dtype)), after[0])
    for other in (1, 2):
        assert distance(found[0], found[other]) < tolerance
        assert distance(after[0], after[other]) < tolerance


def widened(rollout: Rollout, left: int, right: int) -> Rollout:
    """The same samples with more padding, which is filled with junk."""
    changes = {}
    for name, tensor in rollout.tensors().items():
        if tensor.dim() < 2:
            continue
        junk = {torch.bool: False, torch.long: 7}.get(tensor.dtype, math.nan)
        pad = (left, 0) if name.startswith("prompt") else (0, right)
        changes[name] = torch.nn.functional.pad(tensor, pad, value=junk)
    return rollout.replace(**changes)


def test_padding_order_and_junk_change_nothing() -> None:
    policy = double_policy(architecture="gpt2")  # its absolute positions notice padding
    ppo = make_ppo(policy, entropy_coef=0.05)
    rollout = sampled(policy)
    holes = rollout.mask.clone()
    holes[::2, 1] = False  # another speaker's tokens, attended to but not learnt from
    rollout = rollout.replace(mask=holes, rewards=rollout.rewards * holes)
    expected = gradients(policy, ppo, rollout)
    outside = ~rollout.mask
    junk = {name: getattr(rollout, name).masked_fill(outside, math.nan) for name in ("rewards", "values", "logprobs")}
    ids = rollout.response_ids.masked_fill(~rollout.attention, 11)
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(1)).tolist()
    for other in (widened(rollout, 3, 5), rollout.select(order), rollout.replace(response_ids=ids, **junk)):
        assert distance(expected, gradients(policy, ppo, other)) < 1e-10


# --- what moves, and what does not -----------------------------------------------------------------------------------


def test_no_advantage_and_no_error_of_the_critic_leave_everything_as_it_is() -> None:
    policy = make_policy()
    nudge(policy)
    ppo = make_ppo(policy, epochs=3)  # the value head is new, so V = 0, and so are all rewards
    rollout = sampled(policy)
    before = weights(policy)
    stats = ppo.step(Given(rollout.replace(rewards=torch.zeros_like(rollout.rewards))))
    assert not moved(before, weights(policy))
    assert all(math.isfinite(value) for value in stats.values())


def test_equal_rewards_teach_the_critic_only() -> None:
    policy = make_policy(critic="separate")
    nudge(policy)
    ppo = make_ppo(policy, epochs=3, lam=1.0)
    rollout = sampled(policy)
    last = torch.arange(rollout.mask.shape[1])[None] == rollout.lengths[:, None] - 1
    before = weights(policy)
    ppo.step(Given(rollout.replace(rewards=last.float())))
    names = moved(before, weights(policy))
    assert names
    assert all(name.startswith("value_") for name in names)


def test_a_batch_in_which_all_abstain_does_nothing() -> None:
    policy = make_policy()
    ppo = make_ppo(policy, prompts_per_step=8, minibatch_size=4)
    before = weights(policy)
    data = stage_data(policy, ppo, lambda completions, **_: [None] * len(completions), ["a", "b"])
    (stats,) = train(ppo, data, 1)
    assert stats["policy/updates"] == 0
    assert all(math.isfinite(value) for name, value in stats.items() if name.startswith(("policy/", "value/")))
    assert not moved(before, weights(policy))


def test_abstained_samples_have_no_weight() -> None:
    policy = double_policy()
    ppo = make_ppo(policy)
    rollout = sampled(policy)
    keep = [0, 1, 2, 4, 5, 7]
    mask = rollout.mask.clone()
    mask[[row for row in range(len(rollout)) if row not in keep]] = False
    abstained = rollout.replace(mask=mask, rewards=rollout.rewards * mask)
    assert distance(gradients(policy, ppo, rollout.select(keep)), gradients(policy, ppo, abstained)) < 1e-10


@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_batch_in_which_all_are_cut_is_finite(bootstrap: bool) -> None:
    policy = make_policy()
    nudge(policy)
    ppo = make_ppo(policy, 2, prompts_per_step=8, minibatch_size=8, bootstrap_truncated=bootstrap, gamma=0.9)
    history = train(ppo, stage_data(policy, ppo, lambda completions, **_: [1.0] * len(completions), ["a"]), 2)
    assert history[-1]["response/truncated"] == 1
    assert all(math.isfinite(value) for stats in history for value in stats.values())
    assert all(bool(p.isfinite().all()) for p in policy.module.parameters())


def test_rewards_that_are_not_finite_leave_the_weights() -> None:
    policy = make_policy()
    ppo = make_ppo(policy)
    rollout = sampled(policy)
    before = weights(policy)
    with pytest.raises(NumericalError, match="optimizer 'mine': loss nan at step 1"):
        ppo.step(Given(rollout.replace(rewards=rollout.rewards / 0)))
    assert not moved(before, weights(policy))


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_only_the_critic_learns_while_it_warms_up(critic: str) -> None:
    policy = make_policy(critic=critic)
    nudge(policy)
    ppo = make_ppo(policy, 3, value_warmup=2, epochs=2, minibatch_size=8)
    rollout = sampled(policy)
    for step in range(3):
        before = weights(policy)
        ppo.step(Given(rollout, step))
        names = moved(before, weights(policy))
        heads = {"value_head.weight", "value_head.bias"}
        assert heads <= names
        if step < 2:
            assert all(name in heads if critic == "shared" else name.startswith("value_") for name in names)
        else:
            assert names == before.keys()
        if critic == "separate":
            assert any(name.startswith("value_trunk") for name in names)


def test_updates_end_once_the_policy_has_moved_too_far() -> None:
    policy = make_policy()
    nudge(policy)
    rollout = sampled(policy)
    start = weights(policy)
    config = {"epochs": 8, "minibatch_size": 12, "learning_rate": 1e-2}
    free = make_ppo(policy, **config).step(Given(rollout))
    assert (free["policy/updates"], free["policy/stopped_early"]) == (8, 0)
    policy.network.load_state_dict(start)
    held = make_ppo(policy, **config, target_kl=0.05).step(Given(rollout))
    assert 1 <= held["policy/updates"] < 8
    assert held["policy/stopped_early"] == 1
    assert held["policy/approx_kl"] < free["policy/approx_kl"]
    assert all(p.grad is None for p in policy.module.parameters()), "what was accumulated is dropped"


def test_the_entropy_bonus_raises_the_entropy() -> None:
    entropies = {}
    for coef in (0.0, 0.1):
        policy = make_policy()
        with torch.no_grad():  # a policy that has made up its mind, and rewards that do not care
            policy.network.lm.get_output_embeddings().weight.mul_(25)
        ppo = make_ppo(policy, 10, entropy_coef=coef, learning_rate=1e-2)
        history = train(ppo, stage_data(policy, ppo, lambda completions, **_: [0.0] * len(completions), ["say a:"]), 10)
        entropies[coef] = history[0]["policy/entropy"], history[-1]["policy/entropy"]
    assert entropies[0.0][1] == pytest.approx(entropies[0.0][0], abs=0.3)
    assert entropies[0.1][1] > entropies[0.1][0] + 1


def test_resuming_continues_bit_for_bit(tmp_path: Path) -> None:
    def fresh() -> tuple[Any, PPO, Any]:
        policy = make_policy(seed=3)
        ppo = make_ppo(policy, 3, seed=3, prompts_per_step=8, minibatch_size=4, epochs=2, value_warmup=1,
                       learning_rate=Schedule(schedule="linear", start=1e-2, warmup=3))  # fmt: skip
        data = stage_data(policy, ppo, has("a"), ["say a:", "say b:", "c"], max_new_tokens=3, seed=3)
        return policy, ppo, data

    policy, ppo, data = fresh()
    whole = train(ppo, data, 3)
    half = fresh()
    train(half[1], half[2], 1)
    checkpoint.save(tmp_path / "state", {"parts": [part.state_dict() for part in half]})
    resumed = fresh()
    for part, state in zip(resumed, checkpoint.load(tmp_path / "state")["parts"], strict=True):
        part.load_state_dict(state)
    assert train(resumed[1], resumed[2], 2, start=1) == whole[1:]
    assert not moved(weights(policy), weights(resumed[0]))
    assert json.dumps(resumed[1].state_dict()["gradient"]["taken"]) == "12"


# --- learning --------------------------------------------------------------------------------------------------------


def has(character: str) -> Any:
    """Reward 1 for a response with `character` in it: a bandit that is right once in 100 responses by chance."""

    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [float(character in completion) for completion in completions]

    return reward


def answers_the_prompt(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Reward 1 for a letter of the case that the prompt names; by chance one in ten."""
    pairs = zip(prompts, completions, strict=True)
    return [float(text.islower() if prompt == "lower:" else text.isupper()) for prompt, text in pairs]


def measure(data: Any, texts: list[str]) -> dict[str, float]:
    """Mean score and its standard error on fresh samples."""
    prompts = [Prompt(text=text) for text in texts for _ in range(200 // len(texts))]
    rollout, _ = data.sampler.rollout(prompts, 1, data.sampling, Needs(), seed=12345)
    return mean_and_error(rollout.score)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("architecture", "critic", "reward", "texts", "tokens", "steps"), [
    ("gpt2", "separate", has("e"), ["say e:"], 4, 30),
    ("llama", "shared", answers_the_prompt, ["lower:", "UPPER:"], 1, 40),
], ids=["one-answer", "answer-by-prompt"])  # fmt: skip
def test_it_learns(architecture: str, critic: str, reward: Any, texts: list[str], tokens: int, steps: int,
                   seed: int) -> None:  # fmt: skip
    """From chance (1 and 10 %) to 90 % of the optimum in `steps` steps of 32 samples."""
    policy = make_policy(architecture, critic, seed)
    ppo = make_ppo(policy, steps, seed, learning_rate=Schedule(schedule="linear", start=1e-2), prompts_per_step=32,
                   minibatch_size=16, epochs=2, max_grad_norm=1.0, entropy_coef=0.01)  # fmt: skip
    data = stage_data(policy, ppo, reward, texts, tokens, seed)
    before = measure(data, texts)
    train(ppo, data, steps)
    after = measure(data, texts)
    assert after["mean"] >= 0.9
    assert after["mean"] - before["mean"] > 3 * math.hypot(after["error"], before["error"])


def test_the_critic_learns_what_prompts_are_worth() -> None:
    """The reward depends on the prompt alone: a good critic explains all of it."""
    policy = make_policy()
    ppo = make_ppo(
        policy, 30, learning_rate=Schedule(schedule="linear", start=1e-2), prompts_per_step=16, minibatch_size=16
    )
    data = stage_data(policy, ppo, lambda prompts, **_: [float("good" in p) for p in prompts], ["good", "bad"])
    history = train(ppo, data, 30)
    assert history[0]["value/explained_variance"] == 0
    assert history[-1]["value/explained_variance"] > 0.9


def test_what_is_logged_is_finite_and_in_the_readme() -> None:
    policy = make_policy()
    ppo = make_ppo(policy, entropy_coef=0.01, dual_clip=3.0, target_kl=1.0)
    for name, value in ppo.step(Given(sampled(policy))).items():
        assert math.isfinite(value)
        assert f"`{name}`" in README


def test_from_python_without_a_registry() -> None:
    ppo = PPO(PPOConfig(), Context())
    ppo.bind(make_policy(), 1)
    assert ppo.step(Given(sampled(ppo.policy)))["policy/updates"] == 2  # 12 samples: one minibatch in each of 2 epochs
