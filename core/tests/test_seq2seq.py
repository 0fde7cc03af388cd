"""The policy `seq2seq-lm`: T5 (relative positions) and BART (learnt ones) read the prompt and write the response."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.interfaces import Needs, Sampling, SupervisedConfig
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import CausalLMConfig, Lora, Quantization, Seq2SeqLMConfig
from rlhf_core.policies.quantization import is_4bit
from rlhf_core.policies.seq2seq_lm import Seq2SeqLM
from rlhf_core.policies.text import Codec
from rlhf_core.records import Demonstration, Message, Prompt, Sample
from rlhf_core.rewards.config import TextRewardConfig
from rlhf_core.rewards.text import TextReward
from rlhf_core.testing import tasks
from rlhf_core.testing.compare import padded
from rlhf_core.training import SupervisedLoop
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from .test_roles import CLOSE, NEEDS, bytes_of, gradients, policy_loss
from .test_roles import nudge as nudge_all
from .test_tokenizers import byte_level
from .test_tokenizers import t5 as t5_tokenizer
from .toys import SIZES as CAUSAL_SIZES
from .toys import make_context, prompts

SIZES: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 96,
             "init_std": 0.2},
}  # fmt: skip
FOUR_BIT = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}  # rows of whole blocks
ARCHITECTURES = list(SIZES)
SAMPLING = Sampling(max_new_tokens=12)
ALL = Needs(values=True, bootstrap=True, entropy=True, top_k=3)


def fresh(architecture: str, **sizes: Any) -> dict[str, Any]:
    known = {**SIZES, **CAUSAL_SIZES}[architecture]
    return {
        "architecture": architecture,
        "sizes": {**known, **sizes},
        "tokenizer": {"text": ["texts"], "vocab_size": 300},
    }


def make(
    architecture: str = "t5", *, context: Any = None, sizes: dict[str, Any] | None = None, **config: Any
) -> Seq2SeqLM:
    options = {"fresh": fresh(architecture, **(sizes or {})), **config}
    return Seq2SeqLM(Seq2SeqLMConfig.model_validate(options), context or make_context())


def nudge(policy: Seq2SeqLM, seed: int = 0) -> None:
    """Move the weights, as training would."""
    nudge_all(policy.network.trainable(), seed)
    policy.weights_changed()


def ended(policy: Seq2SeqLM) -> Seq2SeqLM:
    """The policy with an end of text that is likely, so that lengths are ragged."""
    policy.prepare(Needs(heads=1))
    with torch.no_grad():
        policy.heads[0].bias[policy.codec.eos] = 3.0
    policy.steering = 1.0
    return policy


# --- what is sampled is what is scored --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampled_logprobs_equal_rescored_ones(architecture: str) -> None:
    policy = make(architecture)
    nudge(policy)
    for sampling in (SAMPLING.model_copy(update={"temperature": 0.8}), Sampling(max_new_tokens=12, top_k=5)):
        rollout = policy.generate(prompts() * 3, sampling, seed=3)
        again = policy.forward(rollout, Needs()).logprobs
        torch.testing.assert_close(again, rollout.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("critic", ["shared", "separate", "adapter"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)  # BART's learnt positions notice left padding, T5's do not
def test_left_padding_and_batch_change_nothing(architecture: str, critic: str) -> None:
    policy = make(architecture, critic=critic, lora={"r": 4} if critic == "adapter" else None)
    policy.prepare(ALL)
    nudge(policy)
    together = policy.generate(prompts(), SAMPLING, seed=1)
    b = policy.forward(together, ALL)
    for i, prompt in enumerate(prompts()):
        alone = policy.generate([prompt], SAMPLING, seed=1, sample_ids=[i])
        n = int(alone.lengths[0])
        assert alone.response_ids[0].tolist() == together.response_ids[i, :n].tolist()
        a = policy.forward(alone, ALL)
        torch.testing.assert_close(a.logprobs[0], b.logprobs[i, :n], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.values[0], b.values[i, :n], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.bootstrap[0], b.bootstrap[i], atol=1e-5, rtol=1e-5)
    moved = policy.forward(padded(together, prompt=3), ALL)
    torch.testing.assert_close(moved.logprobs, b.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved.values, b.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_and_values_are_those_of_transformers(architecture: str) -> None:
    """Against `model(input_ids, labels=response)`, which shifts the labels behind the start token by itself."""
    policy = make(architecture)
    policy.prepare(ALL)
    nudge(policy)
    prompt = prompts("say the:")[0]
    rollout = policy.generate([prompt], Sampling(max_new_tokens=9, min_new_tokens=9), seed=5)
    ids, model = rollout.response_ids, policy.network.model
    with torch.no_grad():
        output = model(rollout.prompt_ids, labels=ids, output_hidden_states=True)
    expected = output.logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]
    found = policy.forward(rollout, ALL)
    torch.testing.assert_close(found.logprobs, expected, atol=1e-5, rtol=0)
    assert -found.logprobs.mean().item() == pytest.approx(output.loss.item(), abs=1e-5)
    scale = SIZES["t5"]["d_model"] ** -0.5 if architecture == "t5" else 1.0  # what T5's tied head reads
    values = policy.network.value_head(scale * output.decoder_hidden_states[-1])[..., 0]
    torch.testing.assert_close(found.values, values, atol=1e-5, rtol=1e-5)  # V before each token
    with torch.no_grad():
        start = ids.new_full((1, 1), {"t5": policy.codec.pad, "bart": policy.codec.eos}[architecture])
        longer = model(rollout.prompt_ids, decoder_input_ids=torch.cat([start, ids], 1), output_hidden_states=True)
    after = policy.network.value_head(scale * longer.decoder_hidden_states[-1][:, -1])[..., 0]
    torch.testing.assert_close(found.bootstrap, after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_decoding_is_that_of_transformers(architecture: str) -> None:
    policy = make(architecture)
    nudge(policy)
    rollout = policy.generate(prompts("say a:"), Sampling(max_new_tokens=8, temperature=0), seed=0)
    ids = policy.network.model.generate(rollout.prompt_ids, max_new_tokens=8, do_sample=False, num_beams=1)
    assert rollout.response_ids[0].tolist() == ids[0, 1 : 1 + rollout.response_ids.shape[1]].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_encoder_runs_once_and_rows_that_finish_leave_without_a_trace(architecture: str) -> None:
    policy = ended(make(architecture))
    nudge_all({n: p for n, p in policy.network.trainable().items() if "action_values" not in n})
    many, longest = prompts() * 8, Sampling(max_new_tokens=40)
    calls: list[int] = []
    encoder = policy.network.model.get_encoder()
    handle = encoder.register_forward_hook(lambda _, args, output: calls.append(len(output.last_hidden_state)))
    together = policy.generate(many, longest, seed=7)
    handle.remove()
    assert calls == [24], "one pass over all prompts, none per token"
    lengths = together.lengths.tolist()
    assert len(set(lengths)) > 3 and sorted(lengths)[12] < max(lengths)
    again = policy.forward(together, Needs()).logprobs
    torch.testing.assert_close(again, together.logprobs, atol=2e-5, rtol=0)
    for i in range(0, 24, 5):
        alone = policy.generate([many[i]], longest, seed=7, sample_ids=[i])
        assert alone.response_ids[0].tolist() == together.response_ids[i, : lengths[i]].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_action_values_steer_sampling_and_scoring_alike(architecture: str) -> None:
    policy = make(architecture)
    nudge(policy)
    policy.prepare(Needs(heads=2))
    wanted = policy.codec.encode_response(prompts()[0], "q")[0]
    with torch.no_grad():
        for head, value in zip(policy.heads, (3.0, 5.0), strict=True):
            head.bias[wanted] = value
    plain = policy.generate(prompts() * 6, SAMPLING, seed=3)
    before = policy.forward(plain, Needs(distribution=True)).distribution
    policy.steering = 0.5
    rollout = policy.generate(prompts() * 6, SAMPLING, seed=3)
    torch.testing.assert_close(policy.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-5, rtol=0)
    steered = policy.forward(plain, Needs(distribution=True)).distribution
    odds = (steered - before)[..., wanted] - (steered - before)[..., wanted - 1]  # the least of both heads counts
    torch.testing.assert_close(
        odds[plain.attention], torch.full((int(plain.attention.sum()),), 1.5), atol=1e-4, rtol=1e-4
    )
    hidden = policy.forward(plain, Needs(hidden=True)).hidden
    steered_head = policy.network.model.get_output_embeddings()(hidden)
    bias = getattr(policy.network.model, "final_logits_bias", 0.0)
    torch.testing.assert_close(
        (steered_head + bias).log_softmax(-1)[plain.attention], before[plain.attention], atol=1e-5, rtol=1e-5
    )


def test_nothing_is_forced_that_is_not_scored() -> None:
    """A generation config that forces a first token and forbids repetition, as BART's summarisers have it."""
    policy = make("bart")
    nudge(policy)
    free = policy.generate(prompts(), SAMPLING, seed=2)
    settings = policy.network.model.generation_config
    settings.forced_bos_token_id, settings.no_repeat_ngram_size, settings.num_beams = 5, 1, 4
    assert torch.equal(policy.generate(prompts(), SAMPLING, seed=2).response_ids, free.response_ids)


