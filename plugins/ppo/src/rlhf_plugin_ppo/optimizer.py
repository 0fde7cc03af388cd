"""Proximal policy optimisation for language models, in one file.

Schulman et al. (2017), arXiv:1707.06347, with advantages by GAE (Schulman et al., 2016, arXiv:1506.02438), for the
token-level problem of Ziegler et al. (2019): a state is the prompt and the tokens so far, an action is a token.

Departures from the papers, each usual in RLHF: advantages are whitened over the step's batch, not per minibatch; the
value loss is clipped like the policy's (as in openai/baselines); a response cut at the length limit ends with value 0
unless `bootstrap_truncated`. The KL to the reference is in the rewards (shaper `kl`), not in the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rlhf_core.errors import ConfigError
from rlhf_core.functional import gae, masked_mean, masked_var, masked_whiten, ppo_policy_loss, ppo_value_loss
from rlhf_core.interfaces import Needs, Outputs
from rlhf_core.records import Rollout
from rlhf_core.rl import Batch, OnPolicyOptimizer
from torch import Tensor, nn

from .config import PPOConfig


class PPO(OnPolicyOptimizer[PPOConfig]):
    """Clipped policy and value losses over GAE advantages."""

    @property
    def lam(self) -> float:
        """Lambda of GAE. A critic on the policy's trunk learns slowly: lambda 1 does not lean on it."""
        if self.config.lam is not None:
            return self.config.lam
        return 1.0 if self.policy.critic == "shared" else 0.95

    @property
    def update_needs(self) -> Needs:
        return Needs(values=True, entropy=self.config.entropy_coef > 0)

    def prepare(self, rollout: Rollout) -> Mapping[str, Tensor]:
        config = self.config
        rewards, values, bootstrap = rollout.rewards, rollout.values, rollout.bootstrap
        if not config.bootstrap_truncated:
            bootstrap = None  # policies may hand it out unasked, along with the other values
        elif bootstrap is not None:
            bootstrap = torch.where(rollout.truncated, bootstrap, 0.0)  # (B,) beyond a cut only, not beyond an end
        if rewards is None or values is None or (bootstrap is None and config.bootstrap_truncated):
            raise ConfigError(self.context.where, "a rollout without rewards, values, or the value beyond a cut",
                              "all that `config.needs` asks for", "pass it to the data that rolls out")  # fmt: skip
        advantages, returns = gae(
            rewards, values, rollout.mask, gamma=config.gamma, lam=self.lam, bootstrap=bootstrap
        )  # (B, T) each
        self.explained = _explained_variance(values, returns, rollout.mask)
        self.returns = float(masked_mean(returns, rollout.mask))
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, rollout.mask)
        return {"advantages": advantages, "returns": returns}

    def loss(self, batch: Batch, new: Outputs) -> tuple[Tensor, Mapping[str, Any]]:
        config = self.config
        if new.values is None:
            raise ConfigError(self.context.where, f"policy {self.policy.context.id!r} gives no values",
                              "a policy with a critic", "use causal-lm, or an optimizer without one")  # fmt: skip
        policy_loss, policy_stats = ppo_policy_loss(
            new.logprobs, batch.logprobs, batch.advantages, batch.mask,
            clip_low=config.clip, clip_high=config.clip_high or config.clip, dual_clip=config.dual_clip,
            denominator=batch.token_count,
        )  # fmt: skip
        value_loss, value_stats = ppo_value_loss(
            new.values, batch.values, batch.returns, batch.mask, clip=config.value_clip, denominator=batch.token_count
        )
        loss = policy_loss + config.value_coef * value_loss
        stats = {
            "policy/surrogate": policy_loss.detach(), "value/loss": value_loss.detach(),
            "policy/clip_fraction": policy_stats["clip_fraction"], "policy/ratio": policy_stats["ratio_mean"],
            "value/clip_fraction": value_stats["value_clip_fraction"],
        }  # fmt: skip
        if config.dual_clip is not None:
            stats["policy/dual_clip_fraction"] = policy_stats["dual_clip_fraction"]
        if new.entropy is not None:
            entropy = batch.token_mean(new.entropy)
            loss = loss - config.entropy_coef * entropy
            stats["policy/entropy_exact"] = entropy.detach()
        return loss, stats

    def frozen(self, step: int) -> Sequence[nn.Parameter]:
        """While the critic warms up, nothing that the policy depends on moves: with a shared trunk only the head."""
        if step >= self.config.value_warmup:
            return ()
        critic = {id(p) for p in self.policy.value_parameters}
        return [p for p in self.policy.module.parameters() if p.requires_grad and id(p) not in critic]

    def step(self, data: Any) -> dict[str, float]:
        stats = super().step(data)
        return {**stats, "value/explained_variance": self.explained, "value/returns": self.returns}


def _explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant one, negative for a worse."""
    spread = float(masked_var(returns, mask))
    return 1 - float(masked_var(returns - values, mask)) / spread if spread > 1e-12 else 0.0
