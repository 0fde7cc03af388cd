"""Attention for training on a CPU in bfloat16: over short texts the fused kernel's backward pass is slower than plain
products, by a factor of three at 100 tokens; beyond some hundred it is the other way round, in time and in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_or_plain"
LONGEST = 256  # tokens that plain products are used for


def use_plain_attention(model: Any) -> None:
    """Let a transformers model that would call the fused kernel on a CPU choose by the length of its input."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.config
    if model.device.type != "cpu" or config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        query: (B, H, S, d). key, value: (B, H / groups, S, d). attention_mask: (B, 1, S, S), True or 0 where a query
            may look. scaling: of the scores; by default d^-.5. others: what models hand on beside; with what is not
            known here, the fused kernel is used.

    Returns:
        (B, S, H, d), and no weights.
    """
    length = query.shape[2]
    mixed = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    known = all(value is None or name in PLAIN for name, value in others.items())
    short = 1 < length == key.shape[2] <= LONGEST
    if not (short and known and torch.is_grad_enabled() and not dropout and (mixed or query.dtype == torch.bfloat16)):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        fused: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
        return fused
    query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scores = query @ key.mT
    if attention_mask is None:
        attention_mask = scores.new_zeros(1)
    elif attention_mask.dtype == torch.bool:
        # not minus infinity: a query in padding sees nothing at all, and its softmax must not be nan
        attention_mask = torch.zeros_like(attention_mask, dtype=torch.float32).masked_fill_(~attention_mask, -1e30)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = torch.add(attention_mask, scores, alpha=scale).softmax(-1, dtype=torch.float32)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


PLAIN = frozenset({"position_ids", "use_cache", "cache_position", "past_key_values", "sliding_window"})
"""What models hand on that changes nothing here: a window is in the mask already."""
