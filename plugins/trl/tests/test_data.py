"""Records as rows of token ids, weights as copies, and our rewards as TRL sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from rlhf_core.errors import RewardError
from rlhf_core.interfaces import Config, Context, RewardModel
from rlhf_core.policies.imitation import encode_demonstration
from rlhf_core.records import (
    Comparison,
    Demonstration,
    Edit,
    Keywords,
    Prompt,
    Rating,
    Sample,
    Scores,
    Sentiment,
    SpanWeight,
)
from rlhf_core.testing import example_feedback, tiny_policy
from rlhf_plugin_trl.data import Encoder, Example, examples, pairs, shuffled, unheard, verdicts, with_neighbours
from rlhf_plugin_trl.rewards import Scorer
from rlhf_plugin_trl.trainer import _ours, training_copy


def test_pairs_of_rankings_ties_edits_and_doubt() -> None:
    ranking = Comparison(prompt="p", responses=("a", "b", "c"), ranks=(1, 0, 1), weight=0.5)
    assert [p for p in pairs(ranking) if p[2]] == [("b", "a", 0.5), ("b", "c", 0.5)]
    doubted = Comparison(prompt="p", responses=("a", "b"), ranks=(0, 1), confidence=0.75, weight=2)
    assert list(pairs(doubted)) == [("a", "b", 1.5), ("b", "a", 0.5)]
    assert not list(pairs(Comparison(prompt="p", responses=("a", "b"), ranks=(0, 0))))
    assert list(pairs(Edit(prompt="p", original="bad", edited="good"))) == [("good", "bad", 1.0)]
    assert not list(pairs(Edit(prompt="p", original="same", edited="same")))
    assert not list(pairs(Demonstration(prompt="p", response="x")))


def test_verdicts_of_ratings_moods_and_comparisons() -> None:
    def rate(score: float) -> Rating:
        return Rating(prompt="p", response="r", score=score, scale=(1, 5))

    assert [list(verdicts(rate(score))) for score in (2.9, 3, 3.1)] == [[("r", False, 1)], [], [("r", True, 1)]]
    assert list(verdicts(Sentiment(prompt="p", response="r", label="negative"))) == [("r", False, 1)]
    assert not list(verdicts(Sentiment(prompt="p", response="r", label="neutral")))
    ranking = Comparison(prompt="p", responses=("a", "b", "c"), ranks=(0, 1, 2))
    assert [v for v in verdicts(ranking) if v[2]] == [("a", True, 1), ("c", False, 1)]  # the middle says nothing
    doubted = Comparison(prompt="p", responses=("a", "b"), ranks=(0, 1), confidence=0.75)
    assert list(verdicts(doubted)) == [("a", True, 0.75), ("a", False, 0.25), ("b", False, 0.75), ("b", True, 0.25)]
    assert not list(verdicts(Comparison(prompt="p", responses=("a", "b"), ranks=(0, 0))))
    assert list(verdicts(Edit(prompt="p", original="bad", edited="ok"))) == [("ok", True, 1), ("bad", False, 1)]


def test_rows_hold_the_policys_tokens_closed_by_end_of_text() -> None:
    codec = tiny_policy().codec
    chat = [{"role": "user", "content": "Hello?"}]
    record = Comparison(prompt=chat, responses=("Hi.", "No!"), ranks=(0, 1))
    (pair,) = examples("dpo", [record], Encoder(codec))
    assert codec.decode(pair.row["prompt_ids"]) == "\n\nHuman: Hello?\n\nAssistant:"
    assert codec.decode(pair.row["chosen_ids"]) == " Hi." and codec.decode(pair.row["rejected_ids"]) == " No!"
    assert pair.row["chosen_ids"][-1] == codec.eos and pair.row["chosen_ids"].count(codec.eos) == 1
    cut = examples("dpo", [record], Encoder(codec, longest=2))[0].row
    assert len(cut["chosen_ids"]) == len(cut["rejected_ids"]) == 2

    demonstration = Demonstration(prompt="Go:", response=" 早 a", spans=(SpanWeight(start=0, end=2, weight=-1.0),))
    (row,) = examples("sft", [demonstration, demonstration.model_copy(update={"weight": 0.0})], Encoder(codec))
    tokens = encode_demonstration(demonstration, codec, None)
    assert row.row["input_ids"] == tokens.prompt + tokens.response
    learnt = [id for id in row.row["labels"] if id != -100]
    assert codec.decode(learnt) == " a" and learnt[-1] == codec.eos  # the prompt and what is to be avoided are masked
    assert unheard("sft", [demonstration]) and not unheard("dpo", [demonstration])
    assert unheard("dpo", [Comparison(prompt="p", responses=("a", "b"), ranks=(0, 1), margin=2.0)])


def test_sft_imitates_the_best_of_a_comparison_and_the_edited_text_with_their_weights() -> None:
    codec = tiny_policy().codec
    records = [
        Comparison(prompt="p", responses=(" worse", " best", " worst"), ranks=(1, 0, 2), weight=0.5),
        Edit(prompt="p", original=" bad", edited=" good", weight=2.0),
        Comparison(prompt="p", responses=(" a", " b"), ranks=(0, 1), weight=0.0),
    ]
    found = examples("sft", records, Encoder(codec))
    said = [codec.decode([id for id in example.row["labels"] if id != -100]) for example in found]
    assert said == [" best", " good"] and [example.weight for example in found] == [0.5, 2.0]


@pytest.mark.parametrize(("trainer", "count"), [("dpo", 10), ("kto", 30), ("sft", 15)])
def test_records_of_other_kinds_are_passed_over(trainer: str, count: int) -> None:
    """Five prompts, one record of each kind on each; keywords, and for dpo ratings, say nothing."""
    found = examples(trainer, [*example_feedback(), Keywords(prompt="p")], Encoder(tiny_policy().codec))
    assert len(found) == count


def test_weights_become_copies() -> None:
    def weighted(*weights: float) -> list[Example]:
        return [Example({"n": n}, weight, Prompt(text="p")) for n, weight in enumerate(weights)]

    even = shuffled(weighted(0.3, 0.3, 0.3, 0.3), seed=0)
    assert sorted(row["n"] for row in even) == [0, 1, 2, 3]
    assert {tuple(row["n"] for row in shuffled(weighted(1, 1, 1, 1), seed)) for seed in range(20)} != {(0, 1, 2, 3)}
    counts: Counter[int] = Counter()
    for seed in range(400):
        rows = shuffled(weighted(0.5, 1.0, 2.5, 0.0), seed)
        assert len(rows) == 4
        counts.update(row["n"] for row in rows)
    # 4 rows share a total weight of 4: 0.5, 1, 2.5 and 0 copies on average
    assert [counts[n] / 400 for n in range(4)] == pytest.approx([0.5, 1.0, 2.5, 0.0], abs=0.08)
    assert shuffled(weighted(0.5, 1.0, 2.5), 7) == shuffled(weighted(0.5, 1.0, 2.5), 7)


def test_neighbours_stay_in_their_batch() -> None:
    rows = [{"completion_ids": [n]} for n in range(5)]
    assert [row["KL_completion_ids"] for row in with_neighbours(rows, 3)] == [[2], [0], [1], [4], [3]]


class _NoConfig(Config):
    """Nothing to configure."""


class _Said(RewardModel[_NoConfig]):
    """Reward: the prompt's field `worth`, nothing where it is missing."""

    broken = False

    def score(self, samples: Sequence[Sample]) -> Scores:
        worth = [sample.prompt.fields.get("worth") for sample in samples]
        values = torch.tensor([float("inf") if self.broken else float(w or 0) for w in worth])
        return Scores(values, abstained=torch.tensor([w is None for w in worth]))


