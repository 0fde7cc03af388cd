"""The engine against a server that speaks the protocol: what it asks, what it sends and when, what it makes of answers."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from pydantic import ValidationError
from rlhf_core.errors import ConfigError, RunError
from rlhf_core.interfaces import Needs, Sampling
from rlhf_core.policies.config import Seq2SeqLMConfig
from rlhf_core.policies.seq2seq_lm import Seq2SeqLM
from rlhf_core.records import Prompt
from rlhf_core.testing import tiny_context, tiny_model, tiny_policy
from rlhf_plugin_vllm import server as server_module
from rlhf_plugin_vllm.config import VLLMConfig
from rlhf_plugin_vllm.engine import VLLM
from rlhf_plugin_vllm.server import Server
from trl.generation import vllm_client

from .toys import FakeGroup, FakeServer

FREE = Sampling(max_new_tokens=6)
SYNC = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
LLAMA = {
    "fresh": {
        **tiny_model()["fresh"],
        "architecture": "llama",
        "sizes": {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
        },
    }
}


@pytest.fixture
def group(monkeypatch):
    """vLLM and NCCL as TRL's client uses them, in so far as they are not HTTP."""
    fake = FakeGroup()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(vllm_client, "is_vllm_available", lambda *args, **kwargs: True)
    monkeypatch.setattr(vllm_client, "_HAS_STATEFUL_TRAINER_ENGINE", False)
    monkeypatch.setattr(vllm_client, "_HAS_RESET_PREFIX_CACHE_SUCCESS", False)
    monkeypatch.setattr(vllm_client, "get_ip", lambda: "127.0.0.1", raising=False)
    monkeypatch.setattr(vllm_client, "NCCLWeightTransferEngine", fake, raising=False)
    monkeypatch.setattr(vllm_client, "NCCLTrainerSendWeightsArgs", dict, raising=False)
    monkeypatch.setattr(server_module, "EVERY", 0.02)
    return fake


@pytest.fixture
def gpu(monkeypatch):
    """The policy's tensors pass for those of a GPU."""
    send = Server.send
    monkeypatch.setattr(Server, "send", lambda self, weights, device: send(self, weights, "cuda"))


@pytest.fixture
def fake(group, gpu):
    """A server, and `fake.engine()` to ask it."""
    server = FakeServer()
    with server.serving() as url:
        server.url = url
        server.engine = lambda **context: VLLM(
            VLLMConfig(base_url=url, timeout=0), tiny_context("engine", "server", **context)
        )
        yield server


def draw(engine, policy, prompts=((5, 6, 7),), sampling=FREE, seed=0, sample_ids=None):
    return engine.draw(policy, prompts, sampling, seed=seed, sample_ids=sample_ids or range(len(prompts)))


# --- drawing ---


def test_what_is_asked_for(fake):
    policy = tiny_policy()
    sampling = Sampling(max_new_tokens=9, min_new_tokens=2, temperature=0.7, top_k=5, top_p=0.9, stop=("\n", "User:"))
    draw(fake.engine(), policy, [[5, 6], [8, 9, 10]], sampling)
    first, second = fake.completions
    assert first["prompt"] == [[5, 6]] and second["prompt"] == [[8, 9, 10]]
    expected = {"model": "toy", "n": 1, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "max_tokens": 9, "min_tokens": 2,
                "stop": ["\n", "User:"], "stop_token_ids": [policy.codec.eos], "logprobs": None,
                "repetition_penalty": 1.0, "min_p": 0.0, "return_token_ids": True}  # fmt: skip
    for body in (first, second):
        assert {key: body[key] for key in expected} == expected
    fake.forget()
    draw(fake.engine(), policy, sampling=Sampling(max_new_tokens=3, temperature=0))
    (plain,) = fake.completions
    assert (plain["temperature"], plain["top_k"], plain["top_p"], plain["min_tokens"]) == (0, 0, 1.0, 0)
    assert "stop" not in plain


