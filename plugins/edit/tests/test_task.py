"""What is learnt from edits: labels of words, the loss and the metrics, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rlhf_core.errors import DataError
from rlhf_core.records import Comparison, Demonstration, Edit, Message, Prompt
from rlhf_plugin_edit.task import DELETED, INSERTED, KEPT, area_under_curve, credit
from torch import Tensor

from .toys import edits, make_reward


def task_of(*records: Any, **config: Any) -> Any:
    return make_reward(**{"held_out": 0.0, **config}).task(records)


def one(original: str, edited: str, **more: Any) -> Edit:
    return Edit(prompt="Ask:", original=original, edited=edited, **more)


def test_every_token_of_a_changed_word_is_labelled() -> None:
    task = task_of(one(" no daft cat sat", " no cat sat 谢谢 please"))
    (pair,) = task.train
    decode = task.reward.codec.decode
    for text, labels, label, words in (
        (pair.original, pair.original_labels, DELETED, " daft"),
        (pair.edited, pair.edited_labels, INSERTED, " 谢谢 please"),
    ):
        assert len(labels) == len(text.ids)
        changed = [t for t, known in enumerate(labels) if known == label]
        assert decode([text.ids[t] for t in changed]) == words
        assert all(known == KEPT for t, known in enumerate(labels) if t not in changed)
    assert pair.margin == pytest.approx(4 / 6)  # one word deleted and three new ones, of 6
    assert task_of(one(" no daft cat sat", " no cat sat 谢谢 please"), margin=3).train[0].margin == pytest.approx(2)


def test_a_transcript_puts_a_space_before_the_response() -> None:
    """The characters are those of the response, not of what the model reads."""
    chat = Prompt(text=(Message(role="user", content="Hi"),))
    (pair,) = task_of(Edit(prompt=chat, original="daft cat sat", edited="cat sat")).train
    changed = [i for i, known in zip(pair.original.ids, pair.original_labels, strict=True) if known == DELETED]
    assert make_reward().codec.decode(changed) == " daft"


def test_texts_that_do_not_differ_within_the_limit_give_no_example() -> None:
    long = " cat" * 100
    assert not task_of(one(" cat", " cat"), one(long, f"{long} please"), max_tokens=32).train


def test_demonstrations_are_counted_and_left_out_and_other_feedback_is_an_error() -> None:
    records = [*edits(20), Demonstration(prompt="p", response="a rewrite"), Demonstration(prompt="q", response="b")]
    reward = make_reward(held_out=0.5)
    assert reward.fit(records)["rewrites"] == 2
    with pytest.raises(
        DataError, match="reward 'mine': feedback of kind 'comparison'; expected edits or demonstrations"
    ):
        task_of(Comparison(prompt="p", responses=("a", "b"), ranks=(0, 1)))
    with pytest.raises(DataError, match="no example is left to train on"):
        make_reward().fit(records[-2:])


def judged(scores: list[float], *logits: list[float]) -> Any:
    """Instead of a network: these scores of the texts, and these logits of all tokens of each."""

    def both(texts: Any) -> tuple[Tensor, Tensor]:
        width = max(len(ids) for ids in texts)
        return torch.tensor(scores)[:, None], torch.tensor(logits)[:, None].expand(-1, width, -1)

    return both


def test_the_loss_by_hand() -> None:
    """Two edits of margin 1/2 (the only word replaced), the second weighing 3."""
    task = task_of(one(" cat", " dog"), one(" old", " town", weight=3), margin=0.5, center_coef=0.1, credit_coef=0.5)
    task.reward.both = judged([1.0, 0.0, 0.0, 2.0], *[[0.0] * 3] * 4)
    loss = task.loss(task.train)
    # log(1 + e^-0.5) + 3 log(1 + e^2.5), 0.1 (1 + 3 x 4), and 0.5 log 3 for either text of 1 + 3 edits
    assert float(loss.total) == pytest.approx(0.4740770 + 3 * 2.5788897 + 1.3 + 4 * 1.0986123, rel=1e-5)
    assert loss.count == 4
    assert loss.stats == {"accuracy": 1, "word_loss": pytest.approx(8 * 1.0986123)}


def test_the_evaluation_by_hand() -> None:
    task = task_of(one(" cat", " dog"), one(" old", " town"), Demonstration(prompt="p", response="a rewrite"))
    good, bad = [math.log(p) for p in (0.2, 0.3, 0.5)], [math.log(p) for p in (0.6, 0.3, 0.1)]
    task.reward.both = judged([1.0, 0.0, 0.0, 2.0], good, good, bad, bad)
    found = task.evaluate(task.train)
    assert (found["accuracy"], found["margin"], found["pairs"], found["rewrites"]) == (0.5, -0.5, 2, 1)
    assert found["credit_auc"] == 1.0
    # credits and scores (0.3, 1), (0.3, 0), (-0.5, 0), (-0.5, 2): covariance -0.4 / 3, variance 0.64 / 3
    assert found["credit_slope"] == pytest.approx(-0.625)
    task.reward.both = judged([1.0, 0.0, 0.0, 2.0], bad, good, bad, good)
    found = task.evaluate(task.train)
    assert found["credit_auc"] < 1.0
    task.reward.both = judged([1.0, 0.0, 0.0, 2.0], *[good] * 4)
    assert task.evaluate(task.train)["credit_auc"] == 0.5
    assert "credit_slope" not in task.evaluate(task.train), "where all have the same credit there is no slope"


def test_records_of_weight_0_are_left_out_and_others_weigh() -> None:
    assert len(task_of(*edits(10), *edits(10, seed=1, weight=0)).train) == 10
    assert {pair.weight for pair in task_of(*edits(10, weight=0.5)).train} == {0.5}


def test_credit_and_area_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    torch.testing.assert_close(credit(logits), torch.tensor([0.3, -0.5]))
    # of six pairs 3 > 1, 3 > 2, 3 = 3, 2 > 1, 2 = 2, 2 < 3: three wins and two ties
    assert area_under_curve(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(4 / 6)
