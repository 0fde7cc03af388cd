"""Improving the policy against rewards: sample, score, shape, update."""

from __future__ import annotations

import math
from typing import Any

from ..errors import ConfigError
from ..interfaces import Component, OnlineReward, PolicyOptimizer, RewardShaper, Run, Stage, State, StepStats
from ..interfaces.levels import misplaced
from ..randomness import derive_seed
from ..records import Sample
from ..rl.data import StageData
from ..rl.evaluation import evaluate
from ..rl.on_policy import OnPolicyOptimizer
from .common import build_sampler
from .config import OptimizeConfig


class Optimize(Stage[OptimizeConfig]):
    """Binds the optimizer to the policy, fixes the reference, and steps."""

    def setup(self, run: Run) -> None:
        config = self.config
        self.run = run
        self.optimizer: PolicyOptimizer[Any] = run.component("optimizer", config.optimizer)
        self.shapers: dict[str, RewardShaper[Any]] = {id: run.component("shaper", id) for id in config.shapers}
        self._fix_reference(run)
        self.optimizer.bind(run.policy, config.steps)

        self.sampler = build_sampler(
            run,
            config.rewards,
            config.environment,
            forward_tokens=config.forward_tokens,
            rescore=config.old_logprobs == "rescored",
        )
        needs = self.optimizer.config.needs
        for shaper in self.shapers.values():
            needs = needs | shaper.config.needs
        self.data = StageData(
            self.sampler,
            run.component("prompts", config.prompts) if config.prompts else None,
            [run.component("feedback", id) for id in config.feedback],
            list(self.shapers.values()),
            config.sampling,
            needs,
            config.steps,
        )
        self._check(run)
        run.artefacts.update(
            rewards=dict(config.rewards),
            sampling=config.sampling.at(config.steps, config.steps).model_dump(mode="json"),
        )

    def _fix_reference(self, run: Run) -> None:
        """The reference is fixed once, when the stage first begins, and written down for a resumed run."""
        folder = run.directory / "references" / self.context.id
        if run.artefacts.get("reference") == folder.name:
            return  # resumed inside this stage: the runner has already put it back
        run.policy.set_reference(self.config.reference)
        if run.accelerator.is_main_process:
            run.policy.save_reference(folder)
        run.artefacts["reference"] = folder.name

    def _check(self, run: Run) -> None:
        shared_out = getattr(run.policy.config, "sharded", False) and run.accelerator.num_processes > 1
        if shared_out and not isinstance(self.optimizer, OnPolicyOptimizer):
            raise ConfigError(
                f"{self.context.where} optimizer",
                f"{self.config.optimizer!r} with a policy whose weights are shared out over processes (`sharded`)",
                "an optimizer like ppo, reinforce or a2c, whose processes take as many passes each",
                "leave `sharded` out",
            )
        levels = [(id, shaper.level) for id, shaper in self.shapers.items()]
        if error := misplaced(f"{self.context.where} shapers", levels):  # of classes that could only be imported
            raise error
        if self.config.sampling.truncates:
            run.warn(
                "top_k, top_p, min_new_tokens or temperature 0 draw from less than the full softmax: old and new "
                "log-probabilities are still over all of it, and what was drawn from is in behaviour_logprobs"
            )
        gamma = getattr(self.optimizer.config, "gamma", 1.0)
        longest = self.config.sampling.max_new_tokens
        if gamma < 1 and gamma**longest < 0.5:
            run.warn(
                f"a discount of {gamma} with the reward at the end of up to {longest} tokens: the first token sees "
                f"{gamma**longest:.2g} of it (half is gone after {math.log(0.5) / math.log(gamma):.0f} tokens); "
                "gamma 1 is usual for text"
            )

    @property
    def total(self) -> int:
        return self.config.steps

    def step(self, index: int) -> StepStats:
        self.data.begin(index)
        self.optimizer.progress = (index, self.total)
        stats = self.optimizer.step(self.data)
        if taken := sorted(stats.keys() & self.data.stats.keys()):
            raise ConfigError(
                self.optimizer.context.where,
                f"its statistics {', '.join(taken)} have names that this stage logs itself",
                "names of its own",
                f"rename them, for example {self.optimizer.context.id}/{taken[0].rpartition('/')[2]}",
            )
        return {**self.data.stats, **stats}

    def shown(self) -> tuple[list[Sample], list[float]]:
        return self.data.shown()

    def evaluate(self) -> StepStats:
        wanted = self.config.evaluation
        if wanted is None:
            return {}
        source = self.run.component("prompts", wanted.prompts)
        prompts = [source[i] for i in range(min(wanted.limit, len(source)))]
        metrics = {id: self.run.component("metric", id) for id in wanted.metrics}
        result = evaluate(
            self.sampler, prompts, metrics, self.data.sampling, seed=derive_seed(self.context.seed, "evaluation")
        )
        return {name: entry["mean"] for name, entry in result.summary().items()}

    def finish(self) -> dict[str, Any]:
        for model in self.sampler.mix.models.values():
            if isinstance(model, OnlineReward):
                self.run.keep(model)  # as it is now, for later stages of a resumed run
        return {"steps": self.config.steps, "rewards": dict(self.config.rewards)}

    def components(self) -> dict[str, Component[Any]]:
        online = {
            f"reward.{id}": model for id, model in self.sampler.mix.models.items() if isinstance(model, OnlineReward)
        }
        shapers = {f"shaper.{id}": shaper for id, shaper in self.shapers.items()}
        return {f"optimizer.{self.config.optimizer}": self.optimizer, **shapers, **online}

    def state_dict(self) -> State:
        return {"data": self.data.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.data.load_state_dict(state["data"])
