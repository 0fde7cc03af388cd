"""Scoring in parts equals scoring whole, value and gradient, and never holds the logits of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_core.interfaces import Needs, Sampling
from rlhf_core.policies import network as network_module
from rlhf_core.policies.config import Lora
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .test_engines import GROUPED, load, toy_tokenizer
from .test_policy import nudge
from .test_seq2seq import make as make_seq2seq
from .toys import make_context, make_policy, prompts

VOCABULARY = 300  # of the toys; no other dimension of theirs is as large
WEIGHT = (32, VOCABULARY)  # the output layer's, turned over, and its gradient
EVERYTHING = Needs(entropy=True, top_k=3)


def parts_of(tokens: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let logits be formed for so many tokens at a time; gives the numbers in them."""
    monkeypatch.setitem(network_module.LOGITS, "cpu", tokens * VOCABULARY)
    return tokens * VOCABULARY


def exact(architecture: str = "llama", **options: Any) -> Any:
    """A policy in float64, moved as training would."""
    policy = make_policy(architecture, context=make_context(dtype="float64"), **options)
    nudge(policy)
    return policy


def sampled(policy: Any, temperature: float = 1.0) -> Any:
    return policy.generate(prompts() * 2, Sampling(max_new_tokens=9, temperature=temperature), seed=2)


class Widest(TorchDispatchMode):
    """Watches every tensor that is computed, also in backward: the largest whose rows are as long as the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.count = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if not isinstance(tensor, torch.Tensor) or not tensor.dim() or tensor.shape[-1] != VOCABULARY:
                continue
            if tensor.shape == WEIGHT:
                continue
            self.count += 1
            self.numbers = max(self.numbers, tensor.numel())
        return found


# --- against a softmax over whole logits ------------------------------------------------------------------------------


def plainly(policy: Any, rollout: Any, temperature: float) -> tuple[torch.Tensor, ...]:
    """logprobs, entropy and top three of every row, from transformers' forward over its text alone."""
    found: list[list[torch.Tensor]] = [[], [], []]
    for row in range(len(rollout)):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row]]
        response = rollout.response_ids[row][rollout.attention[row]]
        logits = policy.network.model(input_ids=torch.cat([prompt, response])[None]).logits[0]
        logp = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)  # (T, V)
        found[0].append(logp[range(len(response)), response])
        found[1].append(-(logp.exp() * logp).sum(-1))
        found[2].append(logp.sort(-1, descending=True).values[:, :3])
    return tuple(torch.cat(column) for column in found)