# --- text -------------------------------------------------------------------------------------------------------------


def bart_tokenizer(folder: Path) -> None:
    """Byte-level, with <s> and </s> around every text."""
    from tokenizers.processors import TemplateProcessing

    byte_level(folder, bos_token="<|padding|>")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    around = [(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<|padding|>", "<|endoftext|>")]
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|padding|> $A <|endoftext|>", pair="<|padding|> $A $B <|endoftext|>", special_tokens=around
    )
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module", params=["t5", "bart"])
def codec(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder = tmp_path_factory.mktemp("tokenizer")
    {"t5": t5_tokenizer, "bart": bart_tokenizer}[request.param](folder)
    return Codec(AutoTokenizer.from_pretrained(folder), 20, None, "policy 'toy'", apart=True)


def test_prompt_and_response_are_closed_and_opened_as_the_tokenizer_does_it(codec: Codec) -> None:
    chat = Prompt(text=(Message(role="user", content="hello"),))
    whole = codec.tokenizer("say the").input_ids
    assert whole[-1] == codec.eos and codec.encode_prompt(Prompt(text="say the"), 4) == whole
    for prompt in (Prompt(text="say the"), Prompt(text="say the "), chat):  # whatever stands in front of it
        ids = codec.encode_response(prompt, "hello, thanks")
        assert ids == codec.tokenizer("hello, thanks").input_ids
        assert codec.decode(ids) == "hello, thanks"
        ends = codec.token_ends(ids)
        assert ends == sorted(ends) and ends[-1] == len("hello, thanks")


def test_characters_of_tokens(codec: Codec) -> None:
    text = "hello, no thanks"
    ids = codec.encode_response(Prompt(text="x"), text)
    ranges = codec.token_ranges(Prompt(text="x"), text, ids)
    assert len(ranges) == len(ids) and ranges[-1] == (len(text), len(text))
    assert {i for a, b in ranges for i in range(a, b)} >= {i for i, c in enumerate(text) if c != " "}
    opening = codec.tokenizer.bos_token_id is not None
    assert (ranges[0] == (0, 0)) == opening
    assert codec.token_ranges(Prompt(text="x"), text, ids[:3]) == ranges[:3]
    closed = codec.token_ranges(Prompt(text="x"), text, [*ids[:3], codec.eos])
    assert closed[:3] == ranges[:3] and closed[3] == (len(text), len(text))


def test_prompt_and_response_have_positions_of_their_own(codec: Codec) -> None:
    prompt = Prompt(text="say the")
    size = len(codec.encode_prompt(prompt, 19))  # 20 positions: the start token takes one of the response's
    assert size <= 20 and codec.longest_response == 19
    with pytest.raises(DataError, match=r"and 20 for the response; expected at most 20 and 19.*lower max_new_tokens"):
        codec.encode_prompt(prompt, 20)
    long = Prompt(text="say " * 30)
    with pytest.raises(DataError, match=r"positions of encoder and decoder; set max_prompt_tokens: 20 on the policy"):
        codec.encode_prompt(long, 4)
    cutting = Codec(codec.tokenizer, 20, 8, "policy 'toy'", apart=True)
    whole, cut = codec.tokenizer(long.render()).input_ids, cutting.encode_prompt(long, 4)
    assert len(cut) == 8 and cut[-1] == codec.eos and cut[-4:] == whole[-4:]
    if codec.tokenizer.bos_token_id is not None:
        assert cut[0] == codec.tokenizer.bos_token_id


def test_limits_come_from_learnt_positions_only() -> None:
    long = [Prompt(text="word " * 60)]
    policy = make("t5", sizes={"n_positions": 32})  # T5's files have such a number, and T5 no such limit
    assert policy.codec.context is None and policy.codec.longest_response is None
    rollout = policy.generate(long, Sampling(max_new_tokens=3), seed=0)
    assert rollout.prompt_ids.shape[1] > 96
    with pytest.raises(DataError, match="at most 96 and 95"):
        make("bart").generate(long, Sampling(max_new_tokens=3), seed=0)
    cut = make("bart", max_prompt_tokens=96).generate(long, Sampling(max_new_tokens=95, min_new_tokens=95), seed=0)
    assert cut.prompt_ids.shape[1] == 96 and cut.response_ids.shape[1] == 95, "both have all positions"


@pytest.mark.parametrize("tokenizer", ["t5", "bart"])
def test_a_model_with_its_own_tokenizer_samples_text_and_scores_it(tokenizer: str, tmp_path: Path) -> None:
    """What is drawn from a folder as users have it decodes, and its own encoded text is scored closed by end of text."""
    {"t5": t5_tokenizer, "bart": bart_tokenizer}[tokenizer](tmp_path)
    size = len(AutoTokenizer.from_pretrained(tmp_path))
    policy = make(tokenizer, sizes={})
    config = policy.network.model.config
    config.update({"vocab_size": size, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0})
    type(policy.network.model)(config).save_pretrained(tmp_path)
    policy = Seq2SeqLM(Seq2SeqLMConfig(model=str(tmp_path)), make_context())
    rollout = policy.generate(prompts() * 2, SAMPLING, seed=0)
    torch.testing.assert_close(policy.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-5, rtol=0)
    for sample, ids, mask in zip(rollout.samples, rollout.response_ids, rollout.attention, strict=True):
        assert policy.token_ends(ids[mask].tolist())[-1] == len(sample.response)
    given = policy.encode([Sample(prompts("say the:")[0], "the dog")])
    assert given.response_ids[0].tolist() == policy.tokenizer("the dog").input_ids
    assert given.response_ids[0, -1] == policy.codec.eos == policy.codec.encode_prompt(Prompt(text="the"), 1)[-1]


# --- one base, many roles ---------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {"lora": {}, "qlora": {"quantization": {}, "sizes": FOUR_BIT}}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_role_has_the_gradients_of_a_model_of_its_own(kind: str, checkpointing: bool) -> None:
    def built(**options: Any) -> Seq2SeqLM:
        context = make_context(dtype="float64")
        policy = make("t5", context=context, lora={"r": 4}, critic="adapter", **KINDS[kind], **options)
        policy.prepare(NEEDS)
        nudge(policy)
        return policy

    policy = built(gradient_checkpointing=checkpointing)
    policy_loss(policy).backward()
    together = gradients(policy.network.trainable())
    assert len(together) == len(policy.network.trainable())
    alone: dict[str, torch.Tensor] = {}
    for role in ("policy", "critic"):
        own = built()
        policy_loss(own, role).backward()
        found = {n: g for n, g in gradients(own.network.trainable()).items() if bool(g.any())}
        assert not found.keys() & alone.keys(), "one role's loss moves another role"
        alone.update(found)
    assert alone.keys() == {name for name, g in together.items() if bool(g.any())}
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, **CLOSE[kind])
    parts = ("encoder.", "decoder.", "EncDecAttention.")
    assert all(any(n.startswith(role) and part in n for n in alone) for role in ("lm.", "critic.") for part in parts)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_checkpointing_leaves_the_gradients_as_they_are(architecture: str, lora: Any, critic: str) -> None:
    found = []
    for checkpointing in (False, True):
        context = make_context(dtype="float64")
        policy = make(architecture, context=context, lora=lora, critic=critic, gradient_checkpointing=checkpointing)
        policy.prepare(NEEDS)
        nudge(policy)
        policy_loss(policy).backward()
        found.append(gradients(policy.network.trainable()))
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], **CLOSE["lora"])


