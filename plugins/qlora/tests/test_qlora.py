"""4-bit policies: the numbers in 4 bits are the paper's, what is trained learns, and what leaves can be loaded."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Context, Needs, Sampling, SupervisedConfig
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import CausalLMConfig, Lora
from rlhf_core.policies.quantization import dequantized, is_4bit, quantizer, settled
from rlhf_core.records import Comparison, Demonstration, Prompt, Sample
from rlhf_core.testing import tiny_context
from rlhf_core.testing.tasks import learner_model
from rlhf_core.training import SupervisedLoop
from rlhf_plugin_preference.config import PreferenceRewardConfig
from rlhf_plugin_preference.reward import PreferenceReward
from rlhf_plugin_qlora.config import QLoRAConfig
from rlhf_plugin_qlora.policy import QLoRA
from torch import Tensor, nn

NF4 = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1.0]  # fmt: skip
"""The 16 levels of the paper's appendix E, rounded to 7 digits."""
PROMPTS = [Prompt(text=text) for text in ("say the:", "a much longer prompt, say jumps:", "你好")]
GPT2 = {"architecture": "gpt2", "sizes": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}}
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.1}  # fmt: skip
FRESH: dict[str, Any] = {**learner_model()["fresh"], "sizes": SIZES}


def make(fresh: dict[str, Any] | None = None, context: Context | None = None, **config: Any) -> QLoRA:
    made = {"fresh": {"tokenizer": FRESH["tokenizer"], **(fresh or FRESH)}, "lora": {"r": 4}, **config}
    return QLoRA(QLoRAConfig.model_validate(made), context or tiny_context("policy"))


def nudge(policy: CausalLM, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.network.trainable().values():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))


def said(policy: CausalLM) -> Tensor:
    samples = [Sample(prompt, " fox, jumps") for prompt in PROMPTS]
    return policy.encode(samples).logprobs


def layers(policy: CausalLM) -> list[nn.Module]:
    return [m for m in policy.network.model.modules() if is_4bit(m)]


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_weights_are_the_nearest_of_the_papers_levels() -> None:
    """Each block of 64 is scaled by its largest magnitude and rounded to the nearest level of NF4."""
    whole = CausalLM(CausalLMConfig.model_validate({"fresh": FRESH}), tiny_context("policy"))
    policy = make(quantization={"double": False})
    for before, layer in zip(
        [m for m in whole.network.model.modules() if isinstance(m, nn.Linear)][:-1], layers(policy), strict=True
    ):
        blocks = before.weight.detach().reshape(-1, 64)
        scales = blocks.abs().amax(1, keepdim=True)
        levels = torch.tensor(NF4)
        nearest = (blocks / scales)[..., None].sub(levels).abs().argmin(-1)
        torch.testing.assert_close(dequantized(layer).reshape(-1, 64), levels[nearest] * scales, atol=1e-6, rtol=1e-5)


