"""Tiny models and records for tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_core.interfaces import Config, Context, FeedbackSource
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import CausalLMConfig, FreshModel, FreshTokenizer, Lora
from rlhf_core.records import Demonstration, Feedback, Prompt

SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
}

TEXTS = ["the quick brown fox", "jumps over the lazy dog", "a stitch in time saves nine", "naïve café 你好，世界"]


class ListConfig(Config):
    """Nothing to configure."""


class ListFeedback(FeedbackSource[ListConfig]):
    """Records from memory."""

    def __init__(self, records: list[Feedback], context: Context | None = None) -> None:
        super().__init__(ListConfig(), context or Context())
        self.all = records

    def __iter__(self) -> Iterator[Feedback]:
        return iter(self.all)


def demonstrations() -> ListFeedback:
    return ListFeedback([Demonstration(prompt=f"say {t.split()[0]}:", response=f" {t}.") for t in TEXTS])


def make_context(**changes: Any) -> Context:
    """A context whose only component is the feedback "texts"."""
    return Context(kind="policy", id="toy", resolve=lambda kind, id: demonstrations(), **changes)


def make_policy(
    architecture: str = "llama",
    *,
    lora: Lora | None = None,
    critic: str = "shared",
    context: Context | None = None,
    sizes: dict[str, Any] | None = None,
    **config: Any,
) -> CausalLM:
    sizes = {**SIZES[architecture], **(sizes or {})}
    fresh = FreshModel(
        architecture=architecture, sizes=sizes, tokenizer=FreshTokenizer(text=["texts"], vocab_size=300)
    )
    return CausalLM(CausalLMConfig(fresh=fresh, lora=lora, critic=critic, **config), context or make_context())


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text=text) for text in texts or ("say the:", "a much longer prompt, say jumps:", "你好")]
