"""Rollouts, credit on tokens, the data of an optimizer, and a stranger's optimizer on the common base."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.components.config import FunctionRewardConfig
from rlhf_core.components.function import FunctionReward
from rlhf_core.errors import ConfigError, NumericalError, RewardError
from rlhf_core.functional import group_advantages, masked_mean
from rlhf_core.interfaces import (
    Config,
    Context,
    Needs,
    OnlineReward,
    RewardModel,
    RewardShaper,
    Sampling,
    Schedule,
    SupervisedConfig,
)
from rlhf_core.records import Demonstration, Prompt, Sample, Scores, Span
from rlhf_core.rl import OnPolicyConfig, OnPolicyOptimizer
from rlhf_core.rl.batching import joined
from rlhf_core.rl.config import SingleTurnConfig
from rlhf_core.rl.data import StageData
from rlhf_core.rl.environment import SingleTurn
from rlhf_core.rl.evaluation import evaluate, mean_and_error
from rlhf_core.rl.rewards import RewardMix, checked_scores, token_rewards
from rlhf_core.rl.sampler import Sampler
from rlhf_core.training import GradientSteps, SupervisedLoop, by_tokens, share

from .toys import make_context, make_policy, prompts


class PlainConfig(Config):
    """Nothing to set."""


class Fixed(RewardModel[PlainConfig]):
    """Scores from a function of the text; the whole Scores may be given."""

    def __init__(self, answer, context=None):
        super().__init__(PlainConfig(), context or Context(kind="reward", id="fixed"))
        self.answer = answer

    def score(self, samples):
        answer = self.answer(samples)
        return answer if isinstance(answer, Scores) else Scores(torch.tensor(answer))


class Source:
    """Prompts from a list."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def sampler(policy, **rewards):
    mix = RewardMix({name: model for name, (model, _) in rewards.items()}, {n: w for n, (_, w) in rewards.items()})
    return Sampler(policy, SingleTurn(SingleTurnConfig(), Context()), mix, policy.context)


def stage_data(policy, shapers=(), needs=None, source=None, **rewards):
    return StageData(
        sampler(policy, **rewards),
        source or Source(prompts()),
        [],
        list(shapers),
        Sampling(max_new_tokens=6),
        needs or Needs(),
    )


def ones(samples):
    return [1.0] * len(samples)


# --- cutting and joining ----------------------------------------------------------------------------------------------


def test_by_tokens_covers_every_row_once_within_budget():
    sizes = [5, 1, 9, 3, 3, 40]
    runs = list(by_tokens(sizes, 12))
    assert sorted(row for run in runs for row in run) == list(range(6))
    assert all(max(sizes[r] for r in run) * len(run) <= 12 or len(run) == 1 for run in runs)
    assert runs == [[1, 3, 4], [0], [2], [5]]
    assert list(by_tokens(sizes, 12, rows=[2, 0])) == [[0], [2]]


def test_by_tokens_pads_prompt_and_response_apart():
    assert list(by_tokens([(50, 2), (2, 50)], 110)) == [[0], [1]]  # together they would pad to 2 x 100
    assert list(by_tokens([(50, 2), (50, 2)], 110)) == [[0, 1]]


def test_by_tokens_cuts_where_padding_costs_more_than_another_pass():
    """A run bears 256 tokens of padding, or an eighth of itself where that is more."""
    assert list(by_tokens([10, 266], 1000)) == [[0, 1]]  # 256 of 532
    assert list(by_tokens([10, 267], 1000)) == [[0], [1]]
    assert list(by_tokens([10] * 8 + [42], 1000)) == [[*range(9)]]  # 8 x 32 of 378
    assert list(by_tokens([10] * 8 + [43], 1000)) == [[*range(8)], [8]]  # 8 x 33 of 387
    assert list(by_tokens([700, 800], 9999)) == [[0, 1]]  # 100 of 1,600
    assert list(by_tokens([700, 800, 900], 9999)) == [[0, 1, 2]]  # 300 of 2,700
    assert list(by_tokens([600, 900], 9999)) == [[0], [1]]  # 300 of 1,800
    assert list(by_tokens([100, 500, 505, 90], 9999)) == [[3, 0], [1, 2]]
    assert list(by_tokens([(10, 140), (137, 11)], 1000)) == [[1, 0]]  # 256 of 554, of which each part has its own
    assert list(by_tokens([(10, 140), (138, 11)], 1000)) == [[1], [0]]  # 257 of 556


