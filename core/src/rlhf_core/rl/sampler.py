"""From prompts to scored rollouts: environment, evaluation under policy and reference, rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..interfaces import Context, Environment, Needs, OnlineReward, Outputs, Policy, Sampling, StepStats
from ..memory import within_memory
from ..records import Prompt, Rollout, Sample
from ..training import by_tokens, share
from .batching import gathered, rollout_sizes
from .guards import within_generation, within_rewards, within_scoring
from .rewards import RewardMix


@dataclass(frozen=True)
class Sampler:
    """Samples and scores; what training and evaluation have in common.

    Attributes:
        forward_tokens: most tokens, padding included, in one forward pass without gradients.
        rescore: take the policy's log-probabilities from an evaluation, not as recorded while decoding.
    """

    policy: Policy[Any]
    environment: Environment[Any]
    mix: RewardMix
    context: Context
    forward_tokens: int = 32_768
    rescore: bool = False

    def rollout(
        self,
        prompts: Sequence[Prompt],
        samples_per_prompt: int,
        sampling: Sampling,
        needs: Needs,
        *,
        seed: int,
        learn: bool = False,
    ) -> tuple[Rollout, StepStats]:
        """Scored samples of `prompts`, those of one prompt side by side, over all processes.

        `learn`: let online rewards learn from the samples before they are scored. Returns their statistics as well.

        Raises:
            ConfigError: there are fewer prompts than processes.
        """
        accelerator = self.context.accelerator
        if accelerator is not None and len(prompts) < accelerator.num_processes:
            raise ConfigError(
                self.context.where,
                f"{len(prompts)} prompts at a time for {accelerator.num_processes} processes",
                "one for each at least: samples of a prompt stay in one process",
                "raise prompts_per_step of the optimizer or the limit of the evaluation, or start fewer processes",
            )
        mine = share(len(prompts), accelerator)
        repeated = [prompts[i] for i in mine for _ in range(samples_per_prompt)]
        ids = [i * samples_per_prompt + k for i in mine for k in range(samples_per_prompt)]
        clock = self.context.clock
        with clock("generation"), within_generation(self.policy, prompts, samples_per_prompt, sampling, training=learn):
            rollout = self.environment.rollout(self.policy, repeated, sampling, seed=seed, sample_ids=ids)
        groups = torch.tensor([i for i in mine for _ in range(samples_per_prompt)], device=rollout.mask.device)
        with clock("scoring"):
            # a divergence that is reported compares like with like: what decoding recorded is rounded otherwise
            rescore = self.rescore or (needs.reference and not learn)
            rollout = self.evaluated(rollout.replace(groups=groups), needs, rescore=rescore)
        stats: StepStats = {}
        with clock("reward"), within_rewards(self.context, rollout, len(prompts), samples_per_prompt, training=learn):
            for name, model in self.mix.models.items():
                if learn and isinstance(model, OnlineReward):
                    update = model.update(rollout, self.score_logprobs)
                    stats.update({f"reward/{name}/{key}": value for key, value in update.items()})
            rollout = self.mix.score(rollout)
        return gathered(rollout, accelerator), stats

    @torch.no_grad()
    def evaluated(self, rollout: Rollout, needs: Needs, *, rescore: bool) -> Rollout:
        """`rollout` with what `needs` asks for and decoding has not recorded, computed in parts; `rescore` replaces
        `logprobs` as well."""
        recorded = needs.values and rollout.values is not None and not rescore and not needs.bootstrap
        rollout = rollout if recorded else rollout.replace(values=None)
        # the latter three are too large to keep: for updates only
        needs = replace(needs, values=needs.values and not recorded, distribution=False, hidden=False, heads=0)
        if rescore or needs.values or needs.bootstrap or needs.entropy or needs.top_k:
            out = self._forward(rollout, replace(needs, logprobs=rescore))
            found = {name: value for name, value in vars(out).items() if value is not None and name != "logprobs"}
            rollout = rollout.replace(**found, **({"logprobs": out.logprobs} if rescore else {}))
        if needs.reference:
            with self.policy.as_reference():
                rollout = rollout.replace(reference_logprobs=self._forward(rollout, Needs(), "reference").logprobs)
        if needs.token_ends:
            rollout = rollout.replace(token_ends=self._token_ends(rollout))
        return rollout

    def _token_ends(self, rollout: Rollout) -> Tensor:
        """(B, T) int64: characters of the response that are complete after each token; the last ones repeat."""
        ends = torch.zeros_like(rollout.response_ids)
        for row, sample in enumerate(rollout.samples):
            ids = rollout.response_ids[row][rollout.attention[row]].tolist()
            known = self.policy.token_ends(ids)
            ends[row, : len(ids)] = ends.new_tensor(known).clamp(max=len(sample.response))  # a stop string is cut off
        return ends

    def _forward(self, rollout: Rollout, needs: Needs, by: str = "policy") -> Outputs:
        """`policy.forward` in parts of similar length, put back in place; `by`: who speaks, policy or reference."""
        whole: dict[str, Tensor] = {}
        for rows in by_tokens(rollout_sizes(rollout), self.forward_tokens):
            cut = rollout.select(rows)
            with within_scoring(self.policy, by, cut, self.forward_tokens):
                part = self.policy.forward(cut, needs)
            for name, value in vars(part).items():
                if value is None:
                    continue
                if name not in whole:
                    shape = (len(rollout), rollout.mask.shape[1], *value.shape[2:])[: max(value.dim(), 1)]
                    whole[name] = value.new_zeros(shape)
                if value.dim() > 1:
                    whole[name][rows, : value.shape[1]] = value
                else:
                    whole[name][rows] = value
        return Outputs(**whole)

    @torch.no_grad()
    def score_logprobs(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """log-probabilities of whole responses under policy and reference, each (B,)."""
        policies: list[Tensor] = []
        rollouts: list[Rollout] = []
        clock = self.context.clock
        for start in range(0, len(samples), 32):
            chunk = samples[start : start + 32]
            with (
                clock("scoring"),
                within_memory(self.policy.context, "scoring under the policy", f"{len(chunk)} texts"),
            ):
                rollout = self.policy.encode(chunk)
            policies.append(rollout.logprobs.sum(1))
            rollouts.append(rollout)
        with clock("scoring"), self.policy.as_reference():  # once: whose weights are shared out all change at a time
            references = [self._forward(rollout, Needs(), "reference").logprobs.sum(1) for rollout in rollouts]
        return torch.cat(policies), torch.cat(references)
