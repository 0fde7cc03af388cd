"""Proximal policy optimisation for language models, in one file.

Schulman et al. (2017), arXiv:1707.06347, with advantages by GAE (Schulman et al., 2016, arXiv:1506.02438), for the
token-level problem of Ziegler et al. (2019): a state is the prompt and the tokens so far, an action is a token.

Departures from the papers, each usual in RLHF: advantages are whitened over the step's batch, not per minibatch; the
value loss is clipped like the policy's (as in openai/baselines); a response cut at the length limit ends with value 0
unless `bootstrap_truncated`. The KL to the reference is in the rewards (shaper `kl`), not in the loss.

PPO-max (Zheng et al., 2023, arXiv:2307.04964) is this with other settings: `advantage_clip`, a critic that begins as
the reward model (`critic_from`) and learns alone at first (`value_warmup`), the language-model loss on given text
(`ptx_coef`; Ouyang et al., 2022, equation 2), an inverse-square-root schedule, and the shaper `scale`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rlhf_core.errors import ConfigError
from rlhf_core.functional import (
    explained_variance,
    gae,
    masked_mean,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
)
from rlhf_core.interfaces import (
    Context,
    LossSum,
    Needs,
    Outputs,
    Policy,
    StepStats,
    SupervisedTask,
    TrainingData,
)
from rlhf_core.randomness import derive_seed, permutation
from rlhf_core.records import Demonstration, Rollout
from rlhf_core.rewards import TextReward
from rlhf_core.rl import Batch, OnPolicyOptimizer, within_update
from rlhf_core.training import Rate, backward, parts
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
        return Needs(values=True, entropy=self.config.entropy_coef != 0)

    @property
    def rates(self) -> Sequence[Rate]:
        rate = self.config.value_learning_rate
        return () if rate is None else ((self.policy.value_parameters, rate),)

    def bind(self, policy: Policy[Any], total_steps: int) -> None:
        if (wanted := self.config.critic_from) is not None:
            reward = self.context.component("reward", wanted)
            if not isinstance(reward, TextReward):
                raise ConfigError(f"{self.context.where} critic_from", f"reward {wanted!r} is no network",
                                  "a reward that is a network over text, such as preference")  # fmt: skip
            policy.prepare(self.config.needs)
            policy.start_critic(reward.network.whole_trunk(), reward.network.head)
        super().bind(policy, total_steps)
        self.demonstrations: SupervisedTask | None = None

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
        self.explained = explained_variance(values, returns, rollout.mask)
        self.returns = float(masked_mean(returns, rollout.mask))
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, rollout.mask)
        if config.advantage_clip is not None:
            advantages = advantages.clamp(-config.advantage_clip, config.advantage_clip)
        return {"advantages": advantages, "returns": returns}

    def loss(self, batch: Batch, new: Outputs) -> tuple[Tensor, Mapping[str, Any]]:
        config = self.config
        if new.values is None:
            raise ConfigError(self.context.where, f"policy {self.policy.context.id!r} gives no values",
                              "a policy with a critic", "use causal-lm, or an optimizer without one")  # fmt: skip
        policy_loss, policy_stats = ppo_policy_loss(
            new.logprobs, batch.logprobs, batch.advantages, batch.mask,
            clip_low=self.now(config.clip), clip_high=self.now(config.clip_high or config.clip),
            dual_clip=config.dual_clip, denominator=batch.token_count,
        )  # fmt: skip
        value_loss, value_stats = ppo_value_loss(
            new.values, batch.values, batch.returns, batch.mask, clip=config.value_clip, denominator=batch.token_count
        )
        loss = config.policy_coef * policy_loss + config.value_coef * value_loss
        stats = {
            "policy/surrogate": policy_loss.detach(), "value/loss": value_loss.detach(),
            "policy/clip_fraction": policy_stats["clip_fraction"], "policy/ratio": policy_stats["ratio_mean"],
            "value/clip_fraction": value_stats["value_clip_fraction"],
        }  # fmt: skip
        if config.dual_clip is not None:
            stats["policy/dual_clip_fraction"] = policy_stats["dual_clip_fraction"]
        if new.entropy is not None:
            entropy = batch.token_mean(new.entropy)
            loss = loss - self.now(config.entropy_coef) * entropy
            stats["policy/entropy_exact"] = entropy.detach()
        return loss, stats

    def backward_more(self, step: int) -> dict[str, float]:
        """The language-model loss on the next demonstrations, a mean over their tokens, times `ptx_coef`."""
        task, size, coef = self.demonstrations, self.config.ptx_batch_size, self.now(self.config.ptx_coef)
        if task is None or coef == 0:
            return {}
        rows = []
        for place in range(self.gradient.taken * size, (self.gradient.taken + 1) * size):
            epoch, index = divmod(place, len(task.train))
            rows.append(permutation(derive_seed(self.context.seed, "ptx", epoch), len(task.train))[index])
        examples = [task.train[row] for row in rows]
        count = sum(task.count(example) for example in examples)
        what, budget = f"{size} demonstrations", self.config.micro_batch_tokens
        mine = parts([task.size(example) for example in examples], budget, range(size), self.context.accelerator)
        losses = ((task.loss([examples[i] for i in part]), coef * weight) for part, weight in mine)
        with within_update(self.context, self.policy, budget, what, self.gradient, sampled=False):
            found = backward((LossSum(weight * loss.total, loss.count, {}) for loss, weight in losses), count)
        return {"policy/ptx_loss": found["loss"] / coef}

    def frozen(self, step: int) -> Sequence[nn.Parameter]:
        """While the critic warms up, nothing that the policy depends on moves: with a shared trunk only the head."""
        if step >= self.config.value_warmup:
            return ()
        critic = {id(p) for p in self.policy.value_parameters}
        return [p for p in self.policy.module.parameters() if id(p) not in critic]

    def step(self, data: TrainingData) -> StepStats:
        if self.config.ptx_coef != 0 and self.demonstrations is None:
            self.demonstrations = self.policy.demonstrations(_demonstrations(data, self.context), held_out=0.0)
        stats = super().step(data)
        return {**stats, "value/explained_variance": self.explained, "value/returns": self.returns}


def _demonstrations(data: TrainingData, context: Context) -> list[Demonstration]:
    """The texts whose loss is mixed in.

    Raises:
        ConfigError: the stage has none.
    """
    found = [record for record in data.feedback("demonstration") if isinstance(record, Demonstration)]
    if not found:
        raise ConfigError(f"{context.where} ptx_coef", "no demonstration in the stage's feedback", "text to learn from",
                          "name a source of demonstrations in the optimize stage: feedback: [ID]")  # fmt: skip
    return found
