"""The reward model: it finds a known truth, whatever the trunk, and scores a text the same way whatever is around it."""

from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.api import load
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.records import Comparison, Demonstration, Message, Prompt, Sample
from rlhf_core.runs import checkpoint
from rlhf_core.training import fit_task
from rlhf_plugin_preference import rlhf_components
from rlhf_plugin_preference.config import PreferenceRewardConfig
from rlhf_plugin_preference.reward import PreferenceReward
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from .toys import (
    SIZES,
    WORDS,
    comparisons,
    fresh,
    make_context,
    make_policy,
    make_reward,
    nudge,
    samples,
    scores,
)

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def leads(reward: PreferenceReward, records: list[Comparison]) -> Tensor:
    """Score of the better minus the worse response of each; `comparisons` puts the worse one first."""
    return scores(reward, records).view(-1, 2).diff(dim=1)[:, 0]


def save_model(folder: Path, architecture: str = "bert", *, opens: bool = True, closes: bool = True,
               model_max_length: int | None = None, **sizes: Any) -> str:  # fmt: skip
    """A tiny pretrained model as found on the hub: a WordPiece tokenizer that opens and closes every text itself."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "please", "Ask", ":", *dict.fromkeys(WORDS)]
    vocabulary += [prefix + d for d in "0123456789" for prefix in ("", "##")]
    piece = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if opens:
        piece.post_processor = processors.TemplateProcessing(
            single="[CLS] $A" + (" [SEP]" if closes else ""), special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    named = {"bos_token": "[CLS]", "eos_token": "[SEP]"} if architecture == "llama" else {}
    if architecture != "llama":
        named = {"cls_token": "[CLS]"} | ({"sep_token": "[SEP]"} if closes else {})
    limit = {} if model_max_length is None else {"model_max_length": model_max_length}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=piece, pad_token="[PAD]", unk_token="[UNK]", **named, **limit)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=len(vocabulary), pad_token_id=0, bos_token_id=2,
                                  eos_token_id=3, **{**SIZES.get(architecture, SIZES["bert"]), **sizes})  # fmt: skip
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_config_import_no_torch() -> None:
    (point,) = entry_points(group="rlhf", name="preference")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize("spec", rlhf_components(), ids=lambda spec: f"{spec.kind} {spec.name}")
def test_specs_resolve_and_the_readme_lists_every_option_with_its_default(spec: Any) -> None:
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert factory.Config is config
    section = README.split(f"\n## {spec.kind.capitalize()} `{spec.name}`\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, flags=re.M))
    assert rows.keys() == config.model_fields.keys()
    for name, field in config.model_fields.items():
        assert field.description
        default = field.get_default(call_default_factory=True)
        expected = (
            "none" if default is None or default == {} else "required" if field.is_required() else json.dumps(default)
        )
        same = rows[name] == expected or (type(default) is float and float(rows[name]) == default)
        assert same, f"{name}: {rows[name]} instead of {expected}"


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(README.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert load(tmp_path / "registry.yaml").validate() == []


@pytest.mark.parametrize("origins", [{}, {"model": "m", "policy": "p"}, {"model": "m", "fresh": fresh()},
                                     {"model": "m", "policy": "p", "fresh": fresh()}])  # fmt: skip
def test_one_origin(origins: dict[str, Any]) -> None:
    words = r"give one of `model` \(path or hub id\), `policy` \(an id\) and `fresh` \(sizes, a tokenizer\)"
    with pytest.raises(ValidationError, match=words):
        PreferenceRewardConfig(**origins)


@pytest.mark.parametrize(("config", "words"), [
    ({"pooling": "max"}, "'last' or 'mean'"), ({"label_smoothing": 0.5}, "less than 0.5"),
    ({"held_out": 1}, "less than 1"), ({"max_tokens": 4}, "greater than or equal to 8"),
    ({"epoch": 2}, "Extra inputs are not permitted"),
])  # fmt: skip
def test_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PreferenceRewardConfig(model="m", **config)


# --- it finds the truth ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "pooling", "seed"), [
    ("llama", "last", 0), ("llama", "last", 1), ("llama", "last", 2), ("llama", "mean", 0), ("bert", "mean", 0),
])  # fmt: skip
def test_it_learns_what_people_prefer(architecture: str, pooling: str, seed: int) -> None:
    reward = make_reward(make_context(seed=seed), fresh=fresh(architecture), pooling=pooling, epochs=5, held_out=0.2)
    metrics = reward.fit(comparisons(400, seed))
    assert 50 < metrics["pairs"] < 110
    assert metrics["accuracy"] >= 0.9
    assert metrics["margin"] > 1
    assert 0 <= metrics["ece"] < 0.2
    assert metrics["loss"] < 0.4
    other = comparisons(100, seed + 10)  # prompts and responses never seen
    assert float((leads(reward, other) > 0).float().mean()) >= 0.9


def test_a_pretrained_encoder_without_an_end_of_text_token(tmp_path: Path) -> None:
    reward = make_reward(model=save_model(tmp_path), pooling="mean", epochs=5, held_out=0.2)
    assert reward.fit(comparisons(300))["accuracy"] >= 0.9


def test_fitting_is_deterministic_for_a_seed() -> None:
    found = []
    for seed in (0, 0, 1):
        reward = make_reward(make_context(seed=seed), fresh=fresh("bert"), epochs=1)  # its dropout is 0.1
        torch.manual_seed(len(found))  # whatever was drawn before
        metrics = reward.fit(comparisons(60))
        found.append((metrics, scores(reward, comparisons(20, 5))))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][1], found[2][1])


def test_micro_batches_change_nothing() -> None:
    found = []
    for tokens in (1, 8192):
        reward = make_reward(make_context(dtype="float64"), micro_batch_tokens=tokens, epochs=1)
        reward.fit(comparisons(40))
        found.append(scores(reward, comparisons(20, 5)))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)


def test_no_forward_pass_exceeds_the_token_budget() -> None:
    reward = make_reward(micro_batch_tokens=100, epochs=1, held_out=0.5)
    tokens: list[int] = []
    reward.network.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].numel()))
    reward.fit(comparisons(30))  # texts of some 15 tokens
    reward.score(samples(comparisons(10)))
    assert 50 < max(tokens) <= 100


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "pooling"), [("llama", "last"), ("llama", "mean"), ("bert", "last"),
                                                       ("bert", "mean")])  # fmt: skip
def test_scores_do_not_depend_on_the_batch(architecture: str, pooling: str) -> None:
    reward = make_reward(fresh=fresh(architecture), pooling=pooling)
    nudge(reward.network)
    texts = samples(comparisons(10))
    texts += [Sample(texts[0].prompt, ""), Sample(texts[1].prompt, " please" * 40)]
    together = reward.score(texts).values
    assert float(together.std()) > 0.01
    backwards = reward.score(texts[::-1]).values.flip(0)
    alone = torch.cat([reward.score([text]).values for text in texts])
    few = make_reward(fresh=fresh(architecture), pooling=pooling, micro_batch_tokens=64)
    few.load_state_dict(reward.state_dict())
    for other in (backwards, alone, few.score(texts).values):
        torch.testing.assert_close(other, together, atol=1e-5, rtol=0)


def test_no_dropout_in_scoring_even_in_training_mode() -> None:
    reward = make_reward(fresh=fresh("bert"))
    reward.network.train()
    assert torch.equal(scores(reward, comparisons(5)), scores(reward, comparisons(5)))


def test_nothing_to_score() -> None:
    assert make_reward().score([]).values.shape == (0,)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_scores_are_float32_whatever_the_trunk(dtype: str) -> None:
    reward = make_reward(make_context(dtype=dtype), pooling="mean")
    values = scores(reward, comparisons(5))
    assert values.dtype == torch.float32
    assert bool(values.isfinite().all())
    assert reward.network.head.weight.dtype == (torch.float64 if dtype == "float64" else torch.float32)


@pytest.mark.parametrize("origin", ["fresh llama", "fresh bert", "bert", "llama"])
def test_very_long_and_empty_texts_are_cut_and_finite(origin: str, tmp_path: Path) -> None:
    kind, _, name = origin.rpartition(" ")
    reward = make_reward(**({"fresh": fresh(name)} if kind else {"model": save_model(tmp_path, name)}), max_tokens=48)
    assert reward.max_tokens == 48
    cases = [("Ask 1:", ""), ("Ask 1:", " please" * 3000), ("the " * 3000, " please"), ("the " * 3000, " mat" * 3000)]
    for prompt, response in cases:
        ids = reward.encode(Prompt(text=prompt), response)
        assert len(ids) <= 48
        assert ids[-1] == reward.codec.eos
        if not kind:
            assert (ids[0], ids.count(2), ids.count(3)) == (2, 1, 1), "opened once and closed once, cut or not"
    assert bool(reward.score([Sample(Prompt(text=p), r) for p, r in cases]).values.isfinite().all())
    ids = reward.encode(Prompt(text="the " * 3000 + "mat"), " please please")
    assert reward.codec.decode(ids).split()[-3:] == ["mat", "please", "please"], "the beginning of the prompt goes"


def test_the_tokenizers_own_limit_counts(tmp_path: Path) -> None:
    """RoBERTa's first position is 2: of 64 positions it can use 62."""
    sizes = {"max_position_embeddings": 64, "type_vocab_size": 1}
    reward = make_reward(model=save_model(tmp_path, "roberta", model_max_length=62, **sizes))
    assert reward.max_tokens == 62
    assert bool(reward.score([Sample(Prompt(text="Ask 1:"), " please" * 200)]).values.isfinite().all())


