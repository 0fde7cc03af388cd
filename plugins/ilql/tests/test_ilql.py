"""ILQL: what has a reward, what must not change, what is refused, and that a real policy learns."""

from __future__ import annotations

import math
import random
import string
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
from rlhf_core.errors import ConfigError, DataError, NumericalError
from rlhf_core.interfaces import Context, Needs, Sampling, Traits
from rlhf_core.records import Comparison, Demonstration, Edit, Feedback, Keywords, Prompt, Rating, Sample, Sentiment
from rlhf_core.runs import checkpoint
from rlhf_core.stages.config import ExportConfig
from rlhf_core.stages.export import Export
from rlhf_core.testing import tiny_context, tiny_policy, tiny_run
from rlhf_plugin_ilql import rlhf_components
from rlhf_plugin_ilql.config import ILQLConfig
from rlhf_plugin_ilql.feedback import judged, rewarded
from rlhf_plugin_ilql.optimizer import ILQL
from transformers import AutoModelForCausalLM

from .toys import Records, TablePolicy, distance, gradients, make_ilql, nudge, rated, train, weights

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_config_import_no_torch() -> None:
    (point,) = entry_points(group="rlhf", name="ilql")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_spec_resolves() -> None:
    (spec,) = rlhf_components()
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert (factory, config, factory.Config) == (ILQL, ILQLConfig, ILQLConfig)


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(README.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert load(tmp_path / "registry.yaml").validate() == []


def test_what_it_is_and_needs() -> None:
    assert ILQLConfig().needs == Needs(values=True, heads=2)
    assert ILQL(ILQLConfig(), Context()).traits == Traits("offline", gradient=True, baseline=False)


def test_defaults() -> None:
    """Those of Snell et al. (2022) and of trlx but where the README says why not."""
    config = ILQLConfig()
    assert (config.tau, config.beta, config.cql_coef, config.gamma) == (0.7, 4, 0.1, 1)
    assert (config.target_rate, config.reward_scale, config.imitation_coef) == (0.1, 10, 5)


@pytest.mark.parametrize(("config", "words"), [
    ({"tau": 0.5}, "greater than 0.5"), ({"tau": 1}, "less than 1"), ({"tau": 0.3}, "greater than 0.5"),
    ({"gamma": 1.1}, "less than or equal to 1"), ({"target_rate": 0}, "greater than 0"),
    ({"imitation_coef": 0}, "greater than 0"), ({"beta": -1}, "greater than or equal to 0"),
    ({"bata": 1}, "bata\n.*Extra inputs are not permitted"),
])  # fmt: skip
def test_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ILQLConfig(**config)


# --- what has a reward -----------------------------------------------------------------------------------------------


def rewards(record: Feedback) -> dict[str, float]:
    return {sample.response: reward for sample, reward in rewarded(record)}


def test_a_rating_is_its_place_on_its_scale() -> None:
    assert rewards(Rating(prompt="p", response="x", score=4, scale=(1, 5))) == {"x": 0.75}
    assert rewards(Rating(prompt="p", response="x", score=-1, scale=(-1, 1), aspects={"tone": 1})) == {"x": 0}


@pytest.mark.parametrize(("options", "expected"), [
    ({"ranks": (0, 1, 2)}, (1, 0.5, 0)),
    ({"ranks": (0, 0, 1)}, (0.75, 0.75, 0)),
    ({"ranks": (0, 1, 1), "ties_judged": False}, (1, 0, 0)),
    ({"ranks": (1, 0, 2), "confidence": 0.8}, (0.5, 0.8, 0.2)),
    ({"ranks": (0, 0, 0), "ties_judged": False}, (0.5, 0.5, 0.5)),
])  # fmt: skip
def test_a_compared_response_has_the_share_of_the_others_that_it_beats(options: Any, expected: Any) -> None:
    found = rewards(Comparison(prompt="p", responses=("x", "y", "z"), **options))
    assert found == pytest.approx(dict(zip("xyz", expected, strict=True)))


def test_an_edit_is_better_than_what_it_was_made_of() -> None:
    assert rewards(Edit(prompt="p", original="x", edited="y")) == {"x": 0, "y": 1}
    assert rewards(Edit(prompt="p", original="x", edited="x")) == {"x": 1}


def test_a_sentiment_is_its_score_or_else_its_label() -> None:
    assert rewards(Sentiment(prompt="p", response="x", label="positive", score=0.5)) == {"x": 0.75}
    labels = ("negative", "neutral", "positive")
    assert [rewards(Sentiment(prompt="p", response="x", label=label))["x"] for label in labels] == [0, 0.5, 1]


def test_who_only_shows_or_names_words_has_judged_nothing() -> None:
    assert rewards(Demonstration(prompt="p", response="x")) == {}
    assert rewards(Keywords(prompt="p", response="x", wanted=("x",))) == {}


def test_weights_are_kept_and_kinds_without_a_reward_are_named() -> None:
    said: list[str] = []
    records = [rated("x", 1, 0.5), rated("y", 0, 0.0), rated("z", 0), Demonstration(prompt="p", response="d")]
    found = judged(records, Context("optimizer", "mine", warn=said.append))
    assert [(one.sample.response, one.reward, one.weight) for one in found] == [("x", 1, 0.5), ("z", 0, 1)]
    assert said == ["optimizer 'mine': feedback of kind demonstration has no reward and is left out"]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("records", "words"), [
    ([], "optimizer 'mine': no feedback with a reward: no records at all; expected records of kind rating, comparison, "
         "edit, sentiment, with a weight above 0; name a source of them in the stage's `feedback`"),
    ([Demonstration(prompt="p", response="d")] * 2 + [Keywords(prompt="p", wanted=("x",))],
     "no feedback with a reward: 2 of kind demonstration, 1 of kind keywords; expected"),
    ([rated("x", 1, 0.0)], "no feedback with a reward: 1 of kind rating; expected .* weight above 0"),
])  # fmt: skip
def test_feedback_without_a_reward_is_refused(records: list[Feedback], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make_ilql(tiny_policy()).step(Records(records))


def test_equal_rewards_are_warned_of() -> None:
    said: list[str] = []
    make_ilql(tiny_policy(), warn=said.append).step(Records([rated("x", 0.5), rated("y", 0.5)]))
    (words,) = said
    assert "all 2 responses have the reward 0.5; there is nothing to prefer among them" in words


class NoHeads(TablePolicy):
    """A policy that makes nothing of what is asked."""

    def prepare(self, needs: Needs) -> None:
        pass


class OneHead(TablePolicy):
    """A policy that makes less than is asked."""

    def prepare(self, needs: Needs) -> None:
        super().prepare(Needs(values=True, heads=1))


class NoCritic(TablePolicy):
    critic = "none"


@pytest.mark.parametrize(("kind", "words"), [
    (NoHeads, "policy 'table' has 0 action-value heads and critic 'shared'; expected a policy with two heads and a "
              "critic; use causal-lm"),
    (OneHead, "policy 'table' has 1 action-value heads and critic 'shared'; expected a policy with two heads"),
    (NoCritic, "policy 'table' has 2 action-value heads and critic 'none'; expected"),
])  # fmt: skip
def test_a_policy_without_what_it_needs_is_refused(kind: type[TablePolicy], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_ilql(kind("a", [""], lambda text: ""))


def test_a_loss_that_is_not_finite_leaves_the_weights_and_writes_the_batch_away(tmp_path: Path) -> None:
    policy = tiny_policy()
    ilql = ILQL(ILQLConfig(reward_scale=1e300), Context("optimizer", "mine", directory=tmp_path))
    ilql.bind(policy, 2)
    before = weights(policy.module)
    with pytest.raises(NumericalError, match=r"optimizer 'mine': gradient norm .* at step 1; expected finite numbers"):
        ilql.step(Records([rated("x", 1), rated("y", 0)]))
    after = weights(policy.module)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "failures" / "step-000001").is_dir()


# --- what it leaves behind -------------------------------------------------------------------------------------------


RATED = [rated(text, reward, prompt=prompt) for prompt in ("say:", "a longer prompt, say:") for text, reward in
         (("e", 1.0), (" east", 0.8), ("no", 0.1), ("", 0.3), ("nothing at all", 0.0))]  # fmt: skip


def test_heads_differ_from_each_other_and_their_copies_begin_as_they_are() -> None:
    policy = tiny_policy()
    ilql = make_ilql(policy)
    first, second = (head.weight.detach() for head in policy.heads)
    assert float((first - second).abs().min(1).values.max()) > 0
    assert 0.8 < float(first.std() * first.shape[1] ** 0.5 / 0.1) < 1.2, "values spread by 1 % of the reward's scale"
    for head, copy in zip(policy.heads, ilql.targets, strict=True):
        assert torch.equal(head.weight, copy.weight)
    with torch.no_grad():
        policy.heads[0].weight.fill_(0.5)
    told: list[bool] = []
    policy.weights_changed = lambda: told.append(True)  # type: ignore[method-assign]
    make_ilql(policy)
    assert bool((policy.heads[0].weight == 0.5).all()), "what was learnt before is kept"
    assert told, "who keeps copies of the weights hears of it"


def test_the_policy_acts_steered_and_the_loss_is_not() -> None:
    policy = tiny_policy()
    nudge(policy.module)
    ilql = make_ilql(policy, beta=3.0)
    seen: list[float] = []
    plain = policy.forward

    def spied(rollout: Any, needs: Needs) -> Any:
        seen.append(policy.steering)
        return plain(rollout, needs)

    policy.forward = spied  # type: ignore[method-assign]
    assert policy.steering == 0
    ilql.step(Records(RATED))
    assert policy.steering == 3
    seen.clear()
    ilql.step(Records(RATED))
    assert set(seen) == {0.0}
    assert policy.state_dict()["steering"] == 3


def test_an_export_holds_the_language_model_alone_and_says_so(tmp_path: Path) -> None:
    """In the warning, and in the folder for whoever finds it there."""
    said: list[str] = []
    policy = tiny_policy(tiny_context("policy", warn=said.append))
    nudge(policy.module)
    ilql = make_ilql(policy, beta=2.5)
    ilql.step(Records(RATED))
    tiny_run(tmp_path, Export, ExportConfig(), components={("policy", "toy"): lambda context: policy}).run(resume=False)
    (words,) = said
    assert "holds the language model alone. The action values that steer its decoding (2.5 x Q) are not in it" in words
    card = " ".join((tmp_path / "export" / "README.md").read_text(encoding="utf-8").split())
    assert "Decoding was steered by action values (2.5 x Q). They are not in this folder" in card
    assert "this model answers without it" in card

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    rollout = policy.encode([Sample(Prompt(text="say:"), "east")])
    with torch.no_grad():
        ids = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
        found = plain(ids).logits[:, rollout.prompt_ids.shape[1] - 1 : -1].log_softmax(-1)
        steered = policy.forward(rollout, Needs(distribution=True)).distribution
        policy.steering = 0.0
        itself = policy.forward(rollout, Needs(distribution=True)).distribution
    torch.testing.assert_close(found, itself, atol=1e-5, rtol=1e-5)
    assert float((found - steered).abs().max()) > 0.1


@pytest.mark.parametrize("options", [{}, {"critic": "separate"}, {"lora": {"r": 2}}])
def test_micro_batches_order_and_surroundings_change_nothing(options: dict[str, Any]) -> None:
    found = []
    for config, records in (({}, RATED), ({"micro_batch_tokens": 1}, RATED), ({}, RATED[::-1])):
        policy = tiny_policy(tiny_context("policy", dtype="float64"), **options)
        ilql = make_ilql(policy, batch_size=len(RATED), **config)
        nudge(policy.module, ilql.targets, scale=0.1)
        found.append(gradients(ilql, records))
    assert all(distance(found[0], other) < 1e-10 for other in found[1:])
    assert sum(float(g.abs().sum()) for g in found[0].values()) > 0


def test_every_example_once_before_any_comes_again() -> None:
    policy = tiny_policy()
    ilql = make_ilql(policy, batch_size=4)
    ilql.step(Records(RATED))
    drawn = [judgement.sample for _ in range(4) for judgement, _ in ilql._next()][:-1]
    first, second = drawn[: len(RATED) - 4], drawn[len(RATED) - 4 :]
    assert len({(s.prompt.text, s.response) for s in first}) == 6
    assert {(s.prompt.text, s.response) for s in second[:9]} <= {(r.prompt.text, r.response) for r in RATED}
    ilql.used = 0
    twice = [(s.prompt.text, s.response) for _ in range(5) for s in (j.sample for j, _ in ilql._next())]
    assert sorted(twice[:10]) == sorted(twice[10:]) and twice[:10] != twice[10:], "another order each time around"
    other = make_ilql(tiny_policy(), seed=1, batch_size=4)
    other.step(Records(RATED))
    other.used = ilql.used = 0
    assert [j.sample for j, _ in other._next()] != [j.sample for j, _ in ilql._next()]


def test_resuming_continues_bit_for_bit(tmp_path: Path) -> None:
    def fresh() -> tuple[Any, ILQL]:
        policy = tiny_policy()
        return policy, make_ilql(policy, 5, batch_size=4, learning_rate={"schedule": "cosine", "start": 1e-2})

    policy, ilql = fresh()
    whole = train(ilql, Records(RATED), 5)
    half = fresh()
    train(half[1], Records(RATED), 2)
    checkpoint.save(tmp_path / "state", {"parts": [part.state_dict() for part in half]})
    resumed = fresh()
    for part, state in zip(resumed, checkpoint.load(tmp_path / "state")["parts"], strict=True):
        part.load_state_dict(state)
    assert train(resumed[1], Records(RATED), 3, start=2) == whole[2:]
    expected, found = weights(policy.module), weights(resumed[0].module)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert resumed[0].steering == policy.steering == 4


def test_what_is_logged_is_finite_and_in_the_readme() -> None:
    for name, value in make_ilql(tiny_policy()).step(Records(RATED)).items():
        assert math.isfinite(value)
        assert f"`{name}`" in README, name


def test_from_python_without_a_registry() -> None:
    ilql = ILQL(ILQLConfig(batch_size=4), Context())
    ilql.bind(tiny_policy(), 1)
    assert ilql.step(Records(RATED))["feedback/reward"] > 0


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_from_random_letters_it_learns_which_to_say(seed: int) -> None:
    """A bandit over the first token: letters were tried by chance, and one of 26 was liked."""
    policy = tiny_policy(tiny_context("policy", seed=seed))
    chance = random.Random(seed)
    tried = [chance.choice(string.ascii_lowercase) for _ in range(520)]
    ilql = make_ilql(policy, 90, seed, learning_rate=1e-2, max_grad_norm=1.0)
    train(ilql, Records(rated(letter, float(letter == "e"), prompt="say e:") for letter in tried), 90)

    def liked(steering: float) -> float:
        policy.steering = steering
        prompts = [Prompt(text="say e:")] * 300
        rollout = policy.generate(prompts, Sampling(max_new_tokens=1), seed=7)
        return sum(sample.response == "e" for sample in rollout.samples) / len(prompts)

    assert liked(policy.steering) >= 0.9
    assert liked(0.0) < 0.1, "the language model itself does as the data did"
