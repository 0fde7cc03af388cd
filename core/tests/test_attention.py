"""Plain attention for training on a CPU: the same function as the fused kernel, with the same gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from rlhf_core.policies import attention
from rlhf_core.policies.attention import NAME, attend
from torch.nn.functional import scaled_dot_product_attention

from .toys import make_policy

CAUSAL = SimpleNamespace(is_causal=True)


def tensors(heads: int, kv_heads: int, length: int = 7) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = [(3, heads, length, 8), (3, kv_heads, length, 8), (3, kv_heads, length, 8)]
    return tuple(torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes)


def padded(length: int = 7) -> torch.Tensor:
    """A causal mask (3, 1, S, S) over rows padded on the left, whose first queries see nothing."""
    real = torch.ones(3, length, dtype=torch.bool)
    real[1, :2] = real[2, :5] = False
    return torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, None]


def truth(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """(B, S, H, d) in float64, by a loop over heads."""
    q, k, v = (x.detach().double() for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    found = [
        (q[:, h] @ k[:, h // groups].mT * scale).masked_fill(~mask[:, 0], -torch.inf).softmax(-1) @ v[:, h // groups]
        for h in range(q.shape[1])
    ]
    return torch.stack(found, 2)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", ["boolean", "additive", "none"])
def test_it_is_attention(kv_heads: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(4, kv_heads)
    mask = torch.ones(7, 7, dtype=torch.bool).tril().expand(3, 1, 7, 7) if kind == "none" else padded()
    given = {"boolean": mask, "additive": torch.zeros(mask.shape).masked_fill(~mask, -1e9), "none": None}[kind]
    fused_calls: list[int] = []
    monkeypatch.setattr(
        "transformers.integrations.sdpa_attention.sdpa_attention_forward", lambda *a, **k: fused_calls.append(1)
    )
    found, weights = attend(CAUSAL, q, k, v, given, scaling=0.3)
    assert not fused_calls and weights is None and found.shape == (3, 7, 4, 8) and found.isfinite().all()
    seen = mask[:, 0].any(-1)  # (B, S) queries that see anything
    torch.testing.assert_close(found.double()[seen], truth(q, k, v, mask, 0.3)[seen], atol=0.02, rtol=0.02)
    found[seen].sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


def test_gradients_are_those_of_the_fused_kernel() -> None:
    mask = padded() | torch.eye(7, dtype=torch.bool)  # every query sees itself
    weight = torch.randn(3, 7, 4, 8)
    plain, fused = tensors(4, 4), tensors(4, 4)
    (attend(CAUSAL, *plain, mask)[0].float() * weight).sum().backward()
    (scaled_dot_product_attention(*fused, attn_mask=mask).transpose(1, 2).float() * weight).sum().backward()
    for mine, theirs in zip(plain, fused, strict=True):
        difference = (mine.grad.float() - theirs.grad.float()).norm()
        assert difference < 0.01 * theirs.grad.float().norm()


@pytest.mark.parametrize("reason", ["float32", "no gradient", "long", "one query", "dropout", "something else"])
def test_elsewhere_the_fused_kernel_is_left_alone(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        "transformers.integrations.sdpa_attention.sdpa_attention_forward", lambda *a, **k: calls.append(1)
    )
    q, k, v = tensors(4, 4, attention.LONGEST + 1 if reason == "long" else 7)
    if reason == "float32":
        q, k, v = q.float(), k.float(), v.float()
    if reason == "one query":
        q = q[:, :, -1:]
    others = {"position_bias": torch.zeros(1)} if reason == "something else" else {}
    with torch.set_grad_enabled(reason != "no gradient"):
        attend(CAUSAL, q, k, v, None, dropout=0.1 if reason == "dropout" else 0.0, **others)
    assert calls == [1]


def test_policies_use_it_and_exports_do_not_name_it(tmp_path) -> None:
    policy = make_policy("llama")
    assert policy.network.model.config._attn_implementation == NAME
    policy.export(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