@pytest.mark.parametrize("seed", range(5))
def test_by_tokens_keeps_to_its_budget_and_to_little_padding(seed):
    noise = random.Random(seed)
    sizes = [(noise.randrange(1, 90), noise.randrange(1, 60)) for _ in range(80)]
    chosen = noise.sample(range(80), 50)
    for budget in (1, 300, 2000, 10**6):
        runs = list(by_tokens(sizes, budget, chosen))
        assert sorted(row for run in runs for row in run) == sorted(chosen)
        assert [sum(sizes[row]) for run in runs for row in run] == sorted(sum(sizes[row]) for row in chosen)
        assert runs == list(by_tokens(sizes, budget, chosen))
        for run in runs:
            padded = len(run) * sum(max(sizes[row][part] for row in run) for part in (0, 1))
            real = sum(sum(sizes[row]) for row in run)
            assert len(run) == 1 or (padded <= budget and padded - real <= max(256, padded / 8))
        assert len(runs) < 50 or budget == 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_of_all_processes_are_everything_once(size):
    class Fake:
        num_processes = size

    parts = []
    for rank in range(size):
        fake = Fake()
        fake.process_index = rank
        parts += share(7, fake)
    assert parts == list(range(7))


def test_joined_rollouts_are_the_rollout_of_all():
    policy = make_policy()
    policy.prepare(Needs(values=True))
    whole = policy.generate(prompts(), Sampling(max_new_tokens=6), seed=0)
    scored = RewardMix({"one": Fixed(ones)}, {"one": 1.0}).score(whole)
    parts = [
        RewardMix({"one": Fixed(ones)}, {"one": 1.0}).score(whole.select([0])),
        RewardMix({"one": Fixed(ones)}, {"one": 1.0}).score(whole.select([1, 2])),
    ]
    again = joined(parts)
    assert again.samples == whole.samples
    for name, tensor in again.tensors().items():
        real = {"prompt_ids": whole.prompt_mask, "response_ids": whole.attention}.get(
            name, torch.ones_like(tensor)
        ).bool()
        assert torch.equal(tensor[real], scored.tensors()[name][real]), name  # ids of padding are anything
    assert torch.equal(again.scores["one"].values, scored.scores["one"].values)


# --- scores and credit ------------------------------------------------------------------------------------------------


def test_rewards_are_a_weighted_sum_and_land_on_the_last_token():
    policy = make_policy()
    data = stage_data(policy, a=(Fixed(lambda s: [1.0, 2.0, 3.0]), 2.0), b=(Fixed(ones), -0.5))
    data.begin(0)
    rollout = data.rollout(prompts())
    assert rollout.score.tolist() == [1.5, 3.5, 5.5]
    for row in range(3):
        last = int(rollout.lengths[row]) - 1
        expected = torch.zeros(rollout.mask.shape[1])
        expected[last] = rollout.score[row]
        assert torch.equal(rollout.rewards[row], expected)
    assert data.stats["reward/a"] == 2.0 and data.stats["reward/score"] == 3.5


def test_span_credit_lands_on_the_last_token_of_the_span_and_rows_keep_their_sum():
    policy = make_policy()
    rollout = policy.encode([Sample(Prompt(text="say:"), "the lazy dog"), Sample(Prompt(text="say:"), "fox")])
    spans = ((Span(0, 3, 2.0), Span(4, 8, -1.0)), ())
    mix = RewardMix({"s": Fixed(lambda s: Scores(torch.tensor([5.0, 1.0]), spans=spans))}, {"s": 0.5})
    scored = mix.score(rollout)
    rewards = token_rewards(scored, scored.score, mix, policy)
    ends = policy.token_ends(rollout.response_ids[0][rollout.attention[0]].tolist())
    the, lazy = next(t for t, e in enumerate(ends) if e >= 3), next(t for t, e in enumerate(ends) if e >= 8)
    last = int(rollout.lengths[0]) - 1
    assert rewards[0, the] == 1.0 and rewards[0, lazy] == -0.5 and rewards[0, last] == 2.0
    torch.testing.assert_close(rewards.sum(1), torch.tensor([2.5, 0.5]))


