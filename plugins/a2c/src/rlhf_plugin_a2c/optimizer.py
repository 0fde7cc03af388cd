"""Advantage actor-critic for language models, in one file.

Mnih et al. (2016), arXiv:1602.01783, algorithm S3, run synchronously, for the token-level problem of RL4LMs
(Ramamurthy et al., 2023, arXiv:2210.01241): a state is the prompt and the tokens so far, an action is a token. The
critic V judges states; the policy follows ``A_t grad log pi(token t)`` with the advantage ``A_t`` held fixed, and V is
pulled towards the return ``A_t + V_t``.

Departures from the paper: samples are gathered in a batch by one policy, not by asynchronous workers. With `n_steps`
every token looks n tokens ahead; in the paper a state looks to the end of its segment of at most n. `lam` below 1 mixes
the horizons up to n (GAE; Schulman et al., 2016, arXiv:1506.02438). AdamW stands for RMSProp. A response cut at the
length limit ends with value 0 unless `bootstrap_truncated`: with rewards for whole responses it has been scored. The
critic's loss is the mean squared error without a half, as in the paper and in RL4LMs (its gradient there is that of
``(R - V)^2``); `ppo` of this project has the half.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rlhf_core.errors import ConfigError
from rlhf_core.functional import explained_variance, gae, masked_mean, masked_var, masked_whiten
from rlhf_core.interfaces import Needs, Outputs, StepStats, TrainingData
from rlhf_core.records import Rollout
from rlhf_core.rl import Batch, OnPolicyOptimizer
from torch import Tensor

from .config import A2CConfig


def n_step_advantages(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    n_steps: int | None = None,
    lam: float = 1.0,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages over n tokens, and the returns (advantage + value) that the critic is trained on.

    ``A_t = sum_{k<n} (gamma lam)^k delta_{t+k}`` with ``delta_t = r_t + gamma V_{t+1} - V_t``. With lam 1 that is the
    n-step return less the value, ``sum_{k<n} gamma^k r_{t+k} + gamma^n V_{t+n} - V_t``; with n to the end it is GAE;
    with n 1 the one-step TD error. Next means the next valid token: holes in the mask are stepped over.

    Args:
        rewards, values: (B, T), any dtype. mask: (B, T), nonzero is valid, holes allowed. n_steps: None is to the end.
        bootstrap: (B,), value of the state after the last valid token, for truncated responses; default 0, the end.
    Returns:
        advantages and returns, both (B, T), rewards' dtype, 0 at masked positions.
    Raises:
        ValueError: shapes differ.
    Source:
        Mnih et al. 2016 (arXiv:1602.01783), section 4; Schulman et al. 2017 (arXiv:1707.06347), equation 11.
    """
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap=bootstrap)
    if n_steps is None or n_steps >= mask.shape[1]:
        return advantages, returns
    # the sum over n terms is the sum to the end, less what it holds from n valid tokens later on
    valid = mask.bool()
    place = valid.long().cumsum(1) - 1  # (B, T) number of each valid token in its row
    dense = torch.zeros_like(advantages).scatter_add(1, place.clamp(min=0), advantages)  # (B, T) without holes
    later = torch.nn.functional.pad(dense[:, n_steps:], (0, n_steps)).gather(1, place.clamp(min=0))
    rest = ((gamma * lam) ** n_steps * later).where(valid, 0.0)
    return advantages - rest, returns - rest


class A2C(OnPolicyOptimizer[A2CConfig]):
    """Unclipped policy gradient over n-step advantages, a squared error for the critic, an entropy bonus."""

    @property
    def update_needs(self) -> Needs:
        return Needs(values=True, entropy=self.config.entropy_coef != 0)

    def prepare(self, rollout: Rollout) -> Mapping[str, Tensor]:
        config, mask = self.config, rollout.mask
        rewards, values, bootstrap = rollout.rewards, rollout.values, rollout.bootstrap
        if not config.bootstrap_truncated:
            bootstrap = None  # policies may hand it out unasked, along with the other values
        elif bootstrap is not None:
            bootstrap = torch.where(rollout.truncated, bootstrap, 0.0)  # (B,) beyond a cut only, not beyond an end
        if rewards is None or values is None or (bootstrap is None and config.bootstrap_truncated):
            raise ConfigError(self.context.where, "a rollout without rewards, values, or the value beyond a cut",
                              "all that `config.needs` asks for", "pass it to the data that rolls out")  # fmt: skip
        advantages, returns = n_step_advantages(
            rewards, values, mask, gamma=config.gamma, n_steps=config.n_steps, lam=config.lam, bootstrap=bootstrap
        )  # (B, T) each
        self.stats = {
            "value/explained_variance": explained_variance(values, returns, mask),
            "value/returns": float(masked_mean(returns, mask)),
            "value/advantage_std": float(masked_var(advantages, mask)) ** 0.5,
        }
        if config.normalize_advantages:
            advantages = masked_whiten(advantages, mask)
        return {"advantages": advantages, "returns": returns}

    def loss(self, batch: Batch, new: Outputs) -> tuple[Tensor, Mapping[str, Any]]:
        config = self.config
        if new.values is None:
            raise ConfigError(self.context.where, f"policy {self.policy.context.id!r} gives no values",
                              "a policy with a critic", "use causal-lm, or an optimizer without one")  # fmt: skip
        policy_loss = batch.token_mean(-batch.advantages * new.logprobs)
        value_loss = batch.token_mean((new.values - batch.returns).square())
        loss = policy_loss + config.value_coef * value_loss
        stats = {"policy/surrogate": policy_loss.detach(), "value/loss": value_loss.detach()}
        if new.entropy is not None and config.entropy_coef != 0:
            entropy = batch.token_mean(new.entropy)
            loss = loss - self.now(config.entropy_coef) * entropy
            stats["policy/entropy_exact"] = entropy.detach()
        return loss, stats

    def step(self, data: TrainingData) -> StepStats:
        stats = super().step(data)
        return {**stats, **self.stats}
