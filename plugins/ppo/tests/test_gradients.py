"""PPO's gradient against exact enumeration: three tokens, at most three to a response, so that there are 15 of them.

Every response has a table of its own, a copy of the policy, so that one update gives its gradient apart from the others';
their mean, weighted by how likely each is, is the expected update, without any sampling.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from rlhf_core.interfaces import Context, Needs, Outputs
from rlhf_core.records import Prompt, Rollout, Sample
from torch import Tensor, nn

from .toys import gradients, make_ppo

END = 2
WORDS = [(), (0,), (1,), *product(range(2), repeat=2)]
STATES = {word: number for number, word in enumerate(WORDS)}
"""What may have been said so far, and the number of that state; token 2 ends a response."""
RESPONSES = [(*word, END) for word in WORDS] + [(*word, last) for word in WORDS[3:] for last in range(2)]


class Table:
    """The softmax of a table of logits, and a table of values, for every response."""

    critic = "separate"
    context = Context("policy", "table")

    def __init__(self, seed: int, moved: float = 0.0) -> None:
        noise = torch.Generator().manual_seed(seed)
        logits, values, change = (torch.randn(len(STATES), n, generator=noise, dtype=torch.float64) for n in (3, 1, 3))
        logits += moved * change
        self.module = nn.Module()
        self.module.table = nn.Parameter(logits.repeat(len(RESPONSES), 1, 1))  # (responses, states, 3)
        self.module.values = nn.Parameter(values[:, 0].repeat(len(RESPONSES), 1))  # (responses, states)

    def prepare(self, needs: Needs) -> None:
        """The heads are there."""

    def forward(self, rollout: Rollout, needs: Needs) -> Outputs:
        where = rollout.prompt_ids, numbers(rollout)
        spoken = self.module.table[where].log_softmax(-1)  # (B, T, 3)
        return Outputs(
            logprobs=spoken.gather(-1, rollout.response_ids[..., None])[..., 0],
            values=self.module.values[where],
            entropy=-(spoken.exp() * spoken).sum(-1) if needs.entropy else None,
        )

    def token(self, i: int, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability of token t of response i, value before it, and entropy of what could have been said."""
        state = STATES[RESPONSES[i][:t]]
        spoken = self.module.table[i, state].log_softmax(-1)
        return spoken[RESPONSES[i][t]], self.module.values[i, state], -(spoken.exp() * spoken).sum()

    def chances(self) -> Tensor:
        """(responses,): how likely each is."""
        logprobs = [sum(self.token(i, t)[0] for t in range(len(word))) for i, word in enumerate(RESPONSES)]
        return torch.stack(logprobs).exp()


def numbers(rollout: Rollout) -> Tensor:
    """(B, T): the state before each token, 0 after the last."""
    found = torch.zeros_like(rollout.response_ids)
    for row, i in enumerate(rollout.prompt_ids[:, 0].tolist()):
        for t in range(len(RESPONSES[i])):
            found[row, t] = STATES[RESPONSES[i][:t]]
    return found


