"""The `kl` shaper: a price on every token for drifting from the reference.

r_t <- r_t - coef * KL_t, with KL_t one of the estimators of `functional.kl_estimate` (Schulman, 2020). Under k1 and a
discount of 1 the optimum moves from "maximise the score" to "maximise score - coef * KL(policy || reference)"; the
other estimators price drift differently and have no such simple optimum. With `target` the coefficient follows the
proportional controller of Ziegler et al. (2019), section 2.2.
"""

from __future__ import annotations

from torch import Tensor

from ..functional import kl_estimate
from ..interfaces import Context, RewardShaper, State, StepStats, value_at
from ..records import Rollout
from .config import KLConfig


class KL(RewardShaper[KLConfig]):
    """Subtracts ``coef`` times the estimated divergence from every token's reward."""

    level = "token"

    def __init__(self, config: KLConfig, context: Context) -> None:
        super().__init__(config, context)
        self.adapted = value_at(config.coef, 0, 1)

    @property
    def coef(self) -> float:
        """The coefficient at this step."""
        return self.now(self.config.coef) if self.config.target is None else self.adapted

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        reference = rollout.reference_logprobs
        if reference is None:
            raise RuntimeError(f"{self.context.where}: the rollout has no reference log-probabilities")
        kl = kl_estimate(rollout.logprobs, reference, kind=self.config.estimator)
        samples = int(rollout.mask.any(1).sum())
        coef = self.coef
        shaped = rewards - coef * kl.masked_fill(~rollout.mask, 0.0).to(rewards)
        stats = {"kl/coef": coef, "kl/penalty": float((rewards - shaped).sum()) / max(samples, 1)}
        if self.config.target is not None:
            k1 = float((rollout.logprobs - reference).masked_fill(~rollout.mask, 0.0).sum())
            per_sample = k1 / max(samples, 1)
            error = min(max(per_sample / self.config.target - 1, -0.2), 0.2)
            self.adapted *= 1 + error * samples / self.config.horizon
        return shaped, stats

    def state_dict(self) -> State:
        return {"coef": self.adapted}

    def load_state_dict(self, state: State) -> None:
        self.adapted = float(state["coef"])
