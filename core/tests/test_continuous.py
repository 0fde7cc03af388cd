"""transformers' continuous batching draws what the policy says, and leaves the policy as it was."""

from __future__ import annotations

import threading

import pytest
import torch
from rlhf_core.errors import ConfigError, RunError
from rlhf_core.interfaces import Context, Needs, Sampling
from rlhf_core.policies import continuous
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import ContinuousConfig, FreshModel, FreshTokenizer, Lora, Seq2SeqLMConfig
from rlhf_core.policies.continuous import Continuous
from rlhf_core.policies.seq2seq_lm import Seq2SeqLM
from rlhf_core.testing import tiny_policy

from .toys import make_context, make_policy, prompts

GREEDY = Sampling(max_new_tokens=10, temperature=0)
FREE = Sampling(max_new_tokens=10)
TOKENIZER = FreshTokenizer(text=["texts"], vocab_size=300)


def nudge(policy, size=0.3):
    """Move the weights, as training would, so far that no distribution is even."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in policy.module.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn(p.shape, generator=generator))
    policy.weights_changed()
    return policy


def engine(slots=256):
    return Continuous(ContinuousConfig(slots=slots), Context(kind="engine", id="cb"))


def drawing(policy, slots=256):
    """`policy`, with continuous batching behind it from now on."""
    policy.__dict__["engine"] = engine(slots)
    return policy


def tokens(rollout):
    return [row[mask].tolist() for row, mask in zip(rollout.response_ids, rollout.attention, strict=True)]


POLICIES = {
    "llama": lambda: make_policy("llama"),
    "gpt2": lambda: make_policy("gpt2"),
    "checkpointing": lambda: make_policy("llama", gradient_checkpointing=True),
    "lora": lambda: make_policy("llama", lora=Lora(r=2)),
    "lora and critic": lambda: make_policy("llama", lora=Lora(r=2), critic="adapter"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_likeliest_tokens_are_those_of_the_built_in_engine(name):
    policy = nudge(POLICIES[name]())
    policy.prepare(Needs(values=True))
    policy.set_reference("base")
    usual = policy.generate(prompts() * 2, GREEDY, seed=0)
    with policy.as_reference():
        usual_reference = policy.generate(prompts(), GREEDY, seed=0)
    drawing(policy)
    drawn = policy.generate(prompts() * 2, GREEDY, seed=0)
    assert tokens(drawn) == tokens(usual)
    torch.testing.assert_close(drawn.logprobs, usual.logprobs, atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn.behaviour_logprobs, torch.zeros_like(drawn.logprobs))
    with policy.as_reference():
        reference = policy.generate(prompts(), GREEDY, seed=0)
    assert tokens(reference) == tokens(usual_reference) != tokens(usual)[: len(prompts())]


def test_the_policy_speaks_whoever_spoke_last():
    policy = nudge(make_policy(lora=Lora(r=2)))
    ours = engine().draw(policy, [[5, 6, 7]], GREEDY, seed=0, sample_ids=[0]).ids
    with policy.base.speaking("nobody"):
        again = engine().draw(policy, [[5, 6, 7]], GREEDY, seed=0, sample_ids=[0]).ids
    assert torch.equal(again, ours)


def test_four_bit_weights():
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    policy = make_policy("llama", lora=Lora(r=2), sizes=sizes, quantization={})
    nudge(policy)
    usual = policy.generate(prompts(), GREEDY, seed=0)
    assert tokens(drawing(policy).generate(prompts(), GREEDY, seed=0)) == tokens(usual)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logprobs_equal_rescored_ones(temperature):
    policy = drawing(nudge(make_policy()))
    rollout = policy.generate(prompts() * 3, FREE.model_copy(update={"temperature": temperature}), seed=3)
    again = policy.forward(rollout, Needs()).logprobs
    assert rollout.behaviour_logprobs is None
    assert (again - rollout.logprobs).abs().max() < 1e-4
    assert (again - rollout.logprobs).abs().mean() < 1e-5


def test_other_precisions_record_nothing():
    policy = nudge(make_policy(context=make_context(dtype="bfloat16")))
    draw = engine().draw(policy, [[5, 6]], FREE, seed=0, sample_ids=[0])
    assert draw.logprobs is None
    policy = nudge(make_policy())
    with torch.autocast("cpu", torch.bfloat16):
        assert engine().draw(policy, [[5, 6]], FREE, seed=0, sample_ids=[0]).logprobs is None


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_come_as_often_as_the_policy_says(temperature):
    policy, count = nudge(make_policy(), 0.15), 1500
    sampling = Sampling(max_new_tokens=1, temperature=temperature)
    draw = engine().draw(policy, [[5, 6, 7]] * count, sampling, seed=1, sample_ids=range(count))
    with torch.no_grad():
        logits = policy.network.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    expected = (logits / temperature).softmax(-1) * count
    found = torch.bincount(draw.ids[:, 0], minlength=len(expected)).float()
    many = expected >= 5
    observed, wanted = (torch.cat([x[many], x[~many].sum()[None]]) for x in (found, expected))
    chi, degrees = float(((observed - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    assert degrees > 20
    assert abs(chi - degrees) < 4 * (2 * degrees) ** 0.5  # mean and spread of a chi-square
    uneven = torch.full_like(wanted, count / len(wanted))
    assert float(((observed - uneven) ** 2 / uneven).sum()) > 10 * degrees  # it would notice


def test_truncated_distributions():
    policy = drawing(nudge(make_policy()))
    one = policy.generate(prompts(), Sampling(max_new_tokens=10, top_k=1), seed=0)
    assert tokens(one) == tokens(policy.generate(prompts(), GREEDY, seed=0))
    torch.testing.assert_close(one.behaviour_logprobs, torch.zeros_like(one.behaviour_logprobs))
    three = policy.generate(prompts() * 4, Sampling(max_new_tokens=10, top_k=3, temperature=2.0), seed=0)
    top = policy.forward(three, Needs(top_k=3))
    assert (top.top_ids == three.response_ids[..., None]).any(-1)[three.attention].all()
    renormalised = (three.logprobs - top.top_logprobs.logsumexp(-1))[three.attention]
    torch.testing.assert_close(three.behaviour_logprobs[three.attention], renormalised, atol=1e-4, rtol=0)
    half = policy.generate(prompts() * 4, Sampling(max_new_tokens=10, top_p=0.5), seed=0)
    likelier = policy.forward(half, Needs(distribution=True)).distribution
    above = torch.where(likelier > half.logprobs[..., None] + 1e-5, likelier.exp(), 0.0).sum(-1)
    assert (above[half.attention] < 0.5 + 1e-4).all()  # what is likelier than the token taken has not filled the half


def test_a_draw_is_seeded_and_touches_no_other_randomness():
    policy, ids = nudge(make_policy()), [[5, 6, 7], [8], [9, 10]]

    def draw(seed, sample_ids=(0, 1, 2)):
        return engine().draw(policy, ids, FREE, seed=seed, sample_ids=sample_ids).ids

    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    first = draw(1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(draw(1), first)
    others = draw(2), draw(1, (3, 4, 5))
    assert all(other.shape != first.shape or not torch.equal(other, first) for other in others)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_policy_is_left_as_it_was(attention):
    policy = nudge(make_policy(frozen_layers=1))
    model = policy.network.model
    model.set_attn_implementation(attention)
    before = {name: (p.clone(), p.requires_grad, p.data_ptr()) for name, p in model.named_parameters()}
    threads = set(threading.enumerate())
    drawing(policy).generate(prompts(), FREE, seed=0)
    assert set(threading.enumerate()) <= threads
    assert model.config._attn_implementation == attention
    assert not hasattr(model, "_cached_continuous_batching_manager")
    for name, p in model.named_parameters():
        weights, trained, place = before[name]
        assert torch.equal(p, weights) and p.requires_grad == trained and p.data_ptr() == place and p.grad is None


def test_few_slots_and_prompts_in_parts_change_nothing(monkeypatch):
    policy = nudge(make_policy())
    ids = [[i % 90 + 3 for i in range(length)] for length in (1, 40, 3, 17, 2, 33, 5)]
    draws = []
    for slots, part in ((256, 2048), (2, 2048), (3, 4)):
        monkeypatch.setattr(continuous, "PROMPT_TOKENS", part)
        draws.append(engine(slots).draw(policy, ids, GREEDY, seed=0, sample_ids=range(7)))
    for other in draws[1:]:
        assert torch.equal(other.ids, draws[0].ids) and torch.equal(other.attention, draws[0].attention)


def test_ends_and_lengths():
    policy = nudge(make_policy(), 0.15)
    eos = policy.codec.eos
    draw = engine().draw(policy, [[5, 6, 7]] * 200, Sampling(max_new_tokens=40), seed=0, sample_ids=range(200))
    rows = [row[mask].tolist() for row, mask in zip(draw.ids, draw.attention, strict=True)]
    assert 0 < int(draw.truncated.sum()) < 200
    for row, truncated in zip(rows, draw.truncated.tolist(), strict=True):
        assert eos not in row[:-1]
        assert len(row) == 40 if truncated else row[-1] == eos
    empty = engine().draw(policy, [], FREE, seed=0, sample_ids=[])
    assert len(empty.ids) == 0 and len(empty.truncated) == 0


def fresh(architecture, **sizes):
    return tiny_policy(fresh=FreshModel(architecture=architecture, sizes=sizes, tokenizer=TOKENIZER))


def _with_convolutions():
    policy = make_policy()
    policy.network.model.config.layer_types = ["conv", "full_attention"]
    policy.network.model.set_attn_implementation("eager")
    return policy


UNFIT = {
    "whose attention transformers cannot exchange": lambda: fresh("bloom", hidden_size=16, n_layer=1, n_head=2),
    "whose capped attention": lambda: fresh(
        "gemma2", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8),
    "which transformers does not batch": _with_convolutions,
    "an encoder-decoder": lambda: Seq2SeqLM(
        Seq2SeqLMConfig(fresh=FreshModel(architecture="t5", tokenizer=TOKENIZER, sizes={
            "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2})), make_context()),
    "a policy of class object": object,
}  # fmt: skip


@pytest.mark.parametrize("words", UNFIT)
def test_policies_it_would_draw_wrongly_are_refused(words):
    policy = UNFIT[words]()
    with pytest.raises(ConfigError, match=words) as caught:
        engine().draw(policy, [[5]], FREE, seed=0, sample_ids=[0])
    assert "engine 'cb'" in str(caught.value)
    assert "refill" in str(caught.value) or "draw by itself" in str(caught.value)
    if policy.__class__ is CausalLM:
        assert policy.network.model.config._attn_implementation in ("eager", "sdpa")


def test_steering_is_refused():
    policy = make_policy()
    policy.prepare(Needs(heads=1))
    policy.steering = 1.0
    with pytest.raises(ConfigError, match=r"action values steer.*refill"):
        drawing(policy).generate(prompts(), FREE, seed=0)


@pytest.mark.parametrize("option", [{"stop": (".",)}, {"min_new_tokens": 3}])
def test_samplings_it_has_no_means_for_are_refused(option):
    name = next(iter(option))
    with pytest.raises(ConfigError, match=f"{name}.*leave `{name}` out, or choose the engine `refill`"):
        engine().draw(make_policy(), [[5]], Sampling(max_new_tokens=5, **option), seed=0, sample_ids=[0])


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("no such kernel", RunError, "engine 'cb': transformers' continuous batching failed: no such kernel.*refill"),
        ("DefaultCPUAllocator: can't allocate memory", RuntimeError, "^DefaultCPUAllocator"),  # the sampler explains it
    ],
)
def test_a_thread_that_fails_is_an_error_and_leaves_nothing_behind(monkeypatch, said, error, words):
    policy, threads = make_policy(), set(threading.enumerate())
    model = policy.network.model
    model.set_attn_implementation("eager")

    def fail(*args, **kwargs):
        raise RuntimeError(said)

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(error, match=words):
        engine().draw(policy, [[5]], FREE, seed=0, sample_ids=[0])
    assert set(threading.enumerate()) <= threads
    assert model.config._attn_implementation == "eager"