def test_rewards_are_weighed_and_abstain_as_in_optimize() -> None:
    codec = tiny_policy().codec
    prompts = [Prompt(text="a", fields={"worth": 3.0}), Prompt(text="b"), Prompt(text="c", fields={"worth": 1.0})]
    one, two = (_Said(_NoConfig(), Context("reward", name)) for name in ("one", "two"))
    scorer = Scorer({"one": one, "two": two}, {"one": 2.0, "two": -0.5}, prompts, codec)
    ids = [codec.encode_response(prompts[0], text) for text in ("x", "yy", "zzz")]
    ids[2] = ids[2][:-1]  # cut at the limit
    told: dict[str, Any] = {"prompts": ["a", "b", "c"], "completions": ["x", "yy", "zzz"], "completion_ids": ids}
    assert scorer.score(**told, index=[0, 1, 2], trainer_state=None) == [4.5, None, 1.5]
    assert scorer.stats() == pytest.approx({
        "reward/score": 3.0, "reward/score_std": 4.5**0.5, "reward/one": 2.0, "reward/two": 2.0,
        "reward/one/abstained": 1, "reward/two/abstained": 1,
        "response/length": (2 + 3 + 3) / 3, "response/truncated": 1 / 3,
    })  # fmt: skip
    scorer.clear()
    assert scorer.stats() == {}
    assert scorer.score(**told, index=[1, 1, 1]) == [None, None, None]
    assert "reward/score" not in scorer.stats() and scorer.stats()["reward/one/abstained"] == 3
    one.broken = True
    with pytest.raises(RewardError, match=r"reward 'one': score inf .* expected a finite number"):
        scorer.score(**told, index=[0, 0, 0])


def test_every_prompt_is_sampled_for_by_its_own_tokens() -> None:
    trainer = _ours("rloo", {"one": [1, 2], "two": [3]})
    assert trainer._tokenize_prompts(None, ["two", "one", "two"])[0] == [[3], [1, 2], [3]]


def test_the_copy_trains_the_policys_own_weights_and_sees_no_padding() -> None:
    """Parameters are shared, nothing else; learnt positions do not count left padding, as TRL's calls would have it."""
    policy = tiny_policy()
    copied = training_copy(policy.network.lm, policy.codec)
    assert all(a is b for a, b in zip(copied.parameters(), policy.network.lm.parameters(), strict=True))
    copied.train()
    copied.config.pad_token_id = 77
    assert not policy.network.lm.training and policy.network.lm.config.pad_token_id != 77

    samples = [Sample(Prompt(text=text), " yes.") for text in ("Hi", "A much longer prompt, by far")]
    rollout = policy.encode(samples)
    ids = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
    mask = torch.cat([rollout.prompt_mask, rollout.attention], 1)
    assert not bool(mask.all())

    def logprobs(model: Any) -> torch.Tensor:
        logits = model.eval()(input_ids=ids, attention_mask=mask.long()).logits[:, -rollout.mask.shape[1] - 1 : -1]
        return torch.as_tensor(logits.log_softmax(-1).gather(-1, rollout.response_ids[..., None])[..., 0])

    with torch.no_grad():
        assert torch.allclose(logprobs(copied), rollout.logprobs, atol=1e-5)
        assert not torch.allclose(logprobs(policy.network.lm), rollout.logprobs, atol=1e-2)
