"""The built-in policy: what it samples is what it scores, whatever the batch, the architecture and the reference."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.interfaces import Needs, Sampling, SupervisedConfig
from rlhf_core.policies import CausalLM, CausalLMConfig
from rlhf_core.policies.config import Lora
from rlhf_core.records import Demonstration, Message, Prompt, Sample, SpanWeight
from rlhf_core.testing import tiny_context, tiny_model, tiny_policy
from rlhf_core.training import SupervisedLoop
from transformers import AutoModelForCausalLM, AutoTokenizer

from .toys import make_context, make_policy, prompts

SAMPLING = Sampling(max_new_tokens=12)
ALL = Needs(values=True, bootstrap=True, entropy=True, top_k=3)
ARCHITECTURES = ["llama", "gpt2"]


def nudge(policy, seed=0):
    """Move the weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.module.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    policy.weights_changed()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampled_logprobs_equal_rescored_ones(architecture):
    policy = make_policy(architecture)
    nudge(policy)
    rollout = policy.generate(prompts() * 3, SAMPLING.model_copy(update={"temperature": 0.8}), seed=3)
    again = policy.forward(rollout, Needs()).logprobs
    assert rollout.temperature == 0.8
    assert (again - rollout.logprobs).abs().max() < 1e-4
    assert (again - rollout.logprobs).abs().mean() < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)  # GPT-2's absolute positions notice left padding, RoPE hides it
def test_left_padding_and_batch_change_nothing(architecture):
    policy = make_policy(architecture)
    nudge(policy)
    policy.prepare(ALL)
    nudge(policy)
    together = policy.generate(prompts(), SAMPLING, seed=1)
    for i, prompt in enumerate(prompts()):
        alone = policy.generate([prompt], SAMPLING, seed=1, sample_ids=[i])
        n = int(alone.lengths[0])
        assert alone.response_ids[0].tolist() == together.response_ids[i, :n].tolist()
        a, b = policy.forward(alone, ALL), policy.forward(together, ALL)
        torch.testing.assert_close(a.logprobs[0], b.logprobs[i, :n], atol=1e-5, rtol=0)
        torch.testing.assert_close(a.values[0], b.values[i, :n], atol=1e-5, rtol=0)
        torch.testing.assert_close(a.bootstrap[0], b.bootstrap[i], atol=1e-5, rtol=0)


def test_logits_predict_the_next_token_as_transformers_does():
    policy = make_policy("gpt2")
    nudge(policy)
    policy.prepare(ALL)
    nudge(policy)
    prompt, n = prompts("say the:")[0], 0
    rollout = policy.generate([prompt], SAMPLING, seed=5)
    n = int(rollout.lengths[0])
    whole = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
    model = policy.network.lm
    with torch.no_grad():
        output = model(whole, output_hidden_states=True)
    expected = output.logits[0].log_softmax(-1)
    start = rollout.prompt_ids.shape[1]
    found = policy.forward(rollout, ALL)
    for t in range(n):
        assert found.logprobs[0, t].item() == pytest.approx(
            expected[start + t - 1, whole[0, start + t]].item(), abs=1e-5
        )
    hidden = output.hidden_states[-1]
    values = policy.network.value_head(hidden)[0, :, 0]
    torch.testing.assert_close(found.values[0, :n], values[start - 1 : start + n - 1])  # V before each token
    torch.testing.assert_close(found.bootstrap[0], values[start + n - 1])  # V after the last


def test_same_seed_same_tokens_and_other_seed_others():
    policy = make_policy()
    first = policy.generate(prompts() * 4, SAMPLING, seed=1)
    again = policy.generate(prompts() * 4, SAMPLING, seed=1)
    other = policy.generate(prompts() * 4, SAMPLING, seed=2)
    assert torch.equal(first.response_ids, again.response_ids) and torch.equal(first.logprobs, again.logprobs)
    assert first.response_ids.shape != other.response_ids.shape or not torch.equal(
        first.response_ids, other.response_ids
    )


def test_rows_that_finish_early_leave_without_a_trace():
    """Compaction of the batch: everyone's tokens are those of a run on one's own."""
    policy = make_policy()
    bias = torch.zeros(300)
    eos = policy.codec.eos
    with torch.no_grad():  # make end of text likely, so that lengths are ragged
        head = policy.network.lm.get_output_embeddings()
        head.weight[eos] += 0.5 * head.weight.std()
    del bias
    many = prompts() * 8
    together = policy.generate(many, Sampling(max_new_tokens=40), seed=7)
    lengths = together.lengths.tolist()
    assert len(set(lengths)) > 3
    for i in range(0, 24, 5):
        alone = policy.generate([many[i]], Sampling(max_new_tokens=40), seed=7, sample_ids=[i])
        assert alone.response_ids[0].tolist() == together.response_ids[i, : lengths[i]].tolist()


