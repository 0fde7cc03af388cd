"""Log-probabilities of tokens, entropy, and estimates of the KL divergence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ._tensors import check, choose, like, wide

KLKind = Literal["k1", "k2", "k3", "abs"]

_MAX_LOG_RATIO = 10.0  # of k3: exp(10) still fits a float16
_SLICE = 1 << 25  # logits handled at a time: temporaries of 128 MiB in float32, unless a single row is larger


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token under the full softmax of its logits.

    A few rows at a time, so that temporaries over the vocabulary stay small.

    Args:
        logits: (B, T, V), any floating dtype; already shifted, so that logits[:, t] predicts ids[:, t].
        ids: (B, T), any integer dtype, each in [0, V), also where a mask will discard it. There is no mask.
    Returns:
        (B, T), float64 for float64 logits, else float32: bfloat16 cannot tell -8.01 from -8.03.
    Raises:
        ValueError: the shapes of ids and of logits without V differ.
    """
    check("token_logprobs", logits.shape[:-1], ids=ids)

    def chosen(logits: Tensor, ids: Tensor) -> Tensor:
        rows = wide(logits).reshape(-1, logits.shape[-1])
        return -cross_entropy(rows, ids.long().reshape(-1), reduction="none").view(ids.shape)  # the quickest way to it

    return _by_rows(chosen, logits, ids)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of the logits, in nats; tokens banned by a logit of -inf contribute 0.

    Args:
        logits: (B, T, V), any floating dtype. There is no mask.
    Returns:
        (B, T), float64 for float64 logits, else float32.
    """

    def entropy(logits: Tensor) -> Tensor:
        logp = wide(logits).log_softmax(-1)
        logp = logp.clamp(min=torch.finfo(logp.dtype).min)  # 0 * -inf would be nan
        return -(logp.exp() * logp).sum(-1)

    return _by_rows(entropy, logits)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, kind: KLKind) -> Tensor:
    """Per-token estimate of KL(policy || reference), for tokens that the policy sampled.

    With `d = logprobs - ref_logprobs`: k1 is d (unbiased, of either sign), k2 is `d^2 / 2`, k3 is `exp(-d) - 1 + d`
    (unbiased, never negative), abs is |d|. As a loss, k1 pushes nowhere on average, k2 has the gradient of the KL
    itself. In k3, -d is clamped to at most 10 against overflow; beyond that it is constant, with gradient 0.

    Args:
        logprobs, ref_logprobs: same shape, as a rule (B, T), any dtype. There is no mask: aggregate the result under
        one. A nan at a masked position must be cleared beforehand if gradients are wanted.
    Returns:
        logprobs' shape and dtype.
    Raises:
        ValueError: shapes differ; unknown kind.
    Source:
        Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html).
    """
    check("kl_estimate", logprobs.shape, ref_logprobs=ref_logprobs)
    choose("kl_estimate", "kind", kind, KLKind)
    d = wide(logprobs) - wide(ref_logprobs)
    if kind == "k1":
        kl = d
    elif kind == "k2":
        kl = d.square() / 2
    elif kind == "k3":
        log_ratio = (-d).clamp(max=_MAX_LOG_RATIO)
        kl = torch.expm1(log_ratio) - log_ratio
    else:
        kl = d.abs()
    return like(kl, logprobs)


def _by_rows(f: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """Apply f to slices of the first dimension, so that its temporaries stay small however large the vocabulary."""
    if logits.dim() == 1:
        return f(logits, *others)
    rows = max(1, _SLICE // max(1, logits.shape[1:].numel()))
    slices = zip(*(torch.split(x, rows) for x in (logits, *others)), strict=True)
    return torch.cat([f(*slice_) for slice_ in slices])
