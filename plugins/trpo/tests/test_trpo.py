"""TRPO: its step against a dense solve over an enumerable policy, what must not change anything, and that it learns."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from importlib import import_module
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.api import load
from rlhf_core.errors import ConfigError, NumericalError
from rlhf_core.interfaces import Context, Needs, Outputs
from rlhf_core.records import Rollout
from rlhf_core.runs import checkpoint
from rlhf_core.testing import example_rollout
from rlhf_core.testing.compare import padded
from rlhf_core.testing.tasks import EXACT_STRING, FIRST_TOKEN, Task, learn
from rlhf_plugin_trpo import rlhf_components
from rlhf_plugin_trpo.config import TRPOConfig
from rlhf_plugin_trpo.optimizer import TRPO, conjugate_gradient
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .toys import SEQUENCES, Enumerable, Given, distance, make_policy, make_trpo, moved, stage_data, train, weights

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COUNTS, REWARDS = (5, 1, 3, 2, 4, 1, 1, 2, 6), (1.0, -0.5, 0.3, 0.0, 2.0, -1.0, 0.5, 0.1, -0.2)
"""How often each of the nine responses is in the batch, and what it is paid."""
PLAIN: dict[str, Any] = {
    "whiten_advantages": False,
    "lam": 1.0,
    "damping": 0.0,
    "cg_iterations": 60,
    "value_updates": 1,
}


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_config_import_no_torch() -> None:
    (point,) = entry_points(group="rlhf", name="trpo")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_spec_resolves() -> None:
    (spec,) = rlhf_components()
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert (factory, config, factory.Config) == (TRPO, TRPOConfig, TRPOConfig)


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(README.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    (tmp_path / "rewards.py").write_text("def short(prompts, completions, **columns): return []", encoding="utf-8")
    assert load(tmp_path / "registry.yaml").validate() == []


@pytest.mark.parametrize(("config", "words"), [
    ({"max_kl": 0}, "got 0, expected a number above 0"),
    ({"max_kl": {"schedule": "linear", "start": 0.1}}, "got end 0 of the linear schedule, expected a number above 0"),
    ({"cg_iterations": 0}, "greater than or equal to 1"),
    ({"damping": -0.1}, "greater than or equal to 0"),
    ({"backtrack": 1.0}, "less than 1"),
    ({"fisher_tokens": 0}, "greater than or equal to 1"),
    ({"clip": 0.2}, "Extra inputs are not permitted"),
])  # fmt: skip
def test_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TRPOConfig(**config)


def test_what_it_is_and_asks_for() -> None:
    traits = TRPO(TRPOConfig(), Context()).traits
    assert (traits.learns_from, traits.gradient, traits.baseline) == ("on-policy", True, False)
    assert TRPOConfig().needs == Needs(values=True)
    assert TRPOConfig(bootstrap_truncated=True).needs == Needs(values=True, bootstrap=True)
    assert (make_trpo(make_policy()).lam, make_trpo(make_policy(critic="shared")).lam) == (0.95, 1.0)
    assert make_trpo(make_policy(), lam=0.5).lam == 0.5


def test_defaults_are_the_published_ones() -> None:
    """Of Schulman et al. (2015) and the implementations after it: delta 0.01, 15 products, damping 0.1, 10 x 0.8."""
    config = TRPOConfig()
    assert (config.max_kl, config.cg_iterations, config.damping) == (0.01, 15, 0.1)
    assert (config.backtrack, config.backtracks, config.value_updates) == (0.8, 10, 10)


# --- conjugate gradient ----------------------------------------------------------------------------------------------


def symmetric(size: int, lowest: float, highest: float) -> Tensor:
    noise = torch.Generator().manual_seed(size)
    basis = torch.linalg.qr(torch.randn(size, size, generator=noise, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.linspace(lowest, highest, size, dtype=torch.float64)) @ basis.T


def test_conjugate_gradient_against_a_dense_solve() -> None:
    a, b = symmetric(12, 0.1, 5.0), torch.linspace(-1, 2, 12, dtype=torch.float64)
    x, residual = conjugate_gradient(lambda v: a @ v, b, 12)
    torch.testing.assert_close(x, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-10)
    few, rest = conjugate_gradient(lambda v: a @ v, b, 4)
    torch.testing.assert_close(rest, b - a @ few)
    assert float(residual.norm()) < 1e-10 < 1e-3 < float(rest.norm()) < float(b.norm())


def test_conjugate_gradient_ends_in_time() -> None:
    b = torch.ones(3, dtype=torch.float64)
    calls: list[Tensor] = []

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return 2 * v

    assert conjugate_gradient(product, b, 50)[0].tolist() == [0.5] * 3
    assert len(calls) == 1, "the residual is 0 after one"
    assert conjugate_gradient(product, 0 * b, 50)[0].tolist() == [0] * 3
    assert len(calls) == 1
    flat = conjugate_gradient(lambda v: 0 * v, b, 50)[0]
    assert flat.tolist() == [0] * 3, "no curvature, no step"
    assert not conjugate_gradient(lambda v: v * math.nan, b, 50)[0].isfinite().any(), "and nan is not hidden"


# --- an enumerable policy --------------------------------------------------------------------------------------------


def scores(policy: Enumerable) -> Tensor:
    """(4, 3, 14) gradient of log p(token | state), one by one."""
    table = policy.module.log_policy()
    rows = []
    for state in range(4):
        for token in range(3):
            found = torch.autograd.grad(table[state, token], policy.weights, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows).view(4, 3, -1)


def dense(policy: Enumerable) -> tuple[Tensor, Tensor]:
    """Gradient (14,) of the mean reward to go per token, and the Fisher matrix (14, 14), from their definitions."""
    score, p = scores(policy), policy.module.log_policy().detach().exp()
    gradient, fisher = torch.zeros(14, dtype=torch.float64), torch.zeros(14, 14, dtype=torch.float64)
    for (first, second), count, reward in zip(SEQUENCES, COUNTS, REWARDS, strict=True):
        gradient += count * reward * (score[0, first] + score[first + 1, second])  # V = 0: the advantage is the reward
        for state in (0, first + 1):
            for token in range(3):
                fisher += count * p[state, token] * torch.outer(score[state, token], score[state, token])
    tokens = 2 * sum(COUNTS)
    return gradient / tokens, fisher / tokens


def parts_of(trpo: TRPO, rollout: Rollout) -> Any:
    return trpo._parts(rollout, trpo._prepare(rollout)[0], list(range(len(rollout))))


@pytest.mark.parametrize("tokens", [1_000_000, 9])
def test_gradient_and_fisher_products_against_enumeration(tokens: int) -> None:
    policy = Enumerable()
    trpo = make_trpo(policy, **PLAIN, micro_batch_tokens=tokens)
    parts = parts_of(trpo, policy.rollout(COUNTS, REWARDS))
    assert (len(parts) == 1) == (tokens > 9)
    gradient, fisher = dense(policy)
    torch.testing.assert_close(trpo._surrogate(parts)[1], gradient, rtol=1e-10, atol=1e-12)
    product = trpo._fisher(parts)
    found = torch.stack([product(e) for e in torch.eye(14).double()])
    torch.testing.assert_close(found, fisher, rtol=1e-10, atol=1e-12)


def change(policy: Enumerable, before: dict[str, Tensor]) -> Tensor:
    after = weights(policy)
    return torch.cat([(after[name] - before[name]).flatten() for name in ("states", "tokens")])


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_the_step_against_a_dense_solve(damping: float) -> None:
    """sqrt(2 delta / g' F^-1 g) F^-1 g, where F is singular without damping: then its pseudo-inverse."""
    policy = Enumerable()
    before = weights(policy)
    gradient, fisher = dense(policy)
    inverse = torch.linalg.pinv(fisher + damping * torch.eye(14).double(), hermitian=True, rtol=1e-10)
    x = inverse @ gradient
    trpo = make_trpo(policy, **{**PLAIN, "damping": damping}, max_kl=1e-6)
    stats = trpo.step(Given(policy.rollout(COUNTS, REWARDS)))
    assert stats["policy/accepted"] == 1 and stats["policy/backtracks"] <= 1  # the KL is a little beyond its quadratic
    expected = math.sqrt(2 * 1e-6 / float(gradient @ x)) * x * 0.8 ** stats["policy/backtracks"]
    assert float((change(policy, before) - expected).norm() / expected.norm()) < 1e-6
    if not damping:  # so small a step has the KL of the quadratic model
        assert stats["policy/kl"] == pytest.approx(1e-6 * 0.64 ** stats["policy/backtracks"], rel=1e-2)


def test_a_solve_that_ends_early_is_the_best_of_what_it_spans() -> None:
    """After two products x lies in the span K of g and A g, with a residual at right angles to it; and the length of
    the step is that of this x, not of the solution."""
    policy = Enumerable()
    before = weights(policy)
    gradient, fisher = dense(policy)
    a = fisher + 0.1 * torch.eye(14).double()
    span = torch.stack([gradient, a @ gradient], 1)
    x = span @ torch.linalg.solve(span.T @ a @ span, span.T @ gradient)
    config = {**PLAIN, "damping": 0.1, "cg_iterations": 2}
    stats = make_trpo(policy, **config, max_kl=1e-6).step(Given(policy.rollout(COUNTS, REWARDS)))
    expected = math.sqrt(2e-6 / float(x @ a @ x)) * x * 0.8 ** stats["policy/backtracks"]
    assert float((change(policy, before) - expected).norm() / expected.norm()) < 1e-6
    assert stats["policy/grad_norm"] == pytest.approx(float(gradient.norm()))
    assert stats["policy/cg_residual"] == pytest.approx(float((gradient - a @ x).norm() / gradient.norm()))
    assert stats["policy/cg_residual"] > 0.01


def test_the_kl_and_the_surrogate_of_a_step_against_enumeration() -> None:
    policy = Enumerable()
    old = policy.module.log_policy().detach()
    trpo = make_trpo(policy, **PLAIN, max_kl=0.05)
    stats = trpo.step(Given(policy.rollout(COUNTS, REWARDS)))
    new = policy.module.log_policy().detach()
    per_state = (old.exp() * (old - new)).sum(-1)
    kl = gain = 0.0
    for (first, second), count, reward in zip(SEQUENCES, COUNTS, REWARDS, strict=True):
        for state, token in ((0, first), (first + 1, second)):
            kl += count * float(per_state[state]) / (2 * sum(COUNTS))
            gain += count * reward * (math.exp(new[state, token] - old[state, token]) - 1) / (2 * sum(COUNTS))
    assert stats["policy/kl"] == pytest.approx(kl, rel=1e-9)
    assert stats["policy/improvement"] == pytest.approx(gain, rel=1e-9)
    assert 0 < kl <= 0.05 and gain > 0


def test_advantages_and_returns_by_hand() -> None:
    """GAE over two tokens: A_2 = r - V_2; A_1 = gamma V_2 - V_1 + gamma lambda A_2; returns are A + V."""
    policy = Enumerable()
    rollout = policy.rollout([1], [2.0]).replace(values=torch.tensor([[0.3, 0.5]]))
    config = {"gamma": 0.9, "lam": 0.5, "whiten_advantages": False}
    found, stats = make_trpo(policy, **config)._prepare(rollout)
    assert found["advantages"].tolist()[0] == pytest.approx([0.9 * 0.5 - 0.3 + 0.45 * 1.5, 1.5])
    assert found["returns"].tolist()[0] == pytest.approx([0.45 + 0.675, 2.0])
    assert stats["value/returns"] == pytest.approx((1.125 + 2) / 2)
    white = make_trpo(policy, **{**config, "whiten_advantages": True})._prepare(rollout)[0]["advantages"]
    assert float(white.mean()) == pytest.approx(0, abs=1e-6) and float(white[0, 1]) > 0.7


def test_means_are_over_valid_tokens() -> None:
    """At ratio 1, with an advantage of 1 everywhere, the surrogate is 1 whatever the mask leaves out."""
    policy = Enumerable()
    rollout = policy.rollout(COUNTS, REWARDS)
    mask = rollout.mask.clone()
    mask[::3, 0] = False
    trpo, ones = make_trpo(policy, **PLAIN), torch.ones(mask.shape, dtype=torch.float64)
    parts = trpo._parts(rollout.replace(mask=mask), {"advantages": ones}, range(len(mask)))
    assert trpo._surrogate(parts)[0] == pytest.approx(1)
    mask[:, 0], mask[:, 1] = True, False
    product = trpo._fisher(parts_of(trpo, rollout.replace(mask=mask)))
    p, score = policy.module.log_policy().detach().exp()[0], scores(policy)[0]
    fisher = torch.stack([product(e) for e in torch.eye(14).double()])
    torch.testing.assert_close(fisher, score.T @ torch.diag(p) @ score)  # of the first state, the only one that counts


def test_the_fisher_matrix_of_some_samples_is_theirs_alone() -> None:
    """An estimate from a part of the batch: a mean over the tokens of that part."""
    policy = Enumerable()
    rollout = policy.rollout(COUNTS, REWARDS)
    trpo = make_trpo(policy, **PLAIN)
    prepared = trpo._prepare(rollout)[0]
    some = [0, 5, 9, 13, 20]
    v = torch.linspace(-1, 1, 14, dtype=torch.float64)
    product = trpo._fisher(trpo._parts(rollout, prepared, some))(v)
    torch.testing.assert_close(product, trpo._fisher(parts_of(trpo, rollout.select(some)))(v))


def test_the_critic_learns_the_mean_return_of_each_state() -> None:
    """Half the mean squared error to the returns: 0.5 mean(R^2) at V = 0, and least at the mean return of a state."""
    policy = Enumerable()
    config = {**PLAIN, "whiten_advantages": True}  # the returns are not whitened
    once, trpo = (make_trpo(policy, **{**config, "value_updates": n}, learning_rate=0.05) for n in (1, 400))
    parts = parts_of(trpo, policy.rollout(COUNTS, REWARDS))
    squares = sum(count * reward**2 for count, reward in zip(COUNTS, REWARDS, strict=True)) / sum(COUNTS)
    assert once._fit_critic(parts)["value/loss"] == pytest.approx(squares / 2)
    trpo._fit_critic(parts)
    paid = [count * reward for count, reward in zip(COUNTS, REWARDS, strict=True)]
    means = [sum(paid) / sum(COUNTS), *(sum(paid[i : i + 3]) / sum(COUNTS[i : i + 3]) for i in (0, 3, 6))]
    assert policy.module.values.tolist() == pytest.approx(means, abs=1e-3)


def test_the_critics_schedule_counts_its_updates() -> None:
    policy = Enumerable()
    rate = {"schedule": "linear", "start": 0.8}
    trpo = make_trpo(policy, 2, **{**PLAIN, "value_updates": 4}, learning_rate=rate)
    batch = Given(policy.rollout(COUNTS, REWARDS))
    means = [trpo.step(batch)["value/learning_rate"] for _ in range(2)]
    assert means == pytest.approx([(0.8 + 0.7 + 0.6 + 0.5) / 4, (0.4 + 0.3 + 0.2 + 0.1) / 4])


def test_every_change_of_weights_is_told() -> None:
    """Whoever keeps copies of the weights hears of it before they are used."""

    class Watched(Enumerable):
        known: dict[str, Tensor] = {}  # as they were when it was told last

        def weights_changed(self) -> None:
            self.known = weights(self)

        def forward(self, rollout: Rollout, needs: Needs) -> Outputs:
            assert not moved(self.known, weights(self)) & {"states", "tokens"}
            return super().forward(rollout, needs)

    policy = Watched()
    policy.known = weights(policy)
    stats = make_trpo(policy, **PLAIN, max_kl=3.0, backtracks=30).step(Given(policy.rollout(COUNTS, REWARDS)))
    assert stats["policy/backtracks"] > 0, "it went there and back"
    assert not moved(policy.known, weights(policy)) & {"states", "tokens"}


def test_a_trial_that_fails_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Enumerable()
    trpo, rollout = make_trpo(policy, **PLAIN), policy.rollout(COUNTS, REWARDS)
    before, measure = weights(policy), TRPO._measure

    def fail(self: TRPO, *arguments: Any) -> Any:
        measure(self, *arguments)
        raise RuntimeError("no room")

    monkeypatch.setattr(TRPO, "_measure", fail)
    with pytest.raises(RuntimeError, match="no room"):
        trpo.step(Given(rollout))
    assert not moved(before, weights(policy))


@pytest.mark.parametrize(("beyond", "gained", "accepted"), [
    (0.0, 1e-9, 1), (1e-9, 1e-9, 0), (0.0, 0.0, 0), (0.0, -1e-9, 0), (math.nan, 1.0, 0), (0.0, math.nan, 0),
])  # fmt: skip
def test_a_step_is_taken_if_and_only_if_both_hold(
    beyond: float, gained: float, accepted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The KL within the region, and the surrogate above that of the old weights, which is not 0."""
    policy = Enumerable()
    trpo, rollout = make_trpo(policy, **PLAIN, max_kl=0.05), policy.rollout(COUNTS, REWARDS)
    before = trpo._surrogate(parts_of(trpo, rollout))[0]
    assert before > 0.3
    monkeypatch.setattr(TRPO, "_measure", lambda *_: (before + gained, 0.05 + beyond))
    assert trpo.step(Given(rollout))["policy/accepted"] == accepted


def test_every_accepted_step_is_within_the_trust_region_and_the_policy_gets_better() -> None:
    policy = Enumerable()
    trpo = make_trpo(policy, 20, whiten_advantages=False, lam=1.0, learning_rate=0.05)
    worth = []
    for step in range(20):
        p = policy.module.log_policy().detach().exp()
        worth.append(sum(float(p[0, a] * p[a + 1, b]) * r for (a, b), r in zip(SEQUENCES, REWARDS, strict=True)))
        counts = [max(round(400 * float(p[0, a] * p[a + 1, b])), 0) for a, b in SEQUENCES]
        stats = trpo.step(Given(policy.rollout(counts, REWARDS), step))
        assert stats["policy/kl"] <= 0.01
        assert stats["policy/accepted"] == 1
    assert worth[-1] > worth[0] + 0.5
    assert all(later > earlier - 0.02 for earlier, later in pairwise(worth))


def test_steps_are_shortened_by_the_factor_until_they_fit() -> None:
    """A model that is only right nearby: a step of 3 nats by the quadratic is another one by the true KL."""
    policy = Enumerable()
    before = weights(policy)
    wide = make_trpo(policy, **PLAIN, max_kl=3.0, backtracks=30).step(Given(policy.rollout(COUNTS, REWARDS)))
    assert wide["policy/backtracks"] > 0
    gradient, fisher = dense(_at(policy, before))
    x = torch.linalg.pinv(fisher, hermitian=True, rtol=1e-10) @ gradient
    full = float(math.sqrt(6 / float(gradient @ x)) * x.norm())
    assert wide["policy/step_norm"] == pytest.approx(full * 0.8 ** wide["policy/backtracks"], rel=1e-5)


def _at(policy: Enumerable, state: dict[str, Tensor]) -> Enumerable:
    policy.module.load_state_dict(state)
    return policy


def test_a_refused_step_leaves_the_weights_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("bfloat16", "float32"):
        policy = make_policy(dtype=dtype)
        trpo = make_trpo(policy, backtracks=3)
        rollout = sampled(policy)
        before = weights(policy)
        seen = []
        measure = TRPO._measure

        def refuse(self: TRPO, *arguments: Any, told: Any = measure, log: Any = seen) -> tuple[float, float]:
            log.append((told(self, *arguments), weights(self.policy)))
            return -math.inf, 0.0  # no improvement, whatever is tried

        monkeypatch.setattr(TRPO, "_measure", refuse)
        stats = trpo.step(Given(rollout))
        monkeypatch.undo()
        assert (stats["policy/accepted"], stats["policy/backtracks"], stats["policy/kl"]) == (0, 3, 0)
        assert all(moved(before, tried) for _, tried in seen)
        after = weights(policy)
        assert {name.split(".")[0] for name in moved(before, after)} <= {"value_head", "value_trunk"}


# --- what must not change anything -----------------------------------------------------------------------------------


def sampled(policy: Any) -> Rollout:
    """Eight samples of 1 to 7 tokens: with a hole, a cut one and an abstained one; a reward on every token."""
    policy.prepare(Needs(values=True))
    return example_rollout(policy)


def after_a_step(change: Any = None, dtype: str = "float64", **config: Any) -> dict[str, Tensor]:
    policy = make_policy(dtype=dtype)
    trpo = make_trpo(policy, **{"max_kl": 0.05, "learning_rate": 0.1, "adam_eps": 1.0, "max_grad_norm": 1e6, **config})
    rollout = sampled(policy)
    stats = trpo.step(Given(change(rollout) if change else rollout))
    assert stats["policy/accepted"] == 1
    return weights(policy)


def junk(rollout: Rollout) -> Rollout:
    """Anything at masked positions but in the rewards, which are 0 there by contract."""
    outside = ~rollout.mask
    names = ("logprobs", "values", "reference_logprobs", "entropy")
    changes = {name: getattr(rollout, name).masked_fill(outside, math.nan) for name in names}
    return rollout.replace(response_ids=rollout.response_ids.masked_fill(~rollout.attention, 11), **changes)


def turned(rollout: Rollout) -> Rollout:
    return rollout.select([3, 7, 0, 6, 2, 1, 5, 4])


@pytest.mark.parametrize(
    "change", [lambda r: padded(r, prompt=2, response=3), turned, junk], ids=["padding", "order", "junk"]
)
def test_padding_order_and_junk_change_nothing(change: Any) -> None:
    assert distance(after_a_step(), after_a_step(change)) < 1e-10
    config = {"fisher_tokens": 9}
    assert distance(after_a_step(**config), after_a_step(change, **config)) < 1e-10


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_micro_batches_change_nothing(dtype: str, tolerance: float) -> None:
    """Ragged lengths, in one part and in many. Well damped, for a solve multiplies rounding by the condition of F."""
    config = {"damping": 1.0, "cg_iterations": 6}
    whole = after_a_step(dtype=dtype, **config)
    for tokens in (1, 40):
        assert distance(whole, after_a_step(dtype=dtype, micro_batch_tokens=tokens, **config)) < tolerance


def test_few_tokens_for_the_fisher_matrix() -> None:
    policy = make_policy()
    trpo = make_trpo(policy, fisher_tokens=9)
    rollout = sampled(policy)
    tokens = rollout.mask.sum(1)
    rows = trpo._some(rollout, 0)
    assert 9 <= int(tokens[rows].sum()) < 9 + int(tokens.max())
    assert trpo._some(rollout, 1) != rows, "others in the next step"
    assert 7 not in trpo._some(rollout, 0) + trpo._some(rollout, 1), "the abstained one has no tokens"
    assert set(make_trpo(policy, fisher_tokens=10_000)._some(rollout, 0)) == set(range(7)), "never more than there are"
    assert distance(after_a_step(), after_a_step(fisher_tokens=9)) > 1e-6


def test_equal_rewards_teach_the_critic_only() -> None:
    policy = make_policy()
    trpo = make_trpo(policy, lam=1.0)
    rollout = sampled(policy)
    last = torch.arange(rollout.mask.shape[1])[None] == rollout.lengths[:, None] - 1
    before = weights(policy)
    stats = trpo.step(
        Given(rollout.replace(rewards=(last & rollout.mask).float(), values=torch.zeros_like(rollout.values)))
    )
    names = moved(before, weights(policy))
    assert names and all(name.startswith("value_") for name in names)
    assert (stats["policy/accepted"], stats["policy/backtracks"], stats["policy/step_norm"]) == (0, 0, 0)


def test_a_batch_in_which_all_abstain_does_nothing() -> None:
    policy = make_policy()
    trpo = make_trpo(policy, 2, prompts_per_step=4)
    trpo.step(Given(sampled(policy)))  # the critic's moments would go on moving it
    before = weights(policy)
    (stats,) = train(trpo, stage_data(policy, trpo, lambda completions, **_: [None] * len(completions), ["a"]), 1)
    assert stats["policy/accepted"] == 0 and "value/loss" not in stats
    assert not moved(before, weights(policy))


@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_batch_in_which_all_are_cut_is_finite(bootstrap: bool) -> None:
    policy = make_policy()
    trpo = make_trpo(policy, prompts_per_step=8, bootstrap_truncated=bootstrap)
    history = train(trpo, stage_data(policy, trpo, length, ["a"]), 2)
    assert history[-1]["response/truncated"] == 1
    assert all(math.isfinite(value) for stats in history for value in stats.values())


def test_the_value_beyond_a_cut() -> None:
    policy = make_policy()
    rollout = sampled(policy)
    assert rollout.truncated[2] and not rollout.truncated[1]
    rollout = rollout.replace(values=torch.zeros_like(rollout.values), bootstrap=torch.full((8,), 5.0))
    plain, _ = make_trpo(policy, lam=1.0)._prepare(rollout)
    beyond, _ = make_trpo(policy, lam=1.0, bootstrap_truncated=True)._prepare(rollout)
    difference = (beyond["returns"] - plain["returns"])[rollout.mask.any(1) & ~rollout.truncated]
    assert not difference.any()
    assert (beyond["returns"] - plain["returns"])[2][rollout.mask[2]].tolist() == pytest.approx([5.0] * 7)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_policy_without_a_critic_is_refused() -> None:
    policy = Enumerable()
    policy.critic = "none"
    with pytest.raises(ConfigError, match="optimizer 'mine': policy 'table' has no critic; expected values; set critic: "
                                          "separate in its config, or take an optimizer that needs none"):  # fmt: skip
        make_trpo(policy)


def test_nothing_to_train_is_an_error() -> None:
    policy = Enumerable()
    for p in policy.weights:
        p.requires_grad_(False)
    with pytest.raises(ConfigError, match="policy 'table' has nothing to train but its critic; expected weights that "
                                          "require gradients; unfreeze some, or give it lora adapters"):  # fmt: skip
        make_trpo(policy)


def test_a_policy_without_distribution_is_refused() -> None:
    policy = Enumerable()
    policy.gives = False
    with pytest.raises(ConfigError, match="policy 'table' gives no distribution; expected log-probabilities of the whole "
                                          "vocabulary; use causal-lm"):  # fmt: skip
        make_trpo(policy).step(Given(policy.rollout(COUNTS, REWARDS)))


def test_a_rollout_without_rewards_is_refused() -> None:
    policy = Enumerable()
    rollout = policy.rollout(COUNTS, REWARDS)
    for lacking, config in ((rollout.replace(rewards=None), {}), (rollout, {"bootstrap_truncated": True})):
        with pytest.raises(ConfigError, match="a rollout without rewards, values, or the value beyond a cut"):
            make_trpo(policy, **config).step(Given(lacking))


def test_numbers_that_are_not_finite_leave_the_weights(tmp_path: Path) -> None:
    policy = make_policy()
    trpo = TRPO(TRPOConfig(), Context("optimizer", "mine", directory=tmp_path))
    trpo.bind(policy, 1)
    rollout = sampled(policy)
    before = weights(policy)
    with pytest.raises(NumericalError, match=r"optimizer 'mine': gradient norm nan at step 1; expected finite numbers; see "
                                             "which samples did it with `rlhf replay"):  # fmt: skip
        trpo.step(Given(rollout.replace(rewards=rollout.rewards / 0)))
    assert not moved(before, weights(policy))
    assert (tmp_path / "failures" / "step-000001").is_dir()


def test_products_that_are_not_finite_leave_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    trpo = make_trpo(policy)
    before = weights(policy)
    monkeypatch.setattr(TRPO, "_fisher", lambda self, parts: lambda v: v * math.nan)
    with pytest.raises(NumericalError, match="optimizer 'mine': natural gradient at step 1; expected finite numbers"):
        trpo.step(Given(sampled(policy)))
    assert not moved(before, weights(policy))


def test_mixed_precision_is_warned_of() -> None:
    class Mixed:
        mixed_precision, num_processes = "bf16", 1

    said: list[str] = []
    trpo = TRPO(TRPOConfig(), Context("optimizer", "mine", accelerator=Mixed(), warn=said.append))  # type: ignore[arg-type]
    trpo.bind(make_policy(), 1)
    assert said == [
        "optimizer 'mine': in bf16, products with the Fisher matrix are mostly rounding; set precision: fp32"
    ]


# --- which weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [
    {}, {"critic": "shared"}, {"lora": {"r": 2}}, {"critic": "shared", "lora": {"r": 2}},
], ids=["separate", "shared", "lora", "lora-shared"])  # fmt: skip
def test_policy_and_critic_move_what_is_theirs(config: dict[str, Any]) -> None:
    policy = make_policy(**config)
    rollout = sampled(policy)
    trpo = make_trpo(policy)
    before = weights(policy)
    stats = trpo.step(Given(rollout))
    names = moved(before, weights(policy))
    assert stats["policy/accepted"] == 1 and 0 < stats["policy/kl"] <= 0.01
    trained = {name for name, p in policy.module.named_parameters() if p.requires_grad}
    heads = {"value_head.weight", "value_head.bias"}
    critic = heads if config.get("critic") == "shared" else {name for name in before if name.startswith("value_")}
    lora = {name for name in trained if "lora_" in name and not name.startswith("value_")}
    still = {name for name in lora if "lora_A" in name}  # while B is 0 they have no gradient
    assert names & critic >= heads
    assert names - critic == (lora - still if lora else trained - critic)
    assert all(p.requires_grad for name, p in policy.module.named_parameters() if name in trained)


def test_the_critic_of_a_shared_trunk_does_not_move_the_policy() -> None:
    policy = make_policy(critic="shared")
    trpo = make_trpo(policy, learning_rate=0.1)
    rollout = sampled(policy)
    parts = parts_of(trpo, rollout)
    before = policy.forward(rollout, Needs()).logprobs
    first = trpo._fit_critic(parts)["value/loss"]
    assert torch.equal(before, policy.forward(rollout, Needs()).logprobs)
    assert all(p.grad is None for p in trpo.parameters), "nor is a gradient kept for it"
    assert trpo._fit_critic(parts)["value/loss"] < first


# --- going on, together and apart ------------------------------------------------------------------------------------


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(map(ord, text))) for text in completions]


def test_resuming_continues_bit_for_bit(tmp_path: Path) -> None:
    def fresh() -> tuple[Any, TRPO, Any]:
        policy = make_policy(seed=3)
        schedule = {"schedule": "linear", "start": 0.05, "end": 0.01}
        trpo = make_trpo(policy, 3, seed=3, prompts_per_step=8, max_kl=schedule, value_updates=2, fisher_tokens=10,
                         learning_rate={"schedule": "cosine", "start": 0.01})  # fmt: skip
        return policy, trpo, stage_data(policy, trpo, length, ["say a:", "say b:", "c"], seed=3, max_new_tokens=3)

    policy, trpo, data = fresh()
    whole = train(trpo, data, 3)
    half = fresh()
    train(half[1], half[2], 1)
    checkpoint.save(tmp_path / "state", {"parts": [part.state_dict() for part in half]})
    resumed = fresh()
    for part, state in zip(resumed, checkpoint.load(tmp_path / "state")["parts"], strict=True):
        part.load_state_dict(state)
    assert train(resumed[1], resumed[2], 2, start=1) == whole[1:]
    assert not moved(weights(policy), weights(resumed[0]))


class Side:
    """One of two "processes" that are threads: sums what both hand in."""

    num_processes, mixed_precision = 2, "no"

    def __init__(self, index: int, meeting: threading.Barrier, table: list[Any]) -> None:
        self.process_index, self.meeting, self.table = index, meeting, table

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        self.table[self.process_index] = tensor
        self.meeting.wait(timeout=60)
        total: Tensor = self.table[0] + self.table[1]
        self.meeting.wait(timeout=60)
        return total


@pytest.mark.parametrize("rows", [range(8), [4]], ids=["all", "one-sample"])
def test_two_processes_make_the_step_of_one(rows: Any) -> None:
    """Each takes its share of the same batch; with a single sample one of them has nothing to do but to agree."""

    def prepared(accelerator: Any) -> tuple[Any, TRPO, Rollout]:
        policy = make_policy(dtype="float64")
        trpo = TRPO(TRPOConfig(learning_rate=0.01), Context("optimizer", "mine", accelerator=accelerator))
        trpo.bind(policy, 1)
        return policy, trpo, sampled(policy).select(list(rows))

    alone, one, batch = prepared(None)
    expected = one.step(Given(batch))
    assert expected["policy/accepted"] == 1
    meeting, table = threading.Barrier(2), [None, None]
    sides = [prepared(Side(index, meeting, table)) for index in (0, 1)]
    logged: list[Any] = []

    def step(trpo: TRPO, rollout: Rollout) -> None:
        logged.append(trpo.step(Given(rollout)))

    threads = [threading.Thread(target=step, args=(trpo, rollout)) for _, trpo, rollout in sides]
    with sdpa_kernel(SDPBackend.MATH):  # a switch of the whole process: no thread may switch it back for the other
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not moved(weights(sides[0][0]), weights(sides[1][0]))
    assert distance(weights(alone), weights(sides[0][0])) < 1e-10
    assert logged == [pytest.approx(expected, rel=1e-6, abs=1e-10)] * 2, "and say the same"


def test_what_is_logged_is_finite_and_in_the_readme() -> None:
    policy = make_policy()
    stats = make_trpo(policy).step(Given(sampled(policy)))
    for name, value in stats.items():
        assert math.isfinite(value)
        assert f"`{name}`" in README


# --- learning --------------------------------------------------------------------------------------------------------


def test_it_learns_a_bandit_quickly() -> None:
    """90 % of the optimum from 15 steps of 32 samples = 480, well damped."""
    config = {"prompts_per_step": 32, "max_kl": 0.1, "damping": 1.0, "cg_iterations": 5, "learning_rate": 1e-2}
    assert learn(FIRST_TOKEN, TRPO, config, steps=15, every=15).reward >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("task", "steps"), [(FIRST_TOKEN, 30), (EXACT_STRING, 50)], ids=["first-token", "exact-string"]
)
def test_it_learns(task: Task, steps: int, seed: int) -> None:
    """90 % of the optimum within 1,920 samples and 3,200."""
    config = {"prompts_per_step": 64, "max_kl": 0.05, "learning_rate": 1e-2}
    assert learn(task, TRPO, config, steps=steps, seed=seed, every=steps).reward >= 0.9
