"""The built-in engines: what they draw is what the policy says, whoever shares the batch, and nothing is done twice."""

from __future__ import annotations

import warnings
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core import api
from rlhf_core.errors import ConfigError, RegistryErrors
from rlhf_core.interfaces import Context, Needs, Sampling
from rlhf_core.plugins import Plugins, load_plugins
from rlhf_core.policies import decoding
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import CausalLMConfig, CompactionConfig, Lora, RefillConfig
from rlhf_core.policies.decoders import CacheDecoder, Decoder
from rlhf_core.policies.decoding import Compaction, Refill
from rlhf_core.policies.graphs import Graphs
from rlhf_core.policies.llama import GROWTH, LlamaDecoder, decodes
from rlhf_core.registry import PipelineSettings
from rlhf_core.rl.config import SingleTurnConfig
from rlhf_core.rl.environment import SingleTurn
from rlhf_core.rl.rewards import RewardMix
from rlhf_core.rl.sampler import Sampler
from rlhf_core.runs import processes
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from .test_policy import nudge
from .test_seq2seq import make as make_seq2seq
from .toys import make_context, make_policy, prompts

WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**WIDTHS, "num_key_value_heads": 2, "max_position_embeddings": 256}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**GROUPED, "num_key_value_heads": 4}),
    "llama-grouped": ("llama", {**GROUPED, "head_dim": 16}),  # heads wider than the model
    "llama-biased": ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-long": ("llama", {**GROUPED, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                                                            "original_max_position_embeddings": 64}}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": None}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 8}),
}  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "mistral-window": ("mistral", {**GROUPED, "sliding_window": 6}),
    "qwen2-window": ("qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "llama-dynamic": ("llama", {**GROUPED, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0,
                                                               "rope_theta": 1e4}}),
}  # fmt: skip
SAMPLING = Sampling(max_new_tokens=16, temperature=0.8)
WORDS = ["<pad>", "</s>", "a", "b", "c", "d"]
PROMPTS = [[2 + (3 * i + j) % 4 for j in range(n)] for i, n in enumerate((3, 17, 1, 8, 2, 23, 5, 2, 11))]
LONG = Sampling(max_new_tokens=24)


def load(folder: Path, architecture: str, sizes: dict[str, Any], tokenizer: Any, **config: Any) -> CausalLM:
    """A policy over a new model of transformers, from a folder as a user has it."""
    context = config.pop("context", None) or make_context()
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **ends, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return CausalLM(CausalLMConfig(model=str(folder), **config), context)


def family(folder: Path, name: str, **config: Any) -> CausalLM:
    """One of `FAMILIES` or `OTHERS` over the toys' 300 tokens, its weights moved as training would."""
    architecture, sizes = {**FAMILIES, **OTHERS}[name]
    policy = load(folder, architecture, sizes, toy_tokenizer(), **config)
    nudge(policy)
    return policy


@cache
def toy_tokenizer() -> Any:
    """The one of the toys, with 300 tokens."""
    return make_policy().tokenizer


def words(*, lower: bool = False) -> PreTrainedTokenizerFast:
    """Six tokens, one for each of `WORDS`."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<pad>")


def small(folder: Path, architecture: str = "llama", **config: Any) -> CausalLM:
    """A policy over six tokens, end of text among them, so that responses end at very different times."""
    sizes = {**OTHERS["gpt2"][1], "n_positions": 64} if architecture == "gpt2" else GROUPED
    policy = load(folder, architecture, sizes, words(), **config)
    nudge(policy)
    return policy


def engine(slots: int | None = None) -> Any:
    context = Context(kind="engine", id="toy")
    return Compaction(CompactionConfig(), context) if slots is None else Refill(RefillConfig(slots=slots), context)


def drawing(policy: Any, slots: int | None = None) -> Any:
    """`policy` with such an engine behind it."""
    policy.__dict__["engine"] = engine(slots)
    return policy


def tokens(drawn: Any) -> list[list[int]]:
    ids = drawn.ids if hasattr(drawn, "ids") else drawn.response_ids
    return [row[mask].tolist() for row, mask in zip(ids, drawn.attention, strict=True)]


def drawn(policy: Any, slots: int | None = None, sampling: Sampling = LONG, prompts: Any = PROMPTS) -> Any:
    return engine(slots).draw(policy, prompts, sampling, seed=4, sample_ids=range(len(prompts)))


def assert_same(one: Any, other: Any) -> None:
    """Both drew the same tokens and recorded the same, but for rounding."""
    assert tokens(one) == tokens(other)
    assert torch.equal(one.truncated, other.truncated)
    for name in ("logprobs", "behaviour", "values"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


class Spy(Decoder):
    """A decoder that counts."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.rows, self.adds, self.steps = inner, 0, [], []

    refills = property(lambda self: self.inner.refills)  # type: ignore[assignment]
    patience = property(lambda self: self.inner.patience)  # type: ignore[assignment]

    def add(self, prompts: Any) -> Any:
        self.rows += len(prompts)
        self.adds.append(self.rows)
        return self.inner.add(prompts)

    def keep(self, rows: Any) -> None:
        self.rows = len(rows)
        self.inner.keep(rows)

    def step(self, tokens: Any) -> Any:
        assert len(tokens) == self.rows
        self.steps.append(self.rows)
        return self.inner.step(tokens)


