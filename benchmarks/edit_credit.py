"""Does it pay to tell PPO which words people would change? The help desk, with and without the edit reward's spans.

    python benchmarks/edit_credit.py [--seeds 0 1 2] [--steps 40] [--span-weights 1 0.5 0] [--lam 1.0] [--out FILE]

For each seed the policy learns from the demonstrations and the reward `edited` of registry.yaml is fitted, once. Then
PPO starts from there once per span weight, with the same prompts, random numbers and score: at 1 every word earns its
credit as it is said, at 0 the whole score comes at the end. Counted are steps until the gold score of a step's 64
replies, averaged over five steps, first reaches a target; `held out` is gold on the held-out prompts after the last
step. Nothing but this measurement reads the rule behind gold.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "desk"))
TARGETS = (0.70, 0.75, 0.80, 0.85)
WINDOW = 5


def gold_of(samples: Any) -> float:
    from gold import gold

    topics = [s.prompt.fields["topic"] for s in samples]
    found = gold([s.prompt.text for s in samples], [s.response for s in samples], topic=topics)
    return sum(found) / len(found)


def prepare(seed: int) -> tuple[Any, Any]:
    """A policy after sft, and a fitted reward."""
    from rlhf_core import load
    from rlhf_core.interfaces import Context, Schedule, SupervisedConfig
    from rlhf_core.training import fit_task

    policy = load(ROOT / "registry.yaml").build("policy", "desk-lm", Context(seed=seed, warn=lambda words: None))
    find = policy.context.component
    sft = SupervisedConfig(epochs=5, learning_rate=Schedule(schedule="cosine", start=2e-3, warmup=10))
    fit_task(policy.demonstrations(find("feedback", "desk-demonstrations"), held_out=0.1), sft, policy.context)
    reward = find("reward", "edited")
    metrics = reward.fit(find("feedback", "desk-edits"))
    told = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("accuracy", "credit_auc", "credit_slope"))
    print(f"seed {seed}, held-out edits: {told}", file=sys.stderr)
    return policy, reward


def improve(start: Any, fitted: Any, *, steps: int, span_weight: float, lam: float, kl: float) -> list[float]:
    """Gold of each step's replies, and at last of replies to the held-out prompts."""
    from rlhf_core.interfaces import Sampling
    from rlhf_core.randomness import derive_seed, seed_everything
    from rlhf_core.rl.data import StageData
    from rlhf_core.rl.rewards import RewardMix
    from rlhf_core.rl.sampler import Sampler

    def anew(component: Any, **changes: Any) -> Any:
        return type(component)(component.config.model_copy(update=changes), component.context)

    find = start.context.component
    policy, reward = anew(start), anew(fitted, span_weight=span_weight)
    policy.load_state_dict(start.state_dict())
    reward.load_state_dict(fitted.state_dict())
    optimizer, shaper = anew(find("optimizer", "ppo"), lam=lam), anew(find("shaper", "kl"), coef=kl)
    policy.prepare(optimizer.config.needs)
    policy.set_reference("stage-start")
    optimizer.bind(policy, steps)
    context, sampling = start.context.named("stage", "optimize"), Sampling(max_new_tokens=48)
    mix = RewardMix({"edited": reward, "no-repeats": find("reward", "no-repeats")}, {"edited": 1.0, "no-repeats": 2.0})
    sampler = Sampler(policy, find("environment", "single-turn"), mix, context)
    needs = optimizer.config.needs | shaper.config.needs
    data = StageData(sampler, find("prompts", "desk"), [], [shaper], sampling, needs)

    curve: list[float] = []
    rollout = data.rollout

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = rollout(*args, **kwargs)
        curve.append(gold_of(found.samples))
        return found

    data.rollout = watched  # type: ignore[method-assign]
    for step in range(steps):
        seed_everything(derive_seed(context.seed, "step", step))
        data.begin(step)
        optimizer.step(data)
    held_out = find("prompts", "desk-held-out")
    prompts = [held_out[i] for i in range(len(held_out))]
    return [*curve, gold_of(policy.generate(prompts, sampling, seed=derive_seed(context.seed, "held out")).samples)]


def reached(curve: list[float], target: float) -> int | None:
    """The first step at which the mean of the last `WINDOW` steps is at least `target`."""
    means = [sum(curve[i - WINDOW : i]) / WINDOW for i in range(WINDOW, len(curve) + 1)]
    return next((i + WINDOW for i, mean in enumerate(means) if mean >= target), None)


def show(curves: dict[int, list[list[float]]], weights: list[float], steps: int) -> None:
    """A row per seed, one number per span weight in each cell; and the ratios to the last weight."""
    print(f"Span weights {' / '.join(f'{weight:g}' for weight in weights)}; > {steps}: not reached.\n")
    print("| seed | " + " | ".join(f"steps to {target:.2f}" for target in TARGETS) + " | mean gold | held out |")
    print("|---|" + "---|" * (len(TARGETS) + 2))
    for seed, arms in curves.items():
        cells = [" / ".join(str(reached(arm[:-1], target) or f"> {steps}") for arm in arms) for target in TARGETS]
        cells.append(" / ".join(f"{sum(arm[:-1]) / steps:.3f}" for arm in arms))
        cells.append(" / ".join(f"{arm[-1]:.3f}" for arm in arms))
        print(f"| {seed} | {' | '.join(cells)} |")
    print()
    for place, weight in enumerate(weights[:-1]):
        for target in TARGETS:
            pairs = [(reached(arms[place][:-1], target), reached(arms[-1][:-1], target)) for arms in curves.values()]
            ratios = [math.log((a or steps) / (b or steps)) for a, b in pairs if a or b]
            late = sum((a is None) != (b is None) for a, b in pairs)
            if ratios:
                note = f"; {late} counted as {steps} though it was not reached" if late else ""
                ratio = math.exp(sum(ratios) / len(ratios))
                print(f"{weight:g} against {weights[-1]:g}, steps to {target:.2f}: ratio {ratio:.2f}{note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--span-weights", type=float, nargs="+", default=[1.0, 0.0], help="the last is compared with")
    parser.add_argument("--lam", type=float, default=1.0, help="lambda of GAE; 1 is PPO's default with a shared critic")
    parser.add_argument("--kl", type=float, default=0.2, help="weight of the KL penalty")
    parser.add_argument("--out", type=Path, help="where to write the curves")
    args = parser.parse_args()

    curves: dict[int, list[list[float]]] = {}
    for seed in args.seeds:
        policy, reward = prepare(seed)
        curves[seed] = []
        for weight in args.span_weights:
            begun = time.perf_counter()
            arm = improve(policy, reward, steps=args.steps, span_weight=weight, lam=args.lam, kl=args.kl)
            curves[seed].append(arm)
            print(f"seed {seed}, span_weight {weight:g}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
            if args.out:
                args.out.write_text(json.dumps(curves), encoding="utf-8")
    show(curves, args.span_weights, args.steps)


if __name__ == "__main__":
    main()
