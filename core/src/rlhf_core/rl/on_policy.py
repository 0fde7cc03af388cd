"""The common case of an optimizer: sample, prepare once, then minibatches of a loss over fresh log-probabilities.

A subclass writes `prepare` and `loss`, and nothing else. The base samples, cuts minibatches by token budget,
accumulates, clips, stops early on KL and gathers statistics.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..errors import ConfigError, NumericalError
from ..functional import kl_estimate
from ..interfaces import Needs, Outputs, Policy, PolicyOptimizer, State, StepStats, TrainingData, Traits
from ..randomness import derive_seed, permutation
from ..records import Rollout
from ..training import GradientSteps, Rate, Size, as_floats, parts, summed
from .answers import asked_for, checked_entries, checked_loss
from .batching import rollout_sizes
from .config import OnPolicyConfig
from .failure import of_all, refusal
from .guards import within_adamw, within_update

C = TypeVar("C", bound=OnPolicyConfig)


class Batch:
    """Part of a rollout inside an update. Every entry of the rollout and of `prepare` is an attribute.

    What the config's `needs` do not ask for is None, in here as in `new`.

    Attributes:
        token_count, sample_count: of the whole optimizer step, over all micro-batches and processes. Sums divided by
            them add up to the true mean: that is what `token_mean` and `sample_mean` do.
    """

    def __init__(
        self,
        rollout: Rollout,
        prepared: Mapping[str, Tensor],
        token_count: float,
        sample_count: float,
    ) -> None:
        self.rollout = rollout
        self.prepared = prepared
        self.token_count, self.sample_count = token_count, sample_count

    def __getattr__(self, name: str) -> Any:
        prepared = self.__dict__.get("prepared", {})
        if name in prepared:
            return prepared[name]
        try:
            return getattr(self.__dict__["rollout"], name)
        except (AttributeError, KeyError):
            entries = ", ".join(sorted({*prepared, *self.__dict__["rollout"].tensors()}))
            raise AttributeError(
                f"a batch has no {name!r}; it has {entries}. Return it from prepare(), or ask for it "
                "with `needs` in the config"
            ) from None

    def token_mean(self, x: Tensor) -> Tensor:
        """This part's share of the mean of x (B, T) over tokens; parts add up to the mean of the whole step.

        Tokens outside the mask, and so all of abstained samples, neither count nor get a gradient.
        """
        return torch.where(self.rollout.mask, x, torch.zeros_like(x)).sum() / self.token_count

    def sample_mean(self, x: Tensor) -> Tensor:
        """This part's share of the mean of x (B,) over samples, abstained ones left out."""
        live = self.rollout.mask.any(1)
        return torch.where(live, x, torch.zeros_like(x)).sum() / self.sample_count


