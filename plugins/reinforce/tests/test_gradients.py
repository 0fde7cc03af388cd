"""Gradients against exact enumeration, and each published formula against a plain, slow reading of it.

A response is at most three tokens of a vocabulary of three, so there are 15, and the gradient of the expected reward is
a sum over all of them. Every prompt has a table of its own, so that one step of an optimizer gives an independent sample of
its gradient per prompt; their mean is compared with the exact one in units of its standard error.
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_core.interfaces import Needs
from rlhf_core.records import Rollout
from ruamel.yaml import YAML
from torch import Tensor

from .toys import END, STATES, Given, Table, exact_gradient, gradient, make, rollout_of, sampled, tree_rewards

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PRESETS = YAML(typ="safe").load(StringIO(README.split("```yaml\n")[1].split("```")[0]))["components"]["optimizer"]


# --- the expected update ---------------------------------------------------------------------------------------------


def estimate(
    prompts: int = 8000, per_prompt: int = 4, average: float = 0.0, bonus: float = 0.0, **config: Any
) -> Tensor:
    """(prompts, states, 3): samples of the policy gradient that an optimizer follows, one per prompt.

    `bonus`: paid to every response with its last token.
    """
    policy, rewards = Table(prompts), tree_rewards()
    rewards[:, END] += bonus
    rewards[3:, :END] += bonus  # after two tokens any token is the last
    rollout = sampled(policy, per_prompt, rewards)
    greedy = sampled(Table(prompts), 1, rewards, greedy=True)
    optimizer = make(policy, prompts_per_step=prompts, samples_per_prompt=per_prompt, **config)
    optimizer.load_state_dict({**optimizer.state_dict(), "average": average, "averaged": 1})
    return -prompts * gradient(policy, optimizer, Given(rollout, greedy))  # the loss is a mean over all prompts


def errors(samples: Tensor, expected: Tensor) -> Tensor:
    """How many standard errors the mean of the samples lies off, per weight."""
    return (samples.mean(0) - expected) / (samples.std(0) / len(samples) ** 0.5)


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return exact_gradient(Table(), tree_rewards())


UNBIASED = {
    "none": {"baseline": "none"},
    "moving-average": {"baseline": "moving-average", "average": 1.7},
    "greedy": {"baseline": "greedy"},
    "leave-one-out": {"baseline": "leave-one-out"},
}


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_update_is_the_exact_policy_gradient(name: str, exact: Tensor) -> None:
    off = errors(estimate(**UNBIASED[name]), exact)
    assert off.abs().max() < 3
    assert exact.abs().max() > 0.1


@pytest.mark.parametrize("name", UNBIASED)
def test_so_it_is_with_a_clip_since_no_ratio_has_moved_yet(name: str) -> None:
    plain, clipped = (estimate(50, **UNBIASED[name], clip=clip) for clip in (None, 0.2))
    torch.testing.assert_close(plain, clipped, rtol=1e-12, atol=1e-12)


def test_these_samples_would_show_a_bias(exact: Tensor) -> None:
    """A return that is off by one token, or half of the exact gradient, is far outside three standard errors."""
    samples = estimate(baseline="leave-one-out")
    assert errors(samples, exact / 2).abs().max() > 10
    assert errors(samples, exact.roll(1, 0)).abs().max() > 10


@pytest.mark.parametrize("per_prompt", [2, 4])
def test_the_mean_of_the_group_shrinks_the_gradient_by_one_sample(per_prompt: int, exact: Tensor) -> None:
    samples = estimate(per_prompt=per_prompt, baseline="group")
    assert errors(samples, exact * (per_prompt - 1) / per_prompt).abs().max() < 3
    assert errors(samples, exact).abs().max() > 5


def test_a_fixed_length_only_scales_it(exact: Tensor) -> None:
    samples = estimate(baseline="group", aggregation="seq-mean-token-sum-norm", norm_tokens=5)
    assert errors(samples, exact * 3 / 4 / 5).abs().max() < 3


def test_whitening_a_large_batch_scales_it_by_the_deviation_of_returns(exact: Tensor) -> None:
    policy, rewards = Table(8000), tree_rewards()
    rollout = sampled(policy, 4, rewards, 0)
    to_go = rollout.rewards.flip(1).cumsum(1).flip(1)
    assert errors(estimate(baseline="batch"), exact / to_go[rollout.mask].std()).abs().max() < 3


def test_baselines_lower_the_variance() -> None:
    """All responses earn 5 more: nothing of that is to be learnt, and a baseline takes it out."""
    configs = {**UNBIASED, "moving-average": {"baseline": "moving-average", "average": 5.0}}
    spread = {name: float(estimate(2000, bonus=5, **config).var(0).sum()) for name, config in configs.items()}
    assert all(spread[name] < spread["none"] / 5 for name in configs if name != "none")


@pytest.mark.parametrize(("config", "moves"), [
    ({"baseline": "none"}, True),
    ({"baseline": "moving-average"}, True),
    ({"baseline": "greedy"}, False),
    ({"baseline": "leave-one-out"}, False),
    ({"baseline": "group"}, False),
    ({"baseline": "group", "scale": "std"}, False),
    ({"baseline": "group", "scale": "batch-std"}, False),
    ({"baseline": "batch"}, False),
    ({"baseline": "batch", "gamma": 0.9}, True),
    ({"baseline": "greedy", "gamma": 0.9}, True),
    ({"baseline": "group", "kl_coef": 0.1}, True),
    ({"baseline": "group", "entropy_coef": 0.1}, True),
])  # fmt: skip
def test_equal_rewards_move_nothing_where_that_is_promised(config: dict[str, Any], moves: bool) -> None:
    policy = Table(6)
    rollout, greedy = (ending_in_7(sampled(policy, k, tree_rewards(), greedy=k == 1)) for k in (4, 1))
    rollout = rollout.replace(reference_logprobs=rollout.logprobs - 0.1)
    optimizer = make(policy, prompts_per_step=6, samples_per_prompt=4, learning_rate=0.1, **config)
    before = policy.table.detach().clone()
    optimizer.step(Given(rollout, greedy))
    assert torch.equal(before, policy.table) is not moves
    assert optimizer.traits.baseline is not moves
    assert (optimizer.traits.learns_from, optimizer.traits.gradient) == ("on-policy", True)


def ending_in_7(rollout: Rollout) -> Rollout:
    """The same samples, each paid 7 for its last token."""
    last = rollout.mask & (torch.arange(rollout.mask.shape[1]) == rollout.lengths[:, None] - 1)
    return rollout.replace(rewards=7.0 * last.double(), score=torch.full_like(rollout.score, 7.0))


# --- published formulas, read slowly --------------------------------------------------------------------------------


class Case:
    """Samples of a policy that has moved since, old and reference log-probabilities, and one number per response."""

    def __init__(self, per_prompt: int, prompts: int = 5) -> None:
        self.policy, self.prompts, self.per_prompt = Table(prompts), prompts, per_prompt
        self.rewards = tree_rewards()
        self.rollout = sampled(self.policy, per_prompt, self.rewards, seed=3)
        self.greedy = sampled(self.policy, 1, self.rewards, greedy=True)
        noise = torch.Generator().manual_seed(5)

        def near(x: Tensor) -> Tensor:
            return x + 0.3 * torch.randn(x.shape, generator=noise, dtype=torch.float64)

        old = near(self.rollout.logprobs)
        self.rollout = self.rollout.replace(logprobs=old, reference_logprobs=near(old))

    def tokens(self, i: int) -> list[tuple[int, Tensor, float, float]]:
        """(t, log-probability with gradient, old, reference) of each token of response i."""
        ids = self.rollout.response_ids[i].tolist()
        length = int(self.rollout.mask[i].sum())
        spoken = self.policy.table[i // self.per_prompt].log_softmax(-1)
        old, reference = self.rollout.logprobs[i].tolist(), self.rollout.reference_logprobs[i].tolist()
        return [(t, spoken[STATES[tuple(ids[:t])], ids[t]], old[t], reference[t]) for t in range(length)]

    def earned(self, i: int, start: int = 0, rollout: Rollout | None = None) -> float:
        """What response i earns from token `start` on."""
        return sum((rollout or self.rollout).rewards[i, start:].tolist())

    def group(self, i: int) -> list[int]:
        first = i - i % self.per_prompt
        return list(range(first, first + self.per_prompt))

    @property
    def responses(self) -> range:
        return range(self.prompts * self.per_prompt)


def clipped(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def deviation(numbers: list[float]) -> float:
    return (sum((x - mean(numbers)) ** 2 for x in numbers) / (len(numbers) - 1)) ** 0.5


def reinforce(case: Case) -> Tensor:
    """Williams (1992): sum over tokens of (return from it on - baseline) x log-probability, per response."""
    terms: Any = 0.0
    for i in case.responses:
        terms += sum((case.earned(i, t) - 0.25) * logp for t, logp, _, _ in case.tokens(i))
    return terms / len(case.responses)


def remax(case: Case) -> Tensor:
    """Li et al. (2023), equation 6: the baseline is what the greedy response to the prompt earns."""
    terms: Any = 0.0
    for i in case.responses:
        baseline = case.earned(i // case.per_prompt, rollout=case.greedy)
        terms += sum((case.earned(i, t) - baseline) * logp for t, logp, _, _ in case.tokens(i))
    return terms / len(case.responses)


def rloo(case: Case) -> Tensor:
    """Ahmadian et al. (2024), equation 8: 1/k sum_i (R_i - 1/(k-1) sum_{j != i} R_j) grad log pi(y_i)."""
    terms: Any = 0.0
    for i in case.responses:
        others = mean([case.earned(j) for j in case.group(i) if j != i])
        terms += (case.earned(i) - others) * sum(logp for _, logp, _, _ in case.tokens(i))
    return terms / len(case.responses)


def grpo(case: Case) -> Tensor:
    """Shao et al. (2024), equation 3, with the KL of equation 4 inside, weight 0.04."""
    terms: Any = 0.0
    for i in case.responses:
        scores = [case.earned(j) for j in case.group(i)]
        advantage = (case.earned(i) - mean(scores)) / (deviation(scores) + 1e-4)
        inner: Any = 0.0
        for _, logp, old, reference in case.tokens(i):
            kl = (reference - logp).exp() - (reference - logp) - 1
            inner += clipped((logp - old).exp(), advantage, 0.2, 0.2) - 0.04 * kl
        terms += inner / len(case.tokens(i))
    return terms / len(case.responses)


def dr_grpo(case: Case) -> Tensor:
    """Liu et al. (2025), section 3.2: neither the deviation nor the response's own length divides."""
    terms: Any = 0.0
    for i in case.responses:
        advantage = case.earned(i) - mean([case.earned(j) for j in case.group(i)])
        terms += sum(clipped((logp - old).exp(), advantage, 0.2, 0.2) for _, logp, old, _ in case.tokens(i))
    return terms / 64 / len(case.responses)


