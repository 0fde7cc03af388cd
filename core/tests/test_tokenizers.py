"""The tokenizers that people's models come with: what is drawn is what is scored, and responses stand where they stand.

Every model is a folder as a user has it, read by `causal-lm`: a tiny Llama beside a byte-level tokenizer or a
SentencePiece model.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.interfaces import Needs, Sampling
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import CausalLMConfig, FreshTokenizer
from rlhf_core.policies.loading import fresh_tokenizer
from rlhf_core.policies.text import Codec
from rlhf_core.records import Demonstration, Message, Prompt, Sample
from rlhf_core.rl import OnPolicyConfig, OnPolicyOptimizer
from rlhf_core.testing import example_data
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from .toys import TEXTS as WORDS
from .toys import make_context

WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = [*WORDS, "naïve café, déjà vu", "你好，世界。", "👍🏽 ok 🙂", " leading", "trailing ", "  two  spaces ", "a\n\nb\n", "\n", "e\u0301"]  # fmt: skip
SIMPLE = [" the quick fox", " naïve café", " a 好 dog"]
"""Text that every tokenizer keeps, also those that fold white space and know no bytes."""

CHATML = (
    "{{ bos_token or '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMS = CHATML.replace("m.content", "m.content | trim")
TAGS = (  # nothing but a special token before a reply
    "{{ bos_token or '' }}{% for m in messages %}{{ '<|im_start|>' if m.role == 'user' else '<|im_end|>' }}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|im_end|>{% endif %}"
)
INST = (  # in the manner of Llama 2: text on both sides of the seam, and a space that belongs to neither
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' }}"
    "{% else %}[{{ m.role }}] {{ m.content | trim }} [/]{% endif %}{% endfor %}"
)
STRICT = (  # in the manner of Gemma: no system message, and turns in turn
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}model: {% endif %}"
)
TEMPLATES = {"chatml": CHATML, "trims": TRIMS, "tags": TAGS, "inst": INST}


@cache
def sentencepiece(kind: str) -> bytes:
    """A SentencePiece model: byte-pair merges as Llama has them, or a unigram model as T5 has it."""
    import sentencepiece

    options: dict[str, Any] = {"bos_id": -1, "pad_id": 0, "eos_id": 1, "unk_id": 2, "vocab_size": 90}
    if kind == "bpe":
        options = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
                   "vocab_size": 340}  # fmt: skip
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*WORDS, "say hello! no, thanks", "好好"] * 20), model_writer=written, model_type=kind,
        hard_vocab_limit=False, character_coverage=1.0, minloglevel=2, num_threads=1, **options,
    )  # fmt: skip
    return written.getvalue()


def byte_level(folder: Path, **settings: Any) -> None:
    tokenizer = fresh_tokenizer(FreshTokenizer(text=["texts"], vocab_size=300), make_context())
    tokenizer.save_pretrained(folder)
    written = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**written, **settings}))


def llama(folder: Path, **settings: Any) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece("bpe"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", **names, **settings})
    )


def t5(folder: Path, **settings: Any) -> None:
    (folder / "spiece.model").write_bytes(sentencepiece("unigram"))
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", **names, **settings}))


TOKENIZERS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "bytes": (byte_level, {}),
    "bytes-no-pad": (byte_level, {"pad_token": None}),
    "bytes-pad-is-eos": (byte_level, {"pad_token": "<|endoftext|>"}),
    "bytes-bos": (byte_level, {"bos_token": "<|endoftext|>", "pad_token": None}),
    "llama-no-pad": (llama, {}),
    "llama-pad-is-eos": (llama, {"pad_token": "</s>"}),
    "llama-legacy": (llama, {"legacy": True}),  # puts a space behind every special token as well
    "t5": (t5, {}),
}
EXACT = [name for name in TOKENIZERS if name != "t5"]
"""Those that can write every text."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A model folder with the tokenizer of that name, and with a chat template, whose turns end in <|im_end|>."""

    @cache
    def made(name: str, template: str | None = None) -> str:
        path = tmp_path_factory.mktemp("model")
        build, settings = TOKENIZERS[name]
        if template is not None:
            settings = {**settings, "eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
            if settings.get("pad_token") in ("</s>", "<|endoftext|>"):
                settings["pad_token"] = "<|im_end|>"
            (path / "chat_template.jinja").write_text(template)
        build(path, **settings)
        model = LlamaConfig(vocab_size=len(AutoTokenizer.from_pretrained(path)), max_position_embeddings=512, **WIDTHS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            LlamaForCausalLM(model).save_pretrained(path)
        return str(path)

    return made


@pytest.fixture(scope="session")
def policy(folder: Callable[..., str]) -> Callable[..., CausalLM]:
    @cache
    def made(name: str, template: str | None = None) -> CausalLM:
        return CausalLM(CausalLMConfig(model=folder(name, template)), make_context())

    return made


@pytest.fixture(scope="session")
def codec(policy: Callable[..., CausalLM]) -> Callable[..., Codec]:
    return lambda name, template=None: policy(name, template).codec


def chat(*turns: str) -> Prompt:
    """A chat whose turns are written role: text."""
    return Prompt(text=tuple(Message(role=role, content=text) for role, _, text in (t.partition(": ") for t in turns)))


MULTI = chat("system: be kind", "user: say hello", "assistant: hello! 好", "user: jumps over")
SEVERAL = [Prompt(text="say the:"), Prompt(text="a much longer prompt, 你好\n"), MULTI]


def drawn(policy: CausalLM, rows: int = 6, tokens: int = 24) -> Any:
    return policy.generate(SEVERAL * (rows // 3), Sampling(max_new_tokens=tokens), seed=4)


# --- responses as text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer_has_an_end_and_padding(codec, name):
    found = codec(name)
    assert found.tokenizer.eos_token_id == found.eos and found.tokenizer.pad_token_id == found.pad
    assert (found.pad == found.eos) == (name not in ("bytes", "t5"))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("prompt", [Prompt(text="say:"), Prompt(text="say: "), Prompt(text="好"), Prompt(text="a\n")])
def test_a_response_is_decoded_as_it_was_written(codec, name, prompt):
    """Behind a text prompt to the letter, a leading space or none, which SentencePiece would add and drop."""
    for text in TEXTS if name in EXACT else SIMPLE:
        ids = codec(name).encode_response(prompt, text)
        assert ids[-1] == codec(name).eos and codec(name).eos not in ids[:-1]
        assert codec(name).decode(ids) == text
        assert codec(name).encode_response(prompt, codec(name).decode(ids)) == ids


@pytest.mark.parametrize("name", ["bytes", "llama-no-pad"])
@settings(max_examples=60, deadline=None)
@given(prompt=st.text(min_size=1, max_size=6), text=st.text(max_size=12))
def test_any_text_is_decoded_as_it_was_written(codec, name, prompt, text):
    text, prompt = text.replace("▁", "_"), prompt.replace("▁", "_")  # SentencePiece writes a space that way
    found = codec(name)
    ids = found.encode_response(Prompt(text=prompt), text)
    assert found.decode(ids) == text
    ends = found.token_ends(ids)
    assert ends == sorted(ends) and ends[-1] == len(text)


@pytest.mark.parametrize("name", EXACT)
def test_prompt_and_response_together_are_the_tokens_of_the_whole_text(codec, name):
    found = codec(name)
    for text in (" the quick fox", "好", ", no\n", "!👍🏽"):
        prompt = Prompt(text="say hello")
        whole = found.tokenizer("say hello" + text).input_ids
        assert [*found.encode_prompt(prompt, 0), *found.encode_response(prompt, text)] == [*whole, found.eos]


@pytest.mark.parametrize("name", EXACT)
def test_tokens_of_the_prompt_stand_where_the_text_would_merge_across(codec, name):
    """ "th" + "e" is one token in the whole text; the prompt is what it is, so the response begins behind it."""
    found = codec(name)
    assert found.tokenizer.tokenize("the")[-1].endswith("he")
    ids = found.encode_response(Prompt(text="say th"), "e")
    assert found.tokenizer.convert_ids_to_tokens(ids[:-1]) == ["e"]


# --- where tokens stand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
def test_token_ends_grow_to_the_whole_text(codec, name):
    found = codec(name)
    for text in TEXTS if name in EXACT else SIMPLE:
        ids = found.encode_response(Prompt(text="say:"), text)
        ends = found.token_ends(ids)
        spoken = [len(found.decode(ids[: t + 1]).rstrip("\ufffd")) for t in range(len(ids))]
        assert ends == list(accumulate(spoken, max))  # SentencePiece shows a run of bytes as broken till it is whole
        assert ends[-1] == len(text)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):  # whatever is drawn: broken characters, special tokens, spaces on spaces
        ids = torch.randint(len(found.tokenizer), (20,), generator=generator).tolist()
        ends = found.token_ends(ids)
        assert ends == sorted(ends) and ends[-1] == len(found.decode(ids))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("prompt", [Prompt(text="say:"), chat("user: say")])
def test_token_ranges_are_the_characters_of_a_response(codec, name, prompt):
    found = codec(name)
    for text in TEXTS if name in EXACT else SIMPLE:
        ids = found.encode_response(prompt, text)
        ranges = found.token_ranges(prompt, text, ids)
        assert len(ranges) == len(ids) and ranges[-1] == (len(text), len(text))
        assert ranges == sorted(ranges) and [end for _, end in ranges] == sorted(end for _, end in ranges)
        if name in EXACT:
            covered = {i for start, end in ranges for i in range(max(start, 0), end)}
            assert covered == set(range(len(text)))
            pieces = [found.decode([token]) for token in ids[:-1]]  # a token that is no part of a character says itself
            spoken = [text[max(a, 0) : b] for a, b in ranges[:-1]]
            assert all(said in (piece, piece[1:]) for piece, said in zip(pieces, spoken, strict=True) if "\ufffd" not in piece)  # fmt: skip


# --- masks come from lengths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
def test_padding_changes_nothing_and_the_end_counts_once(policy, name):
    model = policy(name)
    with torch.no_grad():
        head = model.network.lm.get_output_embeddings().weight
        before = head[model.codec.eos].clone()
        head[model.codec.eos] *= 4.0  # ends of different lengths
    try:
        rollout = drawn(model, 24)
        forward = model.forward(rollout, Needs()).logprobs
        lengths = rollout.lengths.tolist()
        assert len(set(lengths)) > 3
        for row, n in enumerate(lengths):
            ids = rollout.response_ids[row, :n].tolist()
            assert ids.count(model.codec.eos) == int(not rollout.truncated[row]) and rollout.samples[row].response_ids == tuple(ids)  # fmt: skip
            assert int(rollout.prompt_mask[row].sum()) == len(model.codec.encode_prompt(rollout.samples[row].prompt, 0))
        for row in range(0, 24, 5):
            alone = model.generate([rollout.samples[row].prompt], Sampling(max_new_tokens=24), seed=4, sample_ids=[row])
            assert alone.samples[0].response_ids == rollout.samples[row].response_ids
            torch.testing.assert_close(model.forward(alone, Needs()).logprobs[0], forward[row, : lengths[row]], atol=1e-5, rtol=0)  # fmt: skip
        # whatever stands in the padding, be it the end of text or a word
        other = rollout.replace(
            response_ids=rollout.response_ids.where(rollout.attention, torch.tensor(5)),
            prompt_ids=rollout.prompt_ids.where(rollout.prompt_mask, torch.tensor(7)),
        )
        assert torch.equal(model.forward(other, Needs()).logprobs, forward)
        assert not forward[~rollout.attention].any()
    finally:
        with torch.no_grad():
            head[model.codec.eos] = before


@pytest.mark.parametrize("name", ["bytes-pad-is-eos", "llama-pad-is-eos"])
def test_ends_inside_a_prompt_are_read_though_padding_looks_the_same(policy, name):
    model = policy(name, CHATML)
    assert model.codec.pad == model.codec.eos
    rollout = model.generate([chat("user: the"), MULTI], Sampling(max_new_tokens=4), seed=0)
    real = rollout.prompt_ids[rollout.prompt_mask]
    assert int((real == model.codec.eos).sum()) == 1 + 4 and not rollout.prompt_mask.all()
    alone = model.generate([MULTI], Sampling(max_new_tokens=4), seed=0, sample_ids=[1])
    torch.testing.assert_close(alone.logprobs[0], rollout.logprobs[1, : alone.mask.shape[1]], atol=1e-5, rtol=0)


# --- what was drawn is what is scored --------------------------------------------------------------------------------


class Watching(OnPolicyOptimizer[OnPolicyConfig]):
    """Learns nothing and writes down what it is given."""

    def prepare(self, rollout):
        self.rollout, self.seen = rollout, []
        return {"place": torch.arange(len(rollout))}

    def loss(self, batch, new):
        for row, place in enumerate(batch.place.tolist()):
            n = int(batch.rollout.lengths[row])
            self.seen.append((place, batch.rollout.response_ids[row, :n].tolist()))
        self.difference = float((new.logprobs - batch.logprobs).abs().max().detach())
        return 0.0 * batch.token_mean(new.logprobs), {}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_ids_that_were_drawn_are_scored_though_their_text_has_others(policy, name):
    model = policy(name)
    rollout = drawn(model)
    again = model.encode([Sample(s.prompt, s.response) for s in rollout.samples])
    texts = [row[mask].tolist() for row, mask in zip(again.response_ids, again.attention, strict=True)]
    ids = [list(sample.response_ids) for sample in rollout.samples]
    assert all(text != row for text, row in zip(texts, ids, strict=True))  # random ids are never what one would write
    assert ids == [row[mask].tolist() for row, mask in zip(rollout.response_ids, rollout.attention, strict=True)]
    torch.testing.assert_close(model.forward(rollout, Needs()).logprobs, rollout.logprobs, atol=1e-5, rtol=0)

    optimizer = Watching(OnPolicyConfig(prompts_per_step=4, minibatch_size=2, learning_rate=0.0), make_context())
    optimizer.bind(model, 1)
    data = example_data(model, max_new_tokens=12)
    data.begin(0)
    optimizer.step(data)
    assert sorted(optimizer.seen) == [(i, list(s.response_ids)) for i, s in enumerate(optimizer.rollout.samples)]
    assert optimizer.difference < 1e-4
    part = optimizer.rollout
    rescored = data.sampler.evaluated(part, Needs(), rescore=True)
    assert torch.equal(rescored.response_ids, part.response_ids)
    torch.testing.assert_close(rescored.logprobs, part.logprobs, atol=1e-5, rtol=0)


# --- chats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("reply", ["hello! jumps", "好, the"])
def test_a_chat_and_its_reply_are_the_tokens_of_the_whole_conversation(codec, name, template, reply):
    found = codec(name, TEMPLATES[template])
    told = found.tokenizer.apply_chat_template(MULTI.messages, add_generation_prompt=True, tokenize=True, return_dict=False)  # fmt: skip
    prompt = found.encode_prompt(MULTI, 0)
    assert prompt == told and told.count(found.tokenizer.bos_token_id) == int(found.tokenizer.bos_token is not None)
    answered = [*MULTI.messages, {"role": "assistant", "content": reply}]
    whole = found.tokenizer.apply_chat_template(answered, tokenize=True, return_dict=False)
    ids = found.encode_response(MULTI, reply)
    assert whole[: len(prompt)] == prompt and whole[len(prompt) :][: len(ids) - 1] == ids[:-1]
    assert found.decode(ids).strip() == reply
    if template in ("chatml", "trims"):
        assert whole[len(prompt) :][: len(ids)] == ids  # <|im_end|> closes a turn and is the end of text


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_what_was_said_in_a_chat_is_said_again(codec, name, template):
    found = codec(name, TEMPLATES[template])
    for text in TEXTS:
        ids = found.encode_response(MULTI, text)
        said = found.decode(ids)
        assert said == (text if template == "chatml" or text[:1].isspace() else f" {text}")
        assert found.encode_response(MULTI, said) == ids
        assert found.token_ranges(MULTI, text, ids)[-2][1] == len(text)


@pytest.mark.parametrize("name", ["llama-no-pad", "bytes-bos"])
def test_a_text_begins_once(codec, name):
    found = codec(name)
    bos = found.tokenizer.bos_token
    plain = found.encode_prompt(Prompt(text="the dog"), 0)
    assert found.encode_prompt(Prompt(text=f"{bos}the dog"), 0).count(found.tokenizer.bos_token_id) == 1
    assert plain.count(found.tokenizer.bos_token_id) == int("llama" in name)  # not every tokenizer writes its own
    assert found.encode_prompt(MULTI, 0).count(found.tokenizer.bos_token_id) == int("llama" in name)


@pytest.mark.parametrize("name", ["bytes", "llama-no-pad", "t5"])
@pytest.mark.parametrize("template", [None, CHATML])
def test_every_sample_has_its_own_system_prompt(policy, name, template):
    model = policy(name, template)
    chats = [chat("system: the fox", "user: hello"), chat("system: a lazy dog, a lazy dog", "user: hello")]
    rollout = model.generate(chats, Sampling(max_new_tokens=3), seed=0)
    for row, (own, other) in enumerate((("the fox", "lazy"), ("a lazy dog", "fox"))):
        ids = rollout.prompt_ids[row][rollout.prompt_mask[row]].tolist()
        text = model.tokenizer.decode(ids)
        assert text.count(own) == 1 + row and other not in text
        assert ids == model.codec.encode_prompt(chats[row], 0)


def test_without_a_template_a_chat_is_a_transcript(codec):
    found = codec("llama-no-pad")
    assert found.tokenizer.decode(found.encode_prompt(MULTI, 0), skip_special_tokens=True) == (
        "\n\nSystem: be kind\n\nHuman: say hello\n\nAssistant: hello! 好\n\nHuman: jumps over\n\nAssistant:"
    )


def test_training_on_a_chat_is_training_on_what_would_be_sampled(policy):
    model = policy("llama-no-pad", CHATML)
    task = model.demonstrations([Demonstration(prompt=MULTI, response="hello!")], held_out=0.0)
    (tokens,) = task.train
    assert model.tokenizer.decode([*tokens.prompt, *tokens.response]).endswith(
        "<|im_start|>user\njumps over<|im_end|>\n<|im_start|>assistant\nhello!<|im_end|>"
    )


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_template_that_takes_no_system_message_says_so(policy):
    model = policy("bytes", STRICT)
    asked = chat("system: be kind", "user: hi")
    words = (
        r"policy 'toy' prompt '\\n\\nSystem: be kind.*: the model's chat template refuses a chat of system, user: "
        r"System role not supported; expected messages that it takes; it takes no system message: put its text at the "
        r"beginning of the first user message"
    )
    for attempt in (
        lambda: model.generate([chat("user: hi"), asked], Sampling(max_new_tokens=2), seed=0),
        lambda: model.encode([Sample(asked, "no")]),
        lambda: model.demonstrations([Demonstration(prompt=asked, response="no")], held_out=0.0),
    ):
        with pytest.raises(DataError, match=words):
            attempt()
    for turns in (("user: a", "user: b"), ("system: s", "user: a", "user: b"), ("system: s",)):
        with pytest.raises(DataError, match="most templates want user and assistant in turn"):
            model.codec.encode_prompt(chat(*turns), 0)
    assert model.codec.decode(model.codec.encode_prompt(chat("user: hi"), 0)) == "user: hi\nmodel: "


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder, tmp_path):
    path = Path(folder("llama-no-pad"))
    entries = len(AutoTokenizer.from_pretrained(path))
    LlamaForCausalLM(LlamaConfig(vocab_size=entries - 3, **WIDTHS)).save_pretrained(tmp_path)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    words = f"policy 'toy': the tokenizer has {entries} entries, the embedding {entries - 3}; expected a tokenizer that fits the model; use the model's own tokenizer"  # fmt: skip
    with pytest.raises(ConfigError, match=words):
        CausalLM(CausalLMConfig(model=str(tmp_path)), make_context())
