"""On a policy that is a table: learnt values against exact Q-iteration, better texts than any in the data, and the
gradient of the whole loss against a slow reference."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from rlhf_core.records import Feedback
from rlhf_plugin_ilql import optimizer as module
from torch import Tensor

from .toys import (
    END,
    Records,
    TablePolicy,
    distance,
    gradients,
    make_ilql,
    mean_return,
    nudge,
    rated,
    train,
)

Seen = tuple[str, float, float]
"""A text, its reward, and its weight."""

# every prefix is a state of its own; some texts are rated twice, differently, and many were never written
SEEN: list[Seen] = [
    ("", 0.1, 0.2), ("a", 0.2, 0.5), ("a", 0.4, 1.5), ("b", 0.5, 1.0), ("aa", 0.3, 2.0), ("ab", 0.9, 0.1),
    ("ab", 0.1, 0.3), ("ba", 0.0, 1.0), ("aab", 0.7, 0.5), ("aba", 1.0, 0.2), ("abb", 0.2, 1.0), ("bab", 0.6, 0.4),
    ("baa", 0.9, 0.6),
]  # fmt: skip


def prefix(text: str) -> str:
    return text


def table(width: int | None = None) -> TablePolicy:
    """Three tokens, a, b and the end; texts of up to three letters."""
    prefixes = ["".join(letters) for size in range(4) for letters in product("ab", repeat=size)]
    return TablePolicy("ab", prefixes, prefix, width)


def expectile(values: Sequence[tuple[float, float]], tau: float) -> float:
    """The tau-expectile of (value, weight) pairs, by bisection of its first-order condition."""
    low, high = min(v for v, _ in values), max(v for v, _ in values)
    for _ in range(100):
        middle = (low + high) / 2
        above = tau * sum(w * (v - middle) for v, w in values if v > middle)
        below = (1 - tau) * sum(w * (middle - v) for v, w in values if v < middle)
        low, high = (middle, high) if above > below else (low, middle)
    return (low + high) / 2


Table = dict[tuple[str, str], float]


def q_iteration(seen: Sequence[Seen], worth: Callable[[list[tuple[float, float]]], float], gamma: float,
                state_of: Callable[[str], str] = prefix) -> tuple[Table, dict[str, float]]:  # fmt: skip
    """Exact Q and V of the tokens that were taken, iterated to their fixed point; ``worth`` makes V(s) of (Q, weight)."""
    moves: dict[tuple[str, str], list[tuple[float, float, str]]] = defaultdict(list)
    for text, reward, weight in seen:
        for t, token in enumerate(text + END):
            moves[state_of(text[:t]), token].append((weight, reward if token == END else 0.0, state_of(text[: t + 1])))
    q: Table = {}
    v: dict[str, float] = defaultdict(float)
    for _ in range(60):
        for (state, token), found in moves.items():
            after = [r if token == END else gamma * v[following] for _, r, following in found]
            total = sum(w for w, _, _ in found)
            q[state, token] = sum(w * x for (w, _, _), x in zip(found, after, strict=True)) / total
        for state in {state for state, _ in q}:
            v[state] = worth([(q[key], sum(w for w, _, _ in moves[key])) for key in q if key[0] == state])
    return q, dict(v)


def records(seen: Sequence[Seen]) -> list[Feedback]:
    return [rated(*one) for one in seen]


# --- against exact Q-iteration ---------------------------------------------------------------------------------------


def learn(seen: Sequence[Seen], policy: TablePolicy, steps: int, **config: Any) -> Any:
    """Every step sees all of `seen`; nothing but data holds values down."""
    rate = {"schedule": "cosine", "start": 0.05}
    ilql = make_ilql(policy, steps, batch_size=len(seen), learning_rate=rate, betas=(0.5, 0.9), cql_coef=0,
                     reward_scale=1, **{"target_rate": 1, **config})  # fmt: skip
    return train(ilql, Records(records(seen)), steps)[-1]


@pytest.mark.parametrize(("tau", "away"), [(0.7, 0.463), (0.99, 0.043)])
def test_values_learnt_from_nothing_are_those_of_exact_q_iteration(tau: float, away: float) -> None:
    q, v = q_iteration(SEEN, lambda values: expectile(values, tau), gamma=0.9)
    policy = table()
    learn(SEEN, policy, 400, tau=tau, gamma=0.9)
    assert {key: policy.q(*key) for key in q} == pytest.approx(q, abs=5e-3)
    assert {state: policy.v(state) for state in v} == pytest.approx(v, abs=5e-3)
    best, _ = q_iteration(SEEN, lambda values: max(q for q, _ in values), gamma=0.9)
    # tau to 1 goes to the best that was seen
    assert max(abs(policy.q(*key) - best[key]) for key in best) == pytest.approx(away, abs=0.01)
    # and the model beside them writes as the data does
    wrote = {token: sum(w for text, _, w in SEEN if (text + END)[0] == token) for token in "ab."}
    expected = {token: weight / sum(wrote.values()) for token, weight in wrote.items()}
    assert policy.chances("", 0.0) == pytest.approx(expected, abs=5e-3)


def place(policy: TablePolicy, q: Table, v: dict[str, float]) -> None:
    """Write exact values into the tables."""
    with torch.no_grad():
        for (state, token), value in q.items():
            for head in policy.network.action_values:
                head.weight[policy.tokens.index(token), policy.states[state]] = value
        for state, value in v.items():
            policy.network.value.weight[0, policy.states[state]] = value


def pull(policy: TablePolicy, tau: float) -> float:
    """How hard the loss pulls at values that stand at the exact ones for tau 0.9."""
    ilql = make_ilql(policy, batch_size=len(SEEN), tau=tau, gamma=0.9, cql_coef=0, reward_scale=1)
    place(policy, *q_iteration(SEEN, lambda values: expectile(values, 0.9), gamma=0.9))
    ilql.targets.load_state_dict(policy.network.action_values.state_dict())
    found = gradients(ilql, records(SEEN))
    values = [g for name, g in found.items() if name.startswith(("action_values", "value")) and "bias" not in name]
    assert len(values) == 3
    return max(float(g.abs().max()) for g in values)


def test_at_the_exact_values_the_loss_is_at_rest() -> None:
    assert pull(table(), tau=0.9) < 1e-12
    assert pull(table(), tau=0.8) > 1e-3


# --- better than the data --------------------------------------------------------------------------------------------


def last(text: str) -> str:
    return text[-1:]


def goal(text: str) -> float:
    """Did it get to g? Later is worth less: a discount of 0.8 per letter."""
    return float(text.endswith("g"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_joins_the_good_halves_of_two_texts_and_beats_both(seed: int) -> None:
    """Where one can go depends on the last letter alone: h is a crossing, w a detour, g the goal, x a dead end. Some
    reach the crossing at once and then stray, others come to it late and know the way: nobody writes "hg" alone."""
    chance = random.Random(seed)
    wrote = [chance.choice(["hwwg", "wwhg", "hwhwg", "hx", "wx", "whwx"]) for _ in range(200)]
    assert {"hwwg", "wwhg"} <= set(wrote)
    best = max(0.8 ** len(text) * goal(text) for text in wrote)
    policy = TablePolicy("hwgx", ["", *"hwgx"], last)
    ilql = make_ilql(policy, 120, seed, batch_size=24, learning_rate=0.1, gamma=0.8, tau=0.9, beta=8)
    train(ilql, Records(rated(text, goal(text)) for text in wrote), 120)
    assert best == pytest.approx(0.8**4)
    assert mean_return(policy, goal, 0.0, gamma=0.8) < 0.8 * best, "unsteered it is no better than its data"
    found = mean_return(policy, goal, policy.steering, gamma=0.8)
    assert found > best and found == pytest.approx(0.8**2, rel=1e-3), "hg, the best there is, though nobody wrote it"


# --- the gradient ----------------------------------------------------------------------------------------------------


CONFIG = {"tau": 0.8, "gamma": 0.9, "cql_coef": 0.3, "imitation_coef": 2.0, "reward_scale": 3.0}


def trained_policy(seed: int = 0) -> tuple[TablePolicy, Any]:
    """A policy whose states share a trunk, and ILQL over it, all of it moved from where it began."""
    policy = table(width=4)
    ilql = make_ilql(policy, batch_size=len(SEEN), **CONFIG)
    nudge(policy.network, ilql.targets, seed=seed, scale=1.0)
    return policy, ilql


def slow_loss(policy: TablePolicy, targets: Any, seen: Sequence[Seen]) -> Tensor:
    """The loss of the paper, token by token."""
    net, total, count = policy.network, torch.zeros((), dtype=torch.float64), 0.0
    for text, reward, weight in seen:
        for t, token in enumerate(text + END):
            a = policy.tokens.index(token)
            state = net.trunk.weight[policy.states[text[:t]]]
            v = net.value(state)[0]
            if token == END:
                goal = torch.tensor(CONFIG["reward_scale"] * reward, dtype=torch.float64)
            else:
                goal = CONFIG["gamma"] * net.value(net.trunk.weight[policy.states[text[: t + 1]]])[0].detach()
            for head in net.action_values:
                q = head(state)
                total = total + weight * (q[a] - goal) ** 2
                total = total + weight * CONFIG["cql_coef"] * (q.exp().sum().log() - q[a])
            slow = min(float(head(state.detach())[a]) for head in targets)
            share = CONFIG["tau"] if slow > float(v.detach()) else 1 - CONFIG["tau"]
            total = total + weight * share * (slow - v) ** 2
            total = total - weight * CONFIG["imitation_coef"] * net.lm(state).log_softmax(-1)[a]
            count += weight
    return total / count


def test_the_gradient_of_the_whole_loss_is_that_of_a_slow_reference() -> None:
    policy, ilql = trained_policy()
    found = gradients(ilql, records(SEEN))
    slow_loss(policy, ilql.targets, SEEN).backward()
    expected = {name: p.grad for name, p in policy.network.named_parameters()}
    assert all(float(g.abs().max()) > 1e-3 for g in expected.values() if g is not None)
    assert distance(expected, found) < 1e-10


def test_the_loss_that_is_logged_is_the_one_of_the_reference() -> None:
    policy, ilql = trained_policy()
    expected = float(slow_loss(policy, ilql.targets, SEEN).detach())
    stats = train(ilql, Records(records(SEEN)), 1)[0]
    assert stats["policy/loss"] == pytest.approx(expected, rel=1e-10)
    parts = stats["value/td"] + stats["value/expectile"] + 0.3 * stats["value/conservative"]
    assert stats["policy/loss"] == pytest.approx(parts + 2.0 * stats["policy/imitation"])


def test_the_values_that_are_logged_are_means_over_what_was_taken() -> None:
    """Of the lower head, and of the states; each token as often as its record weighs. The reward is as it was given."""
    policy, ilql = trained_policy()
    taken = [(text[:t], token, weight) for text, _, weight in SEEN for t, token in enumerate(text + END)]
    whole = sum(weight for *_, weight in taken)
    q = sum(weight * policy.q(state, token) for state, token, weight in taken) / whole
    v = sum(weight * policy.v(state) for state, _, weight in taken) / whole
    stats = train(ilql, Records(records(SEEN)), 1)[0]
    assert (stats["value/q"], stats["value/v"]) == pytest.approx((q, v))
    assert stats["feedback/reward"] == pytest.approx(sum(reward for _, reward, _ in SEEN) / len(SEEN))


def test_slow_heads_follow_by_their_rate() -> None:
    policy, ilql = trained_policy()
    before = [p.clone() for p in ilql.targets.parameters()]
    train(ilql, Records(records(SEEN)), 1)
    for old, slow, fast in zip(
        before, ilql.targets.parameters(), policy.network.action_values.parameters(), strict=True
    ):
        torch.testing.assert_close(slow, 0.9 * old + 0.1 * fast.detach())
        assert not slow.requires_grad


# --- what must not change anything -----------------------------------------------------------------------------------


def test_micro_batches_order_padding_and_junk_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ilql = trained_policy()
    expected = gradients(ilql, records(SEEN))

    def again(seen: Sequence[Seen], **config: Any) -> dict[str, Tensor]:
        _, other = trained_policy()
        other.config = other.config.model_copy(update=config)
        return gradients(other, records(seen))

    assert distance(expected, again(SEEN, micro_batch_tokens=1)) < 1e-10
    assert distance(expected, again(SEEN, micro_batch_tokens=13)) < 1e-10
    assert distance(expected, again(list(reversed(SEEN)))) < 1e-10
    longer = [*SEEN, ("bbb", 1.0, 0.0)]  # weight 0: it is not even read
    assert distance(expected, again(longer)) < 1e-10

    plain = TablePolicy.forward

    def junk(self: TablePolicy, rollout: Any, needs: Any) -> Any:
        out = plain(self, rollout, needs)
        assert out.values is not None and out.hidden is not None
        outside = ~rollout.mask
        for tensor in (out.values, out.logprobs):
            tensor.data.masked_fill_(outside, math.nan)
        out.hidden.data.masked_fill_(outside[..., None], 1e3)
        return out

    monkeypatch.setattr(TablePolicy, "forward", junk)
    assert distance(expected, again(SEEN)) < 1e-10
    assert all(map(math.isfinite, train(trained_policy()[1], Records(records(SEEN)), 1)[0].values()))
    monkeypatch.undo()

    encode = TablePolicy.encode

    def padded(self: TablePolicy, samples: Any, **options: Any) -> Any:
        rollout = encode(self, samples, **options)
        wider = {name: torch.nn.functional.pad(t, (0, 3)) for name, t in rollout.tensors().items() if t.dim() > 1}
        return rollout.replace(**wider)

    monkeypatch.setattr(TablePolicy, "encode", padded)
    monkeypatch.setattr("rlhf_core.records.Rollout.select", lambda self, rows: self._chosen(rows), raising=False)
    monkeypatch.setattr("rlhf_core.records.Rollout._chosen", chosen, raising=False)
    assert distance(expected, again(SEEN)) < 1e-10


def test_each_process_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them add up to one, in gradients and in what is logged."""

    class Process:
        num_processes = 2

        def __init__(self, rank: int) -> None:
            self.process_index = rank

    whole = gradients(trained_policy()[1], records(SEEN))
    logged = train(trained_policy()[1], Records(records(SEEN)), 1)[0]["policy/loss"]
    found, shares = [], []
    monkeypatch.setattr(module, "summed", lambda stats, accelerator: shares.append((stats, accelerator)) or stats)
    for rank in range(2):
        _, one = trained_policy()
        one.context = replace(one.context, accelerator=Process(rank))
        found.append(gradients(one, records(SEEN)))
    assert distance(whole, {name: found[0][name] + found[1][name] for name in whole}) < 1e-10
    assert distance(whole, found[0]) > 0.01
    assert sum(stats["policy/loss"] for stats, _ in shares) == pytest.approx(logged)
    assert [accelerator.process_index for _, accelerator in shares] == [0, 1]