@pytest.fixture
def spies(monkeypatch: pytest.MonkeyPatch) -> list[Spy]:
    """The decoders that are made from now on."""
    found: list[Spy] = []
    make = decoding.make_decoder
    monkeypatch.setattr(decoding, "make_decoder", lambda *a, **k: found.append(Spy(make(*a, **k))) or found[-1])
    return found


@pytest.fixture
def generic(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own cache for every model."""
    monkeypatch.setattr(decoding, "decodes", lambda network: False)


# --- what is drawn is what is scored ----------------------------------------------------------------------------------


def assert_rescored(policy: Any, sampling: Sampling = SAMPLING) -> Any:
    rollout = policy.generate(prompts() * 3, sampling, seed=3)
    with torch.no_grad():
        again = policy.forward(rollout, Needs()).logprobs
    apart = (again - rollout.logprobs).abs()[rollout.attention]
    assert apart.max() < 1e-4 and apart.mean() < 1e-5
    assert (rollout.logprobs[rollout.attention] < -1e-3).any()
    return rollout


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_sampled_logprobs_equal_rescored_ones(name: str, tmp_path: Path) -> None:
    policy = family(tmp_path, name)
    assert decodes(policy.network) == (name in FAMILIES)
    assert_rescored(policy)


def test_an_encoder_decoder_is_rescored_too() -> None:
    policy = make_seq2seq("t5")
    nudge(policy)
    assert not decodes(policy.network)
    assert_rescored(drawing(policy, 2))


@pytest.mark.parametrize("name", ["llama-grouped", "qwen2", "qwen3", "gpt2"])
def test_in_double_precision(name: str, tmp_path: Path) -> None:
    policy = family(tmp_path, name, context=make_context(dtype="float64"))
    assert next(policy.module.parameters()).dtype == torch.float64
    assert_rescored(policy)


@pytest.mark.parametrize("name", ["llama-grouped", "mistral", "qwen2", "qwen3", "gpt2"])
def test_in_mixed_precision(name: str, tmp_path: Path) -> None:
    mixed = SimpleNamespace(autocast=lambda: torch.autocast("cpu", torch.bfloat16), num_processes=1)
    lora = Lora(r=4) if name == "qwen2" else None
    policy = family(tmp_path, name, context=make_context(accelerator=mixed), lora=lora)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Mismatch dtype")  # a norm that is slow, and says so to the user
        rollout = policy.generate(prompts() * 8, SAMPLING, seed=0)
    with torch.no_grad():
        again = policy.forward(rollout, Needs()).logprobs
    ratio = (again - rollout.logprobs)[rollout.attention].exp()
    assert (ratio - 1).abs().mean() < 0.02
    assert rollout.logprobs.dtype == again.dtype == torch.float32
    assert (ratio != 1).any()  # it was not float32 after all


LORAS = {
    "everywhere": (Lora(r=4), True),
    "queries and ups": (Lora(r=2, alpha=3, target_modules=["q_proj", "up_proj"]), True),
    "values and the head": (Lora(r=2, target_modules=["v_proj", "lm_head"]), True),
    "embeddings": (Lora(r=2, target_modules=["embed_tokens", "o_proj"]), False),
}


@pytest.mark.parametrize("name", LORAS)
def test_adapters_speak_while_decoding(name: str, tmp_path: Path) -> None:
    lora, fast = LORAS[name]
    policy = family(tmp_path, "llama-grouped", lora=lora)
    assert decodes(policy.network) == fast
    rollout = assert_rescored(policy)
    policy.set_reference("base")
    nudge(policy, seed=1)
    assert tokens(assert_rescored(policy)) != tokens(rollout)
    with policy.as_reference():  # no adapter speaks
        base = assert_rescored(policy)
    plain = family(tmp_path / "base", "llama-grouped")
    loaded = CausalLM(CausalLMConfig(model=str(tmp_path)), make_context())
    plain.network.model.load_state_dict(loaded.network.model.state_dict())
    assert_same_rollout(base, plain.generate(prompts() * 3, SAMPLING, seed=3))


def assert_same_rollout(one: Any, other: Any) -> None:
    assert tokens(one) == tokens(other)
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_the_reference_draws_with_its_own_weights(lora: Lora | None, tmp_path: Path) -> None:
    policy = family(tmp_path, "llama-grouped", lora=lora)
    start = policy.generate(prompts() * 3, SAMPLING, seed=3)
    policy.set_reference("stage-start")
    nudge(policy, seed=1)
    moved = assert_rescored(policy)
    with policy.as_reference():
        reference = assert_rescored(policy)
    assert_same_rollout(reference, start)
    assert tokens(moved) != tokens(start)


def test_four_bit_weights_are_decoded_by_transformers() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    policy = make_policy("llama", lora=Lora(r=2), sizes=sizes, quantization={})
    nudge(policy)
    assert not decodes(policy.network)
    assert_rescored(policy)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Prompts of unequal length, then two tokens more, then one row fewer: against each row's whole text, alone."""
    policy = family(tmp_path, name)
    rows = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]

    def expected() -> torch.Tensor:
        return torch.stack([policy.network.model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])

    with torch.no_grad():
        decoder = decoding.make_decoder(policy.network, 0, torch.device("cpu"))
        assert isinstance(decoder, LlamaDecoder)
        torch.testing.assert_close(decoder.add(rows)[0], expected(), atol=1e-5, rtol=1e-4)
        for extra in ([20, 21, 22], [23, 24, 25]):
            rows = [[*row, token] for row, token in zip(rows, extra, strict=True)]
            torch.testing.assert_close(decoder.step(torch.tensor(extra))[0], expected(), atol=1e-5, rtol=1e-4)
        decoder.keep(torch.tensor([2, 1]))
        rows = [[*rows[2], 30], [*rows[1], 31]]
        torch.testing.assert_close(decoder.step(torch.tensor([30, 31]))[0], expected(), atol=1e-5, rtol=1e-4)
        new = [[40] * 9]
        found = decoder.add(new)[0]
        rows = [*rows, *new]
        torch.testing.assert_close(found, expected()[2:], atol=1e-5, rtol=1e-4)
        rows = [[*row, 50] for row in rows]
        torch.testing.assert_close(decoder.step(torch.tensor([50] * 3))[0], expected(), atol=1e-5, rtol=1e-4)