def test_a_separate_critic_begins_as_the_policy_and_goes_its_own_way() -> None:
    for lora in (None, {"r": 4}):
        policy = make("t5", critic="separate", lora=lora)
        nudge(policy)  # as sft would, before the critic is made
        policy.prepare(ALL)
        network = policy.network
        assert type(network.value_trunk).__name__ == "T5Model"
        inputs = network.inputs(*(torch.tensor([[3, 4]]), torch.ones(1, 2, dtype=torch.bool)) * 2)
        with torch.no_grad(), network.speaking(network.role):
            mine, theirs = (m(**inputs).last_hidden_state for m in (network.trunk, network.value_trunk))
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        rollout = policy.generate(prompts(), SAMPLING, seed=0)
        with torch.no_grad():
            network.value_head.weight.normal_()
        policy.forward(rollout, ALL).values.sum().backward()
        grads = {n for n, p in network.trainable().items() if p.grad is not None and bool(p.grad.any())}
        assert grads and all(n.startswith(("value_trunk.", "value_head.")) for n in grads)


def test_the_bytes_of_the_base_are_there_once() -> None:
    plain = make("t5")
    policy = make("t5", lora={"r": 4}, critic="adapter")
    policy.prepare(NEEDS)
    policy.forward(policy.encode([Sample(prompts()[0], "a")]), NEEDS)
    own = sum(p.numel() * p.element_size() for p in policy.network.trainable().values())
    assert bytes_of(policy.module) - own == bytes_of(plain.module)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["full", "lora"])