def test_four_bits_and_an_eighth_per_weight() -> None:
    """4 + 8/64 + 32/(64 * 256) bits with double quantisation, 4 + 32/64 without (paper, section 3)."""
    wide = {**FRESH, "sizes": {**FRESH["sizes"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}}
    for double, bits in ((True, 4 + 8 / 64 + 32 / (64 * 256)), (False, 4.5)):
        policy = make(wide, quantization={"double": double})
        numbers = stored = 0
        for layer in layers(policy):
            state: Any = layer.weight.quant_state
            numbers += dequantized(layer).numel()
            stored += layer.weight.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
        assert 8 * stored / numbers == pytest.approx(bits, rel=2e-3)


def test_a_loaded_model_has_the_bits_of_a_fresh_one(tmp_path: Path) -> None:
    """Both ways in: quantised in memory, and by transformers while reading; GPT-2's turned weights too."""
    for name, fresh in (("llama", FRESH), ("gpt2", GPT2)):
        whole = CausalLM(
            CausalLMConfig.model_validate({"fresh": {"tokenizer": FRESH["tokenizer"], **fresh}}), tiny_context("policy")
        )
        whole.export(tmp_path / name)
        inside = make(fresh)
        read = QLoRA(QLoRAConfig(model=str(tmp_path / name), lora=Lora(r=4)), tiny_context("policy"))
        assert len(layers(inside)) == len(layers(read)) == {"llama": 14, "gpt2": 8}[name]
        for one, two in zip(layers(inside), layers(read), strict=True):
            assert torch.equal(one.weight.data.flatten(), two.weight.data.flatten())
        assert torch.equal(said(inside), said(read))
        assert 0 < (said(inside) - said(whole)).abs().mean() < 0.3, "4 bits say nearly what the whole weights say"


def test_compute_dtype_is_as_asked_whatever_is_seen_first() -> None:
    """A batch in float32 does not turn a bfloat16 base into a float32 one."""
    policy = make(quantization={"compute_dtype": "bfloat16"})
    assert {m.compute_dtype for m in layers(policy)} == {torch.bfloat16}
    said(policy)
    assert {m.compute_dtype for m in layers(policy)} == {torch.bfloat16}
    assert policy.network.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert {p.dtype for p in policy.network.policy_weights().values()} == {torch.float32}, "adapters stay in 32 bits"
    assert (said(policy) - said(make())).abs().max() < 0.2


# --- what is trained --------------------------------------------------------------------------------------------------


def test_only_adapters_are_trained_and_the_base_keeps_its_bits() -> None:
    policy = make(critic="adapter")
    policy.prepare(Needs(values=True))
    before = [m.weight.data.clone() for m in layers(policy)]
    nudge(policy)
    names = list(policy.network.trainable())
    assert names and all(".lora_" in n or n.startswith("value_head.") for n in names)
    rollout = policy.generate(PROMPTS, Sampling(max_new_tokens=8), seed=0)
    out = policy.forward(rollout, Needs(values=True))
    torch.testing.assert_close(out.logprobs, rollout.logprobs, atol=1e-4, rtol=0)
    (out.logprobs.sum() + out.values.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in policy.network.trainable().values())
    assert all(torch.equal(a, m.weight.data) for a, m in zip(before, layers(policy), strict=True))
    assert policy.parameter_count > sum(dequantized(m).numel() for m in layers(policy))


def test_it_learns_demonstrations() -> None:
    """Held on a random base in 4 bits, over three seeds: the loss falls by far more than its spread."""
    texts = ("fox", "dog", "nine", "hare")
    falls = []
    for seed in range(3):
        policy = make(context=tiny_context("policy", seed=seed), lora={"r": 16, "alpha": 64})
        told = [Demonstration(prompt=f"say {t}:", response=f" {t}.") for t in texts]
        task = policy.demonstrations(told, held_out=0.0)
        before = task.evaluate(task.train)["loss"]
        loop = SupervisedLoop(task, SupervisedConfig(epochs=60, batch_size=4, learning_rate=1e-2), policy.context)
        for index in range(loop.total):
            loop.step(index)
        falls.append(before - task.evaluate(task.train)["loss"])
    assert min(falls) > 1.5, falls
    assert mean(falls) > 2


def test_a_reward_in_four_bits_learns_what_is_better() -> None:
    config = PreferenceRewardConfig.model_validate(
        {"fresh": FRESH, "lora": {"r": 8}, "quantization": {}, "epochs": 30, "learning_rate": 1e-2, "held_out": 0.0}
    )
    reward = PreferenceReward(config, tiny_context("reward", "taste"))
    assert any(is_4bit(m) for m in reward.network.modules())
    pairs = [Comparison(prompt=p, responses=(" yes, sir", " no, never"), ranks=(1, 2)) for p in PROMPTS]
    reward.fit(pairs)
    good, bad = (reward.score([Sample(p, text) for p in PROMPTS]).values for text in (" yes, sir", " no, never"))
    assert bool((good > bad + 1).all())
    again = PreferenceReward(config, tiny_context("reward", "taste"))
    again.load_state_dict(reward.state_dict())
    assert torch.equal(
        again.score([Sample(PROMPTS[0], " yes")]).values, reward.score([Sample(PROMPTS[0], " yes")]).values
    )


def test_the_reference_after_training_is_the_base_without_adapters() -> None:
    policy = make()
    start = said(policy)
    policy.set_reference("stage-start")
    nudge(policy)
    assert (said(policy) - start).abs().max() > 1e-3
    with policy.as_reference():
        assert torch.equal(said(policy), start)


# --- leaving the house ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [FRESH, GPT2], ids=["llama", "gpt2"])
def test_merged_export_is_a_whole_model_that_says_the_same(fresh: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = make(fresh)
    nudge(policy)
    policy.export(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    plain = CausalLM(CausalLMConfig(model=str(tmp_path)), tiny_context("policy"))
    torch.testing.assert_close(said(plain), said(policy), atol=1e-4, rtol=0)
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(tmp_path).parameters()} == {torch.float32}
    assert policy.exported_from == "4-bit nf4 weights made whole in float32"


def test_adapters_alone_go_back_on_their_base(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    make().export(tmp_path / "model")
    config = QLoRAConfig(model=str(tmp_path / "model"), lora=Lora(r=4))
    policy = QLoRA(config, tiny_context("policy"))
    nudge(policy)
    policy.export(tmp_path / "adapters", adapters=True)
    assert {p.name for p in (tmp_path / "adapters").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=four)
    base = settled(base, torch.float32, policy.context)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
    ids = torch.tensor([policy.codec.encode_prompt(PROMPTS[0], 4)])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, policy.network.lm(ids).logits, atol=1e-4, rtol=0)
    started = config.model_copy(update={"lora": Lora(r=4, start=str(tmp_path / "adapters"))})
    assert torch.equal(said(QLoRA(started, tiny_context("policy"))), said(policy))


def test_adapters_of_a_fresh_base_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"adapters of a fresh base.*expected a policy with `model` and `lora`.*merged"
    ):
        make().export(tmp_path, adapters=True)
    assert list(tmp_path.iterdir()) == []


def test_a_trunk_of_its_own_is_whole_and_says_the_same() -> None:
    """`critic: separate`, and rewards that start from the policy: the 4-bit weights made whole, adapters merged."""
    policy = make(critic="separate")
    nudge(policy)
    policy.prepare(Needs(values=True))
    trunk: Any = policy.network.value_trunk
    assert not any(is_4bit(m) for m in trunk.modules()) and all(p.requires_grad for p in trunk.parameters())
    ids = torch.tensor([policy.codec.encode_prompt(PROMPTS[1], 4)])
    with torch.no_grad():
        ours = policy.network.model.base_model(ids).last_hidden_state
        torch.testing.assert_close(trunk(ids).last_hidden_state, ours, atol=1e-4, rtol=0)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match="without `quantization` this is causal-lm"):
        make(quantization=None)
    with pytest.raises(ValidationError, match="4-bit weights cannot be trained: give `lora`"):
        make(lora=None)
    with pytest.raises(ValidationError, match="`quantization` holds a frozen `model` or `fresh` one in 4 bits"):
        PreferenceRewardConfig.model_validate({"base": "policy", "quantization": {}})