def gradients(policy: Any, columns: Any) -> dict[str, torch.Tensor]:
    """Of a sum of everything, each number with a weight of its own."""
    policy.module.zero_grad(set_to_none=True)
    noise = torch.Generator().manual_seed(5)
    weighted = [(torch.randn(column.shape, generator=noise, dtype=torch.float64) * column).sum() for column in columns]
    sum(weighted).backward()
    return {name: p.grad.clone() for name, p in policy.network.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("tokens", [1, 4, 7, 10_000])
@pytest.mark.parametrize(("architecture", "temperature"), [("llama", 0.7), ("gpt2", 1.0)])
def test_scores_are_those_of_whole_logits(
    architecture: str, temperature: float, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = exact(architecture)
    rollout = sampled(policy, temperature)
    mask = rollout.attention
    expected = plainly(policy, rollout, temperature)
    wanted = gradients(policy, expected)
    parts_of(tokens, monkeypatch)
    assert policy.network.plain_head
    out = policy.forward(rollout, EVERYTHING)
    columns = [out.logprobs[mask], out.entropy[mask], out.top_logprobs[mask]]
    for column, right in zip(columns, expected, strict=True):
        assert column.dtype == torch.float64
        torch.testing.assert_close(column, right, atol=1e-10, rtol=1e-10)
    found = gradients(policy, columns)
    assert found.keys() == wanted.keys() and any(g.abs().max() > 0.01 for g in found.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-10, rtol=1e-10, msg=name)
    for column in (out.logprobs, out.entropy, out.top_logprobs, out.top_ids):
        assert not column[~mask].any()


@pytest.mark.parametrize("lora", [Lora(r=2), Lora(r=2, target_modules=["q_proj", "lm_head"])])
def test_adapters_get_the_gradient_of_whole_logits(lora: Lora, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = exact(lora=lora)
    rollout = sampled(policy)
    wanted = gradients(policy, plainly(policy, rollout, 1.0)[:1])
    parts_of(3, monkeypatch)
    found = gradients(policy, [policy.forward(rollout, Needs()).logprobs[rollout.attention]])
    assert found.keys() == wanted.keys() == policy.network.trainable().keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize("tokens", [2, 10_000])
@pytest.mark.parametrize("heads", [0, 2])
def test_tokens_with_holes_between_them(heads: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any pattern of tokens, also none; steered logits where action values steer, and the model's own if asked."""
    policy = exact()
    policy.prepare(Needs(heads=heads))
    for head in policy.heads:
        torch.nn.init.normal_(head.weight)
    policy.steering = 0.5 if heads else 0.0
    rollout = sampled(policy)
    parts_of(tokens, monkeypatch)
    network, shape = policy.network, rollout.response_ids.shape
    inputs = (rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids, rollout.attention)
    found = network.response_states(*inputs)
    states = found.states[:, :-1]
    own = network.model.lm_head(states)
    values = torch.stack([head(states) for head in policy.heads]).amin(0) if heads else torch.zeros_like(own)
    noise = torch.Generator().manual_seed(1)
    for mask in (torch.rand(shape, generator=noise) < 0.4, torch.zeros(shape).bool(), torch.ones(shape).bool()):
        for steer in (True, False):
            logp = (own + (0.5 * values if steer else 0)).log_softmax(-1)
            scored = network.scores(found, rollout.response_ids, mask, steer=steer, top_k=2)
            chosen = logp.gather(-1, rollout.response_ids[..., None])[..., 0].masked_fill(~mask, 0)
            torch.testing.assert_close(scored.logprobs, chosen, atol=1e-10, rtol=1e-10)
            top = logp.topk(2)
            assert torch.equal(scored.top_ids, top.indices.masked_fill(~mask[..., None], 0))
            torch.testing.assert_close(scored.top_logprobs, top.values.masked_fill(~mask[..., None], 0))
            assert scored.entropy is None


# --- what is alive ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "lora", "mixed"])
def test_no_logits_of_a_batch_are_ever_alive(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("gpt2" if kind == "gpt2" else "llama", lora=Lora(r=2) if kind == "lora" else None)
    nudge(policy)
    rollout = sampled(policy)
    assert policy.network.plain_head
    most = parts_of(4, monkeypatch)
    assert int(rollout.attention.sum()) > 3 * 4
    watch, saved = Widest(), []
    with watch, torch.autocast("cpu", torch.bfloat16, enabled=kind == "mixed"):
        with saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
            out = policy.forward(rollout, EVERYTHING)
        forward = watch.count
        (out.logprobs.sum() + out.entropy.sum() + out.top_logprobs.sum()).backward()
    assert forward > 20 and watch.count > forward + 20  # parts, and parts again
    assert 0 < watch.numbers <= most
    assert saved and {tuple(shape) for shape in saved if shape[-1:] == (VOCABULARY,)} <= {WEIGHT}  # nor kept for later


def test_the_watch_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    rollout = sampled(policy)
    with Widest() as watch:
        policy.forward(rollout, Needs())
    assert watch.numbers == int(rollout.attention.sum()) * VOCABULARY
    monkeypatch.setitem(network_module.LOGITS, "cpu", VOCABULARY - 1)  # not even one row: then one at a time
    with Widest() as watch:
        policy.forward(rollout, Needs()).logprobs.sum().backward()
    assert watch.numbers == VOCABULARY


# --- heads with something behind them ---------------------------------------------------------------------------------

HEADS: dict[str, tuple[dict[str, Any], bool]] = {
    "gemma2": ({**GROUPED, "head_dim": 8, "final_logit_softcapping": 2.0}, False),
    "cohere": ({**GROUPED, "logit_scale": 0.25}, False),
    "granite": ({**GROUPED, "logits_scaling": 3.0}, False),
    "gemma": ({**GROUPED, "head_dim": 8}, True),  # a scale of its own in front of the layers
    "opt": ({"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "word_embed_proj_dim": 16}, True),
}  # fmt: skip


def assert_as_transformers(policy: Any, **options: Any) -> None:
    """Scores, and what is recorded while drawing, are those of transformers' own logits."""
    rollout = sampled(policy)
    with torch.no_grad():
        expected = plainly(policy, rollout, 1.0)
        out = policy.forward(rollout, EVERYTHING)
    mask = rollout.attention
    for column, right in zip((out.logprobs, out.entropy, out.top_logprobs), expected, strict=True):
        torch.testing.assert_close(column[mask], right, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(rollout.logprobs[mask], expected[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_other_families(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, plain = HEADS[name]
    policy = load(tmp_path, name, sizes, toy_tokenizer())
    nudge(policy)
    nudge(policy, seed=1)
    assert policy.network.plain_head == plain
    parts_of(4, monkeypatch)
    assert_as_transformers(policy)
    policy.prepare(Needs(values=True))
    torch.nn.init.normal_(policy.network.value_head.weight)
    rollout = sampled(policy)
    torch.testing.assert_close(policy.forward(rollout, Needs(values=True)).values, rollout.values, atol=1e-4, rtol=1e-4)


def test_a_cap_is_noticed_while_logits_are_small(tmp_path: Path) -> None:
    """Gemma 2 caps logits at 30, which is nothing to those of a new model and much to those of a trained one."""
    sizes, _ = HEADS["gemma2"]
    policy = load(tmp_path, "gemma2", {**sizes, "final_logit_softcapping": 30.0}, toy_tokenizer())
    assert_as_transformers(policy)
    with torch.no_grad():
        policy.network.model.get_output_embeddings().weight.mul_(60)
    policy.weights_changed()
    assert_as_transformers(policy)


@pytest.mark.parametrize("tied", [True, False])
def test_t5_scales_states_where_embeddings_are_tied(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_seq2seq("t5", sizes={"tie_word_embeddings": tied})
    nudge(policy)
    assert policy.network.plain_head is not tied
    assert_encoder_decoder(policy, monkeypatch)


def test_the_bias_of_bart(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_seq2seq("bart")
    nudge(policy)
    noise = torch.Generator().manual_seed(0)
    policy.network.model.final_logits_bias.copy_(torch.randn(1, VOCABULARY, generator=noise))
    assert not policy.network.plain_head
    assert_encoder_decoder(policy, monkeypatch)


def assert_encoder_decoder(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against `model(input_ids, labels=response)`, which shifts the labels by itself."""
    parts_of(4, monkeypatch)
    rollout = sampled(policy)
    with torch.no_grad():
        again = policy.forward(rollout, EVERYTHING)
        for row in range(len(rollout)):
            prompt = rollout.prompt_ids[row][rollout.prompt_mask[row]][None]
            response = rollout.response_ids[row][rollout.attention[row]]
            logp = policy.network.model(input_ids=prompt, labels=response[None]).logits[0].log_softmax(-1)
            n = len(response)
            chosen = logp[range(n), response]
            torch.testing.assert_close(again.logprobs[row, :n], chosen, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(rollout.logprobs[row, :n], chosen, atol=1e-4, rtol=0)
            torch.testing.assert_close(again.entropy[row, :n], -(logp.exp() * logp).sum(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_asking_what_a_head_does_leaves_no_trace(training: bool) -> None:
    policy = make_policy("gpt2")  # its dropout is 0.1
    policy.module.train(training)
    calls: list[bool] = []
    policy.network.trunk.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert policy.network.plain_head
    assert torch.equal(torch.rand(4), expected)
    assert all(module.training == training for module in policy.module.modules())
    assert calls and not any(calls)
    calls.clear()
    assert policy.network.plain_head and not calls  # asked once