def test_frozen_layers_are_the_lowest_of_encoder_and_decoder(architecture: str, lora: Any) -> None:
    policy = make(architecture, lora=lora, frozen_layers=1)
    names = list(policy.network.trainable())
    stack = {"t5": "block", "bart": "layers"}[architecture]
    for part in ("encoder", "decoder"):
        assert any(f"{part}.{stack}.1." in name for name in names)
        assert not any(f"{part}.{stack}.0." in name for name in names)
    embeddings = ("shared.", "embed_tokens.", "embed_positions.", "relative_attention_bias.")
    assert not any(part in name for name in names for part in embeddings)
    with pytest.raises(ConfigError, match=r"frozen_layers.*5 of the 2 layers of '(t5|bart)'.*at most 2"):
        make(architecture, lora=lora, frozen_layers=5)


# --- reference, state, learning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["shared", "separate", "adapter"])
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_reference_and_state(lora: Any, critic: str, tmp_path: Path) -> None:
    if critic == "adapter" and lora is None:
        return
    policy = make("t5", lora=lora, critic=critic)
    base = policy.generate(prompts(), SAMPLING, seed=0)
    policy.prepare(ALL)
    nudge(policy)
    start = policy.generate(prompts(), SAMPLING, seed=0)
    policy.set_reference("stage-start")
    policy.save_reference(tmp_path)
    nudge(policy, seed=1)
    now = policy.forward(start, ALL)
    assert (now.logprobs - start.logprobs).abs().max() > 0.01
    for source, rollout in (("stage-start", start), (str(tmp_path), start), ("base", base)):
        if source != "stage-start":
            policy.set_reference(source)
        with policy.as_reference():
            again = policy.forward(rollout, Needs()).logprobs
            sampled = policy.generate(prompts(), SAMPLING, seed=0).response_ids
        torch.testing.assert_close(again, rollout.logprobs, atol=1e-5, rtol=0)
        assert torch.equal(sampled, rollout.response_ids)
    other = make("t5", lora=lora, critic=critic)
    other.load_state_dict(policy.state_dict())
    found = other.forward(start, ALL)
    assert torch.equal(found.logprobs, now.logprobs) and torch.equal(found.values, now.values)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [None, {"r": 16}], ids=["full", "lora"])
