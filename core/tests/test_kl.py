"""The `kl` shaper: by hand, Ziegler's controller, and what it does to the optimum where every response is written down."""

from __future__ import annotations

import itertools

import pytest
import torch
from rlhf_core.components.config import KLConfig
from rlhf_core.components.kl import KL
from rlhf_core.errors import ConfigError
from rlhf_core.functional import discounted_returns
from rlhf_core.interfaces import Context
from rlhf_core.records import Prompt, Rollout, Sample
from rlhf_core.runs import checkpoint
from torch import Tensor


def rollout_of(logprobs: Tensor, reference: Tensor | None, mask: Tensor | None = None) -> Rollout:
    """One row per response; only the log-probabilities matter."""
    rows, width = logprobs.shape
    mask = torch.ones(rows, width, dtype=torch.bool) if mask is None else mask
    ids = torch.zeros(rows, width, dtype=torch.int64)
    return Rollout(
        samples=(Sample(Prompt(text="Hi"), "abc"),) * rows, prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] == 0,
        response_ids=ids, attention=torch.ones_like(mask), mask=mask, logprobs=logprobs, reference_logprobs=reference,
        truncated=torch.zeros(rows, dtype=torch.bool), groups=ids[:, 0], sample_ids=torch.arange(rows),
    )  # fmt: skip


def shaper(**config: object) -> KL:
    return KL(KLConfig.model_validate(config), Context("shaper", "mine"))


# --- by hand ---------------------------------------------------------------------------------------------------------

LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, float("nan")]])
REFERENCE = torch.tensor([[-1.5, -1.0, -3.0], [-1.0, -2.5, float("nan")]])  # d: 0.5, -1, 0; 0, 0.5
MASK = torch.tensor([[True, True, True], [True, True, False]])


@pytest.mark.parametrize(("estimator", "expected", "penalty"), [
    ("k1", [[0.5, -1.0, 0.0], [0.0, 0.5, 0.0]], 0.0),
    ("k2", [[0.125, 0.5, 0.0], [0.0, 0.125, 0.0]], 0.0375),
    ("k3", [[0.1065307, 0.7182818, 0.0], [0.0, 0.1065307, 0.0]], 0.0465672),  # e^-0.5 - 1 + 0.5, e - 2
    ("abs", [[0.5, 1.0, 0.0], [0.0, 0.5, 0.0]], 0.1),
])  # fmt: skip
def test_every_token_pays_its_estimate(estimator: str, expected: list[list[float]], penalty: float) -> None:
    rewards = torch.tensor([[0.0, 0.0, 2.0], [0.0, -1.0, 0.0]])
    shaped, stats = shaper(coef=0.1, estimator=estimator).shape(rewards, rollout_of(LOGPROBS, REFERENCE, MASK))
    torch.testing.assert_close(shaped, rewards - 0.1 * torch.tensor(expected))
    assert stats == {"kl/coef": 0.1, "kl/penalty": pytest.approx(penalty, abs=1e-6)}, "the mean over two samples"


def test_without_a_target_the_weight_is_fixed_or_follows_its_schedule() -> None:
    rollout = rollout_of(LOGPROBS, REFERENCE, MASK)
    falling = shaper(coef={"schedule": "linear", "start": 0.4, "end": 0.0})
    for step, coef in ((0, 0.4), (1, 0.3), (3, 0.1)):
        falling.progress = (step, 4)
        shaped, stats = falling.shape(torch.zeros(2, 3), rollout)
        assert stats["kl/coef"] == pytest.approx(coef) and shaped[0, 0] == pytest.approx(-0.5 * coef)


def test_samples_without_a_mask_do_not_count() -> None:
    mask = MASK & torch.tensor([[True], [False]])
    _, stats = shaper(coef=0.1, estimator="abs").shape(torch.zeros(2, 3), rollout_of(LOGPROBS, REFERENCE, mask))
    assert stats["kl/penalty"] == pytest.approx(0.15)
    nobody = shaper(coef=0.1, target=1.0, horizon=1.0)
    nobody.shape(torch.zeros(2, 3), rollout_of(LOGPROBS, REFERENCE, torch.zeros_like(mask)))
    assert nobody.coef == 0.1


def test_a_rollout_without_a_reference_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        shaper().shape(torch.zeros(2, 3), rollout_of(LOGPROBS, None, MASK))
    assert str(error.value) == (
        "shaper 'mine': a rollout without reference_logprobs; expected all that `config.needs` asks for; "
        "pass it to the data that rolls out"
    )


