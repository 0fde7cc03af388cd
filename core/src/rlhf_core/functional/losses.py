"""What is minimised: PPO's policy and value losses, and the likelihoods of preferences, rankings and ratings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._tensors import check, choose, divide, like, valid, wide
from .masked import Aggregation, aggregate

_MAX_LOG_RATIO = 20.0  # exp(20) lies far outside any clip range, and stays finite after products in float32


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    aggregation: Aggregation = "token-mean",
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate, negated to be minimised: the mean of `max(-A * ratio, -A * clip(ratio))`.

    The ratio `exp(logprobs - old_logprobs)` is clipped to [1 - clip_low, 1 + clip_high]; where the clipped term wins,
    the gradient is 0. With `dual_clip`, the loss of a token with A < 0 is at most `-A * dual_clip`. The log ratio is
    clamped to +-20 against overflow.

    Args:
        logprobs, old_logprobs, advantages: (B, T), any dtype. mask: (B, T), nonzero is valid. dual_clip: above 1.
        aggregation, denominator: as in `aggregate`.
    Returns:
        the loss (), logprobs' dtype, and detached statistics (): clip_fraction (tokens whose clipped term wins),
        dual_clip_fraction, approx_kl (k1, old - new), ratio_mean. Without `denominator` they are means over the tokens
        of this call. With it they add up over micro-batches as the loss does: aggregated in the same mode, except that
        seq-mean-token-sum becomes seq-mean-token-mean, so that a fraction stays a fraction.
    Raises:
        ValueError: shapes differ; unknown aggregation; dual_clip not above 1.
    Source:
        Schulman et al. 2017 (arXiv:1707.06347), equation 7; dual clip: Ye et al. 2020 (arXiv:1912.09729);
        two clip bounds: Yu et al. 2025 (arXiv:2503.14476), section 3.1.
    """
    check("ppo_policy_loss", logprobs.shape, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    choose("ppo_policy_loss", "aggregation", aggregation, Aggregation)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"ppo_policy_loss: dual_clip is {dual_clip}, expected a number above 1, or None for none")
    log_ratio = valid(wide(logprobs) - wide(old_logprobs), mask).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)  # (B, T)
    ratio, gain = log_ratio.exp(), valid(advantages, mask)
    unclipped = -gain * ratio
    clipped = -gain * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(unclipped, clipped)
    capped = torch.zeros_like(losses, dtype=torch.bool)
    if dual_clip is not None:
        cap = -gain * dual_clip
        capped = (gain < 0) & (losses > cap)
        losses = torch.where(capped, cap, losses)

    mode: Aggregation = "token-mean" if denominator is None else aggregation
    if mode == "seq-mean-token-sum":
        mode = "seq-mean-token-mean"

    def stat(x: Tensor) -> Tensor:
        return aggregate(x.detach().to(ratio.dtype), mask, mode, denominator)

    return like(aggregate(losses, mask, aggregation, denominator), logprobs), {
        "clip_fraction": stat(clipped > unclipped),
        "dual_clip_fraction": stat(capped),
        "approx_kl": stat(-log_ratio),
        "ratio_mean": stat(ratio),
    }


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float | None = None,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the mean squared error of the critic, optionally the worse of V and V kept within `clip` of its old value.

    `0.5 * mean max((V - R)^2, (V_old + clamp(V - V_old, -clip, clip) - R)^2)`; where the clipped term wins, the
    gradient is 0.

    Args:
        values, old_values, returns: (B, T), any dtype. mask: (B, T), nonzero is valid.
        denominator: number of valid tokens, as in `aggregate` with token-mean.
    Returns:
        the loss (), values' dtype, and the detached statistic () value_clip_fraction (tokens whose clipped term wins),
        with the same denominator.
    Raises:
        ValueError: shapes differ.
    Source:
        Schulman et al. 2017 (arXiv:1707.06347), equation 9, for the error; the clipping is that of OpenAI's ppo2.
    """
    check("ppo_value_loss", values.shape, old_values=old_values, returns=returns, mask=mask)
    new, old, target = valid(values, mask), valid(old_values, mask), valid(returns, mask)  # (B, T) each
    losses = (new - target).square()
    won = torch.zeros_like(losses)
    if clip is not None:
        moved = new - old
        # within the clip V itself, not V_old + (V - V_old): a last bit of rounding would count as clipped
        kept = torch.where(moved.abs() > clip, old + moved.clamp(-clip, clip), new)
        clipped = (kept - target).square()
        won = (clipped > losses).to(losses.dtype)
        losses = torch.maximum(losses, clipped)
    loss = aggregate(losses, mask, "token-mean", denominator) / 2
    return like(loss, values), {"value_clip_fraction": aggregate(won, mask, "token-mean", denominator)}


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | float | None = None,
    label_smoothing: Tensor | float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of preferences, `-log sigmoid(chosen - rejected - margin)`, mean over pairs.

    A margin demands a lead of its size. With label smoothing a, a preference is taken to be wrong with probability a:
    the cross-entropy of the same sigmoid against 1 - a.

    Args:
        chosen, rejected: same shape, as a rule (B,), any dtype; no mask. margin, label_smoothing: number, or tensor of
        that shape. weight: of that shape, not negative; the mean is weighted by it.
    Returns:
        (), chosen's dtype; finite for any finite scores; 0 where all weights are.
    Raises:
        ValueError: shapes differ; label_smoothing outside [0, 1].
    Source:
        Bradley & Terry 1952; margin: Touvron et al. 2023 (arXiv:2307.09288), equation 2; smoothing: Wang et al. 2024
        (arXiv:2401.06080), equation 5.
    """
    given = {"margin": margin, "label_smoothing": label_smoothing, "weight": weight}
    check("bradley_terry_loss", chosen.shape, rejected=rejected,
          **{name: x for name, x in given.items() if isinstance(x, Tensor)})  # fmt: skip
    lead = wide(chosen) - wide(rejected)
    wrong = torch.as_tensor(label_smoothing, dtype=lead.dtype, device=lead.device)
    if bool(((wrong < 0) | (wrong > 1)).any()):
        raise ValueError(f"bradley_terry_loss: label_smoothing is {label_smoothing}, expected a number from 0 to 1")
    if margin is not None:
        lead = lead - margin
    losses = -(1 - wrong) * F.logsigmoid(lead) - wrong * F.logsigmoid(-lead)
    shares = torch.ones_like(lead) if weight is None else wide(weight)
    return like(divide((losses * shares).sum(), shares.sum()), chosen)


