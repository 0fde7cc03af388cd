"""Decoding for the family of Llama (Llama, Mistral, Qwen 2 and 3), without what transformers does around each product.

The weights are laid side by side, queries, keys and values as one product, gate and up as another, in the precision
that autocast would give them at every step; that copy lives as long as a batch is decoded. Rows have slots in one
cache with positions of their own, so one that is done makes room at once. Mixed precision is that of autocast: products
in bfloat16, norms and the residual stream in the precision of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from ..functional._tensors import wide
from .base import Base
from .decoders import Decoder
from .graphs import Graphs, Step
from .network import CausalNetwork, PolicyNetwork
from .text import pad_right

FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3"})
GROWTH = {"cpu": 16, "cuda": 256}  # positions the cache grows by, or a sixteenth; attention goes over all of them


def decodes(network: PolicyNetwork) -> bool:
    """Whether `network` is of the family, with ordinary attention, and its weights are whole."""
    model, config = network.model, network.model.config
    if not isinstance(network, CausalNetwork) or config.model_type not in FAMILY:
        return False
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    rope = str(config.rope_parameters)  # of these two kinds the frequencies depend on how long a text is
    if windows or window is not None or config.hidden_act != "silu" or "dynamic" in rope or "longrope" in rope:
        return False
    layers = [m for layer in model.model.layers for m in _products(layer)] + [model.get_output_embeddings()]
    whole = all(type(getattr(layer, "base_layer", layer)) is nn.Linear for layer in layers)
    return whole and type(model.get_input_embeddings()) is nn.Embedding


def _products(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    names = "q_proj", "k_proj", "v_proj", "o_proj"
    return [*(getattr(attention, name) for name in names), mlp.gate_proj, mlp.up_proj, mlp.down_proj]


class LlamaDecoder(Decoder):
    """Rows in the slots of one cache (layers, keys and values, slots, heads, positions, width of a head).

    Args:
        dtype: of products and of the cache. graphs: makes CUDA graphs of the step; then rows leave once half of them is
            done, so that there are few shapes to capture.
    """

    refills = True
    pure = True

    def __init__(
        self,
        network: PolicyNetwork,
        pad: int,
        dtype: torch.dtype,
        graphs: Callable[[Step], Graphs] | None = None,
    ) -> None:
        model: Any = network.model
        self.network, self.pad, self.dtype = network, pad, dtype
        self.embeddings: Tensor = model.get_input_embeddings().weight
        self.device = self.embeddings.device
        attention = model.model.layers[0].self_attn
        self.width: int = attention.head_dim
        self.heads: int = attention.o_proj.in_features // self.width
        self.kv_heads: int = attention.k_proj.out_features // self.width
        self.scale: float = attention.scaling
        role = network.role
        self.layers = [_Layer(layer, network.base, role, dtype) for layer in model.model.layers]
        self.norm = _normed(model.model.norm)
        self.head = _Product([model.get_output_embeddings()], network.base, role, dtype)
        self.rotary = model.model.rotary_emb
        self.length = torch.zeros(0, dtype=torch.long, device=self.device)  # (n,) tokens read so far
        self.cache = torch.zeros(len(self.layers), 2, 0, self.kv_heads, 0, self.width, dtype=dtype, device=self.device)
        self.longest = 0  # of `length`, known without asking the device
        self.graphs = None if graphs is None else graphs(self._step)
        self.patience = 0.0 if graphs is None else 0.5

    def add(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = pad_right(prompts, self.pad, self.device)  # (m, P): padding is behind, where nobody looks
        before, count = len(self.length), len(prompts)
        self._make_room(before + count, max(self.longest, ids.shape[1]))
        self.longest = max(self.longest, ids.shape[1])
        lengths = mask.sum(1)
        self.length = torch.cat([self.length, lengths])
        x = self.embeddings[ids]
        turn = self.rotation[:, : ids.shape[1]]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            q, k, v = self._project(layer, x, turn)  # (m, P, heads, d)
            cache[0, before : before + count, :, : ids.shape[1]] = k.transpose(1, 2)
            cache[1, before : before + count, :, : ids.shape[1]] = v.transpose(1, 2)
            found = scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, scale=self.scale,
                enable_gqa=self.heads != self.kv_heads,
            )  # fmt: skip
            x = layer.rest(x, found.transpose(1, 2).flatten(2))
        return self._read_off(x[torch.arange(count, device=self.device), lengths - 1])

    def keep(self, rows: Tensor) -> None:
        for row, source in enumerate(rows.tolist()):
            if row != source:
                self.cache[:, :, row] = self.cache[:, :, source]
        self.length = self.length[rows]
        self.longest = int(self.length.max()) if len(rows) else 0

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        self.longest += 1
        self._make_room(len(tokens), self.longest)
        logits, states = (self.graphs or self._step)(tokens, self.length)
        self.length = self.length + 1
        return logits, states

    def _step(self, tokens: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """`step`, with the rows' tokens at their places (n,), as work that a device can do without being asked."""
        x, count = self.embeddings[tokens], len(tokens)  # (n, D)
        turn = self.rotation[:, place]
        reach = self.cache.shape[4]
        ahead = torch.arange(reach, device=self.device) > place[:, None]  # (n, S)
        bias = torch.zeros(ahead.shape, device=self.device).masked_fill_(ahead, -math.inf)
        heads = torch.arange(count * self.kv_heads, device=self.device).view(count, -1)
        spots = (heads * reach + place[:, None]).flatten()  # (n x kv_heads,) in a cache of (slots x kv_heads x S, d)
        for layer, cache in zip(self.layers, self.cache, strict=True):
            q, k, v = self._project(layer, x, turn)  # (n, heads, d)
            for table, new in zip(cache, (k, v), strict=True):
                table.view(-1, self.width).index_copy_(0, spots, new.reshape(-1, self.width))
            x = layer.rest(x, self._attend(q, cache[0, :count], cache[1, :count], bias))
        return self._read_off(x)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """(n, heads x d) from q (n, heads, d), keys and values (n, kv_heads, S, d), bias (n, S)."""
        grouped = q.view(len(q), self.kv_heads, -1, self.width)  # queries of the same keys as if at one place each
        if self.device.type != "cpu":
            mask = bias[:, None, None].to(self.dtype)
            return scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=self.scale).flatten(1)
        # a CPU's fused attention is slow for a single query under a mask
        scores = torch.add(bias[:, None, None], grouped @ keys.mT, alpha=self.scale)  # in float32 or wider
        attended: Tensor = scores.softmax(-1).to(self.dtype) @ values
        return attended.flatten(1)

    def _project(self, layer: _Layer, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., heads, d) of x (..., D), turned to their positions."""
        found = layer.qkv(layer.before(x).to(self.dtype))
        found = found.view(*found.shape[:-1], -1, self.width)
        q, k, v = torch.split(found, [self.heads, self.kv_heads, self.kv_heads], -2)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = layer.q_norm(q), layer.k_norm(k)
        both = torch.cat([q, k], -2)
        low, high = both.chunk(2, -1)
        cos, sin = turn[..., None, :]
        both = (both * cos + torch.cat([high, low], -1) * sin).to(self.dtype)
        q, k = both.split([self.heads, self.kv_heads], -2)
        return q, k, v

    def _read_off(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, V) and states (n, D) from the residual stream (n, D) behind the last layer."""
        states = self.norm(x)
        return wide(self.head(states.to(self.dtype))), states

    def _make_room(self, rows: int, positions: int) -> None:
        """Let the cache hold so much, and the table of rotations reach so far."""
        _, _, slots, _, reach, _ = self.cache.shape
        if rows <= slots and positions <= reach:
            return
        if rows > slots or 2 * rows <= slots:  # few are left: their cache shrinks as it grows
            slots = rows
        if positions > reach:
            reach = positions + max(GROWTH.get(self.device.type, GROWTH["cuda"]), positions // 16)
            reach = -(-reach // 16) * 16  # fused attention wants rows of its mask aligned
            self.rotation = self._rotations(reach)
        if self.graphs is not None:
            self.graphs.forget()
        old = self.cache[:, :, :slots]
        self.cache = old.new_empty(*old.shape[:2], slots, self.kv_heads, reach, self.width)
        self.cache[:, :, : old.shape[2], :, : old.shape[4]] = old
        # what is not there yet counts nothing, if it is finite
        self.cache[:, :, old.shape[2] :] = 0
        self.cache[..., old.shape[4] :, :] = 0

    def _rotations(self, reach: int) -> Tensor:
        """(2, reach, d): cosines of the rotation at each position, and sines, those of the first half negative."""
        places = torch.arange(reach, device=self.device)[None]
        with torch.autocast(self.device.type, enabled=False):
            cos, sin = (table[0] for table in self.rotary(self.embeddings[:1], places))  # (reach, d)
        half = self.width // 2
        return torch.stack([cos, torch.cat([-sin[:, :half], sin[:, half:]], -1)])


class _Layer:
    """The products and norms of one layer."""

    def __init__(self, layer: Any, base: Base | None, role: str, dtype: torch.dtype) -> None:
        q, k, v, o, gate, up, down = _products(layer)
        self.qkv = _Product([q, k, v], base, role, dtype)
        self.out = _Product([o], base, role, dtype)
        self.gate_up = _Product([gate, up], base, role, dtype)
        self.down = _Product([down], base, role, dtype)
        self.before, self.after = _normed(layer.input_layernorm), _normed(layer.post_attention_layernorm)
        norms = (getattr(layer.self_attn, name, None) for name in ("q_norm", "k_norm"))
        self.q_norm, self.k_norm = (None if norm is None else _normed(norm) for norm in norms)
        self.dtype = dtype

    def rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream (..., D) behind this layer, given what its attention found (..., heads x d)."""
        x = x + self.out(attended)
        gate, up = self.gate_up(self.after(x).to(self.dtype)).chunk(2, -1)
        return x + self.down(silu(gate) * up)


class _Product:
    """Linear layers over the same input as one product; adapters of `role` beside it, not merged: a bfloat16 weight
    cannot hold a small change."""

    def __init__(self, layers: Sequence[Any], base: Base | None, role: str, dtype: torch.dtype) -> None:
        plain = [getattr(layer, "base_layer", layer) for layer in layers]
        weights = [layer.weight.to(dtype) for layer in plain]
        # where nothing is converted a copy would cost a GPU the memory of a second model
        joined = weights[0].device.type == "cpu" or weights[0] is not plain[0].weight
        self.weights = [torch.cat(weights)] if joined and len(weights) > 1 else weights
        biases = [layer.bias for layer in plain]
        self.bias = None if biases[0] is None else torch.cat(biases).to(dtype)
        adapted = [layer for layer in layers if base is not None and role in getattr(layer, "lora_A", ())]
        self.low: Tensor | None = None
        if adapted:
            self.low = torch.cat([layer.lora_A[role].weight for layer in adapted]).to(dtype)  # (sum of ranks, D)
            parts = [
                layer.lora_B[role].weight * layer.scaling[role]
                if layer in adapted
                else p.weight.new_zeros(len(p.weight), 0)
                for layer, p in zip(layers, plain, strict=True)
            ]
            self.high = torch.block_diag(*parts).to(dtype)  # type: ignore[no-untyped-call]  # (outputs, sum of ranks)

    def __call__(self, x: Tensor) -> Tensor:
        parts = [linear(x, weight) for weight in self.weights]
        found = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        if self.bias is not None:
            found = found + self.bias
        if self.low is not None:
            found = found + linear(linear(x, self.low), self.high)
        return found


def _normed(norm: Any) -> Callable[[Tensor], Tensor]:
    """The RMS norm `norm` in as few operations as can be; transformers' own norms in float32 whatever it is given."""
    weight, eps = norm.weight, norm.variance_epsilon
    if weight.dtype == torch.float32:
        return lambda x: rms_norm(x.float(), weight.shape, weight, eps)
    return lambda x: weight * rms_norm(x.float(), weight.shape, None, eps).to(x.dtype)
