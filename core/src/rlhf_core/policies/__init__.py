"""Language models as policies, and what plugins build theirs and their engines from.

Importing this does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import attributes
from .config import CausalLMConfig, LMConfig, Lora, Quantization, Seq2SeqLMConfig

if TYPE_CHECKING:
    from .causal_lm import CausalLM
    from .decoders import opened
    from .drawing import draw, restrict
    from .imitation import encode_demonstration
    from .language_model import LanguageModel
    from .loading import complete_tokenizer, load_pretrained
    from .seq2seq_lm import Seq2SeqLM
    from .text import Codec, at_last_character, pad_left, pad_right

_MODULES = {
    "CausalLM": "causal_lm",
    "Codec": "text",
    "LanguageModel": "language_model",
    "Seq2SeqLM": "seq2seq_lm",
    "at_last_character": "text",
    "complete_tokenizer": "loading",
    "draw": "drawing",
    "encode_demonstration": "imitation",
    "load_pretrained": "loading",
    "opened": "decoders",
    "pad_left": "text",
    "pad_right": "text",
    "restrict": "drawing",
}

__all__ = [
    "CausalLM",
    "CausalLMConfig",
    "Codec",
    "LMConfig",
    "LanguageModel",
    "Lora",
    "Quantization",
    "Seq2SeqLM",
    "Seq2SeqLMConfig",
    "at_last_character",
    "complete_tokenizer",
    "draw",
    "encode_demonstration",
    "load_pretrained",
    "opened",
    "pad_left",
    "pad_right",
    "restrict",
]

__getattr__ = attributes(__name__, _MODULES)