def test_a_text_has_the_same_ids_in_training_and_in_scoring(tmp_path: Path) -> None:
    chat = Prompt(text=(Message(role="user", content="Ask 3:"),))
    record = Comparison(prompt=chat, responses=("the cat", "please"), ranks=(0, 1))
    template = "{{ bos_token }}{% for m in messages %}the {{ m.content }}{% endfor %} :"
    for chat_template in (None, template):
        reward = make_reward(model=save_model(tmp_path, "llama"), held_out=0)
        reward.codec.tokenizer.chat_template = chat_template
        (pair,) = reward.task([record]).train
        seen: list[tuple[Tensor, Tensor]] = []
        reward.network.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs))
        reward.score([Sample(chat, "the cat"), Sample(chat, "please")])
        ((ids, mask),) = seen
        scored = [row[m].tolist() for row, m in zip(ids, mask, strict=True)]
        assert sorted(scored) == sorted([pair.better, pair.worse])
        for text in (pair.better, pair.worse):
            assert (text[0], text[-1], text.count(2), text.count(3)) == (2, 3, 1, 1), "no second BOS, one end"


def test_a_saved_reward_scores_bit_for_bit_the_same_and_without_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, None)
    monkeypatch.setattr(torch, "save", None)
    monkeypatch.setattr(torch, "load", None)
    reward = make_reward(fresh=fresh("bert"), pooling="mean", epochs=1)
    reward.fit(comparisons(40))
    checkpoint.save(tmp_path / "reward", reward.state_dict())
    assert sorted(p.name for p in (tmp_path / "reward").iterdir()) == ["sha256.json", "state.json", "tensors.safetensors"]
    other = make_reward(make_context(seed=9), fresh=fresh("bert"), pooling="mean")
    unseen = comparisons(20, 5)
    assert not torch.equal(scores(other, unseen), scores(reward, unseen))
    other.load_state_dict(checkpoint.load(tmp_path / "reward"))
    assert torch.equal(scores(other, unseen), scores(reward, unseen))


