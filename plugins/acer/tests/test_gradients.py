"""What an update follows, against the paper's formulas written out slowly over all sequences of three tokens."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from rlhf_core.records import Rollout
from torch import Tensor, nn

from .table import STATES, STEPS, Table, V, every_sequence, exact_q, gradient, make, states_of, table

LOGITS, FAR, REWARDS = table(0), table(1, scale=6.0), table(2)


def score(logits: Tensor, state: int, token: int) -> Tensor:
    """(STATES, V) gradient of log pi(token | state) by the logits: 1 at the token, less pi."""
    found = torch.zeros_like(logits)
    found[state] = -logits[state].softmax(-1)
    found[state, token] += 1
    return found


def expected_gradient(policy: Table, mu: Tensor, steps: int = STEPS, **config: Any) -> Tensor:
    """(STATES, V) what ACER does to the logits on average over samples of `mu`, the sign turned to ascent."""
    rollout = every_sequence(mu, REWARDS, steps, top_k=config.get("top_k", V))
    acer = make(policy, **{"top_k": V, **config})
    chances = rollout.logprobs.sum(1).exp()
    assert float(chances.sum()) == pytest.approx(1)
    return -sum(chance * gradient(acer, rollout, row) for row, chance in enumerate(chances))  # type: ignore[return-value]


def test_at_ratio_1_with_q_equal_to_v_it_is_a2c() -> None:
    """A2C with lambda 1: sum over tokens of grad log pi (R_t - V_t)."""
    policy = Table(LOGITS)
    values = table(3)[:, 0]
    policy.set_q(values[:, None].expand(STATES, V))
    rollout = every_sequence(LOGITS, REWARDS)
    acer = make(policy, top_k=V, gamma=0.9)
    for row, (ids, rewards) in enumerate(zip(rollout.response_ids, rollout.rewards, strict=True)):  # type: ignore[arg-type]
        states = states_of(ids[None])[0].tolist()
        returns = [rewards[0] + 0.9 * rewards[1], rewards[1]]
        reference = sum(
            score(LOGITS, state, int(token)) * (ret - values[state])
            for state, token, ret in zip(states, ids, returns, strict=True)
        )
        torch.testing.assert_close(-gradient(acer, rollout, row), reference)


@pytest.mark.parametrize("c", [0.5, 1.0, 5.0])
def test_one_token_far_from_the_behaviour_is_the_exact_gradient(c: float) -> None:
    """With exact action values, on average over samples of another policy: the gradient of sum_a pi(a) r(a)."""
    logits = LOGITS.clone().requires_grad_()
    (logits[0].softmax(-1) * REWARDS[0]).sum().backward()  # type: ignore[no-untyped-call]
    policy = Table(LOGITS)
    policy.set_q(REWARDS)
    ratio = (LOGITS[0].log_softmax(-1) - FAR[0].log_softmax(-1)).exp()
    assert float(ratio.max()) > c, "the bound is active"
    torch.testing.assert_close(expected_gradient(policy, FAR, steps=1, truncation=c), logits.grad)


def by_states(steps: int = STEPS) -> Tensor:
    """(STATES, V) sum over states of FAR's chance to come there times sum_a grad pi(a) Q(a): what is left to policies
    that learn from another's states (Degris et al., 2012, theorem 1)."""
    mu, q = FAR.softmax(-1), exact_q(LOGITS, REWARDS, steps)
    pi = LOGITS.softmax(-1)
    visits = torch.zeros(STATES, dtype=torch.float64)
    visits[0] = 1
    if steps == 2:
        visits[1 : 1 + V] = mu[0]
    total = torch.zeros_like(LOGITS)
    for state in range(STATES):
        for token in range(V):
            total += visits[state] * pi[state, token] * q[state, token] * score(LOGITS, state, token)
    return total


@pytest.mark.parametrize("c", [0.5, 1.0, 5.0])
def test_exact_action_values_and_all_tokens_kept_have_no_bias(c: float) -> None:
    policy = Table(LOGITS)
    policy.set_q(exact_q(LOGITS, REWARDS))
    torch.testing.assert_close(expected_gradient(policy, FAR, truncation=c), by_states())


def test_fewer_tokens_kept_are_biased_where_the_bound_is_active_and_only_there() -> None:
    policy = Table(LOGITS)
    policy.set_q(exact_q(LOGITS, REWARDS))
    assert float((expected_gradient(policy, FAR, truncation=1.0, top_k=1) - by_states()).abs().max()) > 0.01
    torch.testing.assert_close(expected_gradient(policy, FAR, truncation=1e6, top_k=1), by_states())


def test_wrong_action_values_do_no_harm_while_no_ratio_is_truncated() -> None:
    """On-policy Q is a control variate: the expectation does not depend on it, in the last step at least."""
    policy = Table(LOGITS)
    expected = expected_gradient(policy, LOGITS, steps=1)
    policy.set_q(table(7, scale=5.0))
    torch.testing.assert_close(expected_gradient(policy, LOGITS, steps=1), expected)


