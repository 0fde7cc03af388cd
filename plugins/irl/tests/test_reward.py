"""The reward in a fit-reward stage and within `optimize`: what it learns, keeps, and refuses."""

from __future__ import annotations

import json
import math
import random
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
from rlhf_core.interfaces import OnlineReward
from rlhf_core.records import Comparison, Demonstration, Message, Prompt, Sample
from rlhf_core.runs import checkpoint
from rlhf_core.testing.compare import same
from rlhf_plugin_irl import rlhf_components
from rlhf_plugin_irl.config import IRLRewardConfig
from rlhf_plugin_irl.discriminator import Contrast, ContrastTask
from rlhf_plugin_irl.reward import LARGEST, YARDSTICK, IRLReward
from rlhf_plugin_irl.samples import Drawn

from .toys import (
    Speaker,
    demonstrations,
    fresh_samples,
    make_config,
    make_context,
    make_reward,
    polite_and_not,
    rollout,
    score_logprobs,
    scores,
)

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ONLINE = ["airl", "maxent", "gail"]


def told_apart(reward: IRLReward) -> float:
    """How often fresh polite text scores higher than other text."""
    polite, rest = (scores(reward, side) for side in polite_and_not())
    return float((polite[:, None] > rest[None]).float().mean())


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_config_import_no_torch() -> None:
    (point,) = entry_points(group="rlhf", name="irl")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_the_spec_resolves_and_the_readme_lists_every_option_with_its_default() -> None:
    (spec,) = rlhf_components()
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert factory.Config is config and issubclass(factory, OnlineReward)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", README, flags=re.M))
    shown = {name: rows[name] for name in config.model_fields}
    for name, field in config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name == "sampling":
            assert shown[name] == "{}"
        elif default is None:
            assert shown[name] == "none"
        else:
            assert json.loads(shown[name]) == json.loads(json.dumps(default)), name


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(README.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert load(tmp_path / "registry.yaml").validate() == []


@pytest.mark.parametrize(("config", "words"), [
    ({}, "one-shot needs `samples_from`: the policy whose samples demonstrations are told from"),
    ({"samples_from": "lm", "demonstrations": "d"}, "one-shot learns from the feedback of its fit-reward stage; leave"),
    ({"algorithm": "airl"}, "no demonstrations: airl learns from them in `optimize`; name their source"),
    ({"samples_from": "lm", "null_check": True, "held_out": 0}, "the null check looks at prompts kept out of training"),
    ({"algorithm": "bc"}, "'one-shot', 'airl', 'maxent' or 'gail'"),
    ({"algorithm": "gail", "demonstrations": "d", "replay": 1.0}, "less than 1"),
    ({"samples_from": "lm", "label_smoothing": 0.5}, "less than 0.5"),
])  # fmt: skip
def test_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        IRLRewardConfig(model="m", **config)


# --- fitting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["one-shot", *ONLINE])
def test_a_fit_finds_what_the_expert_does(algorithm: str) -> None:
    policy = Speaker()
    reward = make_reward(make_context(demonstrations(), policy), algorithm=algorithm, epochs=4)
    found = reward.fit(demonstrations(150))
    assert sorted(policy.asked) == sorted(f"Ask {n}:" for n in range(150)), "one sample to the prompt of each"
    assert found["examples"] == sum(Prompt(text=f"Ask {n}:").in_share(0.2) for n in range(150)) > 10
    assert found["accuracy"] > 0.9 and found["demo_score"] > found["sample_score"]
    assert found["longer"] == pytest.approx(0.5, abs=0.2)
    assert 0 < found["loss"] < 0.69
    assert told_apart(reward) > 0.9


def test_a_longer_expert_is_said_to_be_longer() -> None:
    records = [
        Demonstration(prompt=record.prompt, response=record.response + " the cat") for record in demonstrations(60)
    ]
    assert make_reward(learning_rate=1e-9).fit(records)["longer"] > 0.9


def test_scores_are_standardised_over_the_first_samples_whatever_the_batch() -> None:
    reward = make_reward(epochs=2)
    reward.fit(demonstrations(60))
    assert len(reward.yardstick) == 60
    values = scores(reward, reward.yardstick)
    assert float(values.mean()) == pytest.approx(0, abs=1e-5)
    assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-5)
    alone = torch.cat([scores(reward, [sample]) for sample in reward.yardstick])
    torch.testing.assert_close(alone, values, atol=1e-5, rtol=0)

    plain = make_reward(standardise=False)
    plain.load_state_dict(reward.state_dict())
    mean, deviation = reward.moments
    torch.testing.assert_close(scores(plain, reward.yardstick), values * deviation + mean, atol=1e-5, rtol=1e-5)
    assert plain.moments == (0.0, 1.0)