class OnPolicyOptimizer(PolicyOptimizer[C]):
    """Base of algorithms that learn from samples of today's policy."""

    baseline: ClassVar[bool] = False
    """Whether equal rewards for all samples leave the policy as it is; see `Traits`."""

    @abstractmethod
    def prepare(self, rollout: Rollout) -> Mapping[str, Tensor]:
        """What the loss needs beside the rollout, such as advantages (B, T): every entry becomes ``batch.<name>``.

        Called once per step with the whole batch of all processes, so that whitening needs no further thought.
        Entries have B rows; those with T columns are cut to the batch like the rollout itself.
        """

    @abstractmethod
    def loss(self, batch: Batch, new: Outputs) -> tuple[Tensor, Mapping[str, Any]]:
        """The loss of a part of the step, as a sum of shares (`batch.token_mean`, `batch.sample_mean`, or a function
        of `functional` with ``denominator=batch.token_count``), and statistics that are shares in the same way.

        `batch.logprobs` are the old log-probabilities, `new` is today's policy, with gradient.
        """

    @property
    def traits(self) -> Traits:
        """By default on-policy with `baseline`. To be overridden where that depends on options: a penalty on drifting
        from the reference in the loss, for one, moves the policy whatever the rewards."""
        return Traits("on-policy", baseline=self.baseline)

    def sample(self, data: TrainingData) -> Rollout:
        """The scored samples of a step; override to sample otherwise."""
        config = self.config
        return data.rollout(config.prompts_per_step, samples_per_prompt=config.samples_per_prompt, needs=config.needs)

    @property
    def update_needs(self) -> Needs:
        """What `new` is to hold in `loss`; by default the `needs` of the config, as in the rollout."""
        return self.config.needs

    def bind(self, policy: Policy[Any], total_steps: int) -> None:
        super().bind(policy, total_steps)
        config = self.config
        if (config.needs.values or config.needs.bootstrap) and policy.critic == "none":
            raise ConfigError(
                self.context.where,
                f"policy {policy.context.id!r} has no critic",
                "values",
                "set critic: shared or separate in its config, or take an optimizer that needs none, such as reinforce",
            )
        policy.prepare(config.needs)
        samples = config.prompts_per_step * config.samples_per_prompt
        updates = total_steps * config.epochs * -(-samples // config.minibatch_size)
        parameters = [p for p in policy.module.parameters() if p.requires_grad]
        self.gradient = GradientSteps(parameters, config, updates, self.context, self.rates)

    @property
    def rates(self) -> Sequence[Rate]:
        """Parameters with a learning rate of their own; none by default."""
        return ()

    def step(self, data: TrainingData) -> StepStats:
        rollout = self.sample(data)
        with self.context.clock("update"):
            return self._learn(rollout, data.step)

    def _learn(self, rollout: Rollout, step: int) -> StepStats:
        """Every epoch over the samples of a step."""
        config = self.config
        where = self.context.where
        with asked_for(where, "prepare", rollout):
            prepared = checked_entries(where, self.prepare(rollout), len(rollout))
        live, sizes = rollout.mask.any(1).tolist(), rollout_sizes(rollout)  # once: each costs a GPU a wait
        history: list[dict[str, float]] = []
        for epoch in range(config.epochs):
            order = permutation(derive_seed(self.context.seed, "minibatches", step, epoch), len(rollout))
            for start in range(0, len(order), config.minibatch_size):
                rows = [row for row in order[start : start + config.minibatch_size] if live[row]]
                if not rows:
                    continue
                stats, went_on = self._update(rollout, prepared, rows, sizes, step)
                history.append(stats)
                if not went_on:
                    return self._summary(history, stopped=True)
        return self._summary(history, stopped=False)

    def _update(
        self,
        rollout: Rollout,
        prepared: Mapping[str, Tensor],
        rows: Sequence[int],
        sizes: Sequence[Size],
        step: int,
    ) -> tuple[dict[str, float], bool]:
        """One update of the weights from the samples at `rows`; False if the policy had moved too far already."""
        tokens = float(rollout.mask[rows].sum())
        accelerator = self.context.accelerator
        alone = accelerator is None or accelerator.num_processes == 1
        failed: Batch | None = None
        sums: dict[str, float] = {}
        for part, weight in parts(sizes, self.config.micro_batch_tokens, rows, accelerator):
            batch = _part(rollout, prepared, part, tokens, float(len(rows)))
            cut = batch.rollout
            with self._within_memory(cut):
                new = self.policy.forward(cut, self.update_needs)
                with asked_for(self.context.where, "loss", cut, new):
                    loss, stats = checked_loss(self.context.where, self.loss(batch, new))
                if not bool(loss.isfinite()):
                    failed = failed or batch
                    if alone:  # of several none stops in the middle: the others would wait for it
                        raise self._refusal(rollout, batch, float(loss.detach()), step)
                (loss * weight).backward()  # type: ignore[no-untyped-call]
                if not weight:
                    continue
                moved = kl_estimate(cut.logprobs, new.logprobs.detach(), kind="k3")  # KL(old || new), samples from old
                shares = {"loss": loss.detach(), "approx_kl": batch.token_mean(moved), **stats}
                for name, value in as_floats(shares).items():
                    sums[name] = sums.get(name, 0.0) + value
        with self._within_memory("what its loss adds to the samples"):
            sums.update(self.backward_more(step))
        sums = summed(sums, accelerator)
        if failed or not math.isfinite(sums["loss"]):
            raise self._refusal(rollout, failed, sums["loss"], step)
        if self.config.target_kl is not None and sums["approx_kl"] > self.config.target_kl:
            self.gradient.clear()
            return sums, False
        try:
            with within_adamw(self.context, self.policy):
                return {**sums, **self.gradient.step(frozen=self.frozen(step))}, True
        except NumericalError as error:
            batch = _part(rollout, prepared, rows, tokens, float(len(rows)))
            raise self._refused(rollout, batch, f"{error.got}, loss {sums['loss']:.6g}", step) from error

    def _refusal(self, rollout: Rollout, failed: Batch | None, loss: float, step: int) -> NumericalError:
        """The error where the loss is not finite; it is `failed` that did it, or a batch of another process."""
        self.gradient.clear()
        mine = None
        if failed is None:
            self.policy.state_dict()  # which the other one writes: weights that are shared out it cannot get alone
        else:
            mine = self._refused(rollout, failed, f"loss {loss}", step)
        return of_all(mine, self.context)

    def _refused(self, rollout: Rollout, batch: Batch, what: str, step: int) -> NumericalError:
        """The error about `batch`, whose numbers may come from samples anywhere in `rollout`."""
        update: State = {"tokens": batch.token_count, "samples": batch.sample_count, "progress": list(self.progress)}
        if rollout.score is not None:
            scores = rollout.score[rollout.mask.any(1)]
            update["scores"] = [float(scores.min()), float(scores.max())]
        return refusal(self.context, self.policy, batch.rollout, batch.prepared, what, step, update)

    def _within_memory(self, part: Rollout | str) -> AbstractContextManager[None]:
        return within_update(self.context, self.policy, self.config.micro_batch_tokens, part, self.gradient)

    def loss_of(self, rollout: Rollout, prepared: Mapping[str, Tensor], row: int) -> float:
        """The loss of the sample at `row` alone, under today's policy; nothing is learnt from it."""
        return self.share_of_loss(rollout, prepared, row, float(rollout.mask[row].sum()), 1.0)

    def share_of_loss(
        self, rollout: Rollout, prepared: Mapping[str, Tensor], row: int, tokens: float, samples: float
    ) -> float:
        """What the sample at `row` adds to the loss of an update with so many tokens and samples in all, under today's
        policy; nothing is learnt from it."""
        batch = _part(rollout, prepared, [row], tokens, samples)
        with torch.no_grad():
            return float(self.loss(batch, self.policy.forward(batch.rollout, self.update_needs))[0])

    def backward_more(self, step: int) -> dict[str, float]:
        """Backward through a term of the loss that is not about the rollout, once per update; its statistics as shares.

        For a term on other data, such as demonstrations. None by default.
        """
        return {}

    def frozen(self, step: int) -> Sequence[torch.nn.Parameter]:
        """Parameters that do not move at this step; none by default."""
        return ()

    def _summary(self, history: Sequence[Mapping[str, float]], *, stopped: bool) -> StepStats:
        """Means over the updates of a step."""
        names = dict.fromkeys(name for stats in history for name in stats)
        means = {}
        for name in names:
            values = [stats[name] for stats in history if name in stats]
            means[name if "/" in name else f"policy/{name}"] = sum(values) / len(values)
        updates = sum("grad_norm" in stats for stats in history)
        return {**means, "policy/updates": float(updates), "policy/stopped_early": float(stopped)}

    def state_dict(self) -> State:
        """AdamW's. Who keeps more adds it: ``{**super().state_dict(), "mean": self.mean}``."""
        return {"gradient": self.gradient.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.gradient.load_state_dict(state["gradient"])


def _part(
    rollout: Rollout, prepared: Mapping[str, Tensor], rows: Sequence[int], tokens: float, samples: float
) -> Batch:
    """The samples at `rows`; prepared entries with a column per token lose the columns that the rollout loses."""
    cut = rollout.select(rows)
    entries = {name: entry[list(rows)] for name, entry in prepared.items()}
    for name, entry in entries.items():
        if entry.dim() > 1 and entry.shape[1] == rollout.mask.shape[1]:
            entries[name] = entry[:, : cut.mask.shape[1]]
    return Batch(cut, entries, tokens, samples)
