"""QLoRA (Dettmers et al., 2023, arXiv:2305.14314): adapters over a frozen base in 4 bits.

The work is done in the core, where every policy and reward can hold its base in 4 bits. This distribution brings the
library for it, and the paper's settings as a policy of one name. Departures: layers that stay whole (embeddings, norms,
the output layer) are in the compute dtype, not in float32; adapters are in float32.
"""

from __future__ import annotations

from rlhf_core.policies import CausalLM

from .config import QLoRAConfig


class QLoRA(CausalLM):
    """A causal language model whose base is frozen and held in 4 bits."""

    Config = QLoRAConfig
