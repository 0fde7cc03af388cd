"""Does every optimizer learn, and from how many samples? Three tasks with a known optimum, three seeds.

    make bench-learning         # or: python benchmarks/learning.py [--seeds 0 1 2] [--tasks TASK ...] [NAMES ...]

- first-token and exact-string (`rlhf_core.testing.tasks`): a tiny fresh policy, best reward 1. Told are the samples and
  the seconds of training until 90 % of that is measured on 200 fresh samples, and the mean reward, its standard error
  over seeds, and the KL to the untrained policy at the end.
- desk: the policy of the quickstart after sft, paid the gold rule less 0.1 per nat of KL. The best that any policy can
  earn of that is 0.1 log E exp(gold / 0.1) under the reference, averaged over prompts (Rafailov et al. 2023, equation
  4), estimated from 256 samples per prompt; told is how much of the way from the reference to it was made.

Writes one plot per task to --plots (docs/images by default): reward against samples, mean over seeds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KL_COEF = 0.1


def falling(start: float) -> dict[str, Any]:
    return {"schedule": "linear", "start": start}


GROUP = {"samples_per_prompt": 4, "prompts_per_step": 16, "minibatch_size": 64}
TOY = {"prompts_per_step": 128, "minibatch_size": 128, "learning_rate": falling(1e-2), "entropy_coef": falling(0.1)}
TOY_GROUP = {**TOY, "samples_per_prompt": 4, "prompts_per_step": 32}
TOY_PPO = {**TOY, "prompts_per_step": 64, "minibatch_size": 32, "entropy_coef": 0.03}
DESK = {"prompts_per_step": 64, "minibatch_size": 64}
PLAIN = {"aggregation": "token-mean"}
CLIPPED = {"minibatch_size": 64, "epochs": 2, "clip": 0.2}
DESK_CLIPPED = {"minibatch_size": 32, "epochs": 2, "clip": 0.2, "learning_rate": falling(3e-4)}
REINFORCE = "rlhf_plugin_reinforce.optimizer:Reinforce"
GRPO = {"baseline": "group", "scale": "std", "aggregation": "seq-mean-token-mean"}
DAPO = {"baseline": "group", "scale": "std", "aggregation": "token-mean", "clip_high": 0.28}

# name -> class, config on the two toys, steps there, config on the desk, steps there
LEARNERS: dict[str, tuple[str, dict[str, Any], int, dict[str, Any], int]] = {
    "ppo": ("rlhf_plugin_ppo.optimizer:PPO", TOY_PPO, 60,
            {**DESK, "minibatch_size": 32, "learning_rate": falling(3e-4)}, 60),
    "ppo-max": ("rlhf_plugin_ppo.optimizer:PPO",
                {**TOY_PPO, "advantage_clip": 2.0, "value_warmup": 2, "betas": (0.9, 0.95)}, 60,
                {**DESK, "minibatch_size": 32, "learning_rate": falling(3e-4), "advantage_clip": 0.5, "value_warmup": 2,
                 "betas": (0.9, 0.95)}, 60),
    "reinforce": (REINFORCE, {**TOY, **PLAIN, "baseline": "moving-average"}, 100,
                  {**DESK, "learning_rate": falling(1e-3), "baseline": "moving-average"}, 60),
    "remax": (REINFORCE, {**TOY, **PLAIN, "baseline": "greedy", "entropy_coef": 0.03}, 120,
              {**DESK, "learning_rate": falling(1e-3), "baseline": "greedy"}, 60),
    "rloo": (REINFORCE, {**TOY_GROUP, **PLAIN, "baseline": "leave-one-out"}, 100,
             {**GROUP, "learning_rate": falling(1e-3), "baseline": "leave-one-out"}, 60),
    "grpo": (REINFORCE, {**TOY_GROUP, **CLIPPED, **GRPO}, 60, {**GROUP, **DESK_CLIPPED, **GRPO}, 60),
    "dr-grpo": (REINFORCE,
                {**TOY_GROUP, **CLIPPED, "baseline": "group", "aggregation": "seq-mean-token-sum-norm",
                 "norm_tokens": 2}, 100,
                {**GROUP, **DESK_CLIPPED, "baseline": "group", "aggregation": "seq-mean-token-sum-norm",
                 "norm_tokens": 24}, 60),
    "dapo": (REINFORCE, {**TOY_GROUP, **CLIPPED, **DAPO, "resample": 1}, 60, {**GROUP, **DESK_CLIPPED, **DAPO}, 60),
    "reinforce++": (REINFORCE,
                    {**TOY, **CLIPPED, **PLAIN, "baseline": "batch", "learning_rate": falling(5e-3)}, 60,
                    {**DESK, **DESK_CLIPPED, **PLAIN, "baseline": "batch"}, 60),
    "a2c": ("rlhf_plugin_a2c.optimizer:A2C", TOY, 100, {**DESK, "learning_rate": falling(1e-3)}, 60),
    "acer": ("rlhf_plugin_acer.optimizer:ACER",
             {"prompts_per_step": 32, "learning_rate": falling(6e-3), "entropy_coef": falling(0.04), "truncation": 3.0},
             60,
             {"prompts_per_step": 64, "learning_rate": 3e-4, "q_coef": 0.5, "replay_ratio": 2}, 60),
    "trpo": ("rlhf_plugin_trpo.optimizer:TRPO", {"prompts_per_step": 64, "learning_rate": 1e-2, "max_kl": 0.05}, 60,
             {"prompts_per_step": 64, "learning_rate": 1e-3, "fisher_tokens": 300, "cg_iterations": 10}, 60),
    "es": ("rlhf_plugin_es.optimizer:ES",
           {"prompts_per_step": 32, "population": 32, "sigma": 0.2, "learning_rate": 0.3, "weight_decay": 0.13,
            "only": "lm_head"}, 140,
           {"prompts_per_step": 16, "population": 16, "sigma": 0.05, "only": "lm_head",
            "learning_rate": {"schedule": "cosine", "start": 0.05, "end": 0.01}}, 60),
    "ilql": ("rlhf_plugin_ilql.optimizer:ILQL",
             {"learning_rate": {"schedule": "cosine", "start": 1e-2}, "batch_size": 128, "target_rate": 0.3,
              "cql_coef": 0.02, "imitation_coef": 1.0, "betas": (0.9, 0.95)}, 1000,
             {"learning_rate": {"schedule": "cosine", "start": 1e-3, "warmup": 10}, "beta": 8}, 400),
}  # fmt: skip


# a price on the KL that falls, where an optimizer has no entropy bonus and would settle too soon
TOY_KL = {"es": {**falling(0.09), "end": 0.035}}
# the others' policy has a critic of its own
TOY_POLICY = {"ilql": {"critic": "shared"}}


def optimizer_class(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


# --- the two toys ----------------------------------------------------------------------------------------------------


def toy(task_name: str, name: str, seed: int) -> dict[str, Any]:
    from rlhf_core.components.config import KLConfig
    from rlhf_core.components.kl import KL
    from rlhf_core.interfaces import Context
    from rlhf_core.testing.tasks import EXACT_STRING, FIRST_TOKEN, learn

    task = {"first-token": FIRST_TOKEN, "exact-string": EXACT_STRING}[task_name]
    path, config, steps, _, _ = LEARNERS[name]
    shapers = [KL(KLConfig(coef=TOY_KL[name]), Context())] if name in TOY_KL else []
    found = learn(task, optimizer_class(path), config, steps=steps, seed=seed, shapers=shapers,
                  policy=TOY_POLICY.get(name))  # fmt: skip
    # evaluation takes no part of the seconds; they are spread evenly over the samples
    share = None if found.reached is None else found.reached / max(found.samples, 1)
    return {
        "curve": found.curve, "samples": found.samples, "reached": found.reached, "seconds": found.seconds,
        "seconds_reached": None if share is None else found.seconds * share, "reward": found.reward, "kl": found.kl,
    }  # fmt: skip


# --- the desk --------------------------------------------------------------------------------------------------------


class Desk:
    """The quickstart's policy after sft, its prompts, its gold rule, and what the best policy could earn."""

    def __init__(self, seed: int) -> None:
        import torch
        from rlhf_core import load
        from rlhf_core.components.config import KLConfig
        from rlhf_core.components.kl import KL
        from rlhf_core.interfaces import Context, Needs, Sampling, Schedule, SupervisedConfig
        from rlhf_core.rl.rewards import RewardMix
        from rlhf_core.rl.sampler import Sampler
        from rlhf_core.training import fit_task

        project = load(ROOT / "registry.yaml", trust_functions=True)
        wanted = (("policy", "desk-lm"), ("reward", "gold"), ("prompts", "desk"), ("prompts", "desk-held-out"),
                  ("feedback", "desk-demonstrations"), ("feedback", "desk-ratings"),
                  ("environment", "single-turn"))  # fmt: skip
        self.policy, gold, self.prompts, held_out, texts, self.ratings, environment = project.build_together(
            *wanted, context=Context(seed=seed)
        )
        sft = SupervisedConfig(epochs=5, learning_rate=Schedule(schedule="cosine", start=2e-3, warmup=10))
        fit_task(self.policy.demonstrations(texts, held_out=0.1), sft, self.policy.context)
        self.policy.set_reference("stage-start")
        self.start = {k: v.clone() for k, v in self.policy.network.lm.state_dict().items()}
        self.kl = KL(KLConfig(coef=KL_COEF), Context())
        self.sampler = Sampler(self.policy, environment, RewardMix({"gold": gold}, {"gold": 1.0}), self.policy.context)
        self.sampling, self.needs = Sampling(max_new_tokens=48), Needs(reference=True)
        self.held_out = [held_out[i] for i in range(len(held_out))]
        rollout, _ = self.sampler.rollout(self.held_out[:32], 256, self.sampling, Needs(), seed=1)
        scores = rollout.score.view(-1, 256)  # (prompts, samples)
        self.optimum = float((KL_COEF * ((scores / KL_COEF).logsumexp(1) - math.log(256))).mean())
        torch.set_grad_enabled(True)

    def measure(self) -> tuple[float, float, float]:
        """(objective, gold, KL) on held-out prompts."""
        rollout, _ = self.sampler.rollout(self.held_out, 1, self.sampling, self.needs, seed=2)
        gold = float(rollout.score.mean())
        # of what has spoken: the policy as it is steered, if it is
        logprobs = rollout.logprobs if rollout.behaviour_logprobs is None else rollout.behaviour_logprobs
        kl = float((logprobs - rollout.reference_logprobs).sum(1).mean())
        return gold - KL_COEF * kl, gold, kl

    def train(self, name: str, seed: int) -> dict[str, Any]:
        from rlhf_core.interfaces import Context
        from rlhf_core.randomness import seed_everything
        from rlhf_core.rl.data import StageData

        path, _, _, config, steps = LEARNERS[name]
        self.policy.network.value_head = self.policy.network.value_trunk = None
        self.policy.network.action_values = self.policy.network.action_values[:0]
        self.policy.network.lm.load_state_dict(self.start)
        self.policy.steering = 0.0
        cls = optimizer_class(path)
        optimizer = cls(cls.Config.model_validate(config), Context("optimizer", name, seed))
        needs = optimizer.config.needs | self.needs
        data = StageData(self.sampler, self.prompts, [self.ratings], [self.kl], self.sampling, needs, steps)
        optimizer.bind(self.policy, steps)
        first = self.measure()
        curve, seconds, seen = [(0, first[0])], 0.0, 0
        for step in range(steps):
            seed_everything(step)
            data.begin(step)
            optimizer.progress = (step, steps)
            begun = time.perf_counter()
            optimizer.step(data)
            seconds += time.perf_counter() - begun
            seen = data.used * int(config.get("samples_per_prompt", 1)) * int(config.get("population", 1))
            if (step + 1) % (steps // 10) == 0:
                curve.append((100 * (step + 1) // steps, self.measure()[0]))
        objective, gold, kl = self.measure()
        way = (objective - first[0]) / (self.optimum - first[0])
        return {"curve": curve, "samples": seen, "seconds": seconds, "reward": gold, "kl": kl, "objective": objective,
                "optimum": self.optimum, "before": first[0], "way": way}  # fmt: skip


# --- tables and plots ------------------------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.3f} +- {error:.3f}"


def print_toy(task: str, found: dict[str, list[dict[str, Any]]]) -> None:
    print(f"\n{task}, {len(next(iter(found.values())))} seeds\n")
    print("| optimizer | samples to 90 % | seconds to 90 % | samples | reward at the end | KL |")
    print("|---|---|---|---|---|---|")
    for name, runs in found.items():
        if all(run["reached"] is not None for run in runs):
            samples = f"{statistics.mean(run['reached'] for run in runs):,.0f}"
            seconds = f"{statistics.mean(run['seconds_reached'] for run in runs):.1f}"
        else:
            reached = sum(run["reached"] is not None for run in runs)
            samples = seconds = f"{reached} of {len(runs)} seeds"
        end, kl = mean_and_error([run["reward"] for run in runs]), statistics.mean(run["kl"] for run in runs)
        print(f"| {name} | {samples} | {seconds} | {runs[0]['samples']:,} | {end} | {kl:.1f} |")


def print_desk(found: dict[str, list[dict[str, Any]]]) -> None:
    runs = next(iter(found.values()))
    optimum, before = (statistics.mean(run[key] for run in runs) for key in ("optimum", "before"))
    print(f"\ndesk, {len(runs)} seeds: gold - {KL_COEF} KL, {before:.3f} before, {optimum:.3f} at the optimum\n")
    print("| optimizer | objective | of the way | gold | KL |")
    print("|---|---|---|---|---|")
    for name, runs in found.items():
        cells = [mean_and_error([run["objective"] for run in runs]),
                 f"{statistics.mean(run['way'] for run in runs):.0%}", mean_and_error([run["reward"] for run in runs]),
                 f"{statistics.mean(run['kl'] for run in runs):.1f}"]  # fmt: skip
        print(f"| {name} | {' | '.join(cells)} |")


def plot(task: str, found: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    found = {name: runs for name, runs in found.items() if any(run["curve"] for run in runs)}
    if not found:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    styles = ["-", "--", ":"]
    for number, (name, runs) in enumerate(found.items()):
        runs = [run for run in runs if run["curve"]]
        places = [x for x, _ in runs[0]["curve"]]
        if runs[0]["samples"] and places[-1] == places[min(1, len(places) - 1)] and task != "desk":
            continue  # offline: all of its data is there from the start
        means = [statistics.mean(run["curve"][i][1] for run in runs) for i in range(len(places))]
        axes.plot(places, means, styles[number // 10 % 3], label=name, linewidth=1.4)
    axes.set_xlabel("% of the steps" if task == "desk" else "samples")
    axes.set_ylabel(f"gold - {KL_COEF} KL" if task == "desk" else "mean reward of fresh samples")
    if task == "desk":
        optimum = statistics.mean(run["optimum"] for run in next(iter(found.values())))
        axes.axhline(optimum, color="grey", linewidth=0.8, linestyle="--")
        axes.text(0, optimum, " optimum", va="bottom", color="grey", fontsize=8)
        before = statistics.mean(run["before"] for run in next(iter(found.values())))
        axes.set_ylim(before - 0.1, optimum + 0.03)  # ilql, which knows no KL, begins far below
    else:
        axes.axhline(0.9, color="grey", linewidth=0.8, linestyle="--")
        axes.set_xscale("symlog", linthresh=500)
        axes.set_xlim(left=0)
    seeds = max(sum(bool(run["curve"]) for run in runs) for runs in found.values())
    axes.set_title(f"{task}: mean over {seeds} seeds")
    axes.legend(fontsize=7, ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"learning-{task}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def table(task: str, found: dict[str, list[dict[str, Any]]], plots: Path) -> None:
    if found:
        (print_desk(found) if task == "desk" else print_toy(task, found))
        plot(task, found, plots)


def show(files: Sequence[Path], plots: Path) -> None:
    """Tables and plots of several --out files: of other seeds, or of other optimizers."""
    everything: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for file in files:
        for task, found in json.loads(file.read_text(encoding="utf-8")).items():
            for name, runs in found.items():
                everything.setdefault(task, {}).setdefault(name, []).extend(runs)
    for task, found in everything.items():
        table(task, {name: found[name] for name in LEARNERS if name in found}, plots)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *LEARNERS], help="optimizers; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=["first-token", "exact-string", "desk"],
                        default=["first-token", "exact-string", "desk"])  # fmt: skip
    parser.add_argument("--plots", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--out", type=Path, help="write everything to this JSON file as well")
    parser.add_argument("--read", type=Path, nargs="+", help="measure nothing; put such files together")
    args = parser.parse_args()
    if args.read:
        show(args.read, args.plots)
        return
    names = args.names or list(LEARNERS)
    everything: dict[str, Any] = {}
    for task in args.tasks:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for seed in args.seeds:
            desk = Desk(seed) if task == "desk" else None
            for name in names:
                run = desk.train(name, seed) if desk is not None else toy(task, name, seed)
                found[name].append(run)
                shown = {key: value for key, value in run.items() if key != "curve"}
                print(f"{task} {name} seed {seed}: {shown}", file=sys.stderr, flush=True)
        everything[task] = found
        table(task, found, args.plots)
    if args.out:
        args.out.write_text(json.dumps(everything), encoding="utf-8")


if __name__ == "__main__":
    main()