# --- the controller --------------------------------------------------------------------------------------------------


def after(nats: float, *, samples: int = 3, **config: object) -> float:
    """The coefficient, 0.1 before, after one batch of responses of two tokens with a k1 of `nats` per response."""
    adaptive = shaper(coef=0.1, **config)
    rollout = rollout_of(torch.full((samples, 2), nats / 2), torch.zeros(samples, 2))
    _, stats = adaptive.shape(torch.zeros(samples, 2), rollout)
    assert stats["kl/coef"] == 0.1, "what was in use"
    return adaptive.coef


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_weight_follows_its_target(estimator: str) -> None:
    """Ziegler et al. (2019), section 2.2: times 1 + clip(KL / target - 1, +-0.2) * samples / horizon, KL by k1."""
    options = {"target": 4.0, "horizon": 30.0, "estimator": estimator}
    assert after(4.4, **options) == pytest.approx(0.1 * (1 + 0.1 * 3 / 30))
    assert after(3.4, **options) == pytest.approx(0.1 * (1 - 0.15 * 3 / 30))
    assert after(400, **options) == pytest.approx(0.1 * (1 + 0.2 * 3 / 30))
    assert after(-4.0, **options) == pytest.approx(0.1 * (1 - 0.2 * 3 / 30))
    assert after(4.4, samples=6, **options) == pytest.approx(0.1 * (1 + 0.1 * 6 / 30))
    assert after(400.0, estimator=estimator) == 0.1, "without a target it is fixed"


def test_the_weight_counts_tokens_of_the_mask_only() -> None:
    adaptive = shaper(coef=0.1, target=1.0, horizon=1.0)
    adaptive.shape(torch.zeros(2, 3), rollout_of(LOGPROBS, REFERENCE, MASK))  # -0.5 and 0.5: 0 per response
    assert adaptive.coef == pytest.approx(0.1 * (1 - 0.2 * 2))


def test_the_weight_is_state(tmp_path) -> None:
    adaptive = shaper(coef=0.1, target=0.01, horizon=30.0)
    adaptive.shape(torch.zeros(2, 3), rollout_of(LOGPROBS, REFERENCE, MASK))
    checkpoint.save(tmp_path / "state", adaptive.state_dict())
    resumed = shaper(coef=0.1, target=0.01, horizon=30.0)
    resumed.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert resumed.coef == adaptive.coef != 0.1
    shaped, stats = resumed.shape(torch.zeros(2, 3), rollout_of(LOGPROBS, REFERENCE, MASK))
    assert stats["kl/coef"] == adaptive.coef and shaped[0, 0] == pytest.approx(-0.5 * adaptive.coef)


def test_the_description_speaks_of_the_optimum() -> None:
    """`rlhf describe shaper kl` prints it."""
    assert "optimum" in (KLConfig.__doc__ or "")


# --- the optimum -----------------------------------------------------------------------------------------------------

TOKENS = "ab$"  # $: end of text; responses are cut after 3 tokens
RESPONSES = ["".join(x) + "$" * (n < 3) for n in range(4) for x in itertools.product("ab", repeat=n)]
STATES = ["".join(x) for n in range(3) for x in itertools.product("ab", repeat=n)]
COEF = 0.3
NOISE = torch.Generator().manual_seed(3)
SCORES = torch.randn(len(RESPONSES), generator=NOISE, dtype=torch.float64)
REFERENCE_LOGITS = torch.randn(len(STATES), 3, generator=NOISE, dtype=torch.float64)


def token_logprobs(logits: Tensor) -> Tensor:
    """(15, 3): of the tokens of every response, 0 after its end; `logits` (7, 3) of every state."""
    each = logits.log_softmax(-1)
    rows = [[each[STATES.index(r[:k]), TOKENS.index(t)] for k, t in enumerate(r)] for r in RESPONSES]
    return torch.stack([torch.stack(row + [each.new_zeros(())] * (3 - len(row))) for row in rows])


LENGTHS = torch.tensor([len(r) for r in RESPONSES])
VALID = torch.arange(3) < LENGTHS[:, None]
BASE = token_logprobs(REFERENCE_LOGITS)


