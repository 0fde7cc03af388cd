"""Shapers of token rewards. B samples, T response positions.

The mask names tokens that the policy chose, of samples that were judged; holes in it are stepped over.
"""

from __future__ import annotations

import torch
from rlhf_core.functional import masked_mean, masked_var, masked_whiten
from rlhf_core.interfaces import RewardShaper, StepStats
from rlhf_core.records import Rollout
from torch import Tensor

from .common import last_own
from .config import DiscountConfig, RepetitionPenaltyConfig, SpreadConfig, WhitenConfig


class Whiten(RewardShaper[WhitenConfig]):
    """``(r - mean) / sqrt(var + eps) + mean`` over the valid tokens of the batch; `shift_mean` drops the last term.

    So a reward r becomes r / s plus a constant per token, mean * (1 - 1 / s) or -mean / s, that longer responses
    collect more often.
    """

    level = "token"
    zero_stays_zero = True

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        c, mask = self.config, rollout.mask
        white = masked_whiten(rewards, mask, shift_mean=c.shift_mean, unbiased=c.unbiased, eps=c.eps)
        mean, var = masked_mean(rewards, mask), masked_var(rewards, mask, unbiased=c.unbiased)
        return white, {"shaping/whiten_mean": float(mean), "shaping/whiten_std": float(var) ** 0.5}


class Discount(RewardShaper[DiscountConfig]):
    """``r_k * gamma ** k`` on the response's k-th own token.

    The return of a whole response is then the discounted one of Sutton and Barto (2018, equation 3.8). An optimizer
    with a discount of its own aims at the same, but pushes late tokens as hard as early ones; here their push shrinks
    with their rewards, as the gradient of the discounted return has it.
    """

    level = "token"
    zero_stays_zero = True

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        mask = rollout.mask
        place = mask.cumsum(1) - 1  # (B, T), k of the tokens in mask
        factor = (self.config.gamma ** place.clamp(min=0)).to(rewards.dtype)
        at_end = masked_mean(factor.float(), last_own(mask))
        return (rewards * factor).where(mask, 0.0), {"shaping/discount": float(at_end)}


class RepetitionPenalty(RewardShaper[RepetitionPenaltyConfig]):
    """``r_t - coef`` where token t completes n tokens in a row that stand earlier in the response as well.

    Tokens are compared by id. An n-gram does not reach across a hole, and what other speakers said does not count.
    """

    level = "token"

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        again = repeats(rollout.response_ids, rollout.mask, self.config.n)
        penalty = self.now(self.config.coef) * again.to(rewards.dtype)
        share = float(masked_mean(again.float(), rollout.mask))
        return (rewards - penalty).where(rollout.mask, 0.0), {"shaping/repetition": share}


def repeats(ids: Tensor, mask: Tensor, n: int) -> Tensor:
    """(B, T) bool: True where ids[b, t-n+1 : t+1] is all valid and the same n ids stood, all valid, further left."""
    found = torch.zeros_like(mask)
    for row, (tokens, valid) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        seen: set[tuple[int, ...]] = set()
        for end in range(n, len(tokens) + 1):
            if all(valid[end - n : end]):
                gram = tuple(tokens[end - n : end])
                found[row, end - 1] = gram in seen
                seen.add(gram)
    return found


class Spread(RewardShaper[SpreadConfig]):
    """The reward of the last token, where the score lies, in shares over all tokens that grow towards the end.

    The last token's share is 1 / (1 + decay + decay^2 + ...), the one before it gets decay times that, and so on. What
    rewards paid for spans, on earlier tokens, stays there. The sum of a response stays the same.
    """

    level = "token"
    zero_stays_zero = True

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        mask = rollout.mask
        last = last_own(mask)
        exact = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
        to_go = mask.flip(1).cumsum(1).flip(1) - 1  # (B, T), tokens that follow
        share = (self.config.decay ** to_go.to(exact)).where(mask, 0.0)
        share = share / share.sum(1, keepdim=True).clamp(min=1)  # 1 on the last token, more in all: never 0
        score = exact.where(last, 0.0).sum(1, keepdim=True)  # (B, 1)
        spread = exact.where(~last, 0.0) + score * share
        kept = masked_mean(share.float(), last)
        return spread.where(mask, 0.0).to(rewards.dtype), {"shaping/spread_last": float(kept)}