def test_truncation_and_end_of_text():
    policy = make_policy()
    rollout = policy.generate(prompts() * 8, Sampling(max_new_tokens=3), seed=0)
    for i in range(len(rollout)):
        ids = rollout.response_ids[i][rollout.attention[i]].tolist()
        assert rollout.truncated[i] == (ids[-1] != policy.codec.eos)
        assert policy.codec.eos not in ids[:-1]
    least = policy.generate(prompts() * 8, Sampling(max_new_tokens=6, min_new_tokens=5), seed=0)
    assert int(least.lengths.min()) >= 5
    assert least.behaviour_logprobs is not None


def test_pad_equal_to_eos_keeps_the_genuine_end(tmp_path):
    policy = make_policy()
    policy.codec.pad = policy.codec.eos
    rollout = policy.generate(prompts() * 8, Sampling(max_new_tokens=64), seed=0)
    ended = [i for i in range(len(rollout)) if not rollout.truncated[i]]
    assert ended
    for i in ended:
        last = int(rollout.lengths[i]) - 1
        assert rollout.response_ids[i, last] == policy.codec.eos and rollout.mask[i, last]


def test_greedy_takes_the_likeliest_token():
    policy = make_policy()
    nudge(policy)
    rollout = policy.generate(prompts("say a:"), Sampling(max_new_tokens=5, temperature=0), seed=0)
    top = policy.forward(rollout, Needs(top_k=1)).top_ids[0, :, 0]
    assert rollout.response_ids[0].tolist() == top.tolist()


def test_top_k_and_top_p_restrict_what_is_drawn_and_keep_both_probabilities():
    policy = make_policy()
    nudge(policy)
    rollout = policy.generate(prompts() * 4, Sampling(max_new_tokens=8, top_k=2, top_p=0.9), seed=0)
    top = policy.forward(rollout, Needs(top_k=2)).top_ids
    assert ((rollout.response_ids[..., None] == top).any(-1) | ~rollout.attention).all()
    inside = rollout.attention
    assert (rollout.behaviour_logprobs[inside] >= rollout.logprobs[inside] - 1e-5).all()


def test_stop_strings_end_a_response_and_leave_its_text():
    policy = make_policy()
    free = policy.generate(prompts(), Sampling(max_new_tokens=30), seed=0)
    text = free.samples[0].response
    stop = text[3:5]
    stopped = policy.generate(prompts(), Sampling(max_new_tokens=30, stop=(stop,)), seed=0)
    assert stopped.samples[0].response == text[: text.index(stop)]
    assert stop in policy.codec.decode(stopped.samples[0].response_ids)
    assert not stopped.truncated[0]


def test_token_ends_count_characters_of_many_byte_text():
    policy = make_policy()
    text = "a café 你好，世界 🙂 end"
    ids = policy.tokenizer(text, add_special_tokens=False).input_ids
    ends = policy.token_ends([*ids, policy.codec.eos])
    assert ends == sorted(ends) and ends[-1] == len(text)
    for t, end in enumerate(ends):
        whole = policy.codec.decode(ids[: t + 1])
        assert text[:end] == whole.rstrip("\ufffd")[:end] and len(whole.rstrip("\ufffd")) == end


@pytest.mark.parametrize("prompt", [
    Prompt(text="Ask:"), Prompt(text=(Message(role="user", content="Hi"),))
])  # fmt: skip
def test_token_ranges_are_the_characters_of_a_response(prompt):
    """They agree with step-by-step decoding wherever a token completes a character."""
    codec = make_policy().codec
    for response in ("你好,请重启。🙂👍🏽", " Thanks, don't e\u0301t. ", "no space"):
        ids = codec.encode_response(prompt, response)
        ranges = codec.token_ranges(prompt, response, ids)
        shift = len(prompt.render_response(response)) - len(response)
        before = -shift
        for (_, end), decoded in zip(ranges, codec.token_ends(ids), strict=True):
            if decoded - shift > before:
                assert end == decoded - shift
                before = end
        assert ranges[-2][1] == len(response) and ranges[-1] == (len(response), len(response))
        assert {i for a, b in ranges for i in range(max(a, 0), b)} == set(range(len(response)))
        # of a shortened response the same, closed or not
        assert codec.token_ranges(prompt, response, ids[:3]) == ranges[:3]
        closed = codec.token_ranges(prompt, response, [*ids[:3], codec.eos])
        assert closed[:3] == ranges[:3] and closed[3][0] == closed[3][1]