def objective(logits: Tensor, scores: Tensor = SCORES) -> Tensor:
    """The exact mean of score - COEF * log(policy / reference) over all responses."""
    log = token_logprobs(logits).sum(1)
    return (log.exp() * (scores - COEF * (log - BASE.sum(1)))).sum()


def update(logits: Tensor, estimator: str, scores: Tensor = SCORES) -> Tensor:
    """(7, 3): the exact expected policy gradient under rewards that the shaper made, which are constants to it."""
    logits = logits.clone().requires_grad_()
    log = token_logprobs(logits)
    rewards = scores[:, None] * (torch.arange(3) == LENGTHS[:, None] - 1)
    shaped, _ = shaper(coef=COEF, estimator=estimator).shape(rewards, rollout_of(log.detach(), BASE, VALID))
    to_come = discounted_returns(shaped, VALID, gamma=1.0)
    chances = log.detach().sum(1).exp()
    (gradient,) = torch.autograd.grad((chances[:, None] * log * to_come).sum(), logits)
    return gradient


def best(scores: Tensor = SCORES, coef: float = COEF) -> Tensor:
    """(7, 3): logits of the policy in proportion to reference * exp(score / coef)."""
    log = (BASE.sum(1) + scores / coef).log_softmax(0)
    follow = [[[i for i, r in enumerate(RESPONSES) if r.startswith(s + t)] for t in TOKENS] for s in STATES]
    return torch.stack([torch.stack([log[rows].logsumexp(0) for rows in row]) for row in follow])


def test_under_k1_the_update_is_the_gradient_of_the_score_less_the_kl() -> None:
    for seed in range(3):
        logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        leaf = logits.clone().requires_grad_()
        (exact,) = torch.autograd.grad(objective(leaf), leaf)
        torch.testing.assert_close(update(logits, "k1"), exact, rtol=1e-10, atol=1e-12)


def test_under_k1_the_optimum_is_the_reference_tilted_by_the_score() -> None:
    top = best()
    assert float(update(top, "k1").abs().max()) < 1e-12
    torch.testing.assert_close(objective(top), COEF * (BASE.sum(1) + SCORES / COEF).logsumexp(0))
    for seed in range(20):
        moved = top + torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert objective(moved) < objective(top)
    tilt = (token_logprobs(top) - BASE).sum(1)
    assert tilt.argsort().tolist() == SCORES.argsort().tolist(), "the order of scores stays"


@pytest.mark.parametrize("estimator", ["k2", "k3", "abs"])
def test_the_other_estimators_have_another_optimum(estimator: str) -> None:
    """They charge a token that became less likely than under the reference as well, and push it further down."""
    assert float(update(best(), estimator).abs().max()) > 1e-3
    nothing = torch.zeros_like(SCORES)
    assert float(update(REFERENCE_LOGITS, estimator, nothing).abs().max()) < 1e-12, "at the reference nobody pays"
    rare = REFERENCE_LOGITS.clone()
    rare[0, 0] -= 1.0  # "a" as the first token is less likely than under the reference, all else is the same
    assert update(rare, "k1", nothing)[0, 0] > 1e-3
    assert update(rare, estimator, nothing)[0, 0] < -1e-3


def test_with_a_target_the_optimum_is_the_best_score_at_so_many_nats() -> None:
    """The controller on the best policy of each moment comes to a weight whose optimum has that KL."""
    target = 0.8

    def nats(coef: float) -> float:
        log = token_logprobs(best(coef=coef)).sum(1)
        return float((log.exp() * (log - BASE.sum(1))).sum())

    adaptive = shaper(coef=0.05, target=target, horizon=5.0)
    assert nats(adaptive.coef) > 1.2 * target
    for _ in range(150):
        row = torch.tensor([[nats(adaptive.coef)]], dtype=torch.float64)
        adaptive.shape(torch.zeros_like(row), rollout_of(row, torch.zeros_like(row)))
    assert nats(adaptive.coef) == pytest.approx(target, rel=1e-3)
    top = token_logprobs(best(coef=adaptive.coef)).sum(1).exp()
    close = 0
    for seed in range(200):
        noise = torch.randn(len(RESPONSES), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        log = (top.log() + 0.2 * noise).log_softmax(0)
        if float((log.exp() * (log - BASE.sum(1))).sum()) <= target:
            close += 1
            assert log.exp() @ SCORES <= top @ SCORES + 1e-3
    assert close > 20