def test_abstained_samples_have_no_weight_anywhere():
    policy = make_policy()

    def maybe(samples):
        return Scores(torch.tensor([1.0, float("nan"), 3.0]), abstained=torch.tensor([False, True, False]))

    data = stage_data(policy, maybe=(Fixed(maybe), 1.0))
    data.begin(0)
    rollout = data.rollout(prompts())
    assert not rollout.mask[1].any() and rollout.rewards[1].abs().sum() == 0
    assert rollout.groups[1] not in rollout.groups[[0, 2]]
    assert data.stats["reward/score"] == 2.0 and data.stats["reward/maybe"] == 2.0
    assert data.stats["reward/maybe/abstained"] == 1.0


@pytest.mark.parametrize(("answer", "message"), [
    (lambda s: [1.0] * (len(s) - 1), r"reward 'fixed': scores of shape \(2,\) for 3 samples; expected one score per sample"),
    (lambda s: [1.0, float("nan"), 1.0], r"reward 'fixed': score nan for sample 1: 'a much longer prompt, say jumps:' -> "),
    (lambda s: [1.0, 1.0, float("inf")], r"score inf for sample 2: '你好' -> "),
    (lambda s: Scores(torch.ones(3), spans=((), (Span(0, 99, 1.0),), ())), r"span \[0, 99\) of sample 1.*a range inside"),
])  # fmt: skip
def test_wrong_scores_name_the_component_and_show_the_sample(answer, message):
    samples = [Sample(p, " yes") for p in prompts()]
    with pytest.raises(RewardError, match=message):
        checked_scores(Fixed(answer), samples)


def test_a_metric_looks_its_scores_over_as_training_does():
    from rlhf_core.components.config import RewardMetricConfig
    from rlhf_core.components.metrics import RewardMetric

    wrong = Fixed(lambda samples: [float("nan")] * len(samples))
    context = Context(kind="metric", id="gold", resolve=lambda kind, id: wrong)
    rollout = make_policy().encode([Sample(p, " yes") for p in prompts()])
    with pytest.raises(RewardError, match="reward 'fixed': score nan for sample 0"):
        RewardMetric(RewardMetricConfig(reward="gold"), context).measure(rollout)


# --- data -------------------------------------------------------------------------------------------------------------


def test_every_prompt_comes_once_before_any_comes_again_and_the_place_is_kept():
    policy = make_policy()
    source = Source([Prompt(text=f"p{i}") for i in range(5)])
    data = stage_data(policy, source=source, one=(Fixed(ones), 1.0))
    first = [p.text for p in data.prompts(3) + data.prompts(2)]
    assert sorted(first) == ["p0", "p1", "p2", "p3", "p4"]
    state = data.state_dict()
    after = [p.text for p in data.prompts(7)]
    other = stage_data(policy, source=source, one=(Fixed(ones), 1.0))
    other.load_state_dict(state)
    assert [p.text for p in other.prompts(7)] == after
    assert sorted(after[:5]) == ["p0", "p1", "p2", "p3", "p4"]


def test_calls_within_a_step_differ_and_steps_repeat():
    policy = make_policy()
    data = stage_data(policy, one=(Fixed(ones), 1.0))
    data.begin(4)
    first, second = data.rollout(prompts()), data.rollout(prompts())
    assert [s.response for s in first.samples] != [s.response for s in second.samples]
    data.begin(4)
    assert data.rollout(prompts()).samples == first.samples


def test_what_is_logged_is_the_mean_over_a_step_s_rollouts_but_for_those_drawn_otherwise():
    paid, greedy = iter([1.0, 4.0, 9.0, 9.0, 3.0]), Sampling(max_new_tokens=2, temperature=0)
    data = stage_data(make_policy(), one=(Fixed(lambda samples: [next(paid)] * len(samples)), 1.0))
    for step, drawn, mean in ((0, (None, None, greedy), 2.5), (1, (greedy, None), 3.0)):
        data.begin(step)
        for sampling in drawn:
            data.rollout(prompts(), sampling=sampling)
        assert data.stats["reward/score"] == mean


def test_samples_of_a_prompt_lie_side_by_side_in_one_group():
    policy = make_policy()
    data = stage_data(policy, one=(Fixed(ones), 1.0))
    data.begin(0)
    rollout = data.rollout(prompts(), samples_per_prompt=2)
    assert rollout.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert rollout.samples[0].prompt == rollout.samples[1].prompt