def test_action_values_learn_the_truth_from_another_policys_samples() -> None:
    """Retrace averaged over FAR's samples: two sweeps from zero are exact, for a problem of two tokens."""
    policy, rollout = Table(LOGITS), every_sequence(FAR, REWARDS)
    acer = make(policy, top_k=V, learning_rate=1.0, q_coef=1.0)
    chances, states = rollout.logprobs.sum(1).exp(), states_of(rollout.response_ids)
    head = policy.heads[0]
    for _ in range(2):
        pull, mass = torch.zeros(STATES, V).double(), torch.zeros(STATES, V).double()
        for row, chance in enumerate(chances):
            acer.loss(rollout.select([row]), 1.0)[0].backward()  # type: ignore[no-untyped-call]
            pull -= chance * head.weight.grad.T  # target - Q
            mass[states[row], rollout.response_ids[row]] += chance
            acer.gradient.clear()
        policy.set_q(head.weight.detach().T + torch.where(mass > 0, pull / mass.clamp(min=1e-300), 0.0))
    visited = slice(0, 1 + V)
    torch.testing.assert_close(head.weight.detach().T[visited], exact_q(LOGITS, REWARDS)[visited])


@pytest.mark.parametrize("delta", [1e-3, 0.05])
def test_trust_region_over_all_tokens(delta: float) -> None:
    """z* = g - max(0, (k.g - delta) / ||k||^2) k with k = pi - average by the logits, one state at a time."""
    policy = Table(LOGITS)
    policy.set_q(exact_q(LOGITS, REWARDS))
    rollout = every_sequence(FAR, REWARDS)
    free, bound = make(policy, top_k=V), make(policy, top_k=V, trust_region=delta)
    average = table(4)
    bound.average["logits"] = average.clone()
    k = LOGITS.softmax(-1) - average.softmax(-1)  # (STATES, V)
    active = 0
    for row in range(len(rollout)):
        g = -gradient(free, rollout, row)
        product = (k * g).sum(-1, keepdim=True)
        multiplier = ((product - delta) / k.square().sum(-1, keepdim=True)).clamp(min=0)
        active += int((multiplier > 0).sum())
        torch.testing.assert_close(-gradient(bound, rollout, row), g - multiplier * k)
        torch.testing.assert_close(bound.average["logits"], average)
        torch.testing.assert_close(policy.module.logits.detach(), LOGITS)
    assert 0 < active < len(rollout) * STEPS, "active in some places, not in others"


def test_entropy_bonus_is_the_gradient_of_the_entropy() -> None:
    policy, rollout = Table(LOGITS), every_sequence(FAR, REWARDS)
    plain, bonus = make(policy, top_k=V), make(policy, top_k=V, entropy_coef=0.3)
    logits = LOGITS.clone().requires_grad_()
    torch.distributions.Categorical(logits=logits[[0, 2]]).entropy().sum().backward()
    row = rollout.response_ids.tolist().index([1, 0])  # from nothing, then from token 1: states 0 and 2
    torch.testing.assert_close(gradient(bonus, rollout, row) - gradient(plain, rollout, row), -0.3 * logits.grad)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_good_token_becomes_likelier_and_a_bad_one_less_likely(advantage: float) -> None:
    policy = Table(LOGITS)
    rollout = every_sequence(FAR, torch.zeros_like(REWARDS))
    rollout = rollout.replace(rewards=torch.tensor([[0.0, advantage]]).double().expand(9, 2))
    acer = make(policy, top_k=V)
    for row in range(9):
        before = policy.forward(rollout, acer.config.needs).logprobs[row, 1].detach()
        policy.module.logits.data -= 1e-3 * gradient(acer, rollout, row)
        after = policy.forward(rollout, acer.config.needs).logprobs[row, 1].detach()
        assert float((after - before) * advantage) > 0
        policy.module.logits.data.copy_(LOGITS)


def test_v_is_the_sum_over_the_whole_vocabulary_however_few_tokens_are_kept() -> None:
    policy = Table(LOGITS)
    q = table(5)
    policy.set_q(q)
    head = policy.heads[0]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    v = (LOGITS.softmax(-1) * (q + head.bias.detach())).sum(-1)
    for top_k in (1, 2, 3):
        rollout = every_sequence(FAR, REWARDS, top_k=top_k)
        _, stats = make(policy, top_k=top_k).loss(rollout, rollout.mask.sum().item())
        assert float(stats["q/value"]) == pytest.approx(float(v[states_of(rollout.response_ids)].mean()))
        covered = float(stats["policy/covered"])
        assert covered == pytest.approx(1) if top_k == 3 else covered < 0.999


# --- all of an update ------------------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {"gamma": 0.9, "truncation": 1.5, "trust_region": 0.02, "q_coef": 0.7, "entropy_coef": 0.2}


