"""What both sides of speed.py are given: models, prompts, lengths, settings and the rule that pays.

The models are llamas with random weights whose probability of ending is known, so that the lengths of responses are
the same on both sides without an option of either. The first number of the hidden state is a constant: every embedding
holds it, no layer reads or writes it, and it is so large that the last norm leaves it as it is. In the row of the
output head that ends a text it alone counts: a bias, in a model that has none. It is set such that a response ends
with probability 1/24 at every token (`ragged`: geometric, at most 128 tokens), or never (`fixed`: 64 tokens, the limit
of both sides). Padding is never drawn. Training hardly moves that bias: the learning rate is small, the steps are few.
Where something is to be learnt (`free`) the model is as transformers makes it: a constant that large would do most of
the learning. It ends where it draws the one token in 1,024 that ends a text.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory import IDS, make_tokenizer
from memory import prompts as random_words
from peers import ALGORITHMS, COMMON

THREADS = 2
# heads of 64
SIZES: dict[str, dict[str, Any]] = {
    "toy": {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 1},
    "S": {"vocab_size": 1024, "hidden_size": 256, "num_hidden_layers": 4},
    "M": {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8},
}
PROMPT_TOKENS = 32
LENGTHS: dict[str, dict[str, Any]] = {
    "fixed": {"samples": 32, "max_new_tokens": 64, "ends": 0.0},
    "ragged": {"samples": 128, "max_new_tokens": 128, "ends": 1 / 24},
    "free": {"samples": 32, "max_new_tokens": 64, "ends": None},
}
SETTINGS: dict[str, Any] = {"epochs": 1, "minibatch_size": 8, "learning_rate": 1e-5}
# rloo's and grpo's are the defaults of TRL: a KL of .05 in the rewards, and none
KL = {"ppo": 0.05, "rloo": 0.05, "grpo": 0.0}
_NEVER = -30.0  # logit of what is not to be drawn
_PAID = 2  # every second word is paid for


def settings(algorithm: str, lengths: str, steps: int, **changes: Any) -> dict[str, Any]:
    """Settings of a run as peers.py has them; `changes` override."""
    shape, chosen = LENGTHS[lengths], ALGORITHMS[algorithm]
    return {
        **COMMON, **chosen, **SETTINGS, "kl_coef": KL[algorithm], "samples": steps * shape["samples"],
        "prompts": shape["samples"] // chosen["samples_per_prompt"], "max_new_tokens": shape["max_new_tokens"],
        **changes,
    }  # fmt: skip


# --- the rule ---


def score(response: str) -> float:
    """The share of words whose number is even; half of them in random text."""
    words = response.split()
    return sum(int(word[1:]) % _PAID == 0 for word in words) / max(len(words), 1)


def reward(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
    """`score` as a function of rlhf-core and of TRL."""
    return [score(completion) for completion in completions]


def judge(input_ids: Any, attention: Any) -> Any:
    """`score` of the ids (B, N) behind PROMPT_TOKENS of prompt, as TRL's PPO asks a reward model; (B,)."""
    ids, words = input_ids[:, PROMPT_TOKENS:], attention[:, PROMPT_TOKENS:].bool()
    words = words & (ids > max(IDS["eos_token_id"], IDS["pad_token_id"]))
    return ((ids % _PAID == 0) & words).sum(1) / words.sum(1).clamp(min=1)


# --- model and prompts ---


def prompts(size: str | Mapping[str, Any], count: int) -> list[str]:
    """Prompts of PROMPT_TOKENS tokens."""
    return random_words(count, PROMPT_TOKENS, shape(size)["vocab_size"])


def shape(size: str | Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a llama's config."""
    sizes = SIZES[size] if isinstance(size, str) else size
    heads = sizes["hidden_size"] // 64
    return {"intermediate_size": 3 * sizes["hidden_size"], "num_attention_heads": heads, "num_key_value_heads": heads,
            "max_position_embeddings": 2048, "tie_word_embeddings": False, **sizes, **IDS}  # fmt: skip


def make_start(folder: Path, size: str | Mapping[str, Any], ends: float | None) -> None:
    """A model that ends a response with probability `ends` at every token, or as it happens; a tokenizer with a token a
    word."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = shape(size)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    if ends is not None:
        _end(model, sizes, ends)
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = IDS["eos_token_id"], IDS["pad_token_id"]
    model.save_pretrained(folder)
    make_tokenizer(sizes["vocab_size"], sizes["max_position_embeddings"]).save_pretrained(folder)


def _end(model: Any, sizes: Mapping[str, Any], ends: float) -> None:
    """Let `model` end a response with probability `ends` at every token."""
    import torch

    width = sizes["hidden_size"]
    level = 8.0  # root mean square of the hidden state, nearly all of it that of the constant
    head, end, pad = model.lm_head.weight, IDS["eos_token_id"], IDS["pad_token_id"]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = level * math.sqrt(width)
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.fill_(10 * level)  # the rest is about .1
                norm.weight[0] = 0
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
        model.model.norm.weight.fill_(10 * level)
        model.model.norm.weight[0] = 1
        head[:, 0] = 0
        head[[end, pad]] = 0
        head[pad, 0] = _NEVER / math.sqrt(width)
        head[end, 0] = _NEVER / math.sqrt(width)
        if ends:
            ids = torch.randint(2, sizes["vocab_size"], (8, 64), generator=torch.Generator().manual_seed(0))
            others = model(ids).logits.logsumexp(-1).mean()  # of those that go on: the others' part is e^-30
            head[end, 0] = (others + math.log(ends / (1 - ends))) / math.sqrt(width)


def write_prompts(path: Path, texts: Sequence[str]) -> Path:
    """As a file of ours."""
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def first_reaching(scores: Sequence[float], target: float, window: int = 3) -> int | None:
    """The number of steps after which the mean of the last `window` scores is at least `target`; None: never."""
    for end in range(window, len(scores) + 1):
        if sum(scores[end - window : end]) / window >= target:
            return end
    return None


def shuffled(names: Sequence[str], number: int) -> list[str]:
    """Another order for every repeat, the same whenever it is asked for."""
    return random.Random(number).sample(list(names), len(names)) if len(names) > 2 else list(names)[:: (-1) ** number]
