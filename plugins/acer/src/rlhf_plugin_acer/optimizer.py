"""Actor-critic with experience replay for language models, in one file.

Wang et al. (2017), arXiv:1611.01224, for the token-level problem: a state is the prompt and the tokens so far, an
action is a token. Each step takes one update from fresh samples and then `replay_ratio` updates from a buffer of past
ones. Their behaviour mu is known where it was kept: at the token taken and at its K likeliest tokens.

    Q' = r + gamma (min(1, rho') (Q'' - Q) + V)                              Retrace: what Q(s, a) learns
    g  = min(c, rho) (Q' - V) grad log pi(a)                                 truncated importance weight, rho = pi / mu
       + sum_b max(0, 1 - c / rho_b) pi_b (Q(b) - V) grad log pi(b)          bias correction over what was kept
    z* = g - max(0, (k . g - delta) / ||k||^2) k                             k = grad KL(average policy || pi)

Gradients g and k are those by the logits. There k is ``pi - average`` over the whole vocabulary, and z* is the gradient
of the objective minus a constant times that KL, so that one backward through the policy is enough.

Departures from the paper: the correction runs over K + 1 tokens, so it is exact only for K = the vocabulary (V is a sum
over the whole vocabulary always: a product of pi with the head's weights); k and g are by logits, not probabilities;
the number of replay updates is fixed, not Poisson; losses are means over tokens; rewards stay as they were shaped when
the sample was drawn, a KL penalty in them included; one AdamW over policy and action values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from rlhf_core.errors import ConfigError, NumericalError
from rlhf_core.functional import kl_estimate
from rlhf_core.interfaces import Needs, Outputs, Policy, PolicyOptimizer, State, StepStats, TrainingData, Traits
from rlhf_core.randomness import derive_seed
from rlhf_core.records import Rollout
from rlhf_core.rl import refusal, rollout_sizes, within_update
from rlhf_core.training import GradientSteps, as_floats, by_tokens, share, summed
from torch import Tensor, nn

from .config import ACERConfig
from .losses import correction_weights, retrace_targets, truncated_weights, trust_region_multiplier
from .replay import Replay


class ACER(PolicyOptimizer[ACERConfig]):
    """Truncated importance weights with bias correction over replayed samples, within a trust region."""

    @property
    def traits(self) -> Traits:
        return Traits(learns_from="off-policy", gradient=True, baseline=False)

    def bind(self, policy: Policy[Any], total_steps: int) -> None:
        super().bind(policy, total_steps)
        config = self.config
        policy.prepare(config.needs)
        self.head = self._head(policy)
        parameters = [p for p in policy.module.parameters() if p.requires_grad]
        self.gradient = GradientSteps(parameters, config, total_steps * (1 + config.replay_ratio), self.context)
        critic = {id(p) for p in policy.value_parameters}
        self.actor = {
            name: p for name, p in policy.module.named_parameters() if p.requires_grad and id(p) not in critic
        }
        self.average = {name: p.detach().clone() for name, p in self.actor.items()}
        self.replay = Replay(config.capacity, self.context.where)

    def _head(self, policy: Policy[Any]) -> nn.Linear:
        head = next(iter(policy.heads), None)
        if not isinstance(head, nn.Linear):
            raise ConfigError(self.context.where, f"policy {policy.context.id!r} makes no action-value head",
                              "a linear head over the vocabulary for `Needs(heads=1)`",
                              "use causal-lm, or an optimizer without action values")  # fmt: skip
        if self.config.top_k > head.out_features:
            raise ConfigError(
                f"{self.context.where} top_k", f"{self.config.top_k}",
                f"at most the {head.out_features} tokens of policy {policy.context.id!r}",
                f"set top_k: {head.out_features} to correct over the whole vocabulary",
            )  # fmt: skip
        return head

    def step(self, data: TrainingData) -> StepStats:
        config = self.config
        rollout = data.rollout(
            config.prompts_per_step, samples_per_prompt=config.samples_per_prompt, needs=config.needs
        )
        with self.context.clock("update"):
            return self._learn(rollout, data.step)

    def _learn(self, rollout: Rollout, step: int) -> StepStats:
        """The update from fresh samples, and those from replayed ones."""
        config, device, history = self.config, rollout.mask.device, []
        fresh = self.replay.add(rollout)
        if fresh is not None:
            history.append(self._update(fresh.to(device), step))
        for turn in range(config.replay_ratio if len(self.replay) else 0):
            seed = derive_seed(self.context.seed, "replay", step, turn)
            drawn = self.replay.draw(config.replay_size or config.samples_per_step, seed)
            history.append(self._update(drawn.to(device), step))
        return self._summary(history)

    # --- an update ---

    def _update(self, batch: Rollout, step: int) -> dict[str, float]:
        """One update of the weights, and of their average, from all of `batch`."""
        tokens, sizes = float(batch.mask.sum()), rollout_sizes(batch)
        mine = share(len(batch), self.context.accelerator)
        sums: dict[str, float] = {}
        for rows in by_tokens(sizes, self.config.micro_batch_tokens, mine):
            part = batch.select(rows)
            with within_update(self.context, self.policy, self.config.micro_batch_tokens, part, self.gradient):
                loss, stats = self.loss(part, tokens)
                if not bool(loss.isfinite()):
                    self.gradient.clear()
                    raise refusal(self.context, self.policy, part, {}, f"loss {float(loss.detach())}", step)
                loss.backward()  # type: ignore[no-untyped-call]
                for name, value in as_floats({"policy/loss": loss.detach(), **stats}).items():
                    sums[name] = sums.get(name, 0.0) + value
        sums = summed(sums, self.context.accelerator)
        try:
            taken = self.gradient.step()
        except NumericalError as error:
            raise refusal(self.context, self.policy, batch, {}, error.got, step) from error
        with torch.no_grad():
            for name, parameter in self.actor.items():
                self.average[name].lerp_(parameter, 1 - self.config.average_decay)
        return {**sums, **{f"policy/{name}": value for name, value in taken.items()}}

    def loss(self, part: Rollout, tokens: float) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a part of an update with `tokens` valid tokens in all: a sum of shares, like its statistics."""
        config, c, mask = self.config, self.config.truncation, part.mask
        assert part.rewards is not None and part.top_ids is not None and part.top_logprobs is not None
        average = None if config.trust_region is None else self._average_policy(part)  # (B, T, V)
        entropy_coef = self.now(config.entropy_coef)
        new = self._evaluated(part, entropy=entropy_coef > 0)
        distribution, hidden = new.distribution, new.hidden
        assert distribution is not None and hidden is not None
        q_taken = _action_values(self.head, hidden, part.response_ids)  # (B, T)

        # everything up to the loss is a constant for the gradient
        with torch.no_grad():
            pi = distribution.exp()
            values = _state_values(self.head, hidden, pi)
            ids = torch.cat([part.response_ids[..., None], part.top_ids], -1)  # (B, T, C), the token taken first
            behaviour = torch.cat([part.logprobs[..., None], part.top_logprobs], -1)
            counted = torch.cat([mask[..., None], mask[..., None] & (part.top_ids != part.response_ids[..., None])], -1)
            probs = pi.gather(-1, ids)
            ratio = (distribution.gather(-1, ids) - behaviour).exp()
            others = (_action_values(self.head, hidden, column) for column in part.top_ids.unbind(-1))
            q = torch.stack([q_taken, *others], -1)
            targets = retrace_targets(
                part.rewards, q[..., 0], values, ratio[..., 0], mask, gamma=config.gamma, bootstrap=self._beyond(part)
            )
            weights = correction_weights(probs, ratio, q - values[..., None], counted, truncation=c)  # (B, T, C)
            correction = weights.abs().sum(-1)
            weights[..., 0] += truncated_weights(ratio[..., 0], targets - values, mask, truncation=c)

        # of grad log pi: so the gradient of this by the logits is g
        objective = (weights * distribution.gather(-1, ids)).sum(-1)  # (B, T)
        stats: dict[str, Tensor] = {}
        if average is not None and config.trust_region is not None:
            divergence = (average.exp() * (average - distribution)).sum(-1)  # (B, T), its gradient is k
            with torch.no_grad():
                k = pi - average.exp()
                # g is sum_a w_a (1_a - pi), so k . g takes no more than its inner products with 1_a and pi
                k_dot_g = (weights * (k.gather(-1, ids) - (k * pi).sum(-1, keepdim=True))).sum(-1)
                multiplier = trust_region_multiplier(k_dot_g, k.square().sum(-1), mask, delta=config.trust_region)
            objective = objective - multiplier * divergence
            stats = {"trust/kl": divergence.detach(), "trust/active": (multiplier > 0).float()}
        q_loss = (targets - q_taken).square() / 2
        loss = -objective + config.q_coef * q_loss
        if new.entropy is not None:
            loss = loss - entropy_coef * new.entropy
            stats["policy/entropy_exact"] = new.entropy.detach()
        stats |= {
            "q/loss": q_loss.detach(), "q/value": values, "q/target": targets,
            "policy/ratio": ratio[..., 0], "policy/truncated": (ratio[..., 0] > c).float(),
            "policy/correction": correction, "policy/covered": (probs * counted).sum(-1),
            "policy/approx_kl": kl_estimate(part.logprobs, new.logprobs.detach(), kind="k3"),
        }  # fmt: skip

        def mean(x: Tensor) -> Tensor:
            return torch.where(mask, x, 0.0).sum() / tokens

        return mean(loss), {name: mean(x) for name, x in stats.items()}

    def _evaluated(self, part: Rollout, *, entropy: bool) -> Outputs:
        """Today's policy on `part`, with gradient."""
        return self.policy.forward(part, Needs(heads=1, hidden=True, distribution=True, entropy=entropy))

    @torch.no_grad()
    def _beyond(self, part: Rollout) -> Tensor | None:
        """(B,) V after the last token of responses that were cut, 0 after others; None if it is not to count."""
        if not self.config.bootstrap_truncated or not bool(part.truncated.any()):
            return None
        longer = _one_longer(part)
        new = self._evaluated(longer, entropy=False)
        assert new.distribution is not None and new.hidden is not None
        values = _state_values(self.head, new.hidden, new.distribution.exp())  # (B, T + 1)
        return values.gather(1, part.lengths[:, None])[:, 0] * part.truncated

    @torch.no_grad()
    def _average_policy(self, part: Rollout) -> Tensor:
        """(B, T, V) log-probabilities of the average policy: its weights speak in the policy's stead."""
        self._swap()
        try:
            distribution = self.policy.forward(part, Needs(distribution=True)).distribution
        finally:
            self._swap()
        assert distribution is not None
        return distribution

    def _swap(self) -> None:
        for name, parameter in self.actor.items():
            parameter.data, self.average[name] = self.average[name], parameter.data
        self.policy.weights_changed()

    def _summary(self, history: Sequence[dict[str, float]]) -> StepStats:
        """Means over the updates of a step."""
        names = dict.fromkeys(name for stats in history for name in stats)
        means = {name: sum(stats[name] for stats in history) / len(history) for name in names}
        return {**means, "policy/updates": float(len(history)), "replay/samples": float(len(self.replay))}

    # --- state ---

    def state_dict(self) -> State:
        return {
            "gradient": self.gradient.state_dict(),
            "average": dict(self.average),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.gradient.load_state_dict(state["gradient"])
        with torch.no_grad():
            for name, weight in self.average.items():
                weight.copy_(state["average"][name])
        self.replay.load_state_dict(state["replay"])


def _action_values(head: nn.Linear, hidden: Tensor, ids: Tensor) -> Tensor:
    """Q(s, a) of one token per state: hidden (B, T, D), ids (B, T) -> (B, T). Q of the others is never formed."""
    return (hidden.to(head.weight.dtype) * head.weight[ids]).sum(-1) + head.bias[ids]


def _state_values(head: nn.Linear, hidden: Tensor, pi: Tensor) -> Tensor:
    """V(s) = sum over the vocabulary of pi(a) Q(s, a): hidden (B, T, D), pi (B, T, V) -> (B, T).

    Q is linear in the state, so V is the state times the mean weights under pi, (B, T, D): no Q over the vocabulary.
    """
    pi = pi.to(head.weight.dtype)
    return (hidden.to(head.weight.dtype) * (pi @ head.weight)).sum(-1) + pi @ head.bias


def _one_longer(rollout: Rollout) -> Rollout:
    """The rollout with one more token in each row, of no meaning: the state before it is the one after the response."""
    padded: dict[str, Tensor] = {}
    for field in fields(Rollout):
        tensor = getattr(rollout, field.name)
        if isinstance(tensor, Tensor) and tensor.dim() > 1 and not field.name.startswith("prompt_"):
            padded[field.name] = nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, 1))
    columns = torch.arange(padded["attention"].shape[1], device=rollout.mask.device)
    padded["attention"] = columns <= rollout.lengths[:, None]
    return rollout.replace(**padded)
