"""The losses and the penalty, by hand; what is learnt at their optimum; the null check's rank correlation."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rlhf_core.rewards.network import TextNetwork
from rlhf_plugin_irl.discriminator import Contrast, ContrastTask, contrast_loss, gail_reward, scores_and_gradients, won
from torch import Tensor, nn

from .toys import make_reward

GOLDEN = Path(os.environ.get("RLHF_GOLDEN") or Path(__file__).resolve().parents[3] / "../shared/golden/golden.json")
T = torch.tensor


# --- the losses ------------------------------------------------------------------------------------------------------


def test_cross_entropy_of_both_labels() -> None:
    coin, sure = contrast_loss(T([0.0, math.log(3)]), T([0.0, 0.0])).tolist()
    assert coin == pytest.approx(math.log(2))
    assert sure == pytest.approx(math.log(8 / 3) / 2)  # the mean of -log 3/4 and -log 1/2


def test_smoothing_is_one_sided() -> None:
    logits = T([math.log(3)])  # D = 3/4
    assert float(contrast_loss(logits, T([0.0]), label_smoothing=0.1)) == pytest.approx(
        (-0.9 * math.log(0.75) - 0.1 * math.log(0.25) + math.log(2)) / 2
    )
    best = T([0.0], requires_grad=True)
    (slope,) = torch.autograd.grad(contrast_loss(T([math.log(9)]), best, label_smoothing=0.1), best)
    assert slope == pytest.approx(0.25)  # samples are judged as ever: sigmoid(0) / 2
    at = T([math.log(9)], requires_grad=True)
    (slope,) = torch.autograd.grad(contrast_loss(at, T([0.0]), label_smoothing=0.1), at)
    assert slope == pytest.approx(0, abs=1e-7)  # nobody is asked to be surer than 9 in 10


def test_maxent_is_linear_but_for_its_shrinkage() -> None:
    assert float(contrast_loss(T([2.0]), T([1.0]), maxent=True)) == pytest.approx(-1 + 0.005 * 5 / 2)


def test_importance_is_of_the_sample_alone() -> None:
    assert float(contrast_loss(T([0.0]), T([0.0]), importance=T([3.0]))) == pytest.approx(2 * math.log(2))
    maxent = contrast_loss(T([2.0]), T([1.0]), importance=T([3.0]), maxent=True)
    assert float(maxent) == pytest.approx(3 - 2 + 0.0025 * (3 * 1 + 4))


def test_it_stays_finite_for_extreme_logits() -> None:
    assert float(contrast_loss(T([-1e4]), T([1e4]))) == pytest.approx(1e4)


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no reference data at {GOLDEN} (set RLHF_GOLDEN)")
def test_gail_reward_of_the_imitation_library() -> None:
    (case,) = (c for c in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"] if c["id"] == "irl/gail_reward")
    got = gail_reward(torch.tensor(case["inputs"]["logits"], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor(case["expected"]["reward"], dtype=torch.float64), rtol=1e-8, atol=1e-8)


def test_who_won() -> None:
    assert won(T([2.0, 1.0, 0.0, 1.0, 1.0, 1.0])).tolist() == [1.0, 0.5, 0.0]


# --- what is learnt, on a table of two texts -------------------------------------------------------------------------


class Table:
    """A reward that can be any function of two texts, [0] and [1]."""

    def __init__(self, **config: Any) -> None:
        defaults = {"algorithm": "airl", "label_smoothing": 0.0, "gradient_penalty": 0.0}
        self.config = SimpleNamespace(**{**defaults, **config})
        self.network = nn.Embedding(2, 1, dtype=torch.float64)
        nn.init.zeros_(self.network.weight)

    def scores(self, texts: list[list[int]]) -> Tensor:
        return self.network(T([text[0] for text in texts]))[:, 0]

    def learnt(self, experts: list[int], samples: list[int], log_ratios: list[float] | None = None) -> Tensor:
        """The table at the optimum, where experts and samples are as often as listed; `log_ratios` of the two texts."""
        task = ContrastTask(self, [Contrast([e], [s]) for e, s in zip(experts, samples, strict=True)], [])  # type: ignore[arg-type]
        ratios = None if log_ratios is None else T([log_ratios[i] for i in (*experts, *samples)], dtype=torch.float64)
        optimizer = torch.optim.LBFGS(self.network.parameters(), max_iter=500, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = task.loss(task.train, ratios, maxent=self.config.algorithm == "maxent")
            (loss.total / loss.count).backward()  # type: ignore[no-untyped-call]
            return loss.total.detach() / loss.count

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return self.network.weight.detach()[:, 0]


def test_the_logit_is_the_log_ratio_of_densities() -> None:
    """Three of four experts say text 0, one of four samples does."""
    for algorithm in ("one-shot", "gail"):
        values = Table(algorithm=algorithm).learnt([0, 0, 0, 1], [0, 1, 1, 1])
        torch.testing.assert_close(values, T([math.log(3), -math.log(3)], dtype=torch.float64), atol=1e-4, rtol=0)


def test_airl_finds_the_reward_whatever_the_policy_has_become() -> None:
    """Experts say 0 in 3/4, the reference in 1/4: r = (log 3, -log 3), from samples of any policy in between."""
    truth = T([math.log(3), -math.log(3)], dtype=torch.float64)
    reference = [1 / 4, 3 / 4]
    for samples in ([0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]):
        policy = [samples.count(text) / 4 for text in (0, 1)]
        ratios = [math.log(p / q) for p, q in zip(policy, reference, strict=True)]
        values = Table().learnt([0, 0, 0, 1], samples, ratios)
        torch.testing.assert_close(values, truth, atol=1e-4, rtol=0)
    assert ratios == pytest.approx(truth.tolist()), "the last policy is the expert, and D is 1/2 of every text"
    gail = Table(algorithm="gail").learnt([0, 0, 0, 1], [0, 0, 0, 1])
    assert gail.abs().max() < 1e-6, "where gail has nothing left to say"


def test_swapping_demonstrations_and_samples_flips_the_sign() -> None:
    for algorithm in ("one-shot", "maxent"):
        there = Table(algorithm=algorithm).learnt([0, 0, 0, 1], [0, 1, 1, 1])
        back = Table(algorithm=algorithm).learnt([0, 1, 1, 1], [0, 0, 0, 1])
        torch.testing.assert_close(there, -back, atol=1e-3, rtol=0)
        assert there[0] > 0.1


def test_maxent_is_bounded_by_its_shrinkage() -> None:
    """At the optimum r = (p - q) / (2 * 0.005/2 * (p + q)) = 100 on texts with p, q = 3/4, 1/4."""
    values = Table(algorithm="maxent").learnt([0, 0, 0, 1], [0, 1, 1, 1])
    torch.testing.assert_close(values, T([100.0, -100.0], dtype=torch.float64), atol=1e-2, rtol=0)


def test_weights_count() -> None:
    reward = Table(algorithm="one-shot")
    pairs = [Contrast([0], [1], 3.0), Contrast([1], [0], 1.0)]
    loss = ContrastTask(reward, pairs, []).loss(pairs)  # type: ignore[arg-type]
    assert (loss.count, float(loss.total.detach())) == (4.0, pytest.approx(4 * math.log(2)))
    with torch.no_grad():
        reward.network.weight.copy_(T([[1.0], [0.0]]))
    assert ContrastTask(reward, pairs, []).loss(pairs).stats["accuracy"] == 3.0  # type: ignore[arg-type]


# --- the gradient penalty --------------------------------------------------------------------------------------------


class Bag(nn.Module):
    """A trunk that is nothing but an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 2)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.embedding(input_ids))