def test_the_weights_of_another_model_are_an_error_in_words() -> None:
    with pytest.raises(
        ConfigError, match=r"reward 'mine' checkpoint: \d+ weights are missing.*; expected weights of the same mod"
    ):
        make_reward().load_state_dict(make_reward(fresh=fresh("bert")).state_dict())


# --- starting from a policy ------------------------------------------------------------------------------------------


def test_a_reward_that_starts_from_a_policy_goes_its_own_way() -> None:
    policy = make_policy()
    nudge(policy.module)
    reward = make_reward(make_context(policy=policy), policy="lm")
    lm = {name: p.clone() for name, p in policy.module.state_dict().items()}
    trunk = reward.network.trunk.state_dict()
    assert trunk
    for name, weight in trunk.items():
        assert torch.equal(weight, lm[f"lm.model.{name}"]), "the trunk as it was"
    assert reward.codec.tokenizer is not policy.tokenizer

    unseen = comparisons(10, 5)
    before = scores(reward, unseen)
    nudge(policy.module, seed=1)
    assert torch.equal(scores(reward, unseen), before)
    moved = {name: p.clone() for name, p in policy.module.state_dict().items()}
    metrics = reward.fit(comparisons(200))
    assert all(torch.equal(p, moved[name]) for name, p in policy.module.state_dict().items())
    assert not torch.equal(scores(reward, unseen), before)
    assert metrics["accuracy"] >= 0.8


