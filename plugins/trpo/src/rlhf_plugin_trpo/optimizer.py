"""Trust region policy optimisation for language models, in one file.

Schulman et al. (2015), arXiv:1502.05477: the best policy by the surrogate, to first order, among those within `max_kl`
of the one that sampled. With g the gradient of the surrogate E[ratio x advantage] over the trainable weights and F the
Fisher matrix, which is the Hessian of the mean KL(old || new) at the old weights,

    step = sqrt(2 max_kl / x'(F + damping I) x) x,   where (F + damping I) x = g is solved by conjugate gradient,

then shortened until the true KL is within `max_kl` and the surrogate improves; if it never does, the old weights come
back bit for bit. F is never formed: the conjugate gradient needs products F v alone, which take two backward passes.

Departures from the paper. Advantages come from GAE (Schulman et al., 2016, arXiv:1506.02438) and are whitened, and a
critic is fitted to the returns by AdamW; the paper sums rewards. The damping, which the paper does not mention and all
code has, also enters the length of the step, as usual: where F is small, steps are shorter than `max_kl` allows. The
surrogate, F and the KL are means over the tokens of responses, as losses are throughout. The KL is over the whole
vocabulary; F may be estimated from some of the samples (`fisher_tokens`), the line search looks at all of them.

A critic on the policy's own trunk is fitted by its head alone: its gradient on the trunk would move the policy out of
the trust region. Several processes each take their share of the samples and sum: for g, every F v and every trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rlhf_core.errors import ConfigError
from rlhf_core.functional import explained_variance, gae, masked_mean, masked_whiten
from rlhf_core.interfaces import Needs, Policy, PolicyOptimizer, State, StepStats, TrainingData, Traits
from rlhf_core.randomness import derive_seed
from rlhf_core.records import Rollout
from rlhf_core.rl import Batch, refusal, rollout_sizes, within_update
from rlhf_core.training import GradientSteps, by_tokens, share
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .config import TRPOConfig


class TRPO(PolicyOptimizer[TRPOConfig]):
    """Natural gradient steps inside a trust region, and a critic fitted beside."""

    @property
    def traits(self) -> Traits:
        # the baseline is a critic: equal rewards move the policy until it has learnt them; solving for the direction
        # multiplies rounding errors
        return Traits("on-policy", rounding=1e-3)

    @property
    def lam(self) -> float:
        """Lambda of GAE. A critic that is one layer on the policy's trunk is weak: lambda 1 does not lean on it."""
        if self.config.lam is not None:
            return self.config.lam
        return 1.0 if self.policy.critic == "shared" else 0.95

    def bind(self, policy: Policy[Any], total_steps: int) -> None:
        """Take charge of `policy`.

        Raises:
            ConfigError: it has no critic, or nothing else to train.
        """
        super().bind(policy, total_steps)
        policy.prepare(self.config.needs)
        critic, name = policy.value_parameters, f"policy {policy.context.id!r}"
        if policy.critic == "none" or not critic:
            raise ConfigError(self.context.where, f"{name} has no critic", "values",
                              "set critic: separate in its config, or take an optimizer that needs none")  # fmt: skip
        apart = {id(p) for p in critic}
        self.parameters = [p for p in policy.module.parameters() if p.requires_grad and id(p) not in apart]
        if not self.parameters:
            raise ConfigError(self.context.where, f"{name} has nothing to train but its critic",
                              "weights that require gradients", "unfreeze some, or give it lora adapters")  # fmt: skip
        accelerator = self.context.accelerator
        if accelerator is not None and accelerator.mixed_precision != "no":
            self.context.warn(f"{self.context.where}: in bf16, products with the Fisher matrix are mostly rounding; "
                              "set precision: fp32")  # fmt: skip
        self.gradient = GradientSteps(critic, self.config, total_steps * self.config.value_updates, self.context)

    def step(self, data: TrainingData) -> StepStats:
        config = self.config
        rollout = data.rollout(
            config.prompts_per_step, samples_per_prompt=config.samples_per_prompt, needs=config.needs
        )
        with self.context.clock("update"):
            return self._learn(rollout, data.step)

    def _learn(self, rollout: Rollout, step: int) -> StepStats:
        """The step that the samples of `rollout` give."""
        config = self.config
        prepared, stats = self._prepare(rollout)
        rows = [row for row, tokens in enumerate(rollout.mask.sum(1).tolist()) if tokens]
        if not rows:
            return {"policy/accepted": 0.0}  # all samples abstained
        parts = self._parts(rollout, prepared, rows)
        sample = parts if config.fisher_tokens is None else self._parts(rollout, prepared, self._some(rollout, step))

        widest = max((part.rollout for part in parts), key=lambda cut: cut.mask.numel(), default=rollout)
        with within_update(self.context, self.policy, config.micro_batch_tokens, widest, self.gradient):
            return {**stats, **self._improve(rollout, prepared, parts, sample, step)}

    def _improve(
        self,
        rollout: Rollout,
        prepared: Mapping[str, Tensor],
        parts: Sequence[Batch],
        sample: Sequence[Batch],
        step: int,
    ) -> StepStats:
        """The step itself, and the critic's; `sample` is what the Fisher matrix is estimated from."""
        config = self.config
        gain, slope = self._surrogate(parts)
        if not bool(slope.isfinite().all()):
            raise refusal(self.context, self.policy, rollout, prepared, f"gradient norm {float(slope.norm())}", step)
        direction, residual = conjugate_gradient(self._fisher(sample), slope, config.cg_iterations)
        if not bool(direction.isfinite().all()):
            raise refusal(self.context, self.policy, rollout, prepared, "natural gradient", step)
        curvature = float(direction @ (slope - residual))  # x'(F + damping I) x, without another product
        largest = math.sqrt(2 * self.now(config.max_kl) / curvature) * direction if curvature > 0 else 0 * direction
        stats = {"policy/grad_norm": float(slope.norm()), **self._line_search(parts, largest, gain)}
        stats["policy/cg_residual"] = float(residual.norm() / slope.norm().clamp(min=1e-30))
        return {**stats, **self._fit_critic(parts)}

    # --- the samples ---

    def _prepare(self, rollout: Rollout) -> tuple[dict[str, Tensor], StepStats]:
        """Advantages and returns, (B, T) each, and how well the critic foresaw the returns."""
        config, rewards, values, bootstrap = self.config, rollout.rewards, rollout.values, None
        if config.bootstrap_truncated and rollout.bootstrap is not None:
            bootstrap = torch.where(rollout.truncated, rollout.bootstrap, 0.0)  # (B,) beyond a cut, not beyond an end
        if rewards is None or values is None or (bootstrap is None and config.bootstrap_truncated):
            raise ConfigError(self.context.where, "a rollout without rewards, values, or the value beyond a cut",
                              "all that `config.needs` asks for", "pass it to the data that rolls out")  # fmt: skip
        advantages, returns = gae(rewards, values, rollout.mask, gamma=config.gamma, lam=self.lam, bootstrap=bootstrap)
        stats = {"value/explained_variance": explained_variance(values, returns, rollout.mask),
                 "value/returns": float(masked_mean(returns, rollout.mask))}  # fmt: skip
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, rollout.mask)
        return {"advantages": advantages, "returns": returns}, stats

    def _some(self, rollout: Rollout, step: int) -> list[int]:
        """Rows with about `fisher_tokens` tokens, by lot; the lot is the sample's, whatever its place in the batch."""
        ids, tokens = rollout.sample_ids.tolist(), rollout.mask.sum(1).tolist()
        chosen: list[int] = []
        for row in sorted(range(len(ids)), key=lambda row: derive_seed(self.context.seed, "fisher", step, ids[row])):
            if sum(tokens[r] for r in chosen) >= (self.config.fisher_tokens or 0):
                break
            if tokens[row]:
                chosen.append(row)
        return chosen

    def _parts(self, rollout: Rollout, prepared: Mapping[str, Tensor], rows: Sequence[int]) -> list[Batch]:
        """This process's share of `rows`, cut into micro-batches whose sums over all tokens of `rows` add up."""
        count, samples = float(rollout.mask[list(rows)].sum()), float(len(rows))
        mine = [rows[i] for i in share(len(rows), self.context.accelerator)]
        parts = []
        for part in by_tokens(rollout_sizes(rollout), self.config.micro_batch_tokens, mine):
            cut = rollout.select(part)
            entries = {name: entry[part][:, : cut.mask.shape[1]] for name, entry in prepared.items()}
            parts.append(Batch(cut, entries, count, samples))
        return parts

    # --- the policy ---

    def _gain(self, batch: Batch, logprobs: Tensor) -> Tensor:
        """This part's share of the surrogate: the mean over tokens of ratio x advantage."""
        ratio = torch.where(batch.mask, logprobs - batch.logprobs, 0.0).exp()  # (B, T)
        return batch.token_mean(ratio * torch.where(batch.mask, batch.advantages, 0.0))

    def _surrogate(self, parts: Sequence[Batch]) -> tuple[float, Tensor]:
        """The surrogate at the old weights, and its gradient, one flat vector."""
        gain, slope = self._zeros(1), self._zeros()
        for batch in parts:
            share_ = self._gain(batch, self.policy.forward(batch.rollout, Needs()).logprobs)
            slope += _flat(torch.autograd.grad(share_, self.parameters, materialize_grads=True))
            gain += share_.detach()
        return float(self._sum(gain)), self._sum(slope)

    def _distribution(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the tokens (B, T), and of the whole vocabulary (B, T, V), 0 outside the mask."""
        now = self.policy.forward(batch.rollout, Needs(distribution=True))
        if now.distribution is None:
            raise ConfigError(self.context.where, f"policy {self.policy.context.id!r} gives no distribution",
                              "log-probabilities of the whole vocabulary", "use causal-lm")  # fmt: skip
        return now.logprobs, torch.where(batch.mask[..., None], now.distribution, 0.0)

    def _fisher(self, parts: Sequence[Batch]) -> Callable[[Tensor], Tensor]:
        """The map v -> (F + damping I) v, with F = J' diag(p) J, averaged over tokens.

        J is the Jacobian of the log-probabilities of the whole vocabulary. J v comes from going backward twice: J'u is
        linear in u, and its derivative along v is J v. A single part keeps its graphs over all products; several make
        theirs anew in each, so that memory is that of one.
        """

        def graphs(batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
            with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
                now = self._distribution(batch)[1]  # (B, T, V)
            u = torch.zeros_like(now, requires_grad=True)
            return now, u, torch.autograd.grad(now, self.parameters, u, create_graph=True, materialize_grads=True)

        kept = graphs(parts[0]) if len(parts) == 1 else None

        def product(v: Tensor) -> Tensor:
            total = self._zeros()
            for batch in parts:
                now, u, back = kept or graphs(batch)
                along = torch.stack([(b * piece).sum() for b, piece in zip(back, self._pieces(v), strict=True)]).sum()
                (ahead,) = torch.autograd.grad(along, u, retain_graph=True)  # J v
                weighted = now.detach().exp() * ahead / batch.token_count  # 0 outside the mask, for there J is
                total += _flat(
                    torch.autograd.grad(
                        now, self.parameters, weighted, retain_graph=kept is not None, materialize_grads=True
                    )
                )
            return self._sum(total) + self.config.damping * v

        return product

    def _line_search(self, parts: Sequence[Batch], largest: Tensor, gain: float) -> StepStats:
        """Take the first of ever shorter steps that improves the surrogate within the trust region, or none at all."""
        start = [p.detach().clone() for p in self.parameters]
        most, tries = self.now(self.config.max_kl), self.config.backtracks if bool(largest.any()) else 0
        for tried in range(tries):
            step = largest * self.config.backtrack**tried
            try:
                found, kl = self._measure(parts, start, step)
            except Exception:  # out of memory, say: no weights are kept that were not found good
                self._place(start)
                raise
            if kl <= most and found > gain:  # false where either is not a number
                return {"policy/accepted": 1.0, "policy/backtracks": float(tried), "policy/kl": kl,
                        "policy/improvement": found - gain, "policy/step_norm": float(step.norm())}  # fmt: skip
        self._place(start)
        return {"policy/accepted": 0.0, "policy/backtracks": float(tries), "policy/kl": 0.0,
                "policy/improvement": 0.0, "policy/step_norm": 0.0}  # fmt: skip

    @torch.no_grad()
    def _measure(self, parts: Sequence[Batch], start: Sequence[Tensor], step: Tensor) -> tuple[float, float]:
        """Surrogate and mean token KL(old || new) after `step`, which the weights are left at.

        The old distribution is computed along with the new one: over a large vocabulary it could not be kept.
        """
        sums = self._zeros(2)
        for batch in parts:
            self._place(start)
            old = self._distribution(batch)[1]
            self._place(start, step)
            logprobs, new = self._distribution(batch)
            kl = batch.token_mean((old.exp() * (old - new)).sum(-1))
            sums += torch.stack([self._gain(batch, logprobs), kl]).to(sums)
        self._place(start, step)  # also where this process had no part
        found, kl_sum = self._sum(sums).tolist()
        return found, kl_sum

    @torch.no_grad()
    def _place(self, start: Sequence[Tensor], step: Tensor | None = None) -> None:
        """Weights = start + step, rounded once; without a step the start itself, bit for bit."""
        pieces = [None] * len(start) if step is None else self._pieces(step)
        for parameter, origin, piece in zip(self.parameters, start, pieces, strict=True):
            parameter.copy_(origin if piece is None else origin + piece)
        self.policy.weights_changed()

    # --- the critic ---

    def _fit_critic(self, parts: Sequence[Batch]) -> StepStats:
        """`value_updates` steps of AdamW on half the mean squared error to the returns; means over the updates."""
        history = []
        with _held(self.parameters):
            for _ in range(self.config.value_updates):
                error = self._zeros(1)
                for batch in parts:
                    values = self.policy.forward(batch.rollout, Needs(values=True)).values
                    loss = 0.5 * batch.token_mean((values - batch.returns).square())
                    loss.backward()  # type: ignore[no-untyped-call]
                    error += loss.detach()
                history.append({"loss": float(self._sum(error)), **self.gradient.step()})
        return {f"value/{name}": sum(stats[name] for stats in history) / len(history) for name in history[0]}

    # --- flat vectors ---

    def _zeros(self, size: int | None = None) -> Tensor:
        """A flat vector in float32 or wider, by default one number per trainable weight."""
        dtype = torch.promote_types(self.parameters[0].dtype, torch.float32)
        numbers = sum(p.numel() for p in self.parameters) if size is None else size
        return torch.zeros(numbers, dtype=dtype, device=self.parameters[0].device)

    def _pieces(self, vector: Tensor) -> list[Tensor]:
        """The parts of a flat vector, in the shapes of the parameters."""
        pieces = torch.split(vector, [p.numel() for p in self.parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    def _sum(self, vector: Tensor) -> Tensor:
        """The sum over processes."""
        accelerator = self.context.accelerator
        if accelerator is None or accelerator.num_processes == 1:
            return vector
        total: Tensor = accelerator.reduce(vector, reduction="sum")
        return total

    def state_dict(self) -> State:
        return {"gradient": self.gradient.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.gradient.load_state_dict(state["gradient"])


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Solve A x = b for a symmetric positive definite A that is only known by its products.

    Args:
        product: v (N,) -> A v (N,). b: (N,).
        iterations: at most; it ends earlier once the residual is rounding, or a direction has no curvature.
    Returns:
        x and the residual b - A x, (N,) each.
    Source:
        Hestenes & Stiefel 1952, section 3; Schulman et al. 2015 (arXiv:1502.05477), appendix C.
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    square, enough = residual @ residual, (torch.finfo(b.dtype).eps ** 0.75 * b.norm()) ** 2
    for _ in range(iterations):
        if not bool(square > enough):
            break
        along = product(direction)
        curvature = direction @ along
        if curvature == 0:  # F is singular without damping
            break
        x = x + square / curvature * direction
        residual = residual - square / curvature * along
        before, square = square, residual @ residual
        direction = residual + square / before * direction
    return x, residual


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of all numbers, in float32 or wider."""
    return torch.cat([t.detach().flatten().to(torch.promote_types(t.dtype, torch.float32)) for t in tensors])


@contextmanager
def _held(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, no gradient reaches `parameters`, and no graph is kept for them."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