class Halve(RewardShaper[PlainConfig]):
    level = "sequence"

    def shape(self, rewards, rollout):
        return rewards / 2, {"shaping/halved": 1.0}


class AddOne(RewardShaper[PlainConfig]):
    level = "token"

    def shape(self, rewards, rollout):
        return rewards + 1, {}  # forgets the mask: the data sets padding to zero again


def test_sequence_shapers_change_scores_then_token_shapers_change_tokens():
    policy = make_policy()
    data = stage_data(
        policy, [AddOne(PlainConfig(), Context()), Halve(PlainConfig(), Context())], one=(Fixed(ones), 1.0)
    )
    data.begin(0)
    rollout = data.rollout(prompts())
    torch.testing.assert_close(rollout.rewards.sum(1), 0.5 + rollout.lengths.float())
    assert (rollout.rewards[~rollout.mask] == 0).all() and data.stats["shaping/halved"] == 1.0


def test_positive_pay_on_every_token_warns():
    said = []
    policy = make_policy(context=make_context(warn=said.append))

    def paid(samples):
        spans = tuple(tuple(Span(i, i + 1, 1.0) for i in range(len(s.response))) for s in samples)
        return Scores(torch.tensor([len(s.response) + 1.0 for s in samples]), spans=spans)

    data = stage_data(policy, paid=(Fixed(paid), 1.0))
    data.begin(0)
    rollout = policy.encode([Sample(Prompt(text="a"), "bcd")])
    data.shaped(RewardMix({"paid": Fixed(paid)}, {"paid": 1.0}).score(rollout))
    assert any("every token is paid a positive reward" in message for message in said)


class Learner(OnlineReward[PlainConfig]):
    """Counts what it is shown."""

    def update(self, rollout, score_logprobs):
        policy, reference = score_logprobs(rollout.samples)
        assert policy.shape == reference.shape == (len(rollout),)
        torch.testing.assert_close(policy, reference)
        return {"seen": float(len(rollout))}

    def score(self, samples):
        return Scores(torch.zeros(len(samples)))


def test_online_rewards_learn_before_they_score():
    policy = make_policy()
    policy.set_reference("stage-start")
    data = stage_data(policy, online=(Learner(PlainConfig(), Context()), 1.0))
    data.begin(0)
    data.rollout(prompts())
    assert data.stats["reward/online/seen"] == 3.0


def test_needs_decide_what_is_computed():
    policy = make_policy()
    policy.prepare(Needs(values=True))
    policy.set_reference("stage-start")
    plain = stage_data(policy, one=(Fixed(ones), 1.0))
    plain.begin(0)
    rollout = plain.rollout(prompts())
    assert rollout.values is None and rollout.reference_logprobs is None and rollout.entropy is None
    full = stage_data(
        policy, needs=Needs(values=True, bootstrap=True, reference=True, entropy=True, top_k=2), one=(Fixed(ones), 1.0)
    )
    full.begin(0)
    rollout = full.rollout(prompts())
    shape = rollout.mask.shape
    assert rollout.values.shape == rollout.entropy.shape == rollout.reference_logprobs.shape == shape
    assert rollout.top_logprobs.shape == (*shape, 2) and rollout.bootstrap.shape == (3,)
    torch.testing.assert_close(rollout.reference_logprobs, rollout.logprobs, atol=1e-5, rtol=0)  # first step's KL is 0
    assert Needs(top_k=2) | Needs(values=True, top_k=1) == Needs(values=True, top_k=2)


# --- a stranger's optimizer -------------------------------------------------------------------------------------------


class GSPOConfig(OnPolicyConfig):
    clip: float = 0.2

    @property
    def needs(self):
        return Needs(samples_per_prompt=2)


class GSPO(OnPolicyOptimizer[GSPOConfig]):
    """Group Sequence Policy Optimization (Zheng et al., 2025): one importance ratio per sequence."""

    def prepare(self, rollout):
        a = group_advantages(rollout.rewards.sum(1), rollout.groups, baseline="mean", scale="std", eps=1e-6)
        return {"advantages": a[:, None] * rollout.mask}

    def loss(self, batch, new):
        ratio = masked_mean(new.logprobs - batch.logprobs, batch.mask, dim=1).exp()
        a = batch.advantages[:, 0]
        clipped = ratio.clamp(1 - self.config.clip, 1 + self.config.clip)
        return batch.sample_mean(-torch.minimum(ratio * a, clipped * a)), {"ratio": batch.sample_mean(ratio)}