def test_the_yardstick_is_of_held_out_prompts_first_and_bounded() -> None:
    reward = make_reward()
    reward.task(demonstrations(400))
    assert len(reward.yardstick) == YARDSTICK
    held_out = [sample.prompt.in_share(0.2) for sample in reward.yardstick]
    assert sum(held_out) == sum(Prompt(text=f"Ask {n}:").in_share(0.2) for n in range(400))
    assert held_out == sorted(held_out, reverse=True)


def test_scores_that_do_not_differ_are_not_blown_up() -> None:
    reward = make_reward()
    reward.task(demonstrations(20))
    with torch.no_grad():
        reward.network.head.weight.zero_()
    assert reward.moments == (0.0, 1.0)


def test_several_samples_share_the_weight_of_their_demonstration() -> None:
    reward = make_reward(samples_per_demonstration=2, held_out=0.0)
    task = reward.task(demonstrations(10, weight=3.0))
    assert len(task.train) == 20
    assert [task.count(contrast) for contrast in task.train] == [1.5] * 20
    first, second = task.train[:2]
    assert first.demonstration == second.demonstration and first.sample != second.sample
    assert make_reward(held_out=0.0).task(demonstrations(4, weight=0.0) + demonstrations(3)).train.__len__() == 3


def test_gail_pays_the_softplus_and_one_shot_the_logit() -> None:
    plain = make_reward(standardise=False)
    gail = make_reward(algorithm="gail", standardise=False)
    gail.load_state_dict(plain.state_dict())
    samples = fresh_samples()
    torch.testing.assert_close(scores(gail, samples), torch.nn.functional.softplus(scores(plain, samples)))


def test_fitting_is_deterministic_for_a_seed() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        reward = make_reward(make_context(demonstrations(), seed=seed), epochs=1)
        reward.fit(demonstrations(40))
        found.append(scores(reward, fresh_samples()))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


# --- the null check --------------------------------------------------------------------------------------------------


def test_the_null_check_finds_nothing_where_the_reward_finds_the_expert() -> None:
    warnings: list[str] = []
    reward = make_reward(make_context(demonstrations(), warn=warnings.append), epochs=4, null_check=True)
    with_check = reward.fit(demonstrations(150))
    assert with_check["accuracy"] > 0.9
    assert with_check["null_accuracy"] == pytest.approx(0.5, abs=0.25)
    assert abs(with_check["null_correlation"]) < 0.6
    without = make_reward(epochs=4)
    metrics = without.fit(demonstrations(150))
    # the check draws more samples, and so others; it does not touch the fit
    assert metrics.keys() == with_check.keys() - {"null_accuracy", "null_correlation"}


def test_the_null_check_warns_of_a_reward_that_has_learnt_nothing() -> None:
    warnings: list[str] = []
    reward = make_reward(make_context(demonstrations(), warn=warnings.append), learning_rate=1e-9, null_check=True)
    found = reward.fit(demonstrations(60))
    assert found["null_correlation"] == pytest.approx(1, abs=1e-6)
    assert len(warnings) == 1
    assert re.match(
        r"reward 'mine': its scores go with those of a network that saw no demonstration \(rank correlation 1.00\): "
        "it has learnt little from them; give more of them, or more epochs",
        warnings[0],
    )


