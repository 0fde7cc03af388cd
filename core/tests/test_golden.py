"""The public reference implementations' own numbers, from golden.json beside the project (skipped where it is absent).

Each case is one test, named after it. Where a peer's convention differs, the test sets the argument that chooses it, or
says what is left out. Cases that are missing here belong to functions of plugins and are compared in their tests: ACER, the
GAIL reward (irl), edits, rater agreement and aggregation (quality); a last test sees to it that none is forgotten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rlhf_core.components.config import KLConfig
from rlhf_core.components.kl import KL
from rlhf_core.functional import (
    Aggregation,
    KLKind,
    Scale,
    aggregate,
    bradley_terry_loss,
    coral_loss,
    discounted_returns,
    gae,
    group_advantages,
    kl_estimate,
    masked_mean,
    masked_var,
    masked_whiten,
    plackett_luce_loss,
    ppo_policy_loss,
    ppo_value_loss,
    token_entropy,
    token_logprobs,
    weighted_likelihood_loss,
)
from rlhf_core.interfaces import Context, Sampling, Schedule
from rlhf_core.policies.drawing import restrict
from rlhf_core.records import Prompt, Rollout, Sample
from rlhf_core.rl.rewards import token_rewards
from torch import Tensor

PATH = Path(os.environ.get("RLHF_GOLDEN") or Path(__file__).resolve().parents[2] / "../shared/golden/golden.json")

ROOT = Path(__file__).resolve().parents[2]

Case = Callable[[dict[str, Any], dict[str, Any]], None]
CASES: dict[str, Case] = {}


def case(*ids: str) -> Callable[[Case], Case]:
    def register(check: Case) -> Case:
        CASES.update(dict.fromkeys(ids, check))
        return check

    return register


@cache
def golden() -> dict[str, Any]:
    return {entry["id"]: entry for entry in json.loads(PATH.read_text(encoding="utf-8"))["cases"]}


@pytest.mark.skipif(not PATH.is_file(), reason=f"no reference data at {PATH} (set RLHF_GOLDEN)")
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    entry = golden()[name]
    CASES[name](entry["inputs"], entry["expected"])


@pytest.mark.skipif(not PATH.is_file(), reason=f"no reference data at {PATH} (set RLHF_GOLDEN)")
def test_every_case_is_compared_somewhere() -> None:
    elsewhere = "\n".join(path.read_text() for path in ROOT.glob("plugins/*/tests/*.py"))
    assert [name for name in golden() if name not in CASES and name.partition("/")[2] not in elsewhere] == []


def t(values: Any) -> Tensor:
    """A float64 tensor; numbers that JSON cannot write stand as strings."""
    return torch.tensor(float(values) if isinstance(values, str) else values, dtype=torch.float64)


def same(got: Tensor, expected: Any, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(got.detach(), t(expected), rtol=tolerance, atol=tolerance)


def gradient(of: Tensor, to: Tensor) -> Tensor:
    return torch.autograd.grad(of, to, retain_graph=True)[0]


# Returns, advantages, whitening


@case(
    "gae/trailing_pad_g0.99_l0.95",
    "gae/trailing_pad_g1.0_l0.95",
    "gae/trailing_pad_g0.9_l0.0",
    "gae/interior_hole_mask",
)
def gae_verl(i: dict[str, Any], e: dict[str, Any]) -> None:
    mask = t(i["mask"])
    advantages, returns = gae(t(i["rewards"]), t(i["values"]), mask, gamma=i["gamma"], lam=i["lam"])
    same(advantages, e["advantages_raw"])
    same(returns, e["returns"])
    same(masked_whiten(advantages, mask), e["advantages_whitened"])


@case("gae/trlx_whitened_single_row")  # unbiased variance, one row without padding
def gae_trlx(i: dict[str, Any], e: dict[str, Any]) -> None:
    mask = torch.ones_like(t(i["rewards"]))
    advantages, returns = gae(t(i["rewards"]), t(i["values"]), mask, gamma=i["gamma"], lam=i["lam"])
    same(returns, e["returns"])
    same(masked_whiten(advantages, mask), e["advantages_whitened"])


@case("trl_ppo/rewards_gae_k1", "trl_ppo/rewards_gae_k1_whiten_rewards")
def gae_trl(i: dict[str, Any], e: dict[str, Any]) -> None:
    """TRL puts the score one slot after the last token where there is room, and trains the critic on that slot too."""
    width, last = len(i["values"][0]), torch.tensor(i["last_token_index"])[:, None]
    scored = (last + 1).clamp(max=width - 1)
    mask, mask_p1 = torch.arange(width) <= last, torch.arange(width) <= scored
    kl = kl_estimate(t(i["logprobs"]), t(i["ref_logprobs"]), kind="k1")
    rewards = torch.where(mask, -i["kl_coef"] * kl, 0).scatter_add(1, scored, t(i["scores"])[:, None])
    if i["whiten_rewards"]:
        rewards = masked_whiten(rewards, mask_p1, shift_mean=False)
    same(rewards, e["rewards"])
    advantages, returns = gae(rewards, t(i["values"]), mask_p1, gamma=i["gamma"], lam=i["lam"])
    same(returns, e["returns"])
    same(masked_whiten(advantages, mask), e["advantages_whitened"])


@case("returns/worked_example_quick_brown_fox")
def worked_example(i: dict[str, Any], e: dict[str, Any]) -> None:
    rewards, values = t([i["rewards"]]), t([i["values"]])
    mask = torch.ones_like(rewards)
    returns = discounted_returns(rewards, mask, gamma=i["gamma"])
    same(returns[0], e["returns"])
    same(returns[0, 1], e["quick_return"])
    same((returns - values)[0], e["advantages_mc"])
    same(gae(rewards, values, mask, gamma=i["gamma"], lam=1.0)[0][0], e["advantages_gae_lambda1"])


@case("reinforce_pp/interior_hole_QUIRK")
def reinforce_hole(i: dict[str, Any], e: dict[str, Any]) -> None:
    """The peer forgets later credit at a hole. After the last hole we agree; before it we keep the credit."""
    returns = discounted_returns(t(i["rewards"]), t(i["mask"]), gamma=i["gamma"])
    same(returns[:, 3:], [row[3:] for row in e["returns"]])
    same(returns[:, :3], [[7.603, 8.47, 0], [-0.4959, 0, 0]])  # .01 + .9 * 9.4 = 8.47, -.02 + .9 * 8.47; .9 * -.551


@case("reinforce/baseline")
def reinforce(i: dict[str, Any], e: dict[str, Any]) -> None:
    mask, logprobs = t(i["mask"]), t(i["logprob"]).requires_grad_()
    returns = discounted_returns(t(i["rewards"]), mask, gamma=1.0)
    same(returns, e["reward_to_go"])
    advantages = returns - t(i["baseline"])[:, None] * mask
    same(advantages, e["advantages"])
    modes: tuple[Aggregation, ...] = ("seq-mean-token-sum", "token-mean")
    for mode in modes:
        loss = aggregate(-advantages * logprobs, mask, mode)
        same(loss, e[f"loss_{mode.replace('-', '_')}"])
        same(gradient(loss, logprobs), e[f"grad_{mode.replace('-', '_')}"])


@case("whiten/verl_unbiased_eps1e-8")
def whiten_verl(i: dict[str, Any], e: dict[str, Any]) -> None:
    x, mask = t(i["x"]), t(i["mask"])
    same(masked_whiten(x, mask), e["shift_mean_true"])
    same(masked_whiten(x, mask, shift_mean=False), e["shift_mean_false"])
    same(masked_mean(x, mask), e["masked_mean"])
    same(masked_var(x, mask), e["masked_var_unbiased"])


@case("whiten/openrlhf_biased")  # row by row; its eps is a floor of the variance, which no row here reaches
def whiten_openrlhf(i: dict[str, Any], e: dict[str, Any]) -> None:
    rows = [masked_whiten(x, mask, unbiased=False, eps=0.0) for x, mask in zip(t(i["x"]), t(i["mask"]), strict=True)]
    same(torch.stack(rows), e["per_row"])


@case("whiten/moss_biased_eps1e-6")
def whiten_moss(i: dict[str, Any], e: dict[str, Any]) -> None:
    same(masked_whiten(t(i["x"]), t(i["mask"]), unbiased=False, eps=1e-6), e["out"])


@case("grpo/verl_std_eps1e-6", "rloo/verl_unequal_groups")
def groups_verl(i: dict[str, Any], e: dict[str, Any]) -> None:
    """All but the sample alone in its group, which keeps its raw score in verl and gets 0 here."""
    names, grpo = i["group"], "0.707" in str(e["seq_advantage"][0])
    groups = torch.tensor([ord(name) for name in names])
    alone = torch.tensor([names.count(name) == 1 for name in names])
    if grpo:
        advantages = group_advantages(t(i["scores"]), groups, baseline="mean", scale="std", eps=1e-6)
    else:
        advantages = group_advantages(t(i["scores"]), groups, baseline="leave-one-out", scale="none", eps=0.0)
    same(advantages, t(e["seq_advantage"]).masked_fill(alone, 0.0).tolist())
    same((advantages[:, None] * t(i["mask"]))[~alone], t(e["token_advantage"])[~alone].tolist())


@case("grpo/trl_group", "grpo/trl_none")
def groups_trl(i: dict[str, Any], e: dict[str, Any]) -> None:
    scores = torch.stack([t(reward) for reward in i["rewards"]])
    groups = torch.arange(len(scores)) // i["num_generations"]
    scale: Scale = "std" if i["scale_rewards"] == "group" else "none"
    same(group_advantages(scores, groups, baseline="mean", scale=scale, eps=1e-4), e["advantages"])


# KL


@case("kl/k1_verl", "kl/abs_verl", "kl/k2_verl", "kl/grad_k1_verl", "kl/grad_k3_verl")
def kl_verl(i: dict[str, Any], e: dict[str, Any]) -> None:
    """Which kind the case is about can be told from its numbers: that of the first token and of a negative k1."""
    mask, logprobs, reference = t(i["mask"]), t(i["logprob"]).requires_grad_(), t(i["ref_logprob"])
    kinds: dict[float, KLKind] = {-0.3: "k1", 0.3: "abs", 0.045: "k2", 1.0: "k1", -0.349858807576: "k3"}
    kl = kl_estimate(logprobs, reference, kind=kinds[e["per_token" if "per_token" in e else "grad_logprob"][0][3]])
    if "grad_logprob" in e:
        same(gradient((kl * mask).sum(), logprobs), e["grad_logprob"])
    else:
        same(kl * mask, e["per_token"])
        same(masked_mean(kl, mask), e["masked_mean"])
        sums = [aggregate(row, valid, "seq-mean-token-sum") for row, valid in zip(kl, mask, strict=True)]
        same(torch.stack(sums), e["masked_seq_sum"])


@case("rewards/last_token_clip")  # peer in float32
def kl_reward(i: dict[str, Any], e: dict[str, Any]) -> None:
    """A clipped score, placed on the last token, and the `kl` shaper over it."""
    mask, score = t(i["mask"]).bool(), t(i["score"]).clamp(*i["reward_clip"])
    rows, ids = torch.arange(len(mask)), torch.zeros(mask.shape, dtype=torch.long)
    rollout = Rollout(
        samples=(Sample(Prompt(text="?"), "!"),) * len(mask), prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] == 0,
        response_ids=ids, attention=mask, mask=mask, logprobs=t(i["old_logprob"]), truncated=rows < 0, groups=rows,
        sample_ids=rows, reference_logprobs=t(i["ref_logprob"]), scores={},
    )  # fmt: skip
    nobody: Any = None  # nothing with spans has scored, so neither mix nor policy is asked
    placed = token_rewards(rollout, score.float(), nobody, nobody)
    shaped, _ = KL(KLConfig(coef=i["kl_coef"]), Context()).shape(placed, rollout)
    same(shaped.double(), e["rewards"], 1e-6)


# Losses


@case(
    "ppo_policy/clip0.2_token_mean_no_dual",
    "ppo_policy/clip0.2_dual3_token_mean",
    "ppo_policy/clip0.2_dual3_seq_mean_token_sum",
    "ppo_policy/openrlhf_dual_None",
    "ppo_policy/openrlhf_dual_3.0",
)
def ppo_policy(i: dict[str, Any], e: dict[str, Any]) -> None:
    mask, logprobs, old = t(i["mask"]), t(i["logprob"]).requires_grad_(), t(i["old_logprob"])
    loss, stats = ppo_policy_loss(
        logprobs,
        old,
        t(i["advantages"]),
        mask,
        clip_low=i["clip_low" if "clip_low" in i else "clip"],
        clip_high=i["clip_high" if "clip_high" in i else "clip"],
        dual_clip=i.get("dual_clip_c", i.get("dual_clip")),
        aggregation=i.get("agg", "token-mean"),
    )
    same(loss, e["loss"])
    same(gradient(loss, logprobs), e["grad_logprob"])
    same(stats["clip_fraction"], e["clipfrac"])
    same(stats["approx_kl"], e.get("approx_kl_k1_old_minus_new", e.get("ppo_kl")))
    if "ratio" in e:
        same(stats["dual_clip_fraction"], e["clipfrac_lower"])
        same(stats["ratio_mean"], (t(e["ratio"]).sum() / 12).item())


@case("ppo_value/clip0.2_token_mean")
def ppo_value(i: dict[str, Any], e: dict[str, Any]) -> None:
    values = t(i["values"]).requires_grad_()
    loss, stats = ppo_value_loss(values, t(i["old_values"]), t(i["returns"]), t(i["mask"]), clip=i["clip"])
    same(loss, e["loss"])
    same(gradient(loss, values), e["grad_values"])
    same(stats["value_clip_fraction"], e["clipfrac"])


@case("trl_ppo/policy_value_loss")  # the critic's mask holds one slot more where there is room
def ppo_trl(i: dict[str, Any], e: dict[str, Any]) -> None:
    logprobs, values = t(i["logprob"]).requires_grad_(), t(i["values"]).requires_grad_()
    last = torch.tensor(i["last_token_index"])[:, None]
    mask, mask_p1 = torch.arange(values.shape[1]) <= last, torch.arange(values.shape[1]) <= last + 1
    policy, _ = ppo_policy_loss(
        logprobs, t(i["old_logprob"]), t(i["advantages"]), mask, clip_low=i["clip"], clip_high=i["clip"]
    )
    value, stats = ppo_value_loss(values, t(i["old_values"]), t(i["returns"]), mask_p1, clip=i["clip_value"])
    loss = policy + i["vf_coef"] * value
    same(policy, e["pg_loss"])
    same(value, e["vf_loss"])
    same(stats["value_clip_fraction"], e["vf_clipfrac"])
    same(loss, e["loss"])
    same(gradient(loss, logprobs), e["grad_logprob"])
    same(gradient(loss, values), e["grad_values"])


@case("moss/ppo_max_criterion_script_default", "moss/ppo_max_criterion_entropy")
def ppo_max(i: dict[str, Any], e: dict[str, Any]) -> None:
    """From logits to gradients: shift by one, gather, clip, and the entropy held near a target.

    The peer's fractions are float32, and its approx_kl is the k3 estimate of KL(old || new).
    """
    logits, critic, o = t(i["policy_logits"]).requires_grad_(), t(i["critic_values"]).requires_grad_(), i["options"]
    mask, old, metrics = t(i["loss_mask"])[:, 1:], t(i["old_logprobs"]), e["metrics"]
    logprobs = token_logprobs(logits[:, :-1], torch.tensor(i["input_ids"])[:, 1:])
    policy, stats = ppo_policy_loss(
        logprobs, old, t(i["advantages"]), mask, clip_low=o["pg_clip"], clip_high=o["pg_clip"]
    )
    value, value_stats = ppo_value_loss(critic[:, :-1], t(i["old_values"]), t(i["returns"]), mask, clip=o["value_clip"])
    loss = policy + o["vf_loss_weight"] * value
    if "entro_loss" in metrics:
        away = (masked_mean(token_entropy(logits[:, :-1]), mask) - o["entropy_clip"]).abs()
        same(away, metrics["entro_loss"])
        loss = loss + o["entropy_loss_weight"] * away
    same(policy, metrics["pg_loss"])
    same(value, metrics["vf_loss"])
    same(loss, e["total"])
    same(stats["clip_fraction"], metrics["pg_clip"], 1e-6)
    same(value_stats["value_clip_fraction"], metrics["vf_clip"], 1e-6)
    same(stats["ratio_mean"], metrics["ratio"])
    same(masked_mean(kl_estimate(old, logprobs, kind="k3"), mask), metrics["approx_kl"])
    same(gradient(loss, critic), e["grad_values"])
    same(gradient(loss, logits).norm(), e["grad_logits_l2"])
    same(gradient(loss, logits)[0, 1], e["grad_logits_row0_pos1"])


@case("a2c/normalize_False")  # flattened valid tokens; the critic's error has no factor 1/2 there
def a2c(i: dict[str, Any], e: dict[str, Any]) -> None:
    logprobs, values = t(i["valid_token_logprob"]).requires_grad_(), t(i["values"]).requires_grad_()
    ones = torch.ones_like(logprobs)
    policy = aggregate(-t(i["advantages"]) * logprobs, ones, "token-mean")
    value = 2 * ppo_value_loss(values, values.detach(), t(i["returns"]), ones)[0]
    entropy = -masked_mean(t(i["entropy"]), ones)
    loss = policy + i["ent_coef"] * entropy + i["vf_coef"] * value
    same(policy, e["policy_loss"])
    same(value, e["value_loss"])
    same(entropy, e["entropy_loss"])
    same(loss, e["loss"])
    same(gradient(loss, logprobs), e["grad_logprob"])
    same(gradient(loss, values), e["grad_values"])


@case("agg/four_modes")
def aggregation(i: dict[str, Any], e: dict[str, Any]) -> None:
    for mode, expected in e.items():
        same(aggregate(t(i["loss_mat"]), t(i["mask"]), cast(Aggregation, mode)), expected)


@case("agg/microbatch_invariance")
def micro_batches(i: dict[str, Any], e: dict[str, Any]) -> None:
    rows = zip(t(i["loss_mat"]).unbind(), t(i["mask"]).unbind(), strict=True)
    parts = torch.stack([aggregate(x[None], m[None], "token-mean", i["batch_num_tokens"]) for x, m in rows])
    same(parts, e["per_microbatch"])
    same(parts.sum(), e["sum"])
    same(aggregate(t(i["loss_mat"]), t(i["mask"]), "token-mean"), e["sum"])


@case("entropy/masked")
def entropy(i: dict[str, Any], e: dict[str, Any]) -> None:
    mask = t(i["mask"])
    per_token = token_entropy(t(i["logits"]))
    same(per_token * mask, e["token_entropy"])
    same(masked_mean(per_token, mask), e["token_mean"])


@case("phf/mle")
def likelihood(i: dict[str, Any], e: dict[str, Any]) -> None:
    logprobs = token_logprobs(t(i["logits"])[:, :-1], torch.tensor(i["input_ids"])[:, 1:])
    same(aggregate(-logprobs, torch.ones_like(logprobs), "token-mean"), e["loss"])


@case("phf/unlikelihood_thr0.00078_alpha1")  # the score of the predicted token decides
def unlikelihood(given: dict[str, Any], expected: dict[str, Any]) -> None:
    logits, ids = t(given["logits"])[:, :-1], torch.tensor(given["input_ids"])[:, 1:]
    scores = t(given["token_scores"])[:, 1:]
    weights = torch.where(scores <= given["score_threshold"], 1.0, -given["alpha"])
    loss = weighted_likelihood_loss(token_logprobs(logits, ids), weights, torch.ones_like(ids))
    same(loss, expected["loss"])


@case("phf/rwr_alpha1_beta10", "phf/rwr_alpha1_beta1")  # there values are given, and taken off the reward -score
def reward_weighted_regression_with_values(given: dict[str, Any], expected: dict[str, Any]) -> None:
    rewards = -t(given["token_scores"])[:, 1:] - t(given["values"])[:, :-1]
    same(reward_weighted(given, rewards), expected["loss"])


@case("phf/rwr_no_value_head_beta1")  # the method of the paper
def reward_weighted_regression(given: dict[str, Any], expected: dict[str, Any]) -> None:
    same(reward_weighted(given, -t(given["token_scores"])[:, 1:]), expected["loss"])


def reward_weighted(given: dict[str, Any], rewards: Tensor) -> Tensor:
    """Likelihood weighted by exp(reward / beta), which is capped."""
    logits, ids = t(given["logits"])[:, :-1], torch.tensor(given["input_ids"])[:, 1:]
    weights = (rewards / given["beta"]).exp().clamp(max=given.get("clip_weight_max", 1000))
    return weighted_likelihood_loss(token_logprobs(logits, ids), weights, torch.ones_like(ids))


@case("sampling/top_p_0.9")
def top_p(given: dict[str, Any], expected: dict[str, Any]) -> None:
    kept = restrict(t(given["probs"]).log(), Sampling(top_p=given["topp"]))
    same(kept.softmax(-1), expected["out"])


@case("moss/lr_invsqrt_warmup100")  # there a step is counted before it is taken, so that step 0 has the floor
def inverse_square_root(given: dict[str, Any], expected: dict[str, Any]) -> None:
    schedule = Schedule(schedule="inverse-sqrt", start=1.0, end=0.1, warmup=given["warmup"])
    same(t([schedule.at(step - 1, 10_000) for step in given["steps"]]), expected["factor"])


@case("bt/margin")
def bt_margin(i: dict[str, Any], e: dict[str, Any]) -> None:
    chosen, rejected = t(i["chosen"]).requires_grad_(), t(i["rejected"])
    loss = bradley_terry_loss(chosen, rejected, margin=t(i["margin"]))
    same(loss, e["loss_margin"])
    same(gradient(loss, chosen), e["grad_chosen"])
    same(bradley_terry_loss(chosen, rejected), e["loss_no_margin"])


@case("bt/label_smoothing_0.0", "bt/label_smoothing_0.1")
def bt_smoothing(i: dict[str, Any], e: dict[str, Any]) -> None:
    same(bradley_terry_loss(t(i["chosen"]), t(i["rejected"]), label_smoothing=i["alpha"]), e["loss"])


@case("bt/overflow_float32")
def bt_overflow(i: dict[str, Any], e: dict[str, Any]) -> None:
    loss = bradley_terry_loss(t(i["chosen"]).float(), t(i["rejected"]).float())
    assert loss.dtype == torch.float32
    assert loss.item() == e["logsigmoid_mean"]


@case("pl/kwise_ragged_4_3_2")
def plackett_luce(i: dict[str, Any], e: dict[str, Any]) -> None:
    scores, rankings = t(i["scores"]).requires_grad_(), i["rankings_best_first"]
    width = max(map(len, rankings))
    order = torch.tensor([ranking + [0] * (width - len(ranking)) for ranking in rankings])  # (B, K)
    mask = torch.arange(width) < torch.tensor([len(ranking) for ranking in rankings])[:, None]
    loss = plackett_luce_loss(scores[order], mask)
    same(loss, e["nll_mean_over_rankings"])
    same(loss * len(rankings), e["nll_sum"])
    same(gradient(loss * len(rankings), scores), e["grad_of_sum"])
    each = [plackett_luce_loss(row[None], valid[None]) for row, valid in zip(scores[order], mask, strict=True)]
    same(torch.stack(each), e["nll_per_ranking"])


@case("rating/coral_5_levels")
def coral(i: dict[str, Any], e: dict[str, Any]) -> None:
    logits, ratings = t(i["logits_4_thresholds"]), torch.tensor(i["ratings_1_to_5"])
    levels = ratings[:, None] > torch.arange(1, 5)
    assert levels.double().tolist() == i["levels"]
    same(coral_loss(logits, levels), e["loss_mean"])
    each = [coral_loss(g[None], y[None]) for g, y in zip(logits, levels, strict=True)]
    same(torch.stack(each), e["loss_per_row"])
