"""What PPO-max adds: a critic from the reward model, text mixed in, clipped advantages, rates and schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from rlhf_core.components.config import FunctionRewardConfig
from rlhf_core.components.function import FunctionReward
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Context, Needs, Schedule
from rlhf_core.records import Demonstration, Feedback, Prompt, Rollout, Sample
from rlhf_core.rewards.config import TextRewardConfig
from rlhf_core.rewards.text import TextReward
from rlhf_plugin_ppo.config import PPOConfig
from rlhf_plugin_ppo.optimizer import PPO

from .toys import Given, distance, gradients, made_up, make_policy, make_ppo, nudge, sampled, stage_data, train, weights

TEXTS = [("say b:", " b"), ("say a:", " a stitch"), ("c", " in time saves nine.")]
DEMONSTRATIONS = [Demonstration(prompt=Prompt(text=prompt), response=response) for prompt, response in TEXTS]


class WithText(Given):
    """A given rollout, and demonstrations beside it."""

    def __init__(self, rollout: Rollout, records: list[Demonstration] = DEMONSTRATIONS, step: int = 0) -> None:
        super().__init__(rollout, step)
        self.records = records

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        return iter(record for record in self.records if kind in (None, record.kind))


def test_advantages_are_held_within_the_clip() -> None:
    ppo = make_ppo(make_policy(), whiten_advantages=False, advantage_clip=0.5)
    prepared = ppo.prepare(made_up([[0.2], [3.0], [-4.0]], [[0.0], [0.0], [0.0]], [[1], [1], [1]]))
    assert prepared["advantages"][:, 0].tolist() == pytest.approx([0.2, 0.5, -0.5])
    assert prepared["returns"][:, 0].tolist() == pytest.approx([0.2, 3.0, -4.0]), "what the critic learns is not"


def test_the_critic_has_a_learning_rate_of_its_own() -> None:
    policy = make_policy(critic="separate")
    nudge(policy)
    ppo = make_ppo(policy, value_learning_rate=Schedule(schedule="constant", start=0.0))
    before = weights(policy)
    ppo.step(Given(sampled(policy)))
    for name, weight in weights(policy).items():
        assert torch.equal(weight, before[name]) == name.startswith("value_"), name


# --- a critic that begins as the reward model ------------------------------------------------------------------------


class Worth(TextReward[TextRewardConfig]):
    """A reward over text that has learnt nothing."""


def with_reward(policy: Any, **config: Any) -> tuple[PPO, Worth]:
    context = Context("run", "toy", resolve=lambda kind, id: policy)
    reward = Worth(TextRewardConfig(policy="toy"), context.named("reward", "worth"))
    with torch.no_grad():
        reward.network.head.weight.normal_(generator=torch.Generator().manual_seed(1))
        reward.network.head.bias.fill_(0.7)
    around = Context("optimizer", "mine", resolve=lambda kind, id: reward)
    return PPO(PPOConfig(critic_from="worth", **config), around), reward


def test_a_critic_from_the_reward_model_says_what_it_says() -> None:
    policy = make_policy(critic="separate")
    nudge(policy)
    ppo, reward = with_reward(policy)
    nudge(policy, seed=1)  # the reward model stays what it was
    ppo.bind(policy, 1)
    sample = Sample(Prompt(text="say a:"), " b and more")
    rollout = policy.encode([sample])
    # the reward reads its last token, end of text; the value there is the one after the last token of the response
    out = policy.forward(rollout, Needs(bootstrap=True))
    assert out.bootstrap is not None
    assert float(out.bootstrap.detach()) == pytest.approx(float(reward.score([sample]).values), abs=1e-5)
    trunk = reward.network.trunk.state_dict()
    ppo.step(Given(sampled(policy)))
    assert all(torch.equal(trunk[name], weight) for name, weight in reward.network.trunk.state_dict().items())


def test_a_critic_cannot_begin_as_anything() -> None:
    policy = make_policy(critic="shared")
    with pytest.raises(
        ConfigError, match="policy 'toy': critic: shared cannot begin as another network; expected crit"
    ):
        with_reward(policy)[0].bind(policy, 1)
    function = FunctionReward(FunctionRewardConfig(function="f"), Context(functions={"f": len}))
    ppo = PPO(PPOConfig(critic_from="f"), Context("optimizer", "mine", resolve=lambda kind, id: function))
    with pytest.raises(ConfigError, match="optimizer 'mine' critic_from: reward 'f' is no network; expected a reward"):
        ppo.bind(make_policy(critic="separate"), 1)
    separate = make_policy(critic="separate")
    separate.prepare(Needs(values=True))
    other = make_policy("gpt2")
    other.network.lm.resize_token_embeddings(300)
    with pytest.raises(ConfigError, match="critic: a network over 300 tokens; expected one over the policy's 260"):
        separate.start_critic(other.trunk_copy(), torch.nn.Linear(32, 1))


class NoCritic:
    """A policy that has no values to give."""

    critic = "none"
    context = Context("policy", "bare")


def test_a_policy_without_critic_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="optimizer 'mine': policy 'bare' has no critic; expected values; set critic:"
    ):
        make_ppo(NoCritic())


# --- text mixed in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("coef", "micro_batch_tokens"), [
    (0.5, 8192), (0.5, 1), (Schedule(schedule="linear", start=1.0), 8192),
])  # fmt: skip
def test_text_adds_the_gradient_of_its_mean_loss_per_token(coef: float | Schedule, micro_batch_tokens: int) -> None:
    policy = make_policy(dtype="float64")
    policy.prepare(Needs(values=True))
    nudge(policy)
    rollout = sampled(policy)

    def found(**config: Any) -> dict[str, torch.Tensor]:
        ppo = make_ppo(policy, **config)
        ppo.progress = (5, 10)  # halfway from 1 to 0
        if config:
            ppo.demonstrations = policy.demonstrations(DEMONSTRATIONS, held_out=0.0)
        return gradients(policy, ppo, rollout)

    plain = found()
    mixed = found(ptx_coef=coef, ptx_batch_size=3, micro_batch_tokens=micro_batch_tokens)
    encoded = [policy.encode([Sample(record.prompt, record.response)]) for record in DEMONSTRATIONS]
    logprobs = [policy.forward(one, Needs()).logprobs[one.mask] for one in encoded]
    (-0.5 * torch.cat(logprobs).mean()).backward()
    expected = {name: plain[name] + (0 if p.grad is None else p.grad) for name, p in policy.module.named_parameters()}
    assert distance(expected, plain) > 0.01
    assert distance(expected, mixed) < 1e-10


def texts_of(ppo: PPO, data: WithText, steps: int) -> list[set[int]]:
    """The numbers of the texts that each step mixes in."""
    task = ppo.demonstrations = ppo.policy.demonstrations(data.records, held_out=0.0)
    number = {id(example): i for i, example in enumerate(task.train)}
    drawn, loss = [], task.loss

    def watched(examples: Any) -> Any:
        drawn.append({number[id(example)] for example in examples})
        return loss(examples)

    task.loss = watched  # type: ignore[method-assign]
    for _ in range(steps):
        ppo.step(data)
    return drawn


def test_every_text_comes_before_any_comes_again_and_each_time_in_another_order() -> None:
    policy = make_policy()
    data = WithText(sampled(policy), [*DEMONSTRATIONS, Demonstration(prompt="say b:", response=" bee")])
    orders = []
    for seed in (0, 0, 1):
        ppo = make_ppo(policy, seed=seed, ptx_coef=1.0, ptx_batch_size=2, learning_rate=0.0)
        drawn = texts_of(ppo, data, 8)
        epochs = list(zip(drawn[::2], drawn[1::2], strict=True))
        assert all(first | second == {0, 1, 2, 3} for first, second in epochs), drawn
        assert len({tuple(sorted(first)) for first, _ in epochs}) > 1, drawn
        orders.append(drawn)
    assert orders[0] == orders[1] != orders[2]


def test_the_loss_of_the_text_is_logged_without_its_weight() -> None:
    policy = make_policy()
    record = DEMONSTRATIONS[1]
    one = policy.encode([Sample(record.prompt, record.response)])
    expected = -float(policy.forward(one, Needs()).logprobs[one.mask].mean().detach())
    ppo = make_ppo(policy, ptx_coef=0.5, ptx_batch_size=1)
    assert ppo.step(WithText(sampled(policy), [record]))["policy/ptx_loss"] == pytest.approx(expected, abs=1e-4)


def test_text_to_mix_in_must_be_there() -> None:
    policy = make_policy()
    with pytest.raises(ConfigError, match="ptx_coef: no demonstration in the stage's feedback; expected text to learn"):
        make_ppo(policy, ptx_coef=0.1).step(WithText(sampled(policy), []))


def imitation_and_reward(alpha: float, seed: int) -> tuple[float, float]:
    """How often the policy says the a that is paid, and not the b that is in the text, and its standard error."""
    policy = make_policy(seed=seed)
    steps = 40
    ppo = make_ppo(policy, steps, seed, ptx_coef=1.0, policy_coef=alpha, learning_rate=5e-3, prompts_per_step=32,
                   minibatch_size=32, max_grad_norm=1.0, whiten_advantages=False, ptx_batch_size=4)  # fmt: skip
    data = stage_data(policy, ppo, lambda completions, **_: [float("a" in c) for c in completions], ["say:"], seed=seed)
    texts = ["b", "b", "b", "a"]
    ppo.demonstrations = policy.demonstrations(
        [Demonstration(prompt=Prompt(text="say:"), response=text) for text in texts], held_out=0.0
    )
    train(ppo, data, steps)
    rollout, _ = data.sampler.rollout([Prompt(text="say:")] * 400, 1, data.sampling, Needs(), seed=99)
    assert rollout.score is not None
    return float(rollout.score.mean()), float(rollout.score.std()) / math.sqrt(400)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_supervised_plus_alpha_times_reward_earns_more_as_alpha_rises(seed: int) -> None:
    """Labelled text says a once in four; alpha 0 imitates it, and the more the reward counts the oftener a is said."""
    earned = [imitation_and_reward(alpha, seed) for alpha in (0.0, 1.5, 12.0)]
    for (low, low_error), (high, high_error) in pairwise(earned):
        assert high - low > 3 * math.hypot(low_error, high_error), earned
    assert earned[0][0] == pytest.approx(0.25, abs=0.12), earned