def test_the_null_check_warns_of_samples_that_can_be_told_apart() -> None:
    """A policy whose second answer to a prompt always gives itself away."""

    class Leaky(Speaker):
        def generate(self, prompts: Any, sampling: Any, *, seed: int, sample_ids: Any) -> Any:
            samples = super().generate(prompts, sampling, seed=seed, sample_ids=sample_ids).samples
            return rollout(*(Sample(s.prompt, s.response + " please" * (n % 2)) for n, s in enumerate(samples)))

    warnings: list[str] = []
    context = make_context(demonstrations(), Leaky(), warn=warnings.append)
    found = make_reward(context, epochs=4, null_check=True).fit(demonstrations(150))
    assert found["null_accuracy"] > 0.9
    assert any(re.match(r"reward 'mine': told the policy's samples from more of them in \d+% of \d+ held-out", w)
               for w in warnings)  # fmt: skip


# --- learning within optimize ----------------------------------------------------------------------------------------


def step(reward: IRLReward, number: int) -> dict[str, float]:
    return reward.update(rollout(*fresh_samples(16, number)), score_logprobs)


@pytest.mark.parametrize("algorithm", ONLINE)
def test_updates_find_what_the_expert_does(algorithm: str) -> None:
    reward = make_reward(algorithm=algorithm, learning_rate=1e-2)
    before = told_apart(reward)
    first = step(reward, 0)
    assert {"loss", "accuracy", "demo_score", "sample_score", "grad_norm", "deviation"} == first.keys()
    for number in range(1, 20):
        last = step(reward, number)
    assert before < 0.8 < 0.9 < told_apart(reward)
    assert last["accuracy"] > 0.8 and last["demo_score"] > last["sample_score"]
    assert reward.updates == 40


def test_the_log_ratio_is_taken_off_the_logit_under_airl_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy has moved by a nat towards please: of that much the reward need not tell."""
    asked: list[int] = []

    def logprobs(samples: Any) -> Any:
        asked.append(len(samples))
        return score_logprobs(samples)

    losses = {}
    for algorithm in ("airl", "gail"):
        reward = make_reward(algorithm=algorithm, updates_per_step=1, max_log_ratio=0.5)
        with torch.no_grad():
            reward.network.head.weight.zero_()
        losses[algorithm] = reward.update(rollout(*fresh_samples()), logprobs)["loss"]
    assert asked == [16, 32]  # the samples as they are drawn; then 16 demonstrations and 16 samples
    assert losses["gail"] == pytest.approx(torch.tensor(2.0).log().item())
    logit = torch.tensor(0.5)  # one nat, held within a half; of samples it is 0
    expected = (torch.nn.functional.softplus(logit) + torch.tensor(2.0).log()) / 2
    assert losses["airl"] == pytest.approx(float(expected), abs=1e-6)


def test_old_samples_count_as_much_as_the_policy_would_still_say_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn at a log ratio of 0; since then the policy has come to like the first, and to drop the second."""
    reward = make_reward(algorithm="airl", replay=0.5, batch_size=4, updates_per_step=1)
    old = [Sample(Prompt(text="Ask 1:"), text) for text in (" the dog", " no", " the mat", " the mat saw")]
    now = {" the dog": math.log(2), " no": math.log(1 / 4), " the mat": 3.0, " the mat saw": 0.0}
    seen: list[Contrast] = []
    loss = ContrastTask.loss
    monkeypatch.setattr(
        ContrastTask, "loss", lambda task, rows, own, maxent: (seen.extend(rows), loss(task, rows, own))[1]
    )

    def logprobs(changes: dict[str, float]) -> Any:
        return lambda samples: (
            torch.tensor([changes.get(s.response, 0.0) for s in samples]),
            torch.zeros(len(samples)),
        )

    reward.update(rollout(*old), logprobs({}))
    assert [d.log_ratio for d in reward.replay] == [0.0] * 4
    for _ in range(12):
        reward.update(rollout(*fresh_samples(4)), logprobs(now))
        reward.replay = [Drawn(sample) for sample in old]
    by_text = {text: reward.encode(Prompt(text="Ask 1:"), text) for text in now}
    found = {text: {round(c.importance, 4) for c in seen[4:] if c.sample == ids} for text, ids in by_text.items()}
    assert found == {" the dog": {2.0}, " no": {0.25}, " the mat": {LARGEST}, " the mat saw": {1.0}}
    assert {c.importance for c in seen if c.sample not in by_text.values()} == {1.0}