def davidson_loss(
    chosen: Tensor,
    rejected: Tensor,
    tied: Tensor,
    log_tie: Tensor,
    *,
    margin: Tensor | float = 0.0,
    label_smoothing: Tensor | float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of preferences with ties, mean over pairs.

    With p = exp(score) and nu = exp(log_tie): P(a over b) = p_a / (p_a + p_b + nu sqrt(p_a p_b)), and a tie takes the
    share nu sqrt(p_a p_b). Without ties, nu to 0, this is Bradley-Terry. Margin and smoothing act on untied pairs, as
    there.

    Args:
        chosen, rejected: (B,), any dtype; of a tie in either order. tied: (B,) bool. log_tie: (), learnt as scores are.
        margin, label_smoothing: number or (B,). weight: (B,), not negative; the mean is weighted by it.
    Returns:
        (), chosen's dtype; finite for any finite scores; 0 where all weights are.
    Raises:
        ValueError: shapes differ.
    Source:
        Davidson 1970 (Journal of the American Statistical Association 65), equations 2.4 and 2.5.
    """
    given = {"margin": margin, "label_smoothing": label_smoothing, "weight": weight}
    check("davidson_loss", chosen.shape, rejected=rejected, tied=tied,
          **{name: x for name, x in given.items() if isinstance(x, Tensor)})  # fmt: skip
    lead = wide(chosen) - wide(rejected) - torch.where(tied, 0.0, margin)
    even = log_tie - lead / 2
    total = torch.stack([torch.zeros_like(lead), -lead, even]).logsumexp(0)  # all over p_chosen
    untied = (1 - label_smoothing) * total + label_smoothing * (total + lead)
    losses = torch.where(tied, total - even, untied)
    shares = torch.ones_like(lead) if weight is None else wide(weight)
    return like(divide((losses * shares).sum(), shares.sum()), chosen)


def plackett_luce_loss(
    scores: Tensor,
    mask: Tensor,
    *,
    ranks: Tensor | None = None,
    ties_judged: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of rankings, mean over rankings: each item is chosen before all that are ranked below it.

    Rankings of two items give the Bradley-Terry loss. Items that share a rank are each chosen from all that are not
    ranked above, the others of their rank among them (Breslow's approximation); or, where ties were not judged, from
    themselves and what is ranked below. So a vote for the best of K has one term, and what lost is not ordered.

    Args:
        scores: (B, K), any dtype. mask: (B, K), nonzero is an item, so rankings may differ in length.
        ranks: (B, K) integers, 0 is best; by default the items stand in their order, best first.
        ties_judged: (B,) bool, by default all. weight: (B,), not negative; the mean is weighted by it.
    Returns:
        (), scores' dtype. Rows without an item are not counted.
    Raises:
        ValueError: shapes differ.
    Source:
        Plackett 1975; Luce 1959; as a loss, ListMLE (Xia et al. 2008); ties: Breslow 1974 (Biometrics 30).
    """
    check("plackett_luce_loss", scores.shape, mask=mask, **({} if ranks is None else {"ranks": ranks}))
    rows = {name: x for name, x in (("ties_judged", ties_judged), ("weight", weight)) if x is not None}
    check("plackett_luce_loss", scores.shape[:1], **rows)
    items, size = valid(scores, mask), scores.shape[-1]  # (B, K)
    order = torch.arange(size, device=scores.device).expand_as(scores) if ranks is None else ranks
    below = order.unsqueeze(-2) > order.unsqueeze(-1)  # (B, K, K) item j is ranked below item i
    equal = order.unsqueeze(-2) == order.unsqueeze(-1)
    if ties_judged is not None:
        equal = equal & (ties_judged[:, None, None] | torch.eye(size, dtype=torch.bool, device=scores.device))
    competes = (below | equal) & mask.bool().unsqueeze(-2)  # item j is still to be had when i is chosen
    competes = competes | torch.eye(size, dtype=torch.bool, device=scores.device)  # keeps padding finite
    field = torch.where(competes, items.unsqueeze(-2), -torch.inf).logsumexp(-1)  # (B, K)
    terms = valid(field - items, mask).sum(-1)  # (B,)
    shares = mask.bool().any(-1).to(terms.dtype) * (1.0 if weight is None else wide(weight))
    return like(divide((terms * shares).sum(), shares.sum()), scores)


def coral_loss(logits: Tensor, levels: Tensor) -> Tensor:
    """Ordinal regression, one yes-or-no question per threshold: cross-entropy summed over thresholds, mean over rows.

    Args:
        logits: (B, K - 1), any dtype, one for each threshold between K ratings. levels: (B, K - 1), bool or numeric, 1
        where the rating lies above the threshold. There is no mask.
    Returns:
        (), logits' dtype.
    Raises:
        ValueError: shapes differ.
    Source:
        Cao, Mirjalili & Raschka 2020 (arXiv:1901.07884), with all importance weights 1.
    """
    check("coral_loss", logits.shape, levels=levels)
    x = wide(logits)
    losses = F.binary_cross_entropy_with_logits(x, levels.to(x.dtype), reduction="none").sum(-1)  # (B,)
    return like(divide(losses.sum(), losses.numel()), logits)


def weighted_likelihood_loss(
    logprobs: Tensor, weights: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Say this, and do not say that: mean over tokens of `-w log p` where w >= 0, of `-|w| log(1 - p)` where w < 0.

    1 - p is held above 1e-6, so that a token of probability 1 gives a finite loss, without gradient.

    Args:
        logprobs: (B, T), of the tokens that are there. weights: (B, T), any sign. mask: (B, T), nonzero is valid.
        denominator: number of valid tokens, as in `aggregate` with token-mean.
    Returns:
        (), logprobs' dtype.
    Raises:
        ValueError: shapes differ.
    Source:
        Welleck et al. 2020 (arXiv:1908.04319), equation 4; with edits Yao et al. 2023 (arXiv:2310.05857), section 4.1.
    """
    check("weighted_likelihood_loss", logprobs.shape, weights=weights, mask=mask)
    w, said = valid(weights, mask), valid(logprobs, mask)  # (B, T)
    left = (-torch.expm1(said)).clamp(min=1e-6)  # 1 - p; padding has log p = 0
    losses = torch.where(w < 0, w * left.log(), -w * said)
    return like(aggregate(losses, mask, "token-mean", denominator), logprobs)


def calibration_error(differences: Tensor, bins: int = 10) -> float:
    """Expected calibration error of pairwise predictions.

    The model's confidence in its own choice is sigmoid(|d|), between 1/2 and 1; it is right where d > 0. The error is
    the mean distance of confidence and accuracy over `bins` equal bins of confidence, weighted by their counts.

    Args:
        differences: (N,) score of the better minus the worse response.
    Source:
        Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    confidence = torch.sigmoid(differences.abs())
    right = (differences > 0).float() + 0.5 * (differences == 0).float()
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    error = 0.0
    for b in range(bins):
        inside = place == b
        if bool(inside.any()):
            error += float((confidence[inside].mean() - right[inside].mean()).abs()) * int(inside.sum())
    return error / max(len(differences), 1)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two (N,) tensors; equal values share their mean rank. 0 where either is constant.

    Source:
        Spearman 1904, "The proof and measurement of association between two things".
    """

    def ranks(values: Tensor) -> Tensor:
        _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
        middle: Tensor = (counts.cumsum(0) - (counts - 1) / 2).double()[place]
        return middle - middle.mean()

    if len(a) < 2:
        return 0.0
    x, y = ranks(a), ranks(b)
    norm = float(x.norm() * y.norm())
    return float(torch.dot(x, y)) / norm if norm else 0.0