def test_a_policy_without_a_trunk() -> None:
    with pytest.raises(
        ConfigError, match="reward 'mine': policy 'lm' has no trunk to start from; expected a policy such as"
    ):
        make_reward(make_context(policy=object()), policy="lm")


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward 'mine' fresh: 'bert' with .*not a multiple of the number of att"):
        make_reward(fresh={**fresh("bert"), "sizes": {"hidden_size": 30, "num_attention_heads": 4}})
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with pytest.raises(
        ConfigError, match="reward 'mine': 't5' is an encoder-decoder; expected an encoder or a decoder"
    ):
        make_reward(fresh={**fresh(), "architecture": "t5", "sizes": sizes})
    with pytest.raises(
        ConfigError, match="reward 'mine': a tokenizer with neither an end-of-text token nor a separator"
    ):
        make_reward(model=save_model(tmp_path, closes=False))
    with pytest.raises(ConfigError, match=r"reward 'mine': cannot load folder '.*empty'"):
        (tmp_path / "empty").mkdir()
        make_reward(model=str(tmp_path / "empty"))


# --- the task --------------------------------------------------------------------------------------------------------


def task_of(*records: Any, **config: Any) -> Any:
    return make_reward(**{"held_out": 0.0, **config}).task(records)


def with_scores(task: Any, better: list[float], worse: list[float]) -> Any:
    """The task with these scores of its pairs instead of the model's."""
    task.reward.scores = lambda texts: torch.tensor([*better, *worse])
    return task


def test_rankings_give_all_ordered_pairs_and_ties_none() -> None:
    ranking = Comparison(prompt="p:", responses=("third", "first", "second", "also"), ranks=(2, 0, 1, 1), margin=3)
    votes = Comparison(prompt="q:", responses=("x", "won", "y"), ranks=(1, 0, 1), ties_judged=False)
    task = task_of(ranking, votes, Comparison(prompt="r:", responses=("a", "b"), ranks=(0, 0)))
    decode = task.reward.codec.decode
    assert sorted((decode(pair.better), decode(pair.worse)) for pair in task.train) == [
        ("p:also", "p:third"), ("p:first", "p:also"), ("p:first", "p:second"), ("p:first", "p:third"),
        ("p:second", "p:third"), ("q:won", "q:x"), ("q:won", "q:y"),
    ]  # fmt: skip
    assert {pair.margin for pair in task.train} == {0.0}, "of a ranking nobody said how far apart each pair is"


def test_margins_are_those_of_the_records_unless_switched_off() -> None:
    records = [Comparison(prompt="p", responses=("a", "b"), ranks=(0, 1), margin=m) for m in (1.5, None)]
    assert [pair.margin for pair in task_of(*records).train] == [1.5, 0.0]
    assert [pair.margin for pair in task_of(*records, use_margin=False).train] == [0.0, 0.0]


def test_the_loss_by_hand() -> None:
    records = [Comparison(prompt="p", responses=("a", "b"), ranks=(0, 1), margin=m) for m in (None, 0.5)]
    task = with_scores(task_of(*records, center_coef=0.1), [1, 0], [0, 2])
    loss = task.loss(task.train)  # log(1 + e^-1) + log(1 + e^2.5), and 0.1 x (1^2 + 2^2)
    assert float(loss.total) == pytest.approx(0.3132617 + 2.5788897 + 0.5)
    assert (loss.count, loss.stats) == (2, {"accuracy": 1})
    smoothed = with_scores(task_of(records[0], center_coef=0, label_smoothing=0.2), [1], [0])
    # 0.8 x log(1 + e^-1) + 0.2 x log(1 + e)
    assert float(smoothed.loss(smoothed.train).total) == pytest.approx(0.8 * 0.3132617 + 0.2 * 1.3132617)