def test_replay_keeps_its_share_and_its_size() -> None:
    reward = make_reward(algorithm="gail", replay=0.25, replay_size=20, batch_size=12)
    new = [Drawn(sample) for sample in fresh_samples(16, 1)]
    rng = random.Random(0)
    assert all(drawn in new for _, drawn in reward._matched(new, rng)), "nothing is old yet"
    step(reward, 0)
    assert len(reward.replay) == 16
    chosen = [drawn for _, drawn in reward._matched(new, rng)]
    assert len(chosen) == 12
    assert sum(drawn in reward.replay for drawn in chosen) == 3
    assert sum(drawn in new for drawn in chosen) == 9
    step(reward, 1)
    assert [d.sample for d in reward.replay] == [*fresh_samples(16, 0), *(d.sample for d in new)][-20:]
    assert len(reward._matched(new[:4], rng)) == 3 + 4, "no sample twice in a batch"


def test_a_demonstration_of_the_same_prompt_is_taken_where_there_is_one() -> None:
    reward = make_reward(algorithm="gail", held_out=0.0)
    drawn = [Drawn(Sample(Prompt(text=f"Ask {n}:"), " no")) for n in range(58, 62)]
    for seed in range(5):
        pairs = {d.sample.prompt.text: r.prompt.text for r, d in reward._matched(drawn, random.Random(seed))}
        assert pairs["Ask 58:"] == "Ask 58:" and pairs["Ask 59:"] == "Ask 59:"
        assert pairs["Ask 60:"] != "Ask 60:", "there are demonstrations up to 59"


def test_held_out_demonstrations_are_not_shown() -> None:
    reward = make_reward(algorithm="gail", held_out=0.5)
    assert all(not record.prompt.in_share(0.5) for record in reward._experts[None])
    assert 10 < len(reward._experts[None]) < 50


def test_chat_prompts_are_matched_and_written_too(tmp_path: Path) -> None:
    chat = Prompt(text=(Message(role="user", content="Hello?"),), fields={"topic": "x"})
    records = [*demonstrations(8), Demonstration(prompt=chat, response="Hi, please.")]
    reward = make_reward(make_context(records), algorithm="gail", held_out=0.0)
    ((record, _),) = reward._matched([Drawn(Sample(chat, "No."))], random.Random(0))
    assert record.response == "Hi, please."
    reward.update(rollout(Sample(chat, "No.", (5, 6))), score_logprobs)
    checkpoint.save(tmp_path / "state", reward.state_dict())
    other = make_reward(make_context(records), algorithm="gail", held_out=0.0)
    other.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert other.replay == reward.replay == [Drawn(Sample(Prompt(text=chat.text), "No."))]


@pytest.mark.parametrize("algorithm", ONLINE)
def test_a_resumed_reward_goes_on_to_the_last_bit(algorithm: str, tmp_path: Path) -> None:
    whole = make_reward(algorithm=algorithm)
    for number in range(4):
        if number == 2:
            checkpoint.save(tmp_path / "state", whole.state_dict())
        expected = step(whole, number)
    torch.manual_seed(5)
    resumed = make_reward(algorithm=algorithm)
    resumed.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert same(checkpoint.load(tmp_path / "state"), resumed.state_dict())
    found = [step(resumed, number) for number in (2, 3)][-1]
    assert found == expected
    assert same(whole.state_dict(), resumed.state_dict())
    samples = fresh_samples(8, 9)
    assert torch.equal(scores(whole, samples), scores(resumed, samples))