def linear(pooling: str) -> Any:
    network = TextNetwork(Bag(), 2, pooling, torch.Generator())
    with torch.no_grad():
        network.head.weight.copy_(T([[3.0, 4.0]]))

    def scores(texts: list[list[int]]) -> Tensor:
        width = max(map(len, texts))
        ids = T([text + [0] * (width - len(text)) for text in texts])
        mask = torch.arange(width)[None] < T([len(text) for text in texts])[:, None]
        return network(ids, mask)[:, 0]

    config = SimpleNamespace(algorithm="one-shot", label_smoothing=0.0, gradient_penalty=2.0)
    return SimpleNamespace(network=network, scores=scores, config=config)


@pytest.mark.parametrize(("pooling", "expected"), [("last", [25.0, 25.0]), ("mean", [25.0, 12.5])])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_penalty_of_a_linear_network(pooling: str, expected: list[float], frozen: bool) -> None:
    """r = w . e with w = (3, 4): |w|^2 = 25; of the mean of two tokens, w/2 at each: 2 * 25/4."""
    reward = linear(pooling)
    reward.network.trunk.requires_grad_(not frozen)
    _, squared = scores_and_gradients(reward, [[1], [2, 3]])
    torch.testing.assert_close(squared, T(expected))
    (slope,) = torch.autograd.grad(squared[0] / 2, reward.network.head.weight)
    torch.testing.assert_close(slope, T([[3.0, 4.0]]))  # the penalty can be trained away: its gradient is w


def test_the_penalty_is_of_demonstrations_and_in_the_loss() -> None:
    reward = linear("mean")
    contrast = Contrast([1], [2, 3])  # of the sample it would be 12.5
    loss = ContrastTask(reward, [contrast], []).loss([contrast])
    assert loss.stats["penalty"] == pytest.approx(25.0)  # half of the coefficient, 2, times 25
    reward.config.gradient_penalty = 0.0
    without = ContrastTask(reward, [contrast], []).loss([contrast])
    assert float((loss.total - without.total).detach()) == pytest.approx(25.0)
    assert "penalty" not in without.stats


def test_the_penalty_reaches_through_attention() -> None:
    reward = make_reward(gradient_penalty=1.0)
    contrasts = [Contrast([5, 6, 7, 0], [8, 9, 0]), Contrast([5, 9, 0], [8, 9, 6, 7, 0])]
    before = ContrastTask(reward, contrasts, []).loss(contrasts)
    before.total.backward()  # type: ignore[no-untyped-call]
    assert 0 < before.stats["penalty"] < math.inf
    assert all(bool(p.grad.isfinite().all()) for p in reward.network.parameters() if p.grad is not None)


# --- rank correlation ------------------------------------------------------------------------------------------------