def test_without_the_library_the_command_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "bitsandbytes" or n.startswith("bitsandbytes.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"policy 'lm' quantization: bitsandbytes .*; pip install rlhf-plugin-qlora"):
        quantizer(Context("policy", "lm"))


def test_rows_that_are_not_whole_blocks_are_refused_on_a_cpu(tmp_path: Path) -> None:
    """There bitsandbytes 0.50 takes the scales of other blocks: wrong weights, and no error of its own."""
    narrow = {**FRESH, "sizes": {**SIZES, "hidden_size": 32}}
    why = r"layer model.layers.0.self_attn.q_proj reads 32 numbers; expected a multiple of 64.*leave `quantization` out"
    with pytest.raises(ConfigError, match=why):
        make(narrow)
    CausalLM(CausalLMConfig.model_validate({"fresh": narrow}), tiny_context("policy")).export(tmp_path)
    with pytest.raises(ConfigError, match=why):
        QLoRA(QLoRAConfig(model=str(tmp_path)), tiny_context("policy"))


def test_a_device_without_four_bits_is_named() -> None:
    context = replace(Context("policy", "lm"), device="meta")
    with pytest.raises(ConfigError, match=r"quantization: device 'meta'; expected one of .*cpu.*cuda.*pip install -U"):
        quantizer(context)