def test_imitation_learns_which_response_belongs_to_which_prompt(architecture: str, lora: Any) -> None:
    words = ("fox", "dog", "nine", "hare")
    told = [Demonstration(prompt=f"say {a}:", response=f"{b}.") for a, b in zip(words, reversed(words), strict=True)]
    policy = make(architecture, lora=lora)
    task = policy.demonstrations(told, held_out=0.0)
    assert [policy.codec.decode(tokens.response) for tokens in task.train] == [r.response for r in told]
    loop = SupervisedLoop(task, SupervisedConfig(epochs=60, batch_size=4, learning_rate=1e-2), policy.context)
    before = task.evaluate(task.train)["loss"]
    for index in range(loop.total):
        loop.step(index)
    after = task.evaluate(task.train)["loss"]
    assert after < before / 3, (before, after)  # adapters on random weights, and still
    if lora is None:
        rollout = policy.generate([r.prompt for r in told], Sampling(max_new_tokens=8, temperature=0), seed=0)
        assert [s.response for s in rollout.samples] == [r.response for r in told]


def test_ppo_learns_a_bandit(monkeypatch: pytest.MonkeyPatch) -> None:
    PPO = pytest.importorskip("rlhf_plugin_ppo.optimizer").PPO

    def learner(context: Any, **config: Any) -> Seq2SeqLM:
        model = fresh("t5", d_model=32, d_ff=48)
        model["tokenizer"]["vocab_size"] = 260
        return Seq2SeqLM(Seq2SeqLMConfig.model_validate({**config, "fresh": model}), context)

    monkeypatch.setattr(tasks, "tiny_policy", learner)
    config = {"learning_rate": 3e-3, "prompts_per_step": 64, "minibatch_size": 32}
    found = tasks.learn(tasks.FIRST_TOKEN, PPO, config, steps=25, every=25, policy={"critic": "separate"})
    assert found.curve[0][1] < 0.2 and found.reward > 0.6, found