def test_every_sample_has_a_seed_of_its_own(fake):
    policy, engine = tiny_policy(), fake.engine()

    def seeds(prompts, seed, sample_ids):
        fake.forget()
        draw(engine, policy, prompts, seed=seed, sample_ids=sample_ids)
        return [body["seed"] for body in fake.completions]

    group_of_equals = seeds([[5]] * 8, 1, range(8))
    assert len(set(group_of_equals)) == 8
    assert all(0 <= seed < 2**63 for seed in group_of_equals)
    assert seeds([[3], [4]], 1, [6, 2])[1] in group_of_equals  # by its id, whatever else is in the batch
    assert not set(seeds([[5]] * 8, 2, range(8))) & set(group_of_equals)


def test_responses_come_in_the_order_of_prompts_and_the_policy_evaluates_them(fake):
    policy = tiny_policy()
    eos = policy.codec.eos

    def reversed_later(body):
        (ids,) = body["prompt"]
        time.sleep(0.02 / len(ids))  # the longest prompt answers first
        return [[*ids[::-1][:5], eos]]

    fake.responses = reversed_later
    policy.__dict__["engine"] = fake.engine()
    texts = ["a", "some more", "a prompt that is long"]
    threads = set(threading.enumerate())
    rollout = policy.generate([Prompt(text=text) for text in texts], FREE, seed=0)
    assert {t for t in set(threading.enumerate()) - threads if "process_request" not in t.name} == set()
    for row, text in enumerate(texts):
        ids = policy.codec.encode_prompt(Prompt(text=text), 0)
        found = rollout.response_ids[row][rollout.attention[row]].tolist()
        assert found == [*ids[::-1][:5], eos]
    assert rollout.logprobs[rollout.attention].lt(0).all()
    torch.testing.assert_close(rollout.logprobs, policy.forward(rollout, Needs()).logprobs)
    assert rollout.truncated.tolist() == [False, False, False]


def test_what_counts_as_cut(fake):
    policy = tiny_policy()
    eos, stop = policy.codec.eos, policy.codec.encode_response(Prompt(text="a"), " END")[:-1]
    answers = {1: [3, 4, 5, 6, 7, 8], 2: [3, 4, 5, 6, 7, eos], 3: [3, eos], 4: [3, 4, *stop][-6:], 5: [3, 9]}
    assert len(answers[4]) == 6  # the stop string fills the response
    fake.responses = lambda body: [answers[len(body["prompt"][0])]]
    sampling = Sampling(max_new_tokens=6, stop=("END",))
    drawn = draw(fake.engine(), policy, [[5] * n for n in answers], sampling)
    assert drawn.truncated.tolist() == [True, False, False, False, False]
    assert drawn.attention.sum(1).tolist() == [6, 6, 2, 6, 2]
    assert drawn.ids[2].tolist() == [3, eos] + [policy.codec.pad] * 4
    assert drawn.logprobs is None and drawn.behaviour is None and drawn.values is None
    assert draw(fake.engine(), policy, [[5]], FREE).truncated.tolist() == [True]


# --- weights ---


def test_weights_are_sent_before_the_first_draw_and_once(fake, group):
    policy, engine = tiny_policy(), fake.engine()
    policy.prepare(Needs(values=True))
    draw(engine, policy)
    assert fake.paths == ["/init_weight_transfer_engine", *SYNC, "/v1/completions"]
    joining = fake.asked[0][1]["init_info"]
    assert joining == {"master_address": "127.0.0.1", "master_port": 51216, "rank_offset": 1, "world_size": 3}
    assert group.joined == [joining]
    announced = fake.asked[2][1]["update_info"]
    model = policy.network.model
    expected = dict(model.named_parameters())  # tied weights once, no value head
    assert "lm_head.weight" not in expected and "lm_head.weight" in model.state_dict()
    assert announced["names"] == list(group.sent[0]) == list(expected)
    assert announced["shapes"] == [list(p.shape) for p in expected.values()]
    assert set(announced["dtype_names"]) == {"float32"}
    assert all(torch.equal(group.sent[0][name], p) for name, p in expected.items())
    fake.forget()
    draw(engine, policy)
    draw(engine, policy, seed=1)
    assert fake.paths == ["/v1/completions"] * 2


