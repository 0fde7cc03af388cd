"""The `kl` shaper: a price on every token for drifting from the reference.

    r_t <- r_t - coef * KL_t,    with d = log policy - log reference:    k1 = d,  k2 = d^2 / 2,  k3 = e^-d - 1 + d

(Schulman, 2020; `functional.kl_estimate`). Optimizers take rewards as constants. Under k1, and a discount of 1, their
expected update is then exactly the gradient of

    score - coef * KL(policy || reference),

whose optimum is the policy in proportion to reference * exp(score / coef). k2, k3 and abs charge a token that the
policy makes less likely than the reference does as well as one that it makes likelier, so they push the former further
down; that update is not the gradient of a divergence, k3's unbiased mean notwithstanding. In a loss it is otherwise.

With `target` the coefficient follows the proportional controller of Ziegler et al. (2019), section 2.2:
times 1 + clip(KL / target - 1, -0.2, 0.2) * samples / horizon, the KL by k1 whatever is charged.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import ConfigError
from ..functional import kl_estimate
from ..interfaces import Context, RewardShaper, State, StepStats, value_at
from ..records import Rollout
from .config import KLConfig


class KL(RewardShaper[KLConfig]):
    """Subtracts `coef` times the estimated divergence from every token's reward."""

    level = "token"

    def __init__(self, config: KLConfig, context: Context) -> None:
        super().__init__(config, context)
        self.adapted = value_at(config.coef, 0, 1)

    @property
    def coef(self) -> float:
        """The coefficient at this step."""
        return self.now(self.config.coef) if self.config.target is None else self.adapted

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        """As of any token shaper.

        Raises:
            ConfigError: the rollout has no `reference_logprobs`.
        """
        reference = rollout.reference_logprobs
        if reference is None:
            raise ConfigError(
                self.context.where,
                "a rollout without reference_logprobs",
                "all that `config.needs` asks for",
                "pass it to the data that rolls out",
            )
        kl = kl_estimate(rollout.logprobs, reference, kind=self.config.estimator)
        samples = int(rollout.mask.any(1).sum())
        coef = self.coef
        shaped = rewards - coef * kl.masked_fill(~rollout.mask, 0.0).to(rewards)
        stats = {"kl/coef": coef, "kl/penalty": float((rewards - shaped).sum()) / max(samples, 1)}
        if self.config.target is not None:
            k1 = float((rollout.logprobs - reference).masked_fill(~rollout.mask, 0.0).sum())
            error = min(max(k1 / max(samples, 1) / self.config.target - 1, -0.2), 0.2)
            self.adapted *= 1 + error * samples / self.config.horizon
        return shaped, stats

    def state_dict(self) -> State:
        return {"coef": self.adapted}

    def load_state_dict(self, state: State) -> None:
        self.adapted = float(state["coef"])