# --- leaving the house ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "config"),
    [("t5", {}), ("bart", {}), ("t5", {"lora": {"r": 4}}), ("bart", {"lora": {"r": 4}}),
     ("t5", {"lora": {"r": 4}, "quantization": {}, "sizes": FOUR_BIT})],
)  # fmt: skip
def test_export_is_a_plain_model_that_says_the_same(architecture: str, config: dict[str, Any], tmp_path: Path) -> None:
    policy = make(architecture, **config)
    nudge(policy)
    policy.export(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in written and not list(tmp_path.glob("adapter*"))
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    start = {"t5": policy.codec.pad, "bart": policy.codec.eos}[architecture]
    assert model.config.decoder_start_token_id == model.generation_config.decoder_start_token_id == start
    rollout = policy.generate(prompts("say the:"), SAMPLING, seed=0)
    with torch.no_grad():
        logits = model(**tokenizer("say the:", return_tensors="pt"), labels=rollout.response_ids).logits
    logprobs = logits.log_softmax(-1).gather(2, rollout.response_ids[..., None])[..., 0]
    torch.testing.assert_close(logprobs, rollout.logprobs, atol=1e-4, rtol=0)
    again = Seq2SeqLM(Seq2SeqLMConfig(model=str(tmp_path)), make_context())  # and it comes back as a policy
    torch.testing.assert_close(again.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_alone_go_back_on_their_base(architecture: str, tmp_path: Path) -> None:
    from peft import AutoPeftModelForSeq2SeqLM

    make(architecture).export(tmp_path / "model")
    config = Seq2SeqLMConfig(model=str(tmp_path / "model"), lora=Lora(r=4))
    policy = Seq2SeqLM(config, make_context())
    nudge(policy)
    policy.export(tmp_path / "adapters", adapters=True)
    assert json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    model = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "adapters")
    rollout = policy.generate(prompts("say the:"), SAMPLING, seed=0)
    with torch.no_grad():
        logits = model(input_ids=rollout.prompt_ids, labels=rollout.response_ids).logits
    logprobs = logits.log_softmax(-1).gather(2, rollout.response_ids[..., None])[..., 0]
    torch.testing.assert_close(logprobs, rollout.logprobs, atol=1e-4, rtol=0)
    started = config.model_copy(update={"lora": Lora(r=4, start=str(tmp_path / "adapters"))})
    again = Seq2SeqLM(started, make_context())
    torch.testing.assert_close(again.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-5, rtol=0)


def test_a_loaded_model_has_the_4_bit_layers_of_a_fresh_one(tmp_path: Path) -> None:
    """T5's `wo` stays whole both ways: its outputs are too large for half precision."""
    make("t5", sizes=FOUR_BIT).export(tmp_path)
    read = Seq2SeqLM(Seq2SeqLMConfig(model=str(tmp_path), lora=Lora(r=4), quantization=Quantization()), make_context())
    inside = make("t5", sizes=FOUR_BIT, lora={"r": 4}, quantization={})

    def layers(policy: Seq2SeqLM) -> dict[str, nn.Module]:
        return {n: m for n, m in policy.network.model.named_modules() if is_4bit(m)}

    assert layers(read).keys() == layers(inside).keys()
    assert len(layers(inside)) == 2 * (4 + 1) + 2 * (8 + 1) and not any(".wo" in name for name in layers(inside))
    for name, layer in layers(read).items():
        assert torch.equal(layer.weight.data.flatten(), layers(inside)[name].weight.data.flatten())
    rollout = inside.generate(prompts(), SAMPLING, seed=0)
    torch.testing.assert_close(inside.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-5, rtol=0)
    assert torch.equal(read.forward(rollout, Needs()).logprobs, inside.forward(rollout, Needs()).logprobs)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_a_model_of_the_other_kind_is_refused_with_the_name_of_its_policy(tmp_path: Path) -> None:
    words = r"'llama' is no encoder-decoder; expected a model such as t5 or bart; `use: causal-lm`"
    with pytest.raises(ConfigError, match=words):
        make("llama")
    for architecture in ARCHITECTURES:
        words = rf"'{architecture}' is an encoder-decoder; expected a decoder-only model.*`use: seq2seq-lm`"
        with pytest.raises(ConfigError, match=words):
            CausalLM(CausalLMConfig.model_validate({"fresh": fresh(architecture)}), make_context())
        make(architecture).export(tmp_path / architecture)
        with pytest.raises(ConfigError, match=words):
            CausalLM(CausalLMConfig(model=str(tmp_path / architecture)), make_context())
    with pytest.raises(ConfigError, match=r"policy 'toy': cannot load hub id \(no folder is there\) 'no/such-model'"):
        Seq2SeqLM(Seq2SeqLMConfig(model="no/such-model"), make_context())


def test_a_model_that_does_not_say_where_to_start_is_refused(tmp_path: Path) -> None:
    make("t5").export(tmp_path)
    for name in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / name).read_text())
        written.pop("decoder_start_token_id", None)
        (tmp_path / name).write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r"decoder_start_token_id is None.*set decoder_start_token_id in the model's"):
        Seq2SeqLM(Seq2SeqLMConfig(model=str(tmp_path)), make_context())


@pytest.mark.parametrize("options", [{"policy": "toy"}, {"base": "policy"}], ids=["policy", "base"])
def test_rewards_cannot_stand_on_it(options: dict[str, str]) -> None:
    policy = make("t5", lora={"r": 4})
    resolve: Callable[[str, str], Any] = lambda kind, id: policy  # noqa: E731
    context = replace(make_context(), kind="reward", id="taste", resolve=resolve, policy="toy")
    with pytest.raises(
        ConfigError, match=r"reward 'taste': 't5' is an encoder-decoder; expected an encoder or a decoder"
    ):
        TextReward(TextRewardConfig(**options), context)


def test_a_critic_cannot_begin_as_a_reward_model() -> None:
    policy = make("t5", critic="separate")
    policy.prepare(ALL)
    with pytest.raises(ConfigError, match=r"critic: a reward model's network reads one text.*leave critic_from out"):
        policy.start_critic(nn.Linear(1, 1), nn.Linear(1, 1))