# --- whoever shares the batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_all_engines_draw_the_same(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small(tmp_path, architecture)
    policy.prepare(Needs(values=True))
    torch.nn.init.normal_(policy.network.value_head.weight)
    whole = drawn(policy)
    assert whole.values.abs().max() > 0.1
    lengths = whole.attention.sum(1).tolist()
    assert len(set(lengths)) > 4 and 0 < int(whole.truncated.sum()) < len(PROMPTS)
    for slots in (1, 2, 3, 5):
        assert_same(drawn(policy, slots), whole)
    monkeypatch.setattr(decoding, "decodes", lambda network: False)
    for slots in (None, 3):
        assert_same(drawn(policy, slots), whole)


def test_encoder_decoders_draw_the_same_in_few_slots() -> None:
    policy = make_seq2seq("bart")
    policy.prepare(Needs(values=True, heads=1))
    nudge(policy)
    with torch.no_grad():
        policy.heads[0].bias[policy.codec.eos] += 3.0
    policy.steering = 1.0
    whole = drawn(policy)
    assert len(set(whole.attention.sum(1).tolist())) > 4
    assert_same(drawn(policy, 2), whole)


@pytest.mark.parametrize("slots", [None, 2, 4])
def test_the_order_of_prompts_changes_nothing(slots: int | None, tmp_path: Path) -> None:
    policy = small(tmp_path)
    expected = tokens(drawn(policy))
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    found = engine(slots).draw(policy, [PROMPTS[i] for i in order], LONG, seed=4, sample_ids=order)
    assert tokens(found) == [expected[i] for i in order]
    alone = engine(slots).draw(policy, [PROMPTS[5]], LONG, seed=4, sample_ids=[5])
    assert tokens(alone) == [expected[5]]


