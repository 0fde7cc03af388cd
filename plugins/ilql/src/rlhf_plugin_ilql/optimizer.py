"""Implicit language Q-learning, in one file.

Snell et al. (2022), arXiv:2206.11871, which brings implicit Q-learning (Kostrikov et al., 2021, arXiv:2110.06169) to
text. A state is the prompt and the tokens so far, an action is a token. From responses that somebody has judged, and
nothing else, two heads learn what each token is worth, Q(s, a), and the critic what a state is worth, V(s):

    L = sum over both heads of (r + gamma V(s') - Q(s, a))^2                  V(s') a constant, 0 after the end
      + |tau - 1(d < 0)| d^2,  d = min over slow heads of Q(s, a) - V(s)      V: an upper expectile of Q
      + cql_coef x sum over both heads of (logsumexp Q(s, .) - Q(s, a))       holds down what was never taken
      - imitation_coef x log pi(a | s)                                        pi: the behaviour, good and bad

The expectile is over the tokens that the data took, so that "the best continuation" is never looked for among tokens
that nobody has tried.

What acts in the end is pi steered by the learnt advantage: softmax(log pi + beta (min Q - V)). V is the same for all
tokens of a state, so that this is softmax(logits + beta min Q), which is what `policy.steering` does.

Departures: one model carries language model, Q and V (as in trlx; the paper has two); heads are linear; decoding reads
the heads, not their slow copies; the reward is that of the whole response, on its last token.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from rlhf_core.errors import ConfigError, NumericalError
from rlhf_core.interfaces import Needs, Policy, PolicyOptimizer, State, StepStats, TrainingData, Traits
from rlhf_core.randomness import derive_seed, permutation
from rlhf_core.records import Rollout
from rlhf_core.rl import joined, refusal, rollout_sizes, within_update
from rlhf_core.training import GradientSteps, as_floats, by_tokens, share, summed
from torch import Tensor, nn

from .config import ILQLConfig
from .feedback import Judged, judged
from .losses import cql_errors, expectile_errors, td_targets

Example: TypeAlias = "tuple[Judged, Rollout]"
"""A response that was judged, and it alone as a rollout of one row."""


class ILQL(PolicyOptimizer[ILQLConfig]):
    """Action values from judged responses, and a policy that they steer."""

    @property
    def traits(self) -> Traits:
        return Traits(learns_from="offline", gradient=True, baseline=False)

    def bind(self, policy: Policy[Any], total_steps: int) -> None:
        super().bind(policy, total_steps)
        policy.prepare(self.config.needs)
        if policy.critic == "none" or len(policy.heads) < self.config.needs.heads:
            raise ConfigError(
                self.context.where,
                f"policy {policy.context.id!r} has {len(policy.heads)} action-value heads and critic {policy.critic!r}",
                "a policy with two heads and a critic",
                "use causal-lm",
            )
        self._tell_apart(policy)
        parameters = [p for p in policy.module.parameters() if p.requires_grad]
        self.gradient = GradientSteps(parameters, self.config, total_steps, self.context)
        self.targets = nn.ModuleList(copy.deepcopy(head) for head in policy.heads).requires_grad_(False)
        self.used = 0
        self._examples: list[Example] = []

    def _tell_apart(self, policy: Policy[Any]) -> None:
        """Give new heads, which are all zeros, small weights of their own: equal heads would stay equal for ever."""
        for number, head in enumerate(policy.heads):
            if any(bool(p.any()) for p in head.parameters()):
                continue  # it has learnt in an earlier stage
            noise = torch.Generator().manual_seed(derive_seed(self.context.seed, "heads", number))
            with torch.no_grad():
                for p in head.parameters():
                    if p.dim() > 1:
                        draw = torch.randn(p.shape, generator=noise, dtype=torch.float64)
                        p.copy_(0.01 * self.config.reward_scale / p.shape[-1] ** 0.5 * draw)
        policy.weights_changed()

    # --- a step ---

    def step(self, data: TrainingData) -> StepStats:
        if not self._examples:
            found = judged(data.feedback(), self.context)
            self._examples = list(zip(found, self._encoded(found), strict=True))
        batch = self._next()
        self.policy.steering = 0.0  # the loss is about the model itself
        with self.context.clock("update"):
            try:
                stats = self._update(batch, data.step)
            finally:
                self.policy.steering = self.config.beta
            self._follow()
        return {**stats, "feedback/reward": sum(j.reward for j, _ in batch) / len(batch)}

    def _update(self, batch: Sequence[Example], step: int) -> StepStats:
        """One update of the weights."""
        config, device = self.config, self.context.device
        dtype = torch.promote_types(self.context.torch_dtype, torch.float32)
        rollout = joined([row for _, row in batch]).to(device)
        paid = torch.tensor([j.reward for j, _ in batch], device=device, dtype=dtype)  # (B,)
        rewards = _on_last_token(config.reward_scale * paid, rollout.mask)  # (B, T)
        weights = torch.tensor([j.weight for j, _ in batch], device=device, dtype=dtype)[:, None]
        weights = weights * rollout.mask  # (B, T)
        weights = weights / weights.sum()  # sums of parts add up to the mean over tokens of the whole step
        sums: dict[str, float] = {}
        mine = list(share(len(batch), self.context.accelerator))
        for rows in by_tokens(rollout_sizes(rollout), config.micro_batch_tokens, mine):
            part = rollout.select(rows)
            width = part.mask.shape[1]
            with within_update(
                self.context, self.policy, config.micro_batch_tokens, part, self.gradient, sampled=False
            ):
                loss, stats = self._loss(part, rewards[rows, :width], weights[rows, :width])
                loss.backward()  # type: ignore[no-untyped-call]
                for name, value in as_floats(stats).items():
                    sums[name] = sums.get(name, 0.0) + value
        sums = summed(sums, self.context.accelerator)
        try:
            return {**sums, **{f"policy/{name}": value for name, value in self.gradient.step().items()}}
        except NumericalError as error:
            prepared = {"rewards": rewards, "weights": weights}
            raise refusal(self.context, self.policy, rollout, prepared, error.got, step) from error

    def _loss(self, part: Rollout, rewards: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The share of `part` in the loss of the step, and statistics that are shares in the same way.

        Args:
            part: B rows. rewards, weights: (B, T), 0 outside the mask; weights sum to 1 over the whole step.
        """
        config, policy = self.config, self.policy
        new = policy.forward(part, Needs(values=True, hidden=True))
        assert new.hidden is not None and new.values is not None  # asked for
        ids, mask = part.response_ids, part.mask
        v = torch.where(mask, new.values, 0.0)  # (B, T); before they are squared, since 0 * nan is nan in gradients
        qs = [_action_values(head, new.hidden) for head in policy.heads]  # each (B, T, V)
        taken = torch.stack([_at(q, ids) for q in qs])  # (heads, B, T)
        with torch.no_grad():
            slow = torch.stack([_at(_action_values(head, new.hidden), ids) for head in self.targets])
            lowest = slow.amin(0)  # (B, T) the lower of two estimates, against optimism
            goals = td_targets(rewards.to(v.dtype), v, mask, gamma=config.gamma)

        def mean(x: Tensor) -> Tensor:
            return (torch.where(mask, x, 0.0) * weights).sum()

        td = mean((taken - goals).square().sum(0))
        expectile = mean(expectile_errors(lowest - v, tau=config.tau))
        conservative = mean(torch.stack([cql_errors(q, ids) for q in qs]).sum(0))
        imitation = mean(-new.logprobs)
        loss = td + expectile + config.cql_coef * conservative + config.imitation_coef * imitation
        stats = {
            "policy/loss": loss, "policy/imitation": imitation, "value/td": td, "value/expectile": expectile,
            "value/conservative": conservative, "value/q": mean(taken.amin(0)), "value/v": mean(v),
        }  # fmt: skip
        return loss, {name: share.detach() for name, share in stats.items()}

    @torch.no_grad()
    def _follow(self) -> None:
        """Polyak averaging: target <- target + rate (head - target)."""
        for target, head in zip(self.targets, self.policy.heads, strict=True):
            for slow, fast in zip(target.parameters(), head.parameters(), strict=True):
                slow.lerp_(fast, self.config.target_rate)

    # --- data ---

    def _next(self) -> list[Example]:
        """The next examples in an order derived from the seed, every one once before any comes again."""
        size = len(self._examples)
        chosen = []
        for place in range(self.used, self.used + self.config.batch_size):
            order = permutation(derive_seed(self.context.seed, "examples", place // size), size)
            chosen.append(self._examples[order[place % size]])
        self.used += len(chosen)
        return chosen

    def _encoded(self, judged: Sequence[Judged]) -> list[Rollout]:
        """A rollout of one row for each, kept in main memory; encoded in chunks of similar length."""
        sizes = [len(f"{j.sample.prompt.render()}{j.sample.response}".encode()) for j in judged]  # tokens have bytes
        rows: dict[int, Rollout] = {}
        for chunk in by_tokens(sizes, self.config.micro_batch_tokens):
            rollout = self.policy.encode([judged[i].sample for i in chunk]).to("cpu")
            rows.update((i, rollout.select([place])) for place, i in enumerate(chunk))
        return [rows[i] for i in range(len(judged))]

    # --- state ---

    def state_dict(self) -> State:
        return {"gradient": self.gradient.state_dict(), "targets": dict(self.targets.state_dict()), "used": self.used}

    def load_state_dict(self, state: State) -> None:
        self.gradient.load_state_dict(state["gradient"])
        self.targets.load_state_dict(state["targets"])
        self.used = int(state["used"])


def _action_values(head: nn.Module, hidden: Tensor) -> Tensor:
    """Q(s, .) (B, T, V) of the states `hidden` (B, T, D), in the precision of the head."""
    values: Tensor = head(hidden.to(next(head.parameters()).dtype))
    return values


def _at(q: Tensor, ids: Tensor) -> Tensor:
    """Q(s, a) (B, T) of the tokens `ids` (B, T)."""
    return q.gather(-1, ids[..., None])[..., 0]


def _on_last_token(rewards: Tensor, mask: Tensor) -> Tensor:
    """`rewards` (B,) as (B, T): on the last token of the mask, 0 elsewhere."""
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, -1).amax(1, keepdim=True)  # (B, 1)
    return torch.where(places[None] == last, rewards[:, None], 0.0)
