"""Language models as policies: the built-in ones, for plugins to derive from. Importing this does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import CausalLMConfig, LMConfig, Seq2SeqLMConfig

if TYPE_CHECKING:
    from .causal_lm import CausalLM
    from .language_model import LanguageModel
    from .seq2seq_lm import Seq2SeqLM

_MODULES = {"CausalLM": "causal_lm", "LanguageModel": "language_model", "Seq2SeqLM": "seq2seq_lm"}

__all__ = ["CausalLM", "CausalLMConfig", "LMConfig", "LanguageModel", "Seq2SeqLM", "Seq2SeqLMConfig"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
