"""The stage `trl`: one of TRL's trainers, step by step under our runner.

The trainer owns its loop, its optimizer and its sampling. It is given the policy's own weights, records and prompts as
the policy's token ids, and our rewards as one function. What it leaves is what `optimize` leaves: a policy with a
reference, and the names of rewards and sampling, which `evaluate` reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import chain
from typing import Any

from rlhf_core.errors import ConfigError, DataError
from rlhf_core.interfaces import OnlineReward, Run, Stage, State, StepStats
from rlhf_core.memory import lower, within_memory
from rlhf_core.policies import CausalLM
from rlhf_core.randomness import derive_seed, seed_everything
from rlhf_core.records import Feedback
from rlhf_core.rl import RewardMix, Sampler, SingleTurn, SingleTurnConfig, evaluate

from .arguments import build_arguments
from .config import GROUP, TRLConfig
from .data import USABLE, Encoder, examples, shuffled, unheard, with_neighbours
from .rewards import Scorer
from .trainer import Reporter, build_trainer, quiet
from .turns import Pause, Turns

MEASURES = {
    "eval_loss": "loss",
    "eval_rewards/accuracies": "accuracy",
    "eval_rewards/margins": "margin",
}
"""What TRL measures on records kept out of training -> how the report calls it."""


class TRL(Stage[TRLConfig]):
    """Every step is one update of TRL's trainer; it begins at the first step of the stage and ends with the stage."""

    def setup(self, run: Run) -> None:
        self.run, self.policy = run, _own_policy(run, self.context.where)
        self.folder = run.directory / "trl" / self.context.id
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run that was interrupted
        self.models = {id: run.component("reward", id) for id in self.config.rewards}
        self._fix_reference(run)
        self._start = {**(state := self.policy.state_dict()), "weights": _copies(state["weights"])}
        self.scorer: Scorer | None = None
        self.examples = 0
        args = build_arguments(self.config, self.context, self.folder)
        self.trainer = self._on_prompts(run, args) if self.config.trainer in GROUP else self._on_records(run, args)
        self._has_held_out = self.trainer.eval_dataset is not None
        self.turns: Turns[StepStats] = Turns(_train(self.trainer, self.context.where))
        self._next = 0
        run.artefacts.update(
            rewards=dict(self.config.rewards),
            sampling=self.config.sampling.at(self.config.steps, self.config.steps).model_dump(mode="json"),
        )

    def _fix_reference(self, run: Run) -> None:
        """As in `optimize`: fixed once, when the stage first begins, and written down for a resumed run."""
        folder = run.directory / "references" / self.context.id
        if run.artefacts.get("reference") == folder.name:
            return
        self.policy.set_reference(self.config.reference)
        if run.accelerator.is_main_process:
            self.policy.save_reference(folder)
        run.artefacts["reference"] = folder.name

    # --- what the trainer is given ---

    def _on_prompts(self, run: Run, args: Any) -> Any:
        """rloo, grpo: prompts with their place, and rewards."""
        source = run.component("prompts", str(self.config.prompts))
        prompts = [source[i] for i in range(len(source))]
        needed = args.generation_batch_size // args.num_generations
        if len(prompts) < needed:
            raise ConfigError(
                f"{self.context.where} prompts",
                f"{len(prompts)} prompts",
                f"at least {needed}: generation_batch_size {args.generation_batch_size} / num_generations "
                f"{args.num_generations}",
                "give more prompts, or smaller arguments.per_device_train_batch_size or gradient_accumulation_steps",
            )
        for id, model in self.models.items():
            if isinstance(model, OnlineReward):
                run.warn(f"{self.context.where}: reward {id!r} learns in `optimize` only; here it stays as it is")
        codec, room = self.policy.codec, self.config.sampling.max_new_tokens
        self.scorer = Scorer(self.models, self.config.rewards, prompts, codec)
        return build_trainer(
            self.config.trainer,
            args,
            self.policy,
            rows=[{"prompt": prompt.render(), "index": i} for i, prompt in enumerate(prompts)],
            prompt_ids={prompt.render(): codec.encode_prompt(prompt, room) for prompt in prompts},
            reward=self.scorer.score,
        )

    def _on_records(self, run: Run, args: Any) -> Any:
        """dpo, kto, sft: rows of token ids, those of some prompts kept out."""
        config, codec = self.config, self.policy.codec
        records: list[Feedback] = list(chain(*(run.component("feedback", id) for id in config.feedback)))
        found = examples(config.trainer, records, Encoder(codec, codec.longest_response))
        train = [e for e in found if not e.prompt.in_share(config.held_out)]
        if not train:
            left = "" if not found else f" outside the held-out share of {config.held_out:g}"
            raise DataError(
                self.context.where,
                f"no usable record in {', '.join(config.feedback)}{left}",
                f"for {config.trainer}: {USABLE[config.trainer]}, with a weight above 0",
                "name a feedback source that has them" if not left else "give more records, or a smaller held_out",
            )
        if lost := unheard(config.trainer, records):
            run.warn(f"{self.context.where}: TRL's {config.trainer} trainer cannot use {' and '.join(lost)}")
        self.examples = len(train)
        rows = shuffled(train, self.context.stream("records"))
        kept_out = [e.row for e in found if e.prompt.in_share(config.held_out)]
        if config.trainer == "kto":
            batch = args.per_device_train_batch_size
            rows, kept_out = with_neighbours(rows, batch), with_neighbours(kept_out, batch)
        return build_trainer(config.trainer, args, self.policy, rows=rows, kept_out=kept_out)

    # --- the steps ---

    @property
    def total(self) -> int:
        return self.config.steps

    def step(self, index: int) -> StepStats:
        return self._turn()

    def _turn(self) -> StepStats:
        """One update of the weights."""
        seed_everything(derive_seed(self.context.seed, "trl", self.context.id, self._next))
        if self.scorer is not None:
            self.scorer.clear()
        what = f"TRL's {self.config.trainer}, {self.trainer.args.per_device_train_batch_size} rows at a time"
        with quiet(), within_memory(self.context, "update", what, self._smaller(), self.policy.module.zero_grad):
            stats = self.turns.next()
        self.policy.weights_changed()
        if stats is None:
            raise ConfigError(
                self.context.where,
                f"TRL's trainer stopped after {self._next} of {self.config.steps} steps",
                "a trainer that takes them all",
                "look at `arguments`: something in them ends training early",
            )
        self._next += 1
        return {**(self.scorer.stats() if self.scorer else {}), **stats}

    def _smaller(self) -> Iterator[str | None]:
        """What to lower where memory is short."""
        args, where = self.trainer.args, self.context.where
        yield lower("arguments.per_device_train_batch_size", args.per_device_train_batch_size, where)
        if not args.gradient_checkpointing:
            yield f"set `arguments.gradient_checkpointing: true` in {where} (now false)"

    def evaluate(self) -> StepStats:
        wanted = self.config.evaluation
        if wanted is None:
            return {}
        source = self.run.component("prompts", wanted.prompts)
        prompts = [source[i] for i in range(min(wanted.limit, len(source)))]
        metrics = {id: self.run.component("metric", id) for id in wanted.metrics}
        environment = SingleTurn(SingleTurnConfig(), self.context.named("environment", "single-turn"))
        mix = RewardMix(self.models, self.config.rewards)
        sampler = Sampler(self.policy, environment, mix, self.context)
        seed = derive_seed(self.context.seed, "evaluation")
        result = evaluate(sampler, prompts, metrics, self.config.sampling, seed=seed)
        return {name: entry["mean"] for name, entry in result.summary().items()}

    def finish(self) -> dict[str, Any]:
        self.turns.close()
        result: dict[str, Any] = {
            "trainer": self.config.trainer,
            "steps": self.config.steps,
            "rewards": dict(self.config.rewards),
        }
        if self.examples:
            result["examples"] = self.examples
        if self._has_held_out:
            with quiet():
                measured = self.trainer.evaluate()
            result["held_out"] = {name: measured[key] for key, name in MEASURES.items() if key in measured}
        del self.trainer, self.turns  # and with them the optimizer's moments
        self.policy.weights_changed()
        shutil.rmtree(self.folder, ignore_errors=True)
        return result

    # --- resuming ---

    def state_dict(self) -> State:
        """The policy as the stage found it: an interrupted stage begins again from there."""
        return {"start": self._start, "done": self._next}

    def load_state_dict(self, state: State) -> None:
        self.policy.load_state_dict(state["start"])
        self._start = state["start"]
        self.policy.weights_changed()
        self.run.warn(
            f"{self.context.where}: nothing of TRL's own state is in a checkpoint, so this stage begins again from its "
            "first step, with the same seed, and repeats what was done"
        )
        while self._next < state["done"]:
            self._turn()