def written_out(rollout: Rollout, average: Tensor, q: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
    """The paper's update of `LOGITS` (STATES, V) and of `q` (STATES, V), one token after the other, and what is logged.

    A row that was cut is worth V beyond its last column, whose state the policy knows.
    """
    pi, mean = LOGITS.softmax(-1), average.softmax(-1)
    to_logits, to_q, tokens = torch.zeros_like(LOGITS), torch.zeros_like(q), int(rollout.mask.sum())
    log: dict[str, float] = defaultdict(float)
    assert rollout.rewards is not None and rollout.top_ids is not None and rollout.top_logprobs is not None
    for row, ids in enumerate(rollout.response_ids.tolist()):
        places = [t for t in range(len(ids)) if rollout.mask[row, t]]
        after, steps = 0.0, {}  # what follows is worth; (target, V) of each place
        if rollout.truncated[row]:
            end = state_after(ids)
            after = sum(float(pi[end, b] * q[end, b]) for b in range(V))
        for t in reversed(places):
            state, token = state_after(ids[:t]), ids[t]
            v = sum(float(pi[state, b] * q[state, b]) for b in range(V))
            target = float(rollout.rewards[row, t]) + 0.9 * after
            rho = float(pi[state, token]) / math.exp(rollout.logprobs[row, t])
            after = min(1.0, rho) * (target - float(q[state, token])) + v
            steps[t] = (target, v)
        for t in places:
            state, token, (target, v) = state_after(ids[:t]), ids[t], steps[t]
            mu = dict(zip(rollout.top_ids[row, t].tolist(), rollout.top_logprobs[row, t].exp().tolist(), strict=True))
            mu[token] = math.exp(rollout.logprobs[row, t])  # if it is among the likeliest, it is there once
            rho = {b: float(pi[state, b]) / mu[b] for b in mu}
            lost = {b: max(0.0, 1 - 1.5 / rho[b]) * float(pi[state, b]) * (float(q[state, b]) - v) for b in mu}
            g = min(1.5, rho[token]) * (target - v) * score(LOGITS, state, token)[state]
            g = g + sum(weight * score(LOGITS, state, b)[state] for b, weight in lost.items())
            k = pi[state] - mean[state]
            multiplier = max(0.0, (float(k @ g) - 0.02) / float(k @ k))
            surprise = -(pi[state].log())
            entropy = float(pi[state] @ surprise)
            to_logits[state] += g - multiplier * k + 0.2 * pi[state] * (surprise - entropy)
            to_q[state, token] += 0.7 * (target - q[state, token])
            for name, value in {
                "policy/ratio": rho[token], "policy/truncated": rho[token] > 1.5, "policy/entropy_exact": entropy,
                "policy/correction": sum(map(abs, lost.values())), "policy/covered": sum(float(pi[state, b]) for b in mu),
                "policy/approx_kl": rho[token] - 1 - math.log(rho[token]), "trust/active": multiplier > 0,
                "trust/kl": float(mean[state] @ (mean[state] / pi[state]).log()),
                "q/loss": (target - float(q[state, token])) ** 2 / 2, "q/target": target, "q/value": v,
            }.items():  # fmt: skip
                log[name] += value / tokens
    return to_logits / tokens, to_q / tokens, log


def state_after(ids: list[int]) -> int:
    """The number of the state after these tokens, at most two of them."""
    if len(ids) < 2:
        return 1 + ids[0] if ids else 0
    return 1 + V + V * ids[0] + ids[1]


def turns(rollout: Rollout) -> Rollout:
    """Every third response gets a hole, every fourth ends a token early; what is not valid has no reward."""
    mask = rollout.mask.clone()
    mask[::3, 1], mask[::4, -1] = False, False
    assert rollout.rewards is not None
    return rollout.replace(mask=mask, rewards=rollout.rewards.masked_fill(~mask, 0.0))


def cut(rollout: Rollout) -> Rollout:
    """Every other response was cut."""
    return rollout.replace(truncated=torch.arange(len(rollout)) % 2 == 0)


@pytest.mark.parametrize(("steps", "change"), [(3, turns), (2, cut)])
def test_an_update_is_the_papers_written_out(steps: int, change: Any) -> None:
    """Wrong action values, ratios on both sides of the bound, two of three tokens kept, an average apart."""
    policy, q, bias = Table(LOGITS), table(6), torch.tensor([0.5, -1.0, 0.2]).double()
    policy.set_q(q)
    head = policy.heads[0]
    assert isinstance(head, nn.Linear)
    head.bias.data.copy_(bias)
    rollout = change(every_sequence(FAR / 3, REWARDS, steps, top_k=2))
    acer = make(policy, top_k=2, bootstrap_truncated=True, **SETTINGS)
    acer.average["logits"] = table(4)
    loss, stats = acer.loss(rollout, float(rollout.mask.sum()))
    loss.backward()  # type: ignore[no-untyped-call]
    to_logits, to_q, log = written_out(rollout, table(4), q + bias)
    torch.testing.assert_close(-policy.module.logits.grad, to_logits)  # type: ignore[operator]
    torch.testing.assert_close(-head.weight.grad.T, to_q)  # type: ignore[union-attr]
    torch.testing.assert_close(-head.bias.grad, to_q.sum(0))  # type: ignore[operator]
    assert {name: float(value) for name, value in stats.items()} == pytest.approx(log)
    assert all(0.1 < log[name] < 0.9 for name in ("policy/truncated", "trust/active")), "and both of either"