def dapo(case: Case) -> Tensor:
    """Yu et al. (2025), equation 8: two bounds, and one mean over the tokens of all responses."""
    terms: Any = 0.0
    for i in case.responses:
        scores = [case.earned(j) for j in case.group(i)]
        advantage = (case.earned(i) - mean(scores)) / (deviation(scores) + 1e-4)
        terms += sum(clipped((logp - old).exp(), advantage, 0.2, 0.28) for _, logp, old, _ in case.tokens(i))
    return terms / sum(len(case.tokens(i)) for i in case.responses)


def reinforce_plus_plus(case: Case) -> Tensor:
    """Hu et al. (2025): returns from each token on, less their mean over the batch, over their deviation; PPO's clip."""
    to_go = {(i, t): case.earned(i, t) for i in case.responses for t, *_ in case.tokens(i)}
    middle, spread = mean(list(to_go.values())), deviation(list(to_go.values()))
    terms: Any = 0.0
    for i in case.responses:
        for t, logp, old, _ in case.tokens(i):
            terms += clipped((logp - old).exp(), (to_go[i, t] - middle) / spread, 0.2, 0.2)
    return terms / len(to_go)


FORMULAS = {
    "reinforce": (reinforce, 1), "remax": (remax, 2), "rloo": (rloo, 4), "grpo": (grpo, 4), "dr-grpo": (dr_grpo, 4),
    "dapo": (dapo, 4), "reinforce-plus-plus": (reinforce_plus_plus, 1),
}  # fmt: skip