@pytest.mark.parametrize(("tokens", "passes"), [(8192, 1), (1, len(SEEN))])
def test_a_forward_pass_takes_so_many_tokens_at_most(tokens: int, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ilql = trained_policy()
    ilql.config = ilql.config.model_copy(update={"micro_batch_tokens": tokens})
    taken: list[int] = []
    plain = TablePolicy.forward
    monkeypatch.setattr(
        TablePolicy, "forward", lambda self, rollout, needs: taken.append(len(rollout)) or plain(self, rollout, needs)
    )
    gradients(ilql, records(SEEN))
    assert (len(taken), sum(taken)) == (passes, len(SEEN))


def chosen(self: Any, rows: Sequence[int]) -> Any:
    """`Rollout.select` that keeps columns of padding."""
    changes = {name: tensor[list(rows)] for name, tensor in self.tensors().items()}
    return self.replace(samples=tuple(self.samples[i] for i in rows), scores={}, **changes)


def test_weights_count_as_so_many_copies() -> None:
    whole = [(text, reward, float(round(4 * weight) or 1)) for text, reward, weight in SEEN]
    copies = [(text, reward, 1.0) for text, reward, count in whole for _ in range(int(count))]
    found = []
    for seen in (whole, copies):
        _, ilql = trained_policy()
        ilql.config = ilql.config.model_copy(update={"batch_size": len(seen)})
        found.append(gradients(ilql, records(seen)))
    assert distance(*found) < 1e-10


def test_a_higher_reward_makes_its_text_likelier_and_a_lower_one_less_likely() -> None:
    policy = table()
    learn([("a", 1.0, 1.0), ("b", 0.0, 1.0)], policy, 200, beta=3)
    plain, steered = policy.chances("", 0.0), policy.chances("", policy.steering)
    assert plain["a"] == pytest.approx(0.5, abs=0.02)
    assert steered["a"] > plain["a"] > steered["b"]
    ratio = math.log(steered["a"] / steered["b"]) - math.log(plain["a"] / plain["b"])
    assert ratio == pytest.approx(3 * (policy.q("", "a") - policy.q("", "b")), abs=1e-6)