def test_a_strangers_optimizer_learns_a_word():
    policy = make_policy()
    reward = Fixed(lambda samples: [float("e" in s.response) for s in samples])
    data = stage_data(policy, wanted=(reward, 1.0))
    config = GSPOConfig(prompts_per_step=3, samples_per_prompt=8, minibatch_size=24, learning_rate=1e-2)
    optimizer = GSPO(config, Context())
    optimizer.bind(policy, 40)
    scores = []
    for step in range(40):
        data.begin(step)
        stats = optimizer.step(data)
        scores.append(data.stats["reward/score"])
    assert sum(scores[-5:]) / 5 > 0.9 > sum(scores[:2]) / 2
    assert stats["policy/updates"] == 1.0 and "policy/ratio" in stats and "policy/grad_norm" in stats


def test_one_sample_per_prompt_is_refused_by_a_group_baseline():
    words = (
        "samples_per_prompt is 1, and its baseline compares at least 2 samples of one prompt; set samples_per_prompt: 4"
    )
    with pytest.raises(ValidationError, match=words):
        GSPOConfig()


class Answers(OnPolicyOptimizer[OnPolicyConfig]):
    """Says in `prepare` and `loss` what it is told to."""

    entries: Any = staticmethod(lambda rollout: {})
    answer: Any = staticmethod(lambda batch, new: (batch.token_mean(new.logprobs), {}))

    def prepare(self, rollout):
        return self.entries(rollout)

    def loss(self, batch, new):
        return self.answer(batch, new)


def mean(batch, new):
    return batch.token_mean(new.logprobs)


@pytest.mark.parametrize(("answers", "message"), [
    ({"entries": lambda r: None}, r"prepare\(\) returned a NoneType; expected tensors by name; return {"),
    ({"entries": lambda r: {"a": r.logprobs[:1]}}, r"a tensor of shape \(1, \d+\) as 'a'; expected a tensor with a row for each of the 4"),
    ({"entries": lambda r: {"a": r.values.mean(1)}}, r"prepare\(\) works with something that is None.*ask for it in the `needs` of its config; not there now: .*rollout.values"),
    ({"answer": mean}, r"loss\(\) returned a tensor of shape \(\); expected the loss and a mapping of statistics; return loss, {}"),
    ({"answer": lambda b, n: (n.logprobs.mean(1), {})}, r"a tensor of shape \(\d,\) as the loss; expected a scalar that depends on new.logprobs"),
    ({"answer": lambda b, n: (mean(b, n).detach(), {})}, r"a tensor of shape \(\) without a gradient as the loss"),
    ({"answer": lambda b, n: (mean(b, n), {"x": n.logprobs[:, 0]})}, r"as the statistic 'x'; expected one number; write batch.sample_mean"),
    ({"answer": lambda b, n: (mean(b, n), {"loss": 1.0})}, r"loss\(\) returned a statistic 'loss'; expected another name; leave it out"),
    ({"answer": lambda b, n: (mean(b, n), {"e": n.entropy.mean()})}, r"loss\(\) works with something that is None.*not there now: .*new.entropy"),
])  # fmt: skip
def test_mistakes_in_prepare_and_loss_are_named(answers, message):
    policy = make_policy()
    optimizer = Answers(OnPolicyConfig(prompts_per_step=4, minibatch_size=4), Context(kind="optimizer", id="mine"))
    for name, answer in answers.items():
        setattr(optimizer, name, answer)
    optimizer.bind(policy, 1)
    data = stage_data(policy, source=Source(prompts() * 4), one=(Fixed(ones), 1.0))
    data.begin(0)
    with pytest.raises(ConfigError, match=f"optimizer 'mine': .*{message}"):
        optimizer.step(data)