def _own_policy(run: Run, where: str) -> CausalLM:
    """The run's policy, if TRL can train it.

    Raises:
        ConfigError: it is of another kind, is steered by action values, or the run has several processes.
    """
    policy: Any = run.policy
    if not isinstance(policy, CausalLM):
        raise ConfigError(
            where, f"{policy.context.where} is a {type(policy).__name__}", "a causal-lm",
            "TRL trains transformers models only; choose a policy that uses causal-lm",
        )  # fmt: skip
    if policy.steering:
        raise ConfigError(
            where, f"{policy.context.where} is steered by action values", "a policy that is its language model alone",
            "TRL would sample and train without them; put this stage before the one that learns them",
        )  # fmt: skip
    if run.accelerator.num_processes > 1:
        raise ConfigError(
            where, f"{run.accelerator.num_processes} processes", "one process", "start the run without a launcher"
        )
    return policy


def _copies(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.clone().cpu() for name, tensor in weights.items()}


def _train(trainer: Any, where: str) -> Any:
    """What runs in turns; it must not hold the stage, which would keep a stage alive that nobody uses."""

    def work(pause: Pause[StepStats]) -> None:
        device = trainer.args.device
        if device.type == "cuda" and device.index is not None:
            import torch

            torch.cuda.set_device(device)  # each thread has a current device of its own
        trainer.add_callback(Reporter(pause, where))
        trainer.train()

    return work