def paid(i: int, t: int) -> float:
    """What token t of response i earns, by a table over states and tokens."""
    rewards = torch.randn(len(STATES), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return float(rewards[STATES[RESPONSES[i][:t]], RESPONSES[i][t]])


EARNED = [[paid(i, t) for t in range(len(word))] for i, word in enumerate(RESPONSES)]
TOKENS = [(i, t) for i, word in enumerate(RESPONSES) for t in range(len(word))]


def every_response(old: Table) -> Rollout:
    """All responses, with the log-probabilities and values of `old`."""
    count, width = len(RESPONSES), 3
    ids, mask = torch.zeros(count, width, dtype=torch.long), torch.zeros(count, width, dtype=torch.bool)
    rewards = torch.zeros(count, width, dtype=torch.float64)
    for i, word in enumerate(RESPONSES):
        ids[i, : len(word)], mask[i, : len(word)] = torch.tensor(word), True
        rewards[i, : len(word)] = torch.tensor(EARNED[i], dtype=torch.float64)
    rows = torch.arange(count)
    rollout = Rollout(
        samples=(Sample(Prompt(text="?"), "!"),) * count, prompt_ids=rows[:, None], mask=mask, attention=mask,
        prompt_mask=torch.ones(count, 1, dtype=torch.bool), response_ids=ids, logprobs=torch.zeros_like(rewards),
        truncated=rows < 0, groups=rows, sample_ids=rows, rewards=rewards,
    )  # fmt: skip
    with torch.no_grad():
        now = old.forward(rollout, Needs(values=True))
    return rollout.replace(logprobs=now.logprobs, values=now.values)


def expected_update(policy: Table, old: Table, **config: Any) -> Tensor:
    """(states, 3): the direction that PPO moves the logits in, averaged over what `old` would have said."""
    found = gradients(policy, make_ppo(policy, whiten_advantages=False, **config), every_response(old))["table"]
    # the loss is a mean over the tokens of all responses
    return -len(TOKENS) * (old.chances().detach()[:, None, None] * found).sum(0)


def exact_gradient(policy: Table) -> Tensor:
    """(states, 3): of the expected reward."""
    value = (policy.chances() * torch.tensor([sum(earned) for earned in EARNED], dtype=torch.float64)).sum()
    return torch.autograd.grad(value, policy.module.table)[0].sum(0)


def foresee(policy: Table) -> None:
    """Values become the expected reward from each state on."""
    chances = policy.chances().detach()
    for word, state in STATES.items():
        rows = [i for i, response in enumerate(RESPONSES) if response[: len(word)] == word]
        worth = sum(float(chances[i]) * sum(EARNED[i][len(word) :]) for i in rows) / float(chances[rows].sum())
        policy.module.values.data[:, state] = worth


@pytest.mark.parametrize(("critic", "lam", "unbiased"), [
    ("wrong", 1.0, True), ("right", 1.0, True), ("right", 0.0, True), ("right", 0.9, True), ("wrong", 0.9, False),
])  # fmt: skip
def test_at_ratio_1_the_expected_update_is_the_exact_policy_gradient(critic: str, lam: float, unbiased: bool) -> None:
    """With whole returns whatever the critic says; with a shorter horizon if it is right."""
    policy = Table(0)
    if critic == "right":
        foresee(policy)
    exact = exact_gradient(policy)
    found = expected_update(policy, policy, lam=lam)
    assert exact.abs().max() > 0.1
    assert torch.allclose(found, exact, rtol=1e-10, atol=1e-12) is unbiased


@pytest.mark.parametrize(("clip", "clip_high"), [(0.2, None), (0.2, 0.5), (0.999, 1e9)])
def test_elsewhere_it_is_ratio_times_advantage_times_score_but_for_what_is_clipped(clip: float, clip_high: Any) -> None:
    """E_old[sum_t rho_t A_t grad log pi_t], without the tokens that have already gone beyond the clip towards A."""
    policy, old = Table(0), Table(0, moved=0.4)
    foresee(old)
    high = clip if clip_high is None else clip_high
    chances, total, kinds = old.chances().detach(), torch.zeros(len(STATES), 3, dtype=torch.float64), set()
    for i, t in TOKENS:
        logprob = policy.token(i, t)[0]
        ratio = float((logprob - old.token(i, t)[0]).detach().exp())
        advantage = sum(EARNED[i][t:]) - float(old.token(i, t)[1].detach())
        beyond = ratio > 1 + high if advantage > 0 else ratio < 1 - clip
        kinds.add((advantage > 0, ratio > 1 + high, ratio < 1 - clip))
        if not beyond:
            score = torch.autograd.grad(logprob, policy.module.table)[0].sum(0)
            total += float(chances[i]) * ratio * advantage * score
    if high < 1:  # both signs on both sides of the range and within it
        assert kinds == {
            (good, *side) for good in (True, False) for side in ((True, False), (False, True), (False, False))
        }
    found = expected_update(policy, old, clip=clip, clip_high=clip_high, lam=1.0)
    torch.testing.assert_close(found, total, rtol=1e-10, atol=1e-12)


def test_the_whole_loss_read_slowly() -> None:
    """Every term, token by token: clipped surrogate with a dual clip, clipped values, entropy, discounted GAE."""
    policy, old = Table(0), Table(5)
    with torch.no_grad():  # so that tokens that did badly became much likelier
        policy.module.table.mul_(3)
    gamma, lam, clip, dual, reach, alpha, weight, bonus = 0.9, 0.7, 0.2, 1.5, 0.3, 2.0, 0.25, 0.05
    total: Any = 0.0
    seen = {"dual": 0, "value": 0}
    for i, word in enumerate(RESPONSES):
        worth = [float(old.token(i, t)[1].detach()) for t in range(len(word))] + [0.0]
        errors = [EARNED[i][t] + gamma * worth[t + 1] - worth[t] for t in range(len(word))]
        for t in range(len(word)):
            advantage = sum((gamma * lam) ** k * error for k, error in enumerate(errors[t:]))
            target = advantage + worth[t]
            logprob, value, entropy = policy.token(i, t)
            ratio = (logprob - old.token(i, t)[0].detach()).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
            if advantage < 0:
                seen["dual"] += bool(gain < dual * advantage)
                gain = gain.clamp(min=dual * advantage)
            held = worth[t] + (value - worth[t]).clamp(-reach, reach)
            error = torch.maximum((value - target) ** 2, (held - target) ** 2)
            seen["value"] += bool((held - target) ** 2 > (value - target) ** 2)
            total = total - alpha * gain + weight * 0.5 * error - bonus * entropy
    assert all(seen.values()), seen
    expected = torch.autograd.grad(total / len(TOKENS), [policy.module.table, policy.module.values])
    config = {"gamma": gamma, "lam": lam, "clip": clip, "dual_clip": dual, "value_clip": reach, "policy_coef": alpha,
              "value_coef": weight, "entropy_coef": bonus, "whiten_advantages": False}  # fmt: skip
    for budget in (8192, 1):
        found = gradients(policy, make_ppo(policy, **config, micro_batch_tokens=budget), every_response(old))
        torch.testing.assert_close(found["table"], expected[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found["values"], expected[1], rtol=1e-10, atol=1e-12)
