"""ACER: its distribution and options, the buffer, the average policy, what must not change anything, and resuming."""

from __future__ import annotations

import json
import math
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
from rlhf_core.errors import ConfigError, NumericalError
from rlhf_core.interfaces import Context, Needs, Traits
from rlhf_core.records import Rollout
from rlhf_core.runs import checkpoint
from rlhf_core.testing import example_data, example_rollout, tiny_context, tiny_policy
from rlhf_plugin_acer import optimizer as module
from rlhf_plugin_acer import rlhf_components
from rlhf_plugin_acer.config import ACERConfig
from rlhf_plugin_acer.optimizer import ACER
from rlhf_plugin_acer.replay import NO_TEXT, Replay
from torch import Tensor

from .table import Table, every_sequence, table

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SMALL = {"prompts_per_step": 4, "capacity": 10, "top_k": 3, "replay_ratio": 2, "learning_rate": 1e-2}


def bound(policy: Any, **config: Any) -> ACER:
    acer = ACER(ACERConfig(**{**SMALL, **config}), tiny_context("optimizer", "mine"))
    acer.bind(policy, 4)
    return acer


def steps(acer: ACER, data: Any, first: int, count: int) -> list[dict[str, float]]:
    history = []
    for step in range(first, first + count):
        data.begin(step)
        acer.progress = (step, 4)
        history.append(acer.step(data))
    return history


def weights(policy: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.module.named_parameters()}


def precise(seed: int = 0) -> Any:
    """A float64 policy whose action values are not 0."""
    policy = tiny_policy(tiny_context("policy", dtype="float64"))
    policy.prepare(Needs(heads=1))
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.heads[0].parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=noise, dtype=torch.float64))
    return policy


def gradients(acer: ACER, rollout: Rollout, tokens: float | None = None) -> Tensor:
    """Of an update from `rollout`, all parameters in one vector; nothing moves."""
    found: list[Tensor] = []

    class Recorder:
        taken = 0

        def step(self) -> dict[str, float]:
            for p in acer.policy.module.parameters():
                found.append(torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten().clone())
                p.grad = None
            return {}

    kept, acer.gradient = acer.gradient, Recorder()  # type: ignore[assignment]
    average = {name: weight.clone() for name, weight in acer.average.items()}
    acer._update(rollout, 0)
    acer.gradient, acer.average = kept, average
    return torch.cat(found)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


# --- the distribution ------------------------------------------------------------------------------------------------


