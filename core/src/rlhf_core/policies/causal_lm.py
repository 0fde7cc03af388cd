"""The built-in policy `causal-lm`: any decoder-only model of transformers."""

from __future__ import annotations

from typing import Any

from .config import CausalLMConfig
from .language_model import LanguageModel
from .loading import context_length, load_causal_lm
from .network import CausalNetwork
from .text import Codec


class CausalLM(LanguageModel[CausalLMConfig]):
    """A decoder-only model: prompt and response are one text to it."""

    network_class = CausalNetwork
    task_type = "CAUSAL_LM"

    def load(self, config: CausalLMConfig) -> tuple[Any, Any]:
        return load_causal_lm(config, self.context)

    def make_codec(self, model: Any) -> Codec:
        return Codec(self.tokenizer, context_length(model), self.config.max_prompt_tokens, self.context.where)
