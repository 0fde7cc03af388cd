"""The network over texts that gradient-trained rewards share; plugins/preference tests the rest of it in use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.interfaces import Context, SupervisedTask
from rlhf_core.policies.config import FreshModel, FreshTokenizer
from rlhf_core.records import Comparison, Demonstration, Feedback, Sample
from rlhf_core.rewards.config import TextRewardConfig
from rlhf_core.rewards.network import TextNetwork
from rlhf_core.rewards.pairs import Pair, PairTask
from rlhf_core.rewards.text import TextReward

from .toys import SIZES, demonstrations


class Wide(TextReward[TextRewardConfig]):
    """Three outputs per text, trained on comparisons by the first."""

    def make_network(self, trunk: Any, hidden_size: int) -> TextNetwork:
        return TextNetwork(trunk, hidden_size, self.config.pooling, self.generator(), outputs=3)

    def task(self, feedback: Iterable[Feedback]) -> SupervisedTask:
        return PairTask(self, *self.split(feedback, (Comparison,), self._pairs))

    def _pairs(self, record: Comparison) -> list[Pair]:
        pairs = [[self.encode(record.prompt, text) for text in pair] for pair in record.pairs()]
        return [Pair(better, worse, weight=record.weight) for better, worse in pairs]


def make(**config: Any) -> Wide:
    tokenizer = FreshTokenizer(text=["texts"], vocab_size=300)
    fresh = FreshModel(architecture="llama", sizes=SIZES["llama"], tokenizer=tokenizer)
    context = Context(kind="reward", id="wide", resolve=lambda kind, id: demonstrations())
    return Wide(TextRewardConfig(fresh=fresh, **{"held_out": 0.0, "learning_rate": 1e-2, **config}), context)


def comparison(number: int = 0, **more: Any) -> Comparison:
    return Comparison(prompt=f"say {number}:", responses=(" the dog", " no"), ranks=(0, 1), **more)


def test_several_outputs_and_the_first_is_the_score() -> None:
    reward = make()
    samples = [Sample(comparison().prompt, text) for text in (" the dog", " no", "")]
    outputs = reward.predict([reward.encode(s.prompt, s.response) for s in samples])
    assert outputs.shape == (3, 3) and not outputs.requires_grad
    assert reward.score(samples).values.tolist() == outputs[:, 0].tolist()
    assert reward.predict([]).shape == (0, 3)


def test_frozen_layers_keep_their_weights_and_the_others_learn() -> None:
    reward = make(frozen_layers=1)
    before = {name: p.detach().clone() for name, p in reward.network.named_parameters()}
    reward.fit([comparison(i) for i in range(8)])
    changed = {name for name, p in reward.network.named_parameters() if not torch.equal(p, before[name])}
    frozen = {n for n in before if "embed_tokens" in n or "layers.0." in n}
    assert frozen and changed == set(before) - frozen
    with pytest.raises(ConfigError, match=r"reward 'wide' frozen_layers: 9 of the 2 layers of 'llama'.*at most 2"):
        make(frozen_layers=9)


def test_weights_of_records_reach_the_loss_and_zero_leaves_them_out() -> None:
    reward = make()
    assert [p.weight for p in reward.task([comparison(0, weight=0.0), comparison(1, weight=2.5)]).train] == [2.5]
    task = reward.task([comparison(1, weight=1.0), comparison(2, weight=3.0)])
    one, three = (task.loss([pair]) for pair in task.train)
    both = task.loss(task.train)
    assert (one.count, three.count, both.count) == (1, 3, 4)
    assert float(both.total) == pytest.approx(float(one.total) + float(three.total), rel=1e-5)
    alone = reward.task([comparison(2)])
    assert float(three.total) == pytest.approx(3 * float(alone.loss(alone.train).total), rel=1e-5)


def test_an_uncertain_order_pulls_the_scores_together() -> None:
    reward = make()
    pair = reward.task([comparison()]).train[0]
    sure, unsure = (PairTask(reward, [Pair(pair.better, pair.worse, confidence=c)], []) for c in (1.0, 0.5))
    gradients = []
    for task in (sure, unsure):
        task.loss(task.train).total.backward()  # type: ignore[no-untyped-call]
        gradients.append(reward.network.head.weight.grad[0].norm().item())  # type: ignore[union-attr,index]
        reward.network.zero_grad()
    assert gradients[1] < gradients[0], "a coin says nothing but: about equal"


def test_other_kinds_of_feedback_are_refused_in_words() -> None:
    with pytest.raises(DataError, match=r"reward 'wide': feedback of kind 'demonstration'; expected comparisons;"):
        make().task([Demonstration(prompt="p", response="r")])