@pytest.mark.parametrize(("architecture", "every"), [("llama", 3), ("gpt2", 8), ("bart", 5)])
def test_looking_seldom_changes_nothing(
    architecture: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where rows that are done stay for some steps more."""
    policy = make_seq2seq("bart") if architecture == "bart" else small(tmp_path, architecture)
    expected = [drawn(policy), drawn(policy, sampling=SAMPLING.model_copy(update={"min_new_tokens": 4, "top_k": 3}))]
    monkeypatch.setitem(decoding.LOOK_EVERY, "cpu", every)
    for slots in (None, 2, 5):
        assert_same(drawn(policy, slots), expected[0])
        restricted = SAMPLING.model_copy(update={"min_new_tokens": 4, "top_k": 3})
        assert_same(drawn(policy, slots, restricted), expected[1])


@pytest.mark.parametrize("slots", [None, 2])
def test_looking_seldom_stays_within_the_context(
    slots: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2 has no position beyond its context, also for rows that are done and not yet gone."""
    policy = small(tmp_path, "gpt2")
    rows = [[2, 3] * 12, [4] * 51, [5, 2, 3] * 17, [3, 3, 4] * 17]
    sampling = Sampling(max_new_tokens=13, min_new_tokens=13)
    assert max(map(len, rows)) + sampling.max_new_tokens == policy.codec.context
    expected = drawn(policy, sampling=sampling, prompts=rows)
    monkeypatch.setitem(decoding.LOOK_EVERY, "cpu", 8)
    assert_same(drawn(policy, slots, sampling, rows), expected)


class Closed:
    """A cache that cannot let rows go, as those of other makes."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


@pytest.mark.usefixtures("generic")
@pytest.mark.parametrize("slots", [None, 1, 4])
def test_a_cache_that_lets_no_row_go(slots: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small(tmp_path)
    expected = drawn(policy)
    step = policy.network.step

    def closed(ids: Any, attention: Any, cache: Any = None) -> Any:
        logits, states, cache = step(ids, attention, None if cache is None else cache.inner)
        return logits, states, Closed(cache)

    monkeypatch.setattr(policy.network, "step", closed)
    assert_same(drawn(policy, slots), expected)


def replayed(step: Any, inputs: tuple[torch.Tensor, ...]) -> Any:
    """Stands for a CUDA graph: computes again from the same memory, into the same memory."""
    results = tuple(x.clone() for x in step(*inputs))

    def replay() -> None:
        for place, new in zip(results, step(*inputs), strict=True):
            place.copy_(new)

    return replay, results


@pytest.mark.parametrize("slots", [None, 2, 4])
def test_steps_that_are_replayed_draw_the_same(
    slots: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = small(tmp_path)
    policy.prepare(Needs(values=True))
    torch.nn.init.normal_(policy.network.value_head.weight)
    expected, captured = drawn(policy), []

    def capture(step: Any, inputs: tuple[torch.Tensor, ...]) -> Any:
        captured.append(len(inputs[0]))
        return replayed(step, inputs)

    monkeypatch.setattr(
        decoding,
        "make_decoder",
        lambda network, pad, *_, **__: LlamaDecoder(network, pad, torch.float32, lambda step: Graphs(step, capture)),
    )
    for every in (1, 8):
        monkeypatch.setitem(decoding.LOOK_EVERY, "cpu", every)
        assert_same(drawn(policy, slots), expected)
        assert captured
        captured.clear()


# --- nothing is done twice --------------------------------------------------------------------------------------------


def test_compaction_takes_a_step_per_token(spies: list[Spy], tmp_path: Path) -> None:
    found = drawn(small(tmp_path))
    (spy,) = spies
    lengths = found.attention.sum(1)
    assert spy.adds == [len(PROMPTS)]
    assert spy.adds[0] + sum(spy.steps) == int(lengths.sum())
    assert 1 + len(spy.steps) == int(lengths.max())


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_refill_fills_its_slots_and_no_more(slots: int, spies: list[Spy], tmp_path: Path) -> None:
    lengths = drawn(small(tmp_path), slots).attention.sum(1).tolist()
    (spy,) = spies
    assert max(spy.adds + spy.steps) == slots
    assert len(PROMPTS) + sum(spy.steps) == sum(lengths)  # nobody takes a step after the end
    waves = [max(lengths[i : i + slots]) for i in range(0, len(lengths), slots)]
    assert len(spy.steps) <= sum(waves) - len(waves)
    if slots > 1:
        assert len(spy.steps) < sum(waves) - len(waves)
        assert sum(spy.steps) < sum(slots * (longest - 1) for longest in waves)


@pytest.mark.usefixtures("generic")
def test_a_cache_of_transformers_lets_rows_go_by_the_quarter(spies: list[Spy], tmp_path: Path) -> None:
    lengths = drawn(small(tmp_path)).attention.sum(1).tolist()
    (spy,) = spies
    assert isinstance(spy.inner, CacheDecoder)
    here = [sum(length > t for length in lengths) for t in range(1, max(lengths))]  # rows that still need a step
    assert len(spy.steps) == len(here)
    assert all(needed <= rows < needed + max(1, rows / 4) for needed, rows in zip(here, spy.steps, strict=True))


@pytest.mark.parametrize("slots", [1, 3])
def test_the_cache_is_as_long_as_a_text_not_as_the_day(slots: int, spies: list[Spy], tmp_path: Path) -> None:
    """However many prompts pass through the slots."""
    many = PROMPTS * (4 * slots)
    drawn(small(tmp_path), slots, prompts=many)
    longest = max(map(len, many)) + LONG.max_new_tokens
    assert len(spies[0].steps) > 3 * longest
    assert spies[0].inner.cache.shape[2] == slots
    assert spies[0].inner.cache.shape[4] <= longest + GROWTH["cpu"] + longest // 16


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_values_are_recorded_while_decoding(architecture: str, lora: Lora | None) -> None:
    policy = drawing(make_policy(architecture, lora=lora), 2)
    assert policy.generate(prompts(), SAMPLING, seed=0).values is None  # no head yet
    policy.prepare(Needs(values=True))
    nudge(policy)
    rollout = policy.generate(prompts() * 3, SAMPLING, seed=0)
    with torch.no_grad():
        expected = policy.forward(rollout, Needs(values=True)).values
    torch.testing.assert_close(rollout.values, expected, atol=1e-4, rtol=0)
    assert rollout.values.abs().max() > 0.1 and not rollout.values[~rollout.attention].any()


@pytest.mark.parametrize("critic", ["separate", "adapter"])
def test_a_critic_elsewhere_is_not_asked_while_decoding(critic: str) -> None:
    policy = make_policy(critic=critic, lora=Lora(r=2))
    policy.prepare(Needs(values=True))
    assert policy.generate(prompts(), SAMPLING, seed=0).values is None


def test_what_is_recorded_is_not_evaluated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    policy.prepare(Needs(values=True))
    nudge(policy)
    policy.set_reference("stage-start")
    rollout = policy.generate(prompts(), SAMPLING, seed=0)
    sampler = Sampler(policy, SingleTurn(SingleTurnConfig(), Context()), RewardMix({}, {}), policy.context)
    passes: list[Needs] = []
    forward = policy.forward
    monkeypatch.setattr(policy, "forward", lambda rollout, needs: passes.append(needs) or forward(rollout, needs))
    runs: list[int] = []
    assert policy.network.plain_head  # asked once, of the model itself
    policy.network.trunk.register_forward_hook(lambda *_: runs.append(1))

    def evaluated(rescore: bool = False, rollout: Any = rollout, **needs: Any) -> tuple[Any, int]:
        passes.clear()
        runs.clear()
        return sampler.evaluated(rollout, Needs(**needs), rescore=rescore), len(runs)

    found, count = evaluated(values=True)
    assert count == 0 and found.values is rollout.values
    found, count = evaluated()
    assert count == 0 and found.values is None  # nobody asked
    found, count = evaluated(values=True, reference=True)
    assert count == 1 and passes == [Needs()] and found.reference_logprobs is not None
    found, count = evaluated(values=True, entropy=True)
    assert count == 1 and not passes[0].values and found.values is rollout.values and found.entropy is not None
    found, count = evaluated(values=True, bootstrap=True)
    assert count == 1 and passes[0].values and found.bootstrap is not None
    torch.testing.assert_close(found.values, rollout.values, atol=1e-4, rtol=0)
    stale = rollout.replace(logprobs=rollout.logprobs - 1, values=rollout.values - 1)
    found, count = evaluated(rescore=True, rollout=stale, values=True)
    assert count == 1
    torch.testing.assert_close(found.logprobs, rollout.logprobs, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.values, rollout.values, atol=1e-4, rtol=0)
    found, count = evaluated(rollout=rollout.replace(values=None), values=True)
    assert count == 1
    torch.testing.assert_close(found.values, rollout.values, atol=1e-4, rtol=0)


# --- the distribution -------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "least": {"min_new_tokens": 2},
    "all": {"temperature": 1.7, "top_k": 5, "top_p": 0.9, "min_new_tokens": 1},
}


def exact(policy: CausalLM, prompt: list[int], options: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """The probability of every response of up to two tokens, from transformers' logits."""
    eos = policy.codec.eos

    def after(ids: list[int], age: int) -> list[float]:
        with torch.no_grad():
            logits = policy.network.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        p = (logits / options.get("temperature", 1.0)).exp().tolist()
        if age < options.get("min_new_tokens", 0):
            p[eos] = 0.0
        order = sorted(range(len(p)), key=lambda token: -p[token])
        kept = order[: options.get("top_k", 0) or None]
        total, mass, kept_mass = sum(p[token] for token in kept), 0.0, []
        for token in kept:  # the likeliest that together reach top_p
            if mass < options.get("top_p", 1.0) * total:
                kept_mass.append(token)
            mass += p[token]
        whole = sum(p[token] for token in kept_mass)
        return [p[token] / whole if token in kept_mass else 0.0 for token in range(len(p))]

    found: dict[tuple[int, ...], float] = {}
    for first, p in enumerate(after(prompt, 0)):
        if first == eos:
            found[first,] = p
        else:
            found.update({(first, second): p * q for second, q in enumerate(after([*prompt, first], 1))})
    return {response: p for response, p in found.items() if p > 0}


def chi_square(responses: list[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """The p value of what was drawn; responses that are expected less than five times are one."""
    assert set(responses) <= expected.keys()
    often = [response for response, p in expected.items() if p * len(responses) >= 5]
    counts = [responses.count(response) for response in often]
    means = [expected[response] * len(responses) for response in often]
    counts, means = [*counts, len(responses) - sum(counts)], [*means, len(responses) - sum(means)]
    if means[-1] < 5:  # with what is drawn most seldom among the others
        means[-2:], counts[-2:] = [sum(means[-2:])], [sum(counts[-2:])]
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, means, strict=True))
    p = torch.special.gammaincc(torch.tensor((len(means) - 1) / 2).double(), torch.tensor(statistic / 2).double())
    return float(p)


@pytest.mark.parametrize(("architecture", "name"), [*(("llama", name) for name in OPTIONS), ("gpt2", "all")])
def test_responses_come_as_often_as_the_model_says(architecture: str, name: str, tmp_path: Path) -> None:
    policy, count, options = small(tmp_path, architecture), 4000, OPTIONS[name]
    expected = exact(policy, [2, 4, 5], options)
    assert sum(expected.values()) == pytest.approx(1.0) and len(expected) > 5
    sampling = Sampling(max_new_tokens=2, **options)
    ours = drawn(policy, 1000, sampling, [[2, 4, 5]] * count)
    assert chi_square([tuple(row) for row in tokens(ours)], expected) > 1e-3
    if sampling.truncates:
        recorded = ours.behaviour.sum(1).exp()
        for row, p in list(zip(tokens(ours), recorded.tolist(), strict=True))[:200]:
            assert p == pytest.approx(expected[tuple(row)], rel=1e-4)
    torch.manual_seed(3)
    theirs = policy.network.model.generate(
        input_ids=torch.tensor([[2, 4, 5]] * count), do_sample=True, max_new_tokens=2, eos_token_id=policy.codec.eos,
        pad_token_id=policy.codec.eos, **{"top_k": 0, **options},
    )[:, 3:].tolist()  # fmt: skip
    rows = [tuple(row[:1] if row[0] == policy.codec.eos else row) for row in theirs]
    assert chi_square(rows, expected) > 1e-3
    assert chi_square(rows, {response: 1 / len(expected) for response in expected}) < 1e-3  # it would notice


# --- edges ------------------------------------------------------------------------------------------------------------


def test_the_cache_grows_as_responses_and_prompts_do(spies: list[Spy], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(sizes={"max_position_embeddings": 512})
    nudge(policy)
    rows = [[5, 6, 7], [8], [9] * 200, [10, 11], [12] * 130]
    sampling = Sampling(max_new_tokens=3 * GROWTH["cpu"])
    found = [drawn(policy, slots, sampling, rows) for slots in (None, 1, 2)]
    assert int(found[0].attention.sum(1).max()) > 2 * GROWTH["cpu"]
    assert all(spy.inner.cache.shape[4] >= 200 for spy in spies)
    monkeypatch.setattr(decoding, "decodes", lambda network: False)
    expected = drawn(policy, None, sampling, rows)
    for other in found:
        assert_same(other, expected)


@pytest.mark.parametrize("slots", [None, 1, 4])
def test_one_prompt_one_token(slots: int | None, tmp_path: Path) -> None:
    policy = small(tmp_path)
    sampling = Sampling(max_new_tokens=1)
    found = drawn(policy, slots, sampling)
    assert found.ids.shape == (len(PROMPTS), 1) and found.attention.all()
    assert found.truncated.tolist() == [row != [policy.codec.eos] for row in tokens(found)]
    alone = drawn(policy, slots, sampling, PROMPTS[:1])
    assert tokens(alone) == tokens(found)[:1]


@pytest.mark.parametrize("slots", [None, 2])
def test_all_rows_end_at_once(slots: int | None, spies: list[Spy], tmp_path: Path) -> None:
    policy = small(tmp_path)
    policy.prepare(Needs(heads=1))
    with torch.no_grad():
        policy.heads[0].bias[policy.codec.eos] = 60.0
    policy.steering = 1.0
    found = drawn(policy, slots)
    assert tokens(found) == [[policy.codec.eos]] * len(PROMPTS)
    assert not found.truncated.any() and spies[0].steps == []


@pytest.mark.parametrize("slots", [None, 3])
def test_no_end_before_its_time(slots: int | None, tmp_path: Path) -> None:
    policy = small(tmp_path)
    eos = policy.codec.eos
    found = drawn(policy, slots, Sampling(max_new_tokens=12, min_new_tokens=5))
    for row, truncated in zip(tokens(found), found.truncated.tolist(), strict=True):
        assert len(row) >= 5 and eos not in row[:-1] and (row[-1] != eos) == truncated
    assert len({len(row) for row in tokens(found)}) > 2
    apart = found.behaviour - found.logprobs
    assert (apart[:, :4] > 1e-3).all()  # the mass of the end went to the others
    torch.testing.assert_close(apart[:, 5:], torch.zeros_like(apart[:, 5:]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("slots", [None, 1, 2])
def test_stop_strings_make_room(slots: int | None, spies: list[Spy]) -> None:
    """Every response is that of a free draw up to its first stop string, wherever the others end."""
    policy = drawing(make_policy())
    nudge(policy)
    many, sampling = prompts() * 3, Sampling(max_new_tokens=30)
    free = policy.generate(many, sampling, seed=1)
    texts = [sample.response for sample in free.samples]
    letters = [char for text in texts for char in text[3:] if char.isascii() and char.isalpha()]
    stops = (letters[0], next(a + b for a, b in pairwise(texts[4]) if (a + b).isascii() and a + b not in texts[0]))
    spies.clear()
    stopped = drawing(policy, slots).generate(many, sampling.model_copy(update={"stop": stops}), seed=1)
    ended = 0
    for i, text in enumerate(texts):
        ids, own = tokens(free)[i], tokens(stopped)[i]
        assert own == ids[: len(own)]
        told = [stop for stop in stops if stop in text]
        ended += bool(told)
        if told:
            assert any(stop in policy.codec.decode(own) for stop in told) and not stopped.truncated[i]
            assert not any(stop in policy.codec.decode(own[:-1]) for stop in stops)
            assert stopped.samples[i].response == text[: min(text.index(stop) for stop in told)]
        else:
            assert own == ids and stopped.truncated[i] == free.truncated[i]
    assert 2 <= ended < len(many)
    assert len(many) + sum(spies[0].steps) == int(stopped.lengths.sum())


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_stop_string_that_no_tokens_make_is_refused(tmp_path: Path) -> None:
    policy = load(tmp_path, "llama", GROUPED, words(lower=True))
    with pytest.raises(
        ConfigError, match=r"policy 'toy' sampling.stop: 'A', which no tokens make.*another stop string"
    ):
        policy.generate(prompts("a b"), Sampling(max_new_tokens=2, stop=("A",)), seed=0)
    with pytest.raises(ConfigError, match=r"'zebra', which no tokens make"):
        policy.generate(prompts("a b"), Sampling(max_new_tokens=2, stop=("zebra",)), seed=0)


def test_a_stop_string_that_is_a_word_of_its_own_is_taken(tmp_path: Path) -> None:
    """To a tokenizer of words it is nothing inside of another word."""
    policy = load(tmp_path, "llama", GROUPED, words())
    nudge(policy)
    free = policy.generate(prompts("a b") * 8, LONG, seed=0)
    stopped = policy.generate(prompts("a b") * 8, LONG.model_copy(update={"stop": ("c",)}), seed=0)
    c = WORDS.index("c")
    for own, ids in zip(tokens(stopped), tokens(free), strict=True):
        assert own == (ids[: ids.index(c) + 1] if c in ids else ids)


@pytest.mark.parametrize("slots", [None, 2])
def test_a_foreign_policy_is_refused(slots: int | None) -> None:
    expected = "engine 'toy': a policy of class object; expected one of the core's.*let the policy draw by itself"
    with pytest.raises(ConfigError, match=expected):
        engine(slots).draw(object(), [[5]], LONG, seed=0, sample_ids=[0])


REGISTRY = """
schema_version: 1
components:
  feedback:
    demos: {use: demonstrations, config: {path: demos.jsonl}}
  engine:
    own: {use: refill, config: {slots: SLOTS}}
  policy:
    tiny:
      use: causal-lm
      config: {engine: ENGINE, fresh: {architecture: gpt2, tokenizer: {text: [demos], vocab_size: 300}}}
pipelines:
  p:
    policy: tiny
    stages:
      - sft: {feedback: [demos]}
"""


@pytest.mark.parametrize(
    ("name", "slots", "expected"),
    [
        ("own", "0", "engine.own.config.slots: got 0"),
        ("ow", "4", "engine 'ow' is not declared.*did you mean 'own'"),
        ("refil", "4", "engine 'refil' is not declared.*did you mean 'refill'"),
        ("vllm", "4", "engine 'vllm' is not declared, and belongs to rlhf-plugin-vllm, which is not installed.*"
                      "pip install (-U )?rlhf-plugin-vllm"),
    ],
)  # fmt: skip
def test_engines_in_a_registry_that_cannot_be(name: str, slots: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "demos.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    path = tmp_path / "registry.yaml"
    path.write_text(REGISTRY.replace("ENGINE", name).replace("SLOTS", slots))
    core = load_plugins(disable="all")
    with pytest.raises((ConfigError, RegistryErrors), match=expected):
        api.load(path, Plugins(core.manager, core.plugins[:1])).resolve("p")  # as if nothing else were installed


def test_an_engine_of_the_registry_draws(tmp_path: Path) -> None:
    asked = []
    made = engine(2)
    shared = make_context()
    context = Context(
        kind="policy",
        id="toy",
        resolve=lambda k, i: asked.append((k, i)) or made if k == "engine" else shared.component(k, i),
    )
    policy = make_policy(context=context, engine="own")
    assert policy.engine is made and ("engine", "own") in asked
    usual = make_policy()
    assert isinstance(usual.engine, Refill) and usual.engine.slots == RefillConfig().slots
    assert_same_rollout(policy.generate(prompts(), SAMPLING, seed=0), usual.generate(prompts(), SAMPLING, seed=0))
    with pytest.raises(ValidationError):
        RefillConfig(slots=0)


# --- precision --------------------------------------------------------------------------------------------------------


def mixed_precision(**settings: Any) -> str:
    resolved = SimpleNamespace(name="p", settings=PipelineSettings(policy="x", device="cpu", **settings))
    return str(processes.start(resolved).mixed_precision)  # type: ignore[arg-type]


@pytest.mark.parametrize("avx", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_auto_is_bf16_where_the_processor_is_made_for_it(avx: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert mixed_precision() == mixed_precision(precision="auto") == ("bf16" if avx or amx else "no")
    assert mixed_precision(precision="bf16") == "bf16" and mixed_precision(precision="fp32") == "no"
    for dtype in ("bfloat16", "float64"):  # what is not float32 stays what it is
        assert mixed_precision(dtype=dtype) == "no"


@pytest.mark.parametrize(("cuda", "bf16", "expected"), [(True, True, True), (True, False, False), (False, True, False)])
def test_auto_asks_a_gpu_not_the_processor(
    cuda: bool, bf16: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not expected)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    settings = PipelineSettings(policy="x")
    assert processes._in_bf16(settings, on_cpu=False) is expected
    assert processes._in_bf16(settings, on_cpu=True) is not expected