def fused(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def written_over(policy):
    weight = policy.network.model.transformer.h[1].attn.c_proj.bias
    weight.data[3] = 1e-3


CHANGES = {
    "fused AdamW": lambda policy: step(policy, fused),  # torch's counter of changes misses these three
    "8-bit AdamW": lambda policy: step(policy, lambda p: AdamW8bit(p, lr=1e-3)),
    "one number": written_over,
    "AdamW": lambda policy: step(policy, lambda p: torch.optim.AdamW(p, lr=1e-3)),
}


def step(policy, optimizer):
    parameters = list(policy.network.policy_weights().values())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer(parameters).step()


@pytest.mark.parametrize("name", CHANGES)
def test_weights_are_sent_again_after_a_change(fake, group, name):
    policy, engine = tiny_policy(), fake.engine()
    draw(engine, policy)
    fake.forget()
    CHANGES[name](policy)
    draw(engine, policy)
    assert fake.paths == [*SYNC, "/v1/completions"]
    before, after = group.sent
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, parameter in policy.network.model.named_parameters():
        assert torch.equal(after[name], parameter)
    fake.forget()
    draw(engine, policy)
    assert fake.paths == ["/v1/completions"]


@pytest.mark.parametrize("option", [{}, {"quantization": {}}])
def test_adapters_are_sent_merged_and_the_reference_without(fake, group, option):
    policy, engine = tiny_policy(**LLAMA, lora={"r": 2}, **option), fake.engine()
    policy.set_reference("stage-start")
    step(policy, fused)
    draw(engine, policy)
    with policy.as_reference():
        draw(engine, policy)
        draw(engine, policy)
    draw(engine, policy)
    assert fake.paths.count("/update_weights") == 3
    ours, reference, again = group.sent
    whole = policy.base.whole("default")
    assert list(ours) == [name for name, _ in whole.named_parameters()]
    for name, weight in whole.named_parameters():
        assert torch.equal(ours[name], weight) and torch.equal(again[name], weight)
    base = policy.base.whole("nobody")
    assert all(torch.equal(reference[name], weight) for name, weight in base.named_parameters())
    assert not torch.equal(ours["model.layers.0.mlp.up_proj.weight"], reference["model.layers.0.mlp.up_proj.weight"])


def test_a_reference_of_full_fine_tuning_is_sent(fake, group):
    policy, engine = tiny_policy(), fake.engine()
    policy.set_reference("stage-start")
    start = {name: p.clone() for name, p in policy.network.model.named_parameters()}
    step(policy, fused)
    draw(engine, policy)
    with policy.as_reference():
        draw(engine, policy)
    assert all(torch.equal(group.sent[1][name], weight) for name, weight in start.items())


def test_weights_that_did_not_arrive_are_sent_again(fake, group):
    policy, engine = tiny_policy(), fake.engine()
    group.broken = True
    with pytest.raises(RunError, match=r"engine 'server': .*failed at taking weights: RuntimeError: NCCL error"):
        draw(engine, policy)
    assert "/v1/completions" not in fake.paths
    group.broken = False
    draw(engine, policy)
    assert len(group.sent) == 1 and fake.paths.count("/init_weight_transfer_engine") == 1
    policy.set_reference("base")
    group.broken = True
    step(policy, fused)
    with pytest.raises(RunError):
        draw(engine, policy)
    group.broken = False
    with policy.as_reference():  # what the server had before, but what has it now?
        draw(engine, policy)
    assert len(group.sent) == 2 and all(torch.equal(t, group.sent[1][name]) for name, t in group.sent[0].items())


@pytest.mark.parametrize("main", [True, False])
def test_of_several_processes_the_main_one_sends(fake, group, main):
    happened = []
    accelerator = SimpleNamespace(
        is_main_process=main, wait_for_everyone=lambda: happened.append(("wait", len(group.sent)))
    )
    policy, engine = tiny_policy(), fake.engine(accelerator=accelerator)
    draw(engine, policy)
    draw(engine, policy)
    assert happened == [("wait", 0), ("wait", int(main))]
    assert fake.paths.count("/v1/completions") == 2


# --- what goes wrong ---


def test_vllm_is_not_installed(monkeypatch):
    monkeypatch.setattr(vllm_client, "is_vllm_available", lambda *args, **kwargs: False)
    engine = VLLM(VLLMConfig(), tiny_context("engine", "server"))
    with pytest.raises(
        ConfigError, match=r"engine 'server': vllm is not installed.*pip install 'rlhf-plugin-vllm\[vllm\]'"
    ):
        draw(engine, tiny_policy())


def test_nothing_listens(group):
    engine = VLLM(VLLMConfig(base_url="http://127.0.0.1:9/", timeout=0), tiny_context("engine", "server"))
    words = r"base_url: nothing can be reached at http://127.0.0.1:9 \(ConnectionError\).*vllm serve MODEL --weight-tr"
    with pytest.raises(ConfigError, match=words):
        draw(engine, tiny_policy())


def test_something_else_listens(fake):
    fake.failing["/health"] = (404, "not here")
    with pytest.raises(ConfigError, match="/health answers with status 404; expected a vLLM server"):
        draw(fake.engine(), tiny_policy())


def test_a_server_that_is_still_starting(fake):
    fake.failing["/health"] = (503, "")

    def start():
        while fake.looks < 3:
            time.sleep(0.01)
        fake.failing.clear()

    thread = threading.Thread(target=start)
    thread.start()
    draw(VLLM(VLLMConfig(base_url=fake.url, timeout=30), tiny_context("engine")), tiny_policy())
    thread.join()
    assert fake.paths[-1] == "/v1/completions"


def test_a_server_without_development_endpoints(fake):
    fake.failing["/server_info"] = (404, "not here")
    with pytest.raises(
        ConfigError, match=r"no weights can be sent.*development endpoints.*VLLM_SERVER_DEV_MODE=1 vllm"
    ):
        draw(fake.engine(), tiny_policy())


def test_a_server_without_weight_transfer(fake):
    fake.weight_transfer = None
    with pytest.raises(ConfigError, match=r"no weights can be sent.*no weight-transfer engine"):
        draw(fake.engine(), tiny_policy())


def test_a_policy_on_a_cpu(group):
    server = FakeServer()
    with server.serving() as url, pytest.raises(ConfigError, match=r"no weights can be sent.*CUDA device, got 'cpu'"):
        draw(VLLM(VLLMConfig(base_url=url), tiny_context("engine")), tiny_policy())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (400, "maximum context length is 8 tokens"),
            "failed at drawing: Exception: .*400.*context length is 8 tokens",
        ),
        ((200, "<html>"), "failed at drawing: JSONDecodeError"),
        ((200, {"choices": [{"text": "hello"}]}), "failed at drawing: KeyError: 'prompt_token_ids'"),
    ],
)
def test_a_server_that_fails(fake, answer, words):
    fake.failing["/v1/completions"] = answer
    with pytest.raises(RunError, match=f"engine 'server': the server at {fake.url} {words}"):
        draw(fake.engine(), tiny_policy(), [[5], [6]])