def test_token_ranges_need_a_tokenizer_that_knows_them():
    codec = make_policy().codec
    codec.tokenizer = SimpleNamespace(is_fast=False)
    words = "SimpleNamespace does not say where its tokens stand in a text; expected a fast tokenizer; choose a model"
    with pytest.raises(ConfigError, match=words):
        codec.token_ranges(Prompt(text="p"), "r", [1])


def test_no_dropout_in_scoring():
    policy = make_policy("gpt2")  # resid_pdrop, attn_pdrop and embd_pdrop are 0.1
    rollout = policy.generate(prompts(), SAMPLING, seed=0)
    policy.module.train()
    first, second = policy.forward(rollout, Needs()).logprobs, policy.forward(rollout, Needs()).logprobs
    assert torch.equal(first, second)


def test_adapters_start_as_the_base_and_train_alone():
    base, policy = make_policy(), make_policy(lora=Lora(r=4))
    rollout = base.generate(prompts(), SAMPLING, seed=0)
    torch.testing.assert_close(policy.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-5, rtol=0)
    names = [name for name, p in policy.module.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)


@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_reference_is_the_policy_as_it_was(lora, tmp_path):
    policy = make_policy(lora=lora)
    nudge(policy)  # as sft would: the adapters are no longer fresh
    rollout = policy.generate(prompts(), SAMPLING, seed=0)
    policy.set_reference("stage-start")
    with policy.as_reference():
        torch.testing.assert_close(policy.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-5, rtol=0)
    policy.save_reference(tmp_path)
    before = copy.deepcopy(policy.module.state_dict())
    nudge(policy, seed=1)
    moved = policy.forward(rollout, Needs()).logprobs.detach()
    assert (moved - rollout.logprobs).abs().max() > 0.01
    with policy.as_reference(), policy.as_reference():  # nests
        torch.testing.assert_close(policy.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(policy.forward(rollout, Needs()).logprobs, moved, atol=0, rtol=0)
    assert any((before[k] != v).any() for k, v in policy.module.state_dict().items())

    other = make_policy(lora=lora)
    other.set_reference(str(tmp_path))
    with other.as_reference():
        torch.testing.assert_close(other.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_reference_base_is_before_any_training(lora):
    policy = make_policy(lora=lora)
    rollout = policy.generate(prompts(), SAMPLING, seed=0)
    nudge(policy)
    policy.set_reference("base")
    with policy.as_reference():
        torch.testing.assert_close(policy.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-5, rtol=0)


def test_reference_that_is_missing_says_so(tmp_path):
    policy = make_policy()
    with pytest.raises(ConfigError, match="has no reference yet"), policy.as_reference():
        pass
    with pytest.raises(ConfigError, match="nothing to load at"):
        policy.set_reference(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_export_is_a_plain_model_with_adapters_merged(lora, tmp_path):
    policy = make_policy(lora=lora)
    nudge(policy)
    rollout = policy.generate(prompts(), SAMPLING, seed=0)
    policy.export(tmp_path)
    assert not any("adapter" in p.name for p in tmp_path.iterdir())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    whole = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
    mask = torch.cat([rollout.prompt_mask, rollout.attention], 1).long()
    with torch.no_grad():
        logits = model(whole, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(2, whole[:, 1:, None])[..., 0][:, -rollout.mask.shape[1] :]
    torch.testing.assert_close(logprobs[rollout.mask], rollout.logprobs[rollout.mask], atol=1e-4, rtol=0)
    assert tokenizer("say the:").input_ids == policy.tokenizer("say the:").input_ids
    # and it comes back as a policy
    again = type(policy)(CausalLMConfig(model=str(tmp_path)), make_context())
    torch.testing.assert_close(again.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-4, rtol=0)
    # the policy itself is as before
    torch.testing.assert_close(policy.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_values_come_from_their_own_parameters(critic):
    policy = make_policy(critic=critic)
    policy.prepare(ALL)
    rollout = policy.generate(prompts(), SAMPLING, seed=0)
    assert policy.forward(rollout, ALL).values.abs().max() == 0  # before it has learnt
    nudge(policy)
    rollout = policy.generate(prompts(), SAMPLING, seed=0)
    policy.forward(rollout, ALL).values.sum().backward()
    trunk = policy.network.lm.get_input_embeddings().weight
    assert (trunk.grad is None) == (critic == "separate")
    assert all(p.grad is not None for p in policy.network.value_head.parameters())
    assert len(policy.value_parameters) == (
        2 if critic == "shared" else 2 + len(list(policy.network.value_trunk.parameters()))
    )


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_state_restores_everything(critic, lora):
    policy = make_policy(critic=critic, lora=lora)
    policy.prepare(ALL)
    nudge(policy)
    rollout = policy.generate(prompts(), SAMPLING, seed=0)
    expected = policy.forward(rollout, ALL)
    other = make_policy(critic=critic, lora=lora)
    other.load_state_dict(policy.state_dict())
    found = other.forward(rollout, ALL)
    assert torch.equal(found.logprobs, expected.logprobs) and torch.equal(found.values, expected.values)
    names = [n for n, p in policy.module.named_parameters() if p.requires_grad]
    assert names == [n for n, p in other.module.named_parameters() if p.requires_grad]


def test_bf16_autocast_stays_close():
    policy = make_policy()
    nudge(policy)
    rollout = policy.generate(prompts() * 8, SAMPLING, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = policy.forward(rollout, Needs()).logprobs
    assert low.dtype == torch.float32
    ratio = (low - rollout.logprobs)[rollout.mask].exp()
    assert (ratio - 1).abs().mean() < 0.02


def test_imitation_learns_the_demonstrations_and_keeps_prompts_apart():
    policy = make_policy()
    examples = [Demonstration(prompt=f"say {i}:", response=f" {i} is said.") for i in range(12)]
    task = policy.demonstrations(examples, held_out=0.3)
    assert len(task.train) + len(task.held_out) == 12 and task.held_out
    loop = SupervisedLoop(task, SupervisedConfig(epochs=20, batch_size=4, learning_rate=1e-2), make_context())
    before = loop.evaluate()["loss"]
    for i in range(loop.total):
        loop.step(i)
    assert loop.evaluate()["loss"] < before / 2


def test_spans_of_a_demonstration_weigh_its_tokens():
    policy = make_policy()
    text = " over the dog"
    start = text.index("dog")
    spans = (SpanWeight(start=start, end=start + 3, weight=-2.0), SpanWeight(start=1, end=5, weight=3.0))
    task = policy.demonstrations([Demonstration(prompt="say:", response=text, spans=spans, weight=0.5)], held_out=0)
    (tokens,) = task.train
    ends = policy.token_ends(tokens.response)
    words = [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]
    expected = [3.0 if w and w in "over" else -2.0 if w and w in "dog" else 1.0 for w in words]
    assert tokens.factors == expected and {3.0, 1.0, -2.0} == set(expected)
    assert task.count(tokens) == 0.5 * len(tokens.response)

    def probabilities():
        rollout = policy.encode([Sample(Prompt(text="say:"), text)])
        return rollout.logprobs[0].exp()

    before = probabilities()
    loop = SupervisedLoop(task, SupervisedConfig(epochs=10, learning_rate=1e-2, held_out=0), make_context())
    for i in range(loop.total):
        loop.step(i)
    change = probabilities() - before
    assert all(bool(d > 0) == (f > 0) for d, f in zip(change, tokens.factors, strict=False)), (change, tokens.factors)


def test_demonstrations_of_weight_zero_are_left_out_and_weights_scale():
    policy = make_policy()
    records = [Demonstration(prompt=f"say {w}:", response=" the dog", weight=w) for w in (0.0, 1.0, 3.0)]
    task = policy.demonstrations(records, held_out=0)
    assert [t.weight for t in task.train] == [1.0, 3.0]
    once, thrice = (float(task.loss([t]).total) for t in task.train)
    plain = policy.demonstrations([r.model_copy(update={"weight": 1.0}) for r in records[1:]], held_out=0)
    pairs = zip(plain.train, (1, 3), strict=True)
    assert [once, thrice] == pytest.approx([float(plain.loss([t]).total.detach()) * w for t, w in pairs])


def test_encoded_text_equals_what_sampling_would_have_said():
    policy = make_policy()
    rollout = policy.encode([Sample(p, " over the dog") for p in prompts()])
    assert rollout.response_ids[0].tolist() == [*policy.tokenizer(" over the dog").input_ids, policy.codec.eos]
    torch.testing.assert_close(policy.forward(rollout, Needs()).logprobs, rollout.logprobs)


def test_chat_messages_go_through_the_template_and_else_become_a_transcript():
    policy = make_policy()
    chat = Prompt(
        text=(
            Message(role="user", content="hi"),
            Message(role="assistant", content="yes?"),
            Message(role="user", content="help"),
        )
    )
    assert policy.tokenizer.decode(policy.codec.encode_prompt(chat, 0)) == (
        "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: help\n\nAssistant:"
    )
    assert policy.codec.decode(policy.codec.encode_response(chat, "sure")) == " sure"
    policy.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert (
        policy.tokenizer.decode(policy.codec.encode_prompt(chat, 0)) == "<user>hi<assistant>yes?<user>help<assistant>"
    )
    assert policy.codec.decode(policy.codec.encode_response(chat, "sure")) == "sure"


def test_prompt_beyond_the_context_is_an_error_or_cut():
    long = Prompt(text="word " * 200)
    with pytest.raises(DataError, match=r"at most 96 together.*set max_prompt_tokens: 84"):
        make_policy().generate([long], SAMPLING, seed=0)
    rollout = make_policy(max_prompt_tokens=20).generate([long], SAMPLING, seed=0)
    assert rollout.prompt_ids.shape[1] == 20


def test_models_that_cannot_be_loaded_say_why(tmp_path):
    with pytest.raises(ConfigError, match=r"policy 'toy': cannot load hub id \(no folder is there\) 'no/such-model'"):
        type(make_policy())(CausalLMConfig(model="no/such-model"), make_context())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot load folder"):
        type(make_policy())(CausalLMConfig(model=str(tmp_path)), make_context())
    with pytest.raises(ConfigError, match="'nothing'"):
        make_policy(lora=Lora(target_modules=["nothing"]))


def test_an_encoder_is_refused_as_a_policy():
    from rlhf_core.policies.config import FreshModel, FreshTokenizer

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    fresh = FreshModel(architecture="bert", sizes=sizes, tokenizer=FreshTokenizer(text=["texts"], vocab_size=300))
    with pytest.raises(ConfigError, match="'bert' is an encoder: its tokens see what comes after them"):
        type(make_policy())(CausalLMConfig(fresh=fresh), make_context())
    wrong = FreshModel(architecture="gpt2", sizes={"n_embd": 31, "n_head": 4}, tokenizer=fresh.tokenizer)
    with pytest.raises(ConfigError, match="sizes that fit together"):
        type(make_policy())(CausalLMConfig(fresh=wrong), make_context())


def test_a_cut_prompt_keeps_its_beginning_of_text():
    policy = make_policy(max_prompt_tokens=5)
    policy.tokenizer.bos_token = policy.tokenizer.pad_token
    encoded = policy.codec.tokenizer("word " * 20).input_ids
    policy.codec.tokenizer = lambda text, **options: type("E", (), {"input_ids": [7, *encoded]})()
    policy.codec.tokenizer.bos_token_id = 7
    policy.codec.tokenizer.chat_template = None
    assert policy.codec.encode_prompt(Prompt(text="word " * 20), 4) == [7, *encoded[-4:]]


def test_a_tokenizer_that_cannot_end_a_text_is_refused(tmp_path):
    policy = make_policy()
    policy.tokenizer.eos_token = None
    policy.export(tmp_path)
    with pytest.raises(ConfigError, match="policy 'toy': a tokenizer with neither an end-of-text token nor a separator"):
        type(policy)(CausalLMConfig(model=str(tmp_path)), make_context())


def test_a_pickled_model_is_refused(tmp_path):
    policy = make_policy()
    policy.export(tmp_path)
    weights = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is a pickle"):
        type(policy)(CausalLMConfig(model=str(tmp_path)), make_context())


def test_parameter_count_and_files(tmp_path: Path):
    policy = make_policy()
    assert policy.parameter_count == sum(p.numel() for p in policy.module.parameters())


# --- the whole distribution, states, and action values ---------------------------------------------------------------


def test_the_distribution_is_that_of_the_tokens_and_states_are_what_the_head_reads():
    policy = make_policy()
    nudge(policy)
    rollout = policy.generate(prompts(), SAMPLING.model_copy(update={"temperature": 0.7}), seed=3)
    out = policy.forward(rollout, Needs(distribution=True, hidden=True))
    mask = rollout.attention
    torch.testing.assert_close(out.distribution[mask].exp().sum(-1), torch.ones(int(mask.sum())))
    taken = out.distribution.gather(-1, rollout.response_ids[..., None])[..., 0]
    torch.testing.assert_close(taken[mask], out.logprobs[mask])
    logits = policy.network.lm.get_output_embeddings()(out.hidden[mask]) / 0.7
    torch.testing.assert_close(logits.log_softmax(-1), out.distribution[mask])
    assert not out.distribution[~mask].any() and not out.hidden[~mask].any()
    assert policy.forward(rollout, Needs()).hidden is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steering_adds_action_values_to_logits_alike_in_sampling_and_scoring(architecture):
    policy = make_policy(architecture)
    nudge(policy)
    policy.set_reference("stage-start")
    with pytest.raises(ConfigError, match=r"steering without action-value heads; call prepare\(Needs"):
        policy.steering = 1.0
    policy.prepare(Needs(heads=2))
    assert len(policy.heads) == 2 and not any(p.any() for head in policy.heads for p in head.parameters())
    wanted = policy.codec.encode_response(prompts()[0], "q")[0]
    with torch.no_grad():
        for head, value in zip(policy.heads, (3.0, 5.0), strict=True):
            head.bias[wanted] = value
    plain = policy.generate(prompts() * 20, SAMPLING, seed=3)
    before = policy.forward(plain, Needs(distribution=True)).distribution
    policy.steering = 0.5
    rollout = policy.generate(prompts() * 20, SAMPLING, seed=3)
    now = policy.forward(rollout, Needs())
    assert (now.logprobs - rollout.logprobs).abs().max() < 1e-4, "what is sampled is what is scored"
    assert int((rollout.response_ids == wanted).sum()) > int((plain.response_ids == wanted).sum())
    # the least of both heads counts: 0.5 x 3 in the logit of one token
    steered = policy.forward(plain, Needs(distribution=True)).distribution
    odds = (steered - before)[..., wanted] - (steered - before)[..., wanted - 1]
    torch.testing.assert_close(odds[plain.attention], torch.full((int(plain.attention.sum()),), 1.5))
    with policy.as_reference():
        unsteered = policy.forward(plain, Needs()).logprobs
    torch.testing.assert_close(unsteered, plain.logprobs, atol=1e-4, rtol=1e-4)
    assert policy.steering == 0.5


def test_heads_and_steering_are_part_of_the_state_and_not_of_an_export(tmp_path):
    warnings: list[str] = []
    policy = make_policy(context=make_context(warn=warnings.append))
    policy.prepare(Needs(heads=2))
    nudge(policy)
    policy.steering = 2.0
    other = make_policy()
    other.load_state_dict(policy.state_dict())
    rollout = policy.generate(prompts(), SAMPLING, seed=1)
    assert torch.equal(other.generate(prompts(), SAMPLING, seed=1).response_ids, rollout.response_ids)
    policy.export(tmp_path)
    assert "holds the language model alone. The action values that steer its decoding (2 x Q) are not in it" in warnings[0]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all("action_values" not in name for name, _ in plain.named_parameters())
    policy.steering = 0.0
    policy.export(tmp_path)
    assert len(warnings) == 1


class Instructed(CausalLM):
    """Tells the model something before every prompt."""

    def as_read(self, prompt):
        return Prompt(text="Be brief. " + prompt.text)


def test_what_the_model_reads_may_differ_from_the_prompt():
    """It draws and scores as if the instruction stood in the prompt; samples keep the prompt that was given."""
    config = CausalLMConfig.model_validate(tiny_model())
    plain, told = tiny_policy(), Instructed(config, tiny_context("policy"))
    given, read = Prompt(text="Hello"), Prompt(text="Be brief. Hello")
    ours, theirs = (policy.generate([prompt], SAMPLING, seed=2) for policy, prompt in ((told, given), (plain, read)))
    assert ours.samples[0].prompt == given
    assert ours.prompt_ids.tolist() == theirs.prompt_ids.tolist()
    assert ours.response_ids.tolist() == theirs.response_ids.tolist()
    ours, theirs = (policy.encode([Sample(p, " there")]) for policy, p in ((told, given), (plain, read)))
    assert torch.equal(ours.logprobs, theirs.logprobs)
    tasks = [
        policy.demonstrations([Demonstration(prompt=prompt, response=" there")], held_out=0)
        for policy, prompt in ((told, given), (plain, read))
    ]
    ours, theirs = (task.loss(task.train).total for task in tasks)
    assert torch.equal(ours, theirs)