def optimizer_of(name: str, case: Case, **changes: Any) -> Any:
    sizes = {"prompts_per_step": case.prompts, "samples_per_prompt": case.per_prompt,
             "minibatch_size": len(case.responses)}  # fmt: skip
    optimizer = make(case.policy, **{**PRESETS[name]["config"], **sizes, **changes})
    optimizer.load_state_dict({**optimizer.state_dict(), "average": 0.25, "averaged": 1})
    return optimizer


def test_every_preset_of_the_readme_is_tested() -> None:
    assert PRESETS.keys() == FORMULAS.keys()
    assert all(
        f"| {title} |" in README for title in ("REINFORCE", "ReMax", "RLOO", "GRPO", "Dr. GRPO", "DAPO", "REINFORCE++")
    )


@pytest.mark.parametrize("name", FORMULAS)
def test_presets_follow_the_published_formulas(name: str) -> None:
    formula, per_prompt = FORMULAS[name]
    case = Case(per_prompt, prompts=20 if per_prompt == 1 else 5)
    expected = -torch.autograd.grad(formula(case), case.policy.table)[0]
    assert expected.abs().max() > 1e-3
    for changes in ({}, {"micro_batch_tokens": 1}):
        found = gradient(case.policy, optimizer_of(name, case, **changes), Given(case.rollout, case.greedy))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    held_back = [n for n in FORMULAS if n not in ("reinforce", "remax", "rloo")]
    assert (PRESETS[name]["config"].get("clip") is not None) == (name in held_back)