@pytest.mark.parametrize(
    ("responses", "words"),
    [
        ([[7], [8]], "2 responses .* to one prompt; expected one"),
        ([[7] * 7], "a response of 7 tokens from .*; expected 1 to 6"),
        ([[]], "a response of 0 tokens"),
    ],
)
def test_answers_that_were_not_asked_for(fake, responses, words):
    fake.responses = lambda body: responses
    with pytest.raises(RunError, match=words):
        draw(fake.engine(), tiny_policy())


def test_policies_it_cannot_draw_for(fake):
    steered = tiny_policy()
    steered.prepare(Needs(heads=1))
    steered.steering = 0.5
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    fresh = {**tiny_model()["fresh"], "architecture": "t5", "sizes": t5}
    pairs = Seq2SeqLM(Seq2SeqLMConfig.model_validate({"fresh": fresh}), tiny_context("policy"))
    cases = {"action values steer": steered, r"encoder-decoder \(t5\)": pairs, "a policy of class object": object()}
    for words, policy in cases.items():
        with pytest.raises(ConfigError, match=f"engine 'server': .*{words}"):
            draw(fake.engine(), policy)
    assert fake.asked == []


@pytest.mark.parametrize("wrong", [{"base_url": "127.0.0.1:8000"}, {"group_port": 0}, {"timeout": -1}])
def test_options_that_cannot_be(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        VLLMConfig.model_validate(wrong)
