"""The `potential` shaper: how much better a reward model likes the response with every token.

    F_t = gamma * Phi(s_{t+1}) - Phi(s_t),    Phi(s) = coef * reward(prompt, the response so far)

is added to the reward of token t (Ng, Harada & Russell, 1999, theorem 1). With Phi 0 at the end of a response the
discounted sum of F is -Phi(s_0), the same for every response of a prompt, and from any state on -Phi(s): the expected
return of every policy moves by the same, so the optimum stays, whatever the reward model says.

A response ends where it is finished, and where it is cut at the length limit: there too Phi is 0, or being cut would
pay what the model says of the text. The optimizer must agree: one that adds a value of its own beyond a cut
(`bootstrap_truncated` of ppo) is not invariant, since that value is of states that have their Phi.

Departures: the response is scored before every `every`-th token only, and in between the last score stands, which is a
potential as well, for a state knows all tokens before it. Where the reward model abstains the last score stands too.
"""

from __future__ import annotations

from typing import Any

import torch
from rlhf_core.errors import ConfigError
from rlhf_core.functional import gae, masked_mean
from rlhf_core.interfaces import Context, RewardModel, RewardShaper, StepStats
from rlhf_core.records import Rollout, Sample
from rlhf_core.rl import checked_scores
from torch import Tensor

from .config import PotentialConfig


class Potential(RewardShaper[PotentialConfig]):
    """``r_t + gamma * Phi(s_{t+1}) - Phi(s_t)``. Needs `token_ends`, to know what text stood before a token."""

    level = "token"

    def __init__(self, config: PotentialConfig, context: Context) -> None:
        super().__init__(config, context)
        self.model: RewardModel[Any] = context.component("reward", config.reward)

    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        """As of any token shaper.

        Raises:
            ConfigError: the rollout has no `token_ends`.
            RewardError: the reward model did not give one finite score per text.
        """
        mask = rollout.mask
        potentials, texts = self._potentials(rollout, mask)
        potentials = potentials.to(rewards)
        # with rewards 0 and lambda 0 an advantage is gamma * V_next - V, and V_next is 0 after the last valid token
        differences, _ = gae(torch.zeros_like(rewards), potentials, mask, gamma=self.config.gamma, lam=0.0)
        first = mask & (mask.cumsum(1) == 1)
        stats = {
            "shaping/potential_start": float(masked_mean(potentials.float(), first)),
            "shaping/potential_change": float(masked_mean(differences.abs().float(), mask)),
            "shaping/potential_texts": float(texts),
        }
        return (rewards + differences).where(mask, 0.0), stats

    def _potentials(self, rollout: Rollout, mask: Tensor) -> tuple[Tensor, int]:
        """Phi of the state before each own token, (B, T) float32 and 0 elsewhere; and how many texts were scored."""
        if rollout.token_ends is None:
            raise ConfigError(
                self.context.where,
                "a rollout without token_ends",
                "all that `config.needs` asks for",
                "pass it to the data that rolls out",
            )
        groups, ends = rollout.groups.tolist(), rollout.token_ends.tolist()
        states: list[list[tuple[int, str | None]]] = []  # per row: own positions, and the text to score there, if any
        texts: dict[tuple[int, str], Sample] = {}  # samples of a prompt share what they have in common
        for row, sample in enumerate(rollout.samples):
            states.append([])
            for k, t in enumerate(mask[row].nonzero()[:, 0].tolist()):
                text = None
                if k % self.config.every == 0:
                    text = sample.response[: ends[row][t - 1]] if t else ""
                    texts[groups[row], text] = Sample(sample.prompt, text)
                states[row].append((t, text))
        said = dict(zip(texts, self._scores(list(texts.values())), strict=True))
        potentials = torch.zeros(mask.shape)
        for row, places in enumerate(states):
            phi = 0.0
            for t, text in places:
                score = None if text is None else said[groups[row], text]
                phi = phi if score is None else self.config.coef * score
                potentials[row, t] = phi
        return potentials, len(texts)

    def _scores(self, texts: list[Sample]) -> list[float | None]:
        """What the reward model says of each text; None where it abstains."""
        if not texts:
            return []
        scores = checked_scores(self.model, texts)
        silent = [False] * len(texts) if scores.abstained is None else scores.abstained.tolist()
        return [None if quiet else value for value, quiet in zip(scores.values.tolist(), silent, strict=True)]