def test_a_batch_says_what_it_has():
    policy = make_policy()

    class Typo(GSPO):
        def loss(self, batch, new):
            return batch.advantage.sum(), {}

    optimizer = Typo(GSPOConfig(prompts_per_step=3, samples_per_prompt=2, minibatch_size=6), Context())
    optimizer.bind(policy, 1)
    data = stage_data(policy, one=(Fixed(ones), 1.0))
    data.begin(0)
    with pytest.raises(
        AttributeError, match=r"a batch has no 'advantage'; it has .*advantages.*Return it from prepare"
    ):
        optimizer.step(data)


def test_micro_batches_add_up_to_the_whole_step():
    """Ragged lengths, float64: the gradient of one pass equals that of many."""
    weights = {}
    for budget in (10, 10_000):
        policy = make_policy(context=make_context(dtype="float64"))
        config = GSPOConfig(prompts_per_step=3, samples_per_prompt=4, minibatch_size=12, micro_batch_tokens=budget)
        optimizer = GSPO(config, Context(dtype="float64"))
        optimizer.bind(policy, 1)
        data = stage_data(policy, r=(Fixed(lambda s: [float(len(x.response)) for x in s]), 1.0))
        data.begin(0)
        optimizer.step(data)
        weights[budget] = torch.cat([p.detach().flatten() for p in policy.module.parameters()])
    difference = (weights[10] - weights[10_000]).norm() / weights[10].norm()
    assert difference < 1e-10


def test_a_loss_that_is_not_finite_leaves_the_weights():
    policy = make_policy()

    class Broken(GSPO):
        def loss(self, batch, new):
            return new.logprobs.sum() * float("nan"), {}

    optimizer = Broken(
        GSPOConfig(prompts_per_step=3, samples_per_prompt=2, minibatch_size=6), Context(kind="optimizer", id="broken")
    )
    optimizer.bind(policy, 1)
    before = [p.detach().clone() for p in policy.module.parameters()]
    data = stage_data(policy, one=(Fixed(ones), 1.0))
    data.begin(0)
    with pytest.raises(NumericalError, match=r"optimizer 'broken': loss nan at step 1; expected finite numbers; lower"):
        optimizer.step(data)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.module.parameters(), strict=True))


# --- gradient steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", [0.5, 1.0, 1.0, 1.0]), ("linear", [0.5, 1.0, 1.0, 0.5]), ("cosine", [0.5, 1.0, 1.0, 0.5]),
])  # fmt: skip
def test_learning_rate_schedules(schedule, expected):
    parameter = torch.nn.Parameter(torch.ones(1))
    steps = GradientSteps(
        [parameter], SupervisedConfig(learning_rate=Schedule(schedule=schedule, start=1.0, warmup=2)), 4, Context()
    )
    rates = []
    for _ in range(4):
        parameter.grad = torch.ones(1)
        rates.append(steps.step()["learning_rate"])
    assert rates == pytest.approx(expected)


def test_gradients_are_clipped_by_their_global_norm():
    parameter = torch.nn.Parameter(torch.zeros(2))
    steps = GradientSteps([parameter], SupervisedConfig(learning_rate=1e-3, max_grad_norm=0.5), 1, Context())
    parameter.grad = torch.tensor([3.0, 4.0])
    assert steps.step()["grad_norm"] == pytest.approx(5.0)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_mean_and_error_by_hand():
    entry = mean_and_error(torch.tensor([1.0, 3.0, float("nan")]))
    assert entry == {"mean": 2.0, "error": pytest.approx(1.0), "n": 2.0}  # std sqrt(2), over sqrt(2)
    alone = mean_and_error(torch.tensor([1.0]))
    assert alone["mean"] == 1.0 and alone["error"] != alone["error"]


def test_before_and_after_use_the_same_random_numbers():
    from rlhf_core.components.config import KLMetricConfig, LengthMetricConfig
    from rlhf_core.components.metrics import KLMetric, LengthMetric

    policy = make_policy()
    policy.set_reference("stage-start")
    metrics = {"length": LengthMetric(LengthMetricConfig(), Context()), "kl": KLMetric(KLMetricConfig(), Context())}
    tools = sampler(policy, one=(Fixed(ones), 1.0))
    after = evaluate(tools, prompts(), metrics, Sampling(max_new_tokens=6), seed=3)
    before = evaluate(tools, prompts(), metrics, Sampling(max_new_tokens=6), seed=3, reference=True)
    assert [s.response for s in before.rollout.samples] == [s.response for s in after.rollout.samples]
    assert after.summary()["kl"]["mean"] == pytest.approx(0, abs=1e-4)