def test_the_evaluation_by_hand() -> None:
    task = with_scores(task_of(*comparisons(4)), [1.0, 0, 2, 5], [0.0, 2, 2, 1])
    found = task.evaluate(task.train)  # leads 1, -2, 0, 4, the margin of the records apart
    assert found["accuracy"] == 0.625
    assert found["margin"] == 0.75
    assert found["loss"] == pytest.approx((0.3132617 + 2.1269280 + math.log(2) + 0.0181499) / 4)
    assert found["pairs"] == 4


def test_prompts_lie_on_one_side_of_the_split() -> None:
    records = [c.model_copy(update={"prompt": Prompt(text=f"{i % 40}:")}) for i, c in enumerate(comparisons(200))]
    task = task_of(*records, held_out=0.3)
    decode = task.reward.codec.decode
    sides = [{decode(pair.better).split(":")[0] for pair in side} for side in (task.train, task.held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 40
    assert len(task.train) + len(task.held_out) == 200
    assert 20 < len(task.held_out) < 110
    assert not task_of(*records, held_out=0).held_out


def test_a_held_out_share_of_0_gives_no_metrics() -> None:
    assert make_reward(held_out=0.0, epochs=1).fit(comparisons(20)) == {}


def test_margin_smoothing_and_centring_act() -> None:
    """Each is a fit to the same comparisons that differs in one thing."""

    def gap_and_centre(records: list[Comparison], **config: Any) -> tuple[float, float]:
        reward = make_reward(**{"epochs": 4, "center_coef": 0.0, **config})
        torch.nn.init.constant_(reward.network.head.bias, 3.0)  # Bradley-Terry alone would never notice
        reward.fit(records)
        return float(leads(reward, records).mean()), float(scores(reward, records).mean())

    sure = comparisons(160)
    gap, centre = gap_and_centre(sure)
    assert gap > 3
    assert centre > 2
    assert abs(gap_and_centre(sure, center_coef=0.1)[1]) < centre / 2
    # believing that 30 % are the wrong way round, the best lead is log(0.7 / 0.3) = 0.85
    assert gap_and_centre(sure, label_smoothing=0.3)[0] == pytest.approx(0.85, abs=0.3)

    # one in four is the wrong way round, so that leads do not grow without end
    unsure = [c.model_copy(update={"ranks": (0, 1)}) if i % 4 == 0 else c for i, c in enumerate(sure)]
    asking = [c.model_copy(update={"margin": 3.0}) for c in unsure]
    gap, centre = gap_and_centre(unsure)
    assert gap_and_centre(asking)[0] > gap + 0.5
    assert gap_and_centre(asking, use_margin=False) == (gap, centre)


def test_feedback_of_another_kind() -> None:
    words = (
        "reward 'mine': feedback of kind 'demonstration'; expected comparisons; name a feedback source of comparisons in "
        "the fit-reward stage"
    )
    with pytest.raises(DataError, match=words):
        make_reward().fit([Demonstration(prompt="p", response="r")])


def test_ties_alone_leave_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="reward 'mine': no example is left to train on"):
        make_reward().fit([Comparison(prompt="p", responses=("a", "b"), ranks=(0, 0))])


def test_what_is_logged_is_finite_and_in_the_readme() -> None:
    reward = make_reward(epochs=1)
    steps: list[dict[str, float]] = []
    metrics = fit_task(
        reward.task(comparisons(80)), reward.config, reward.context, lambda _, stats: steps.append(stats)
    )
    section = README.split("## What is logged")[1]
    for name, value in [*steps[0].items(), *metrics.items()]:
        assert math.isfinite(value)
        assert f"`{name}`" in section or f"`fit/{name}`" in section