def test_entry_point_and_config_import_no_torch() -> None:
    (point,) = entry_points(group="rlhf", name="acer")
    code = f"import sys, {point.value}, {point.value}.config; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_spec_resolves() -> None:
    (spec,) = rlhf_components()
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    assert (factory, config, factory.Config) == (ACER, ACERConfig, ACERConfig)


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(README.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    (tmp_path / "rewards.py").write_text("def short(prompts, completions, **columns): return []", encoding="utf-8")
    assert load(tmp_path / "registry.yaml").validate() == []


def test_what_is_logged_is_finite_and_in_the_readme() -> None:
    policy = tiny_policy()
    acer = bound(policy, entropy_coef=0.01)
    (stats,) = steps(acer, example_data(policy, acer.config.needs), 0, 1)
    for name, value in stats.items():
        assert math.isfinite(value)
        assert f"`{name}`" in README


# --- configuration and bad input -------------------------------------------------------------------------------------


def test_what_it_asks_for_and_is() -> None:
    assert ACERConfig(top_k=5).needs == Needs(top_k=5, heads=1)
    assert bound(tiny_policy()).traits == Traits("off-policy", gradient=True, baseline=False)


def test_defaults_are_the_papers_but_for_the_bound_by_logits() -> None:
    """Wang et al. (2017), section 5: c = 10, replay ratio 4, alpha = 0.99; delta is 1 there, by probabilities."""
    config = ACERConfig()
    assert (config.truncation, config.replay_ratio, config.average_decay, config.trust_region) == (10, 4, 0.99, 0.1)


def test_the_least_and_most_that_a_buffer_may_hold() -> None:
    assert ACERConfig(prompts_per_step=8, samples_per_prompt=4, capacity=32, replay_size=32).samples_per_step == 32
    with pytest.raises(ValidationError, match="no room for the samples of a step"):
        ACERConfig(prompts_per_step=8, samples_per_prompt=4, capacity=31)


@pytest.mark.parametrize(("config", "words"), [
    ({"capacity": 31}, r"capacity \(31\) has no room for the samples of a step \(32 = prompts_per_step x "
                       r"samples_per_prompt\); raise it, or sample less"),
    ({"capacity": 40, "replay_size": 41}, r"replay_size \(41\) exceeds capacity \(40\); lower it, or keep more"),
    ({"top_k": 0}, "greater than or equal to 1"),
    ({"truncation": 0}, "greater than 0"),
    ({"trust_region": 0}, "greater than 0"),
    ({"average_decay": 1}, "less than 1"),
    ({"entropy_coef": -0.1}, "expected 0 or more"),
    ({"entropy_coef": {"schedule": "linear", "start": 0.1, "end": -0.1}}, "expected 0 or more"),
    ({"clip": 0.2}, "Extra inputs are not permitted"),
])  # fmt: skip
def test_config_errors(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ACERConfig(**config)


def test_more_candidates_than_tokens() -> None:
    assert bound(tiny_policy(), top_k=260).head.out_features == 260
    words = r"optimizer 'mine' top_k: 261; expected at most the 260 tokens of policy 'tiny'; set top_k: 260"
    with pytest.raises(ConfigError, match=words):
        bound(tiny_policy(tiny_context("policy")), top_k=261)


def test_a_policy_without_action_values() -> None:
    class Plain(Table):
        heads = ()

    with pytest.raises(ConfigError, match=r"policy 'table' makes no action-value head; expected a linear head over the "
                                          r"vocabulary.*; use causal-lm"):  # fmt: skip
        bound(Plain(table(0)))


def test_a_rollout_without_what_is_needed() -> None:
    rollout = example_rollout(tiny_policy()).replace(top_ids=None, rewards=None)
    with pytest.raises(ConfigError, match=r"a rollout without top_ids, rewards; expected all that `config.needs` asks"):
        Replay(8, "optimizer 'mine'").add(rollout)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rewards_that_are_not_finite_leave_the_weights(value: float, tmp_path: Path) -> None:
    policy = tiny_policy()
    config = ACERConfig(**SMALL, micro_batch_tokens=1)  # other parts of the batch have gone backward before
    acer = ACER(config, tiny_context("optimizer", "mine", directory=tmp_path))
    acer.bind(policy, 4)
    rollout = example_rollout(policy)
    assert rollout.rewards is not None
    rollout = rollout.replace(
        rewards=rollout.rewards.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(value))
    )
    before = weights(policy)
    with pytest.raises(NumericalError, match=r"optimizer 'mine': loss (nan|inf|-inf) at step 8; .*rlhf replay"):
        acer._update(rollout, 7)
    assert all(torch.equal(before[name], now) for name, now in weights(policy).items())
    assert all(p.grad is None for p in policy.module.parameters())
    assert list((tmp_path / "failures").iterdir()), "the batch is kept"


# --- the buffer ------------------------------------------------------------------------------------------------------


def test_the_buffer_keeps_the_latest_samples_that_have_a_score() -> None:
    rollout = example_rollout()  # 8 samples, of which the last is abstained
    buffer = Replay(10, "here")
    for first in (0, 100):
        numbered = rollout.replace(sample_ids=first + torch.arange(8))
        fresh = buffer.add(numbered)
        assert fresh is not None and fresh.sample_ids.tolist() == list(range(first, first + 7))
    assert buffer.samples is not None
    assert buffer.samples.sample_ids.tolist() == [4, 5, 6, *range(100, 107)], "10 of 14: the oldest went"
    assert buffer.add(rollout.replace(mask=rollout.mask & False)) is None
    assert len(buffer) == 10


def test_samples_come_out_of_the_buffer_as_they_went_in() -> None:
    rollout = example_rollout()
    buffer = Replay(8, "here")
    buffer.add(rollout.select([0, 1]))  # 5 tokens at most
    buffer.add(rollout.select([2, 3]))  # 7
    drawn = buffer.draw(99, seed=5)
    assert drawn.samples == (NO_TEXT,) * 4, "texts are not kept"
    assert drawn.scores == {} and drawn.values is None and drawn.score is None
    for place, row in enumerate(drawn.sample_ids.tolist()):
        found, expected = drawn.select([place]), rollout.select([row])
        for name, tensor in found.tensors().items():
            torch.testing.assert_close(tensor, getattr(expected, name))


def test_draws_depend_on_the_seed_alone_and_have_no_repeats() -> None:
    buffer = Replay(8, "here")
    buffer.add(example_rollout())
    first, again, other = (buffer.draw(5, seed).sample_ids.tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 5 and set(first) <= set(range(7))


def test_old_samples_are_evaluated_at_the_latest_temperature() -> None:
    buffer = Replay(20, "here")
    buffer.add(example_rollout().replace(temperature=1.0))
    buffer.add(example_rollout().replace(temperature=0.7))
    assert buffer.draw(3, 0).temperature == 0.7


def test_the_buffer_fits_a_checkpoint(tmp_path: Path) -> None:
    buffer, other = Replay(20, "here"), Replay(20, "here")
    for name, part in (("empty", Replay(20, "here")), ("full", buffer)):
        if name == "full":
            part.add(example_rollout().replace(temperature=0.7))
        checkpoint.save(tmp_path / name, part.state_dict())
        other.load_state_dict(checkpoint.load(tmp_path / name))
        assert len(other) == len(part)
    a, b = buffer.draw(5, 0), other.draw(5, 0)
    assert a.temperature == b.temperature and a.tensors().keys() == b.tensors().keys()
    assert all(torch.equal(tensor, b.tensors()[name]) for name, tensor in a.tensors().items())
    other.load_state_dict(checkpoint.load(tmp_path / "empty"))
    assert len(other) == 0, "what is loaded takes the place of what was there"


def test_one_update_from_fresh_samples_and_so_many_from_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    acer = bound(policy, prompts_per_step=2, samples_per_prompt=2, replay_ratio=3, replay_size=6)
    lots: list[int] = []
    draw = acer.replay.draw
    monkeypatch.setattr(acer.replay, "draw", lambda count, seed: lots.append(seed) or draw(count, seed))
    seen: list[list[tuple[int, ...]]] = []

    def update(batch: Rollout, step: int) -> dict[str, float]:
        seen.append([tuple(ids[mask].tolist()) for ids, mask in zip(batch.response_ids, batch.attention, strict=True)])
        return {"policy/loss": float(len(seen))}

    monkeypatch.setattr(acer, "_update", update)
    stats = steps(acer, example_data(policy, acer.config.needs), 0, 3)
    assert [len(batch) for batch in seen] == [4, 4, 4, 4, 4, 6, 6, 6, 4, 6, 6, 6], "at most what there is"
    assert [s["replay/samples"] for s in stats] == [4, 8, 10]
    assert [s["policy/updates"] for s in stats] == [4, 4, 4]
    assert [s["policy/loss"] for s in stats] == [2.5, 6.5, 10.5], "means over the updates of a step"
    assert seen[9] != seen[10] and len(set(lots)) == 9, "another draw for each update of each step"
    assert acer.replay.samples is not None
    assert len(acer.replay.samples.groups[-4:].unique()) == 2, "two samples to each of two prompts"
    assert set(seen[9]) & {*seen[0], *seen[4]}, "earlier samples come again"
    assert set(seen[8]) & {ids for batch in seen[9:] for ids in batch}, "today's among them"


# --- the average policy ----------------------------------------------------------------------------------------------


def test_the_average_follows_the_policys_own_weights() -> None:
    policy = tiny_policy(lora={"r": 2})
    acer = bound(policy, average_decay=0.75, replay_ratio=0)
    assert acer.average and all("lora_" in name for name in acer.average), (
        "adapters only; neither base nor action values"
    )
    data = example_data(policy, acer.config.needs)
    by_hand = {name: weights(policy)[name] for name in acer.average}
    for step in range(3):
        steps(acer, data, step, 1)
        by_hand = {name: 0.75 * old + 0.25 * weights(policy)[name] for name, old in by_hand.items()}
    for name, weight in by_hand.items():
        torch.testing.assert_close(acer.average[name], weight)
    assert any(not torch.equal(acer.average[name], weights(policy)[name]) for name in acer.average)


def test_the_average_speaks_for_itself_and_the_policy_is_put_back() -> None:
    policy = precise()
    acer = bound(policy)
    rollout = example_rollout(policy)
    before, other = weights(policy), tiny_policy(tiny_context("policy", dtype="float64"))
    with torch.no_grad():
        for p in other.module.parameters():
            p.mul_(0.5)
    mine = dict(other.module.named_parameters())
    acer.average = {name: mine[name].detach().clone() for name in acer.average}
    expected = other.forward(rollout, Needs(distribution=True)).distribution
    told: list[dict[str, Tensor]] = []
    policy.weights_changed = lambda: told.append(weights(policy))
    torch.testing.assert_close(acer._average_policy(rollout), expected)
    assert all(torch.equal(before[name], now) for name, now in weights(policy).items())
    assert all(torch.equal(acer.average[name], mine[name]) for name in acer.average)
    assert [torch.equal(seen[name], mine[name]) for seen in told for name in list(acer.average)[:1]] == [True, False]


def test_the_trust_region_holds_the_policy_near_its_average() -> None:
    """The same samples over and over: with a narrow region the policy moves less far from where it was."""

    def moved(delta: float | None) -> float:
        policy = precise()
        acer = bound(policy, trust_region=delta, average_decay=0.999, learning_rate=1e-3, q_coef=1e-6)
        rollout = example_rollout(policy)
        before = policy.forward(rollout, Needs(distribution=True)).distribution.detach()
        for _ in range(10):
            acer._update(rollout, 0)
        after = policy.forward(rollout, Needs(distribution=True)).distribution.detach()
        return float((before.exp() * (before - after)).sum(-1)[rollout.mask].mean())

    assert moved(1e-4) < 0.5 * moved(None)


def test_a_wide_trust_region_changes_nothing() -> None:
    policy = precise()
    rollout = example_rollout(policy)
    free, wide = (gradients(bound(policy, trust_region=delta), rollout) for delta in (None, 1e3))
    assert torch.equal(free, wide)


# --- beyond a cut ----------------------------------------------------------------------------------------------------


def test_v_beyond_a_cut_is_that_of_the_state_after_the_last_token() -> None:
    policy = precise()
    rollout = example_rollout(policy)  # row 2 was cut; it has 7 tokens, as many as there are columns
    acer = bound(policy, bootstrap_truncated=True)
    beyond = acer._beyond(rollout)
    assert beyond is not None and beyond.nonzero().tolist() == [[2]]
    short = rollout.select([2])
    last = short.replace(  # the same text, the last token of which is only read
        prompt_ids=torch.cat([short.prompt_ids, short.response_ids], 1),
        prompt_mask=torch.cat([short.prompt_mask, short.attention], 1),
        response_ids=short.response_ids[:, :1], attention=short.attention[:, :1], mask=short.mask[:, :1],
    )  # fmt: skip
    out = policy.forward(last, Needs(heads=1, hidden=True, distribution=True))
    expected = (out.distribution.exp() * policy.heads[0](out.hidden)).sum(-1)[0, 0]
    torch.testing.assert_close(beyond[2], expected)
    assert bound(policy)._beyond(rollout) is None, "0 unless asked for"
    free, held = (gradients(bound(policy, bootstrap_truncated=b), rollout) for b in (False, True))
    assert apart(free, held) > 1e-3


def test_a_batch_in_which_all_are_cut_is_finite() -> None:
    policy = tiny_policy()
    rollout = example_rollout(policy)
    rollout = rollout.replace(truncated=torch.ones_like(rollout.truncated))
    stats = bound(policy, bootstrap_truncated=True)._update(rollout, 0)
    assert all(math.isfinite(value) for value in stats.values())
    assert all(bool(w.isfinite().all()) for w in weights(policy).values())


# --- what must not change anything -----------------------------------------------------------------------------------


def full(policy: Any, **config: Any) -> ACER:
    """All parts of the loss at work: a narrow region around another policy, entropy, a low bound on ratios."""
    acer = bound(policy, entropy_coef=0.1, trust_region=0.01, truncation=1.0, bootstrap_truncated=True, **config)
    noise = torch.Generator().manual_seed(3)
    for weight in acer.average.values():
        weight.add_(0.02 * torch.randn(weight.shape, generator=noise, dtype=torch.float64).to(weight))
    return acer


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_micro_batches_and_processes_change_nothing(
    dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = precise() if dtype == "float64" else tiny_policy()
    rollout = example_rollout(policy).select(range(7))
    whole = gradients(full(policy), rollout)
    for tokens in (1, 40):
        assert apart(whole, gradients(full(policy, micro_batch_tokens=tokens), rollout)) <= tolerance

    monkeypatch.setattr(module, "summed", lambda stats, accelerator: stats)
    parts = []
    for rank in range(2):
        acer = full(policy)
        acer.context = Context("optimizer", "mine", accelerator=_Process(rank))  # type: ignore[arg-type]
        parts.append(gradients(acer, rollout))
    assert apart(whole, parts[0] + parts[1]) <= tolerance
    assert apart(whole, parts[0]) > 0.01


class _Process:
    num_processes = 2

    def __init__(self, rank: int) -> None:
        self.process_index = rank


def test_padding_order_and_junk_change_nothing() -> None:
    policy = precise()
    rollout = example_rollout(policy).select(range(7))  # row 0 has a hole
    assert rollout.top_logprobs is not None and rollout.top_ids is not None and rollout.rewards is not None
    expected, logged = gradients(full(policy), rollout), full(policy).loss(rollout, 1.0)[1]
    out = ~rollout.mask
    junk = rollout.replace(
        rewards=rollout.rewards.masked_fill(out, math.nan), logprobs=rollout.logprobs.masked_fill(out, math.nan),
        top_logprobs=rollout.top_logprobs.masked_fill(out[..., None], math.nan),
        top_ids=rollout.top_ids.masked_fill(out[..., None], 9),
        response_ids=rollout.response_ids.masked_fill(~rollout.attention, 11),
    )  # fmt: skip
    for name, other in {
        "junk": junk,
        "order": rollout.select([3, 5, 0, 2, 6, 1, 4]),
        "padding": _wider(rollout),
    }.items():
        assert apart(expected, gradients(full(policy), other)) <= 1e-10, name
        torch.testing.assert_close(full(policy).loss(other, 1.0)[1], logged, msg=name)


def test_means_are_over_the_valid_tokens_of_an_update() -> None:
    """Where the policy is its own behaviour all ratios are 1, so their mean is too, whatever the mask leaves out."""
    rollout = every_sequence(table(0), table(2))
    mask = rollout.mask.clone()
    mask[::3, 0] = False
    acer = bound(Table(table(0)))
    assert acer._update(rollout.replace(mask=mask), 0)["policy/ratio"] == pytest.approx(1)


def test_a_scheduled_entropy_bonus_is_that_of_the_step() -> None:
    policy, rollout = Table(table(0)), every_sequence(table(1), table(2))
    falling = bound(policy, entropy_coef={"schedule": "linear", "start": 0.4})
    falling.progress = (3, 4)
    assert torch.equal(gradients(falling, rollout), gradients(bound(policy, entropy_coef=0.1), rollout))


def _wider(rollout: Rollout) -> Rollout:
    pads = {
        name: (2, 0) if name.startswith("prompt_") else (0, 3) for name, t in rollout.tensors().items() if t.dim() > 1
    }
    return rollout.replace(**{
        name: torch.nn.functional.pad(getattr(rollout, name), (0, 0) * (getattr(rollout, name).dim() - 2) + pad)
        for name, pad in pads.items()
    })  # fmt: skip


def test_a_candidate_that_was_taken_counts_once() -> None:
    """Whether the token taken is among the likeliest makes no difference to the correction of that token."""
    policy = Table(table(0))
    policy.set_q(table(2))
    rollout = every_sequence(table(1, scale=6.0), table(2))
    assert rollout.top_ids is not None and rollout.top_logprobs is not None
    acer = ACER(ACERConfig(top_k=1, trust_region=None, truncation=0.5), Context("optimizer", "mine"))
    acer.bind(policy, 1)
    taken = rollout.replace(top_ids=rollout.response_ids[..., None], top_logprobs=rollout.logprobs[..., None])
    doubled = rollout.replace(top_ids=torch.cat([rollout.top_ids, taken.top_ids], -1),
                              top_logprobs=torch.cat([rollout.top_logprobs, rollout.logprobs[..., None]], -1))  # fmt: skip
    assert torch.equal(gradients(acer, doubled), gradients(acer, rollout))
    assert not torch.equal(gradients(acer, taken), gradients(acer, rollout)), "the others do count"


# --- resuming --------------------------------------------------------------------------------------------------------


def test_resuming_continues_bit_for_bit(tmp_path: Path) -> None:
    def fresh() -> tuple[Any, ACER, Any]:
        policy = tiny_policy()
        acer = bound(policy, entropy_coef={"schedule": "linear", "start": 0.1})
        return policy, acer, example_data(policy, acer.config.needs)

    policy, acer, data = fresh()
    whole = steps(acer, data, 0, 4)
    half = fresh()
    steps(half[1], half[2], 0, 2)
    checkpoint.save(tmp_path / "state", {"parts": [part.state_dict() for part in half]})
    resumed = fresh()
    for part, state in zip(resumed, checkpoint.load(tmp_path / "state")["parts"], strict=True):
        part.load_state_dict(state)
    assert steps(resumed[1], resumed[2], 2, 2) == whole[2:]
    assert all(torch.equal(now, weights(resumed[0])[name]) for name, now in weights(policy).items())
    assert all(torch.equal(now, resumed[1].average[name]) for name, now in acer.average.items())
    assert json.dumps(resumed[1].state_dict()["gradient"]["taken"]) == "12", "4 steps of 1 + 2 updates"