def test_the_presets_differ() -> None:
    case = Case(4)
    found = [gradient(case.policy, optimizer_of(name, case), Given(case.rollout, case.greedy)) for name in FORMULAS]
    for i, one in enumerate(found):
        assert all((one - other).norm() > 0.01 * one.norm() for other in found[:i])


def test_the_kl_in_the_loss_pulls_to_the_reference() -> None:
    """With k2 and no advantages, the mean gradient is that of the exact KL of each token."""
    policy, other = Table(8000), Table(8000, seed=9)
    rollout = sampled(policy, 1, torch.zeros(len(STATES), 3, dtype=torch.float64))
    rollout = rollout.replace(reference_logprobs=other.forward(rollout, Needs()).logprobs.detach())
    optimizer = make(policy, baseline="none", kl_coef=0.5, kl_estimator="k2", prompts_per_step=8000)
    one = Table()
    # sums of k2 over tokens have the gradient of the sum of each token's own KL, not of what it leads to
    expected = torch.autograd.grad(per_token_kl(one, other), one.table)[0][0]
    found = 8000 * gradient(policy, optimizer, Given(rollout))
    assert errors(found, 0.5 * expected).abs().max() < 3


def per_token_kl(policy: Table, reference: Table) -> Tensor:
    """KL of the next token in each state, weighted by how often the policy is there, which is held fixed."""
    p, q = (t.table[0].log_softmax(-1) for t in (policy, reference))
    visits = torch.stack([policy.probability(word) if word else torch.tensor(1.0) for word in STATES]).detach()
    return (visits * (p.exp() * (p - q)).sum(-1)).sum()


def test_the_entropy_bonus_spreads_the_policy() -> None:
    policy = Table(4)
    rollout = rollout_of(torch.tensor([[END] * 3] * 4), torch.arange(4), torch.zeros(len(STATES), 3).double(), policy)
    found = gradient(policy, make(policy, baseline="none", entropy_coef=0.1), Given(rollout))[0, 0]
    chances = policy.table[0, 0].softmax(-1).detach()
    entropy = -(chances * chances.log()).sum()
    # d entropy / d logit = -p (log p + entropy), by hand
    torch.testing.assert_close(4 * found, 0.1 * chances * (chances.log() + entropy))