def test_micro_batches_change_nothing() -> None:
    found = []
    for tokens in (1, 8192):
        context = make_context(demonstrations(), dtype="float64")
        reward = make_reward(context, algorithm="airl", micro_batch_tokens=tokens, gradient_penalty=0.1)
        stats = step(reward, 0)
        found.append((scores(reward, fresh_samples()), stats))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=0)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    assert "penalty" in found[0][1]


def test_what_a_fit_taught_is_the_start_of_what_follows() -> None:
    reward = make_reward(algorithm="airl", epochs=4)
    reward.fit(demonstrations(150))
    first = reward.yardstick
    assert told_apart(reward) > 0.9
    stats = step(reward, 0)
    assert stats["accuracy"] > 0.8 and reward.yardstick == first and len(reward.replay) == 16


# --- bad input -------------------------------------------------------------------------------------------------------


def test_no_demonstrations() -> None:
    words = r"reward 'mine': no demonstrations to learn from \(0 held out\); expected at least one; give more"
    with pytest.raises(DataError, match=words):
        make_reward().task([])
    with pytest.raises(DataError, match=words):
        make_reward().fit([])
    with pytest.raises(DataError, match=words):
        step(make_reward(make_context([]), algorithm="airl"), 0)
    everything = [record for record in demonstrations(60) if record.prompt.in_share(0.2)]
    with pytest.raises(DataError, match=rf"no demonstrations to learn from \({len(everything)} held out\)"):
        make_reward().task(everything)


def test_feedback_of_another_kind() -> None:
    record = Comparison(prompt="Ask 1:", responses=(" yes", " no"), ranks=(0, 1))
    words = "reward 'mine': feedback of kind 'comparison'; expected demonstrations; name a feedback source of"
    with pytest.raises(DataError, match=words):
        make_reward().fit([*demonstrations(3), record])
    with pytest.raises(DataError, match=words):
        step(make_reward(make_context([record]), algorithm="maxent"), 0)


def test_an_empty_demonstration_is_named_by_file_and_line(tmp_path: Path) -> None:
    from rlhf_core.components.config import DemonstrationsConfig
    from rlhf_core.components.demonstrations import Demonstrations

    path = tmp_path / "expert.jsonl"
    path.write_text('{"prompt": "Ask 1:", "response": " yes"}\n{"prompt": "Ask 2:", "response": "  "}\n')
    source = Demonstrations(DemonstrationsConfig(path=str(path)), make_context().named("feedback", "experts"))
    with pytest.raises(DataError, match=r"expert.jsonl:2: response: a demonstration must not be empty"):
        make_reward().fit(source)


def test_no_policy_to_sample_from() -> None:
    reward = make_reward(algorithm="airl", samples_from=None)
    with pytest.raises(
        ConfigError,
        match="reward 'mine': no policy to draw samples from in its fit-reward stage; expected `samples_from`: the "
        "policy that will be optimised; name it, or leave out the stage",
    ):
        reward.fit(demonstrations(5))
    assert step(reward, 0)["loss"] > 0, "within optimize it needs none"


def test_one_shot_within_optimize() -> None:
    reward = make_reward()
    with pytest.raises(
        ConfigError,
        match="reward 'mine': one-shot has learnt from no demonstrations; expected a fit-reward stage before "
        "`optimize`; add the stage, or choose an algorithm that learns in `optimize`, such as airl",
    ):
        step(reward, 0)
    reward.fit(demonstrations(40))
    before = reward.state_dict()
    assert step(reward, 0) == {}
    assert same(before, reward.state_dict())


def test_config_is_kept_whole() -> None:
    config = make_config(algorithm="airl", sampling={"max_new_tokens": 8})
    assert IRLRewardConfig.model_validate(config.model_dump(mode="json")) == config