# --- function rewards -------------------------------------------------------------------------------------------------


def function_reward(f):
    return FunctionReward(FunctionRewardConfig(function="f"), Context(kind="reward", id="mine", functions={"f": f}))


def test_function_rewards_get_columns_and_may_abstain():
    seen = {}

    def f(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return [1, None]

    samples = [Sample(Prompt(text="a", fields={"topic": "x"}), " b", (1, 2)), Sample(Prompt(text="c"), " d", (3,))]
    scores = function_reward(f).score(samples)
    assert seen == {
        "prompts": ["a", "c"],
        "completions": [" b", " d"],
        "topic": ["x", None],
        "completion_ids": [[1, 2], [3]],
    }
    assert scores.values.tolist() == [1.0, 0.0] and scores.abstained.tolist() == [False, True]


def test_trl_rewards_work_as_they_are():
    rewards = pytest.importorskip("trl.rewards")
    chat = Prompt(text=({"role": "user", "content": "2+2?"},))
    good, bad = "<think>easy</think>4", "4"
    samples = [Sample(chat, good, (1,) * 5), Sample(chat, bad, (1,) * 30)]
    assert function_reward(rewards.think_format_reward).score(samples).values.tolist() == [1.0, 0.0]
    overlong = rewards.get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=10)
    assert function_reward(overlong).score(samples).values.tolist() == [0.0, -1.0]


def test_function_rewards_that_answer_nonsense():
    samples = [Sample(Prompt(text="a"), " b")]
    with pytest.raises(RewardError, match=r"reward 'mine': function 'f' returned 3"):
        function_reward(lambda prompts, completions: 3).score(samples)
    with pytest.raises(RewardError, match=r"reward 'mine': scores of shape \(2,\) for 1 samples"):
        checked_scores(function_reward(lambda prompts, completions: [1, 2]), samples)
    with pytest.raises(ConfigError, match=r"reward 'mine': no function 'g'; expected one of f"):
        FunctionReward(FunctionRewardConfig(function="g"), Context(kind="reward", id="mine", functions={"f": len}))


def test_supervised_loop_is_the_same_whatever_the_micro_batches():
    losses = {}
    for budget in (20, 10_000):
        policy = make_policy(context=make_context(dtype="float64"))
        records = [Demonstration(prompt=f"say {i}:", response=" x" * (i + 1)) for i in range(8)]
        task = policy.demonstrations(records, held_out=0)
        loop = SupervisedLoop(task, SupervisedConfig(batch_size=4, epochs=2, micro_batch_tokens=budget), make_context())
        losses[budget] = [loop.step(i)["loss"] for i in range(loop.total)]
    assert losses[20] == pytest.approx(losses[10_000], rel=1e-10)


def test_how_much_text_is_there_after_each_token_comes_with_the_rollout():
    policy = make_policy()
    data = stage_data(policy, one=(Fixed(ones), 1.0))
    data.begin(0)
    rollout = data.rollout(3, needs=Needs(token_ends=True))
    assert data.rollout(3).token_ends is None
    for row, sample in enumerate(rollout.samples):
        ends = rollout.token_ends[row][rollout.attention[row]].tolist()
        assert ends == policy.token_ends(list(sample.response_ids))
        assert ends == sorted(ends) and ends[-1] == len(sample.response)
    assert not rollout.token_ends[~rollout.attention].any()


def test_parameters_may_have_a_rate_of_their_own():
    slow, fast = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    steps = GradientSteps(
        [slow, fast], SupervisedConfig(learning_rate=0.1), 4, Context(),
        rates=[([fast], Schedule(schedule="linear", start=0.4))],
    )  # fmt: skip
    for _ in range(2):
        for parameter in (slow, fast):
            parameter.grad = torch.ones(1)
        steps.step()
    assert [float(slow), float(fast)] == pytest.approx([-0.2, -0.7], abs=1e-4), "Adam moves by its rate: .4, then .3"
    again = GradientSteps([slow, fast], SupervisedConfig(learning_rate=0.1), 4, Context(), rates=[([fast], 0.4)])
    again.load_state_dict(steps.state_dict())
    assert again.taken == 2
