"""PPO as a plain torch loop: the arithmetic of ours with a critic of its own, in float32, and nothing else.

It draws its samples with `policy.generate`, as ours does, and evaluates and updates with transformers' models and torch
alone: no options, no records, no statistics, no checks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from speed_task import score
from torch import Tensor, nn


class PlainPPO:
    """One step after another over `policy`, a policy of ours whose model is trained here.

    Args:
        settings: as `speed_task.settings` gives them. sampling: ours.
    """

    def __init__(self, policy: Any, settings: Mapping[str, Any], sampling: Any) -> None:
        self.policy, self.settings, self.sampling = policy, settings, sampling
        self.model = policy.network.model
        self.reference = copy.deepcopy(self.model).requires_grad_(False)
        self.critic = copy.deepcopy(self.model.model)
        self.head = nn.Linear(self.model.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.parameters = [p for part in (self.model, self.critic, self.head) for p in part.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings["learning_rate"], betas=settings["betas"], eps=settings["adam_eps"],
            weight_decay=settings["weight_decay"], fused=True,
        )  # fmt: skip
        self.taken = 0

    def logprobs(self, model: Any, ids: Tensor, mask: Tensor, width: int) -> Tensor:
        """(B, T) of the last `width` tokens of `ids` (B, N) under the full softmax."""
        states = model.model(ids, attention_mask=mask).last_hidden_state[:, -width - 1 : -1]
        logits = model.lm_head(states)
        return logits.gather(2, ids[:, -width:, None])[..., 0] - logits.logsumexp(-1)

    def values(self, ids: Tensor, mask: Tensor, width: int) -> Tensor:
        """(B, T) before each of the last `width` tokens."""
        states = self.critic(ids, attention_mask=mask).last_hidden_state[:, -width - 1 : -1]
        return self.head(states)[..., 0]

    def step(self, prompts: list[Any]) -> float:
        """Sample, evaluate, update; the mean score."""
        with torch.no_grad():
            rollout = self.policy.generate(prompts, self.sampling, seed=self.taken)
            ids = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)  # (B, N)
            mask = torch.cat([rollout.prompt_mask, rollout.attention], 1).long()
            valid, width = rollout.attention, rollout.response_ids.shape[1]
            values = self.values(ids, mask, width) * valid
            reference = self.logprobs(self.reference, ids, mask, width)
            scores = torch.tensor([score(sample.response) for sample in rollout.samples])
            rewards = -self.settings["kl_coef"] * (rollout.logprobs - reference) * valid
            rewards[torch.arange(len(ids)), valid.sum(1) - 1] += scores
            advantages, last = torch.zeros_like(values), torch.zeros(len(ids))
            for t in reversed(range(width)):
                after = values[:, t + 1] if t + 1 < width else torch.zeros(len(ids))
                delta = rewards[:, t] + self.settings["gamma"] * after - values[:, t]
                last = advantages[:, t] = (delta + self.settings["gamma"] * self.settings["lam"] * last) * valid[:, t]
            returns = advantages + values
            chosen = advantages[valid]
            advantages = (advantages - chosen.mean()) / (chosen.std() + 1e-8)
        for _ in range(self.settings["epochs"]):
            for rows in torch.randperm(len(ids)).split(self.settings["minibatch_size"]):
                self.update(ids[rows], mask[rows], valid[rows], rollout.logprobs[rows], values[rows],
                            advantages[rows], returns[rows])  # fmt: skip
        self.policy.weights_changed()
        self.taken += 1
        return float(scores.mean())

    def update(
        self, ids: Tensor, mask: Tensor, valid: Tensor, old: Tensor, values: Tensor, advantages: Tensor, returns: Tensor
    ) -> None:
        """One update of the weights from a minibatch."""
        settings, width = self.settings, old.shape[1]
        ratio = (self.logprobs(self.model, ids, mask, width) - old).exp()
        clipped = ratio.clamp(1 - settings["clip"], 1 + settings["clip"])
        policy_loss = torch.maximum(-advantages * ratio, -advantages * clipped)[valid].mean()
        now = self.values(ids, mask, width)
        near = values + (now - values).clamp(-settings["value_clip"], settings["value_clip"])
        value_loss = torch.maximum((now - returns).square(), (near - returns).square())[valid].mean() / 2
        (policy_loss + settings["value_coef"] * value_loss).backward()
        nn.utils.clip_grad_norm_(self.parameters, settings["max_grad_norm"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
