"""What rewards trained by gradient share: a text network with a linear head, and the task of comparing pairs.

Importing this does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import attributes
from .config import TextRewardConfig

if TYPE_CHECKING:
    from .credit import CreditNetwork, CreditReward, credit_spans
    from .network import TextNetwork, longest_text
    from .pairs import Pair, PairTask, pair_metrics
    from .text import TextReward

_MODULES = {
    "CreditNetwork": "credit",
    "CreditReward": "credit",
    "Pair": "pairs",
    "PairTask": "pairs",
    "TextNetwork": "network",
    "TextReward": "text",
    "credit_spans": "credit",
    "longest_text": "network",
    "pair_metrics": "pairs",
}

__all__ = [
    "CreditNetwork",
    "CreditReward",
    "Pair",
    "PairTask",
    "TextNetwork",
    "TextReward",
    "TextRewardConfig",
    "credit_spans",
    "longest_text",
    "pair_metrics",
]

__getattr__ = attributes(__name__, _MODULES)
