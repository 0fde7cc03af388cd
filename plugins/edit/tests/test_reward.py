"""The reward: it finds a known truth, gives credit to the right words, and no more than its score."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.api import load
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Needs, Sampling
from rlhf_core.records import Message, Prompt, Sample
from rlhf_core.rl.data import StageData
from rlhf_core.rl.rewards import RewardMix
from rlhf_core.rl.sampler import Sampler
from rlhf_core.runs import checkpoint
from rlhf_core.testing import tiny_context
from rlhf_plugin_edit import rlhf_components
from rlhf_plugin_edit.config import EditRewardConfig
from rlhf_plugin_edit.reward import EditReward
from torch import Tensor

from .toys import (
    LLAMA,
    POLITE,
    ROOMS,
    RUDE,
    WORDS,
    edits,
    fresh,
    fresh_samples,
    make_context,
    make_policy,
    make_reward,
    nudge,
    truth,
    values,
)

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@cache
def fitted(seed: int) -> tuple[EditReward, dict[str, float]]:
    """A reward that has learnt from 300 edits, and its held-out metrics; not to be changed."""
    reward = make_reward(make_context(seed=seed), epochs=5, batch_size=8)
    return reward, reward.fit(edits(300, seed))


def spearman(a: Tensor, b: Tensor) -> float:
    """Correlation of ranks, equal values sharing their mean rank."""

    def ranks(x: Tensor) -> Tensor:
        _, place, count = x.unique(return_inverse=True, return_counts=True)
        return (count.cumsum(0) - (count - 1) / 2)[place].double()

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


# --- the distribution ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", rlhf_components(), ids=lambda spec: spec.kind)
def test_specs_resolve_and_the_readme_lists_their_own_options_with_defaults(spec: Any) -> None:
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert factory.Config is config
    section = README.split(f"\n## {spec.kind.capitalize()} `{spec.name}`\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, flags=re.M))
    rows = {name: default for name, default in rows.items() if name in config.model_fields}
    assert rows.keys() == config.__annotations__.keys()
    for name in rows:
        field = config.model_fields[name]
        assert field.description
        default = field.get_default(call_default_factory=True)
        expected = "none" if default is None or default == {} else json.dumps(default)
        same = rows[name] == expected or (type(default) is float and float(rows[name]) == default)
        assert same, f"{name}: {rows[name]} instead of {expected}"


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(README.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert load(tmp_path / "registry.yaml").validate() == []


@pytest.mark.parametrize(("config", "words"), [
    ({}, r"give one of `model` \(path or hub id\), `policy` \(an id\) and `fresh`"),
    ({"model": "m", "credit_coef": 0}, "greater than 0"),
    ({"model": "m", "span_weight": -1}, "greater than or equal to 0"),
    ({"model": "m", "spans": 1}, "Extra inputs are not permitted"),
])  # fmt: skip
def test_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EditRewardConfig(**config)


# --- it finds the truth ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_what_editors_go_by(seed: int) -> None:
    """Scores agree with the truth on drafts that nobody has edited, though editors miss things."""
    reward, metrics = fitted(seed)
    assert metrics["accuracy"] >= 0.9
    assert metrics["credit_auc"] >= 0.9
    assert 20 < metrics["pairs"] < 50
    unseen = fresh_samples()
    assert spearman(values(reward, unseen), torch.tensor([truth(s) for s in unseen])) >= 0.8


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_credit_goes_to_the_words_that_editors_change(seed: int) -> None:
    reward, _ = fitted(seed)
    found: dict[str, list[float]] = {}
    samples = fresh_samples()
    scores = reward.score(samples)
    assert scores.spans is not None
    for sample, spans in zip(samples, scores.spans, strict=True):
        asked = str(sample.prompt.text).split()[1]
        own = {span.start: span.credit for span in spans}
        for match in re.finditer(r" \w+", sample.response):
            word = match[0].strip()
            group = "rude" if word in RUDE else "polite" if word in POLITE else "other"
            if word in ROOMS:
                group = "right room" if word == asked else "wrong room"
            found.setdefault(group, []).append(own.get(match.start(), 0.0))
        assert all(sample.response[span.start : span.end].strip() in [*RUDE, *POLITE, *ROOMS, *WORDS] for span in spans)
    mean = {group: sum(credits) / len(credits) for group, credits in found.items()}
    assert mean["rude"] < -0.5 < 0.1 < mean["polite"]
    assert abs(mean["other"]) < 0.05
    assert mean["wrong room"] < mean["right room"] - 0.2


def test_a_span_weight_of_0_pays_everything_at_the_end() -> None:
    reward, _ = fitted(0)
    other = make_reward(span_weight=0)
    other.load_state_dict(reward.state_dict())
    samples = fresh_samples(20)
    assert other.score(samples).spans is None
    assert torch.equal(values(other, samples), values(reward, samples))
    half = make_reward(span_weight=0.5)
    half.load_state_dict(reward.state_dict())
    torch.testing.assert_close(half.score(samples).parts["spans"] * 2, reward.score(samples).parts["spans"])


def test_ppo_sees_which_words_are_paid_and_the_sum_stays_the_score() -> None:
    reward, _ = fitted(0)
    policy = make_policy(make_context(edits(60)))
    context = tiny_context("stage", "optimize")
    sampler = Sampler(policy, context.component("environment", "single-turn"), RewardMix({"edit": reward}, {"edit": 2.0}), context)  # fmt: skip
    data = StageData(sampler, None, [], [], Sampling(), Needs())
    rude, plain = " the cat is daft and old in the garden", " the cat is here and old in the garden"
    prompt = Prompt(text="Ask garden 7:")
    rollout = policy.encode([Sample(prompt, rude), Sample(prompt, plain)])
    rollout = data.shaped(sampler.mix.score(rollout))
    assert rollout.rewards is not None
    torch.testing.assert_close(rollout.rewards.sum(1), 2 * values(reward, rollout.samples))
    for row, text in enumerate((rude, plain)):
        ends = policy.token_ends(rollout.response_ids[row][rollout.attention[row]].tolist())
        paid = rollout.rewards[row, ends.index(len(" the cat is daft"))]
        assert (float(paid) < -1) == (text == rude)


# --- scores and spans ------------------------------------------------------------------------------------------------


def test_before_fitting_no_word_has_credit() -> None:
    reward = make_reward()
    nudge(reward.network.trunk)
    scores = reward.score(fresh_samples(5))
    assert scores.spans == ((),) * 5
    assert float(scores.values.std()) > 0


def test_spans_lie_on_whole_words_in_any_script() -> None:
    reward = make_reward(pooling="last")
    nudge(reward.network, seed=3)
    texts = ["你好,请重启路由器。🙂👍🏽 谢谢!", " Thanks, don't e\u0301t.\n", "", " ", "\ufffd\x00", " word" * 200]
    chat = Prompt(text=(Message(role="user", content="Hi"),))
    samples = [Sample(prompt, response) for prompt in (Prompt(text="Ask:"), chat) for response in texts]
    scores = reward.score(samples)
    assert scores.spans is not None
    seen = [
        [sample.response[s.start : s.end] for s in spans] for sample, spans in zip(samples, scores.spans, strict=True)
    ]
    for sample, spans in zip(samples, scores.spans, strict=True):
        assert all(0 <= s.start < s.end <= len(sample.response) and abs(s.credit) <= 1 for s in spans)
        assert all(a.end <= b.start for a, b in pairwise(spans))
    assert set(seen[0]) <= {*"你好,请重启路由器。谢!", "🙂", "👍🏽", " 谢"}
    assert len(seen[0]) > 8
    assert set(seen[1]) <= {" Thanks", ",", " don't", " e\u0301t", "."}
    assert len(seen[1]) > 2
    assert seen[2] == seen[3] == []
    assert 0 < len(seen[5]) < 100, "what max_tokens cuts off has no credit"


def test_a_word_counts_no_more_for_being_made_of_many_tokens() -> None:
    reward, _ = fitted(0)
    word, text = "extraordinarily", reward.read(Prompt(text="Ask:"), " extraordinarily")
    assert len(text.ends) > 3
    (span,) = reward._spans(f" {word}", text, [0.0] * text.first + [0.5] * len(text.ends) + [0.9])
    assert (span.start, span.end, span.credit) == (0, len(word) + 1, 0.5)


def test_scores_do_not_depend_on_the_batch_or_the_budget() -> None:
    reward, _ = fitted(0)
    samples = fresh_samples(12)
    together = reward.score(samples)
    assert together.spans is not None
    few = make_reward(micro_batch_tokens=64)
    few.load_state_dict(reward.state_dict())
    for other in (few, reward):
        for sample, value, spans in zip(samples, together.values, together.spans, strict=True):
            alone = other.score([sample])
            assert alone.spans is not None
            torch.testing.assert_close(alone.values[0], value, atol=1e-5, rtol=0)
            assert [(s.start, s.end) for s in alone.spans[0]] == [(s.start, s.end) for s in spans]
            assert [s.credit for s in alone.spans[0]] == pytest.approx([s.credit for s in spans], abs=1e-5)
    assert reward.score([]).values.shape == (0,)


def test_a_saved_reward_scores_bit_for_bit_the_same(tmp_path: Path) -> None:
    reward, _ = fitted(0)
    checkpoint.save(tmp_path / "reward", reward.state_dict())
    other = make_reward(make_context(seed=9))
    samples = fresh_samples(10)
    assert not torch.equal(values(other, samples), values(reward, samples))
    other.load_state_dict(checkpoint.load(tmp_path / "reward"))
    assert torch.equal(values(other, samples), values(reward, samples))
    assert other.score(samples).spans == reward.score(samples).spans


def test_fitting_is_deterministic_for_a_seed_and_micro_batches_change_nothing() -> None:
    found = []
    for seed, tokens in ((0, 8192), (0, 8192), (0, 1), (1, 8192)):
        context = make_context(seed=seed, dtype="float64")
        reward = make_reward(context, epochs=1, micro_batch_tokens=tokens)
        torch.manual_seed(len(found))
        found.append((reward.fit(edits(60)), values(reward, fresh_samples(10))))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][1], found[2][1], atol=1e-6, rtol=0)
    assert not torch.equal(found[0][1], found[3][1])


def test_it_can_start_from_a_policy() -> None:
    policy = make_policy()
    reward = make_reward(make_context(policy=policy), policy="lm", fresh=None)
    assert torch.equal(
        reward.network.trunk.embed_tokens.weight, policy.module.state_dict()["lm.model.embed_tokens.weight"]
    )


def test_a_tokenizer_that_does_not_know_places(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model("llama", vocab_size=400, **LLAMA)).save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match="reward 'mine': ByT5Tokenizer does not say where its tokens stand in a text; exp"
    ):
        make_reward(model=str(tmp_path)).fit(edits(2))


def test_weights_of_another_model_are_an_error_in_words() -> None:
    other = make_reward(fresh={**fresh(), "sizes": {**LLAMA, "num_hidden_layers": 1}})
    with pytest.raises(
        ConfigError, match=r"reward 'mine' checkpoint: \d+ weights are missing.*; expected weights of the same mod"
    ):
        make_reward().load_state_dict(other.state_dict())
