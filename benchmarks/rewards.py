"""Does each reward agree with what people meant? The help desk's feedback, simulated from a known truth, anew per seed.

    python benchmarks/rewards.py [--seeds 0 1 2] [NAME ...]

For each seed all feedback is made again, the policy learns from its demonstrations, and each reward of registry.yaml
is fitted on its own kind of feedback. Then it scores replies nobody has seen, to prompts kept out of all; what is
printed is the rank correlation (Spearman) with the truth, over all replies and their prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
DESK = ROOT / "examples" / "desk"
sys.path.insert(0, str(DESK))

# name -> reward and feedback of registry.yaml, the truth, and the least correlation that is asked for
REWARDS: dict[str, tuple[str, str, str, float | None]] = {
    "comparison": ("helpful", "desk-comparisons", "gold", 0.85),
    "ranking": ("ranked", "desk-rankings", "gold", 0.85),
    "rating": ("rated", "desk-ratings", "gold", 0.85),
    "edit": ("edited", "desk-edits", "gold", 0.80),
    "IRL": ("expert-like", "desk-expert", "gold", None),
    "linear": ("linear", "desk-comparisons", "gold", 0.80),
    "keywords": ("wanted", "desk-keywords", "tone", 0.80),
    "sentiment": ("pleasant", "desk-sentiment", "tone", 0.80),
}


def fresh_replies(seed: int, count: int = 4) -> list[Any]:
    """Replies of mixed quality, as in the feedback, to the held-out prompts: `count` to each."""
    from making.replies import draw_text
    from rlhf_core.records import Prompt, Sample

    rng = Random(f"fresh {seed}")
    samples = []
    for line in (DESK / "data" / "held_out.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = Prompt(text=row["prompt"], fields={"topic": row["topic"]})
        samples += [Sample(prompt, draw_text(rng, row["topic"])) for _ in range(count)]
    return samples


def measure(seed: int, names: list[str]) -> dict[str, tuple[float, float]]:
    """name -> (Spearman, seconds of fitting)."""
    import gold
    import torch
    from make_data import make
    from rlhf_core import load
    from rlhf_core.functional import rank_correlation
    from rlhf_core.interfaces import Context, Schedule, SupervisedConfig
    from rlhf_core.training import fit_task

    samples = fresh_replies(seed)
    columns = [[s.prompt.text for s in samples], [s.response for s in samples]]
    topics = [s.prompt.fields["topic"] for s in samples]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "registry.yaml", folder)
        data = shutil.copytree(DESK, Path(folder, "examples", "desk")) / "data"
        for name, rows in make(seed).items():
            (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        policy = load(Path(folder, "registry.yaml")).build("policy", "desk-lm", Context(seed=seed))
        find = policy.context.component
        sft = SupervisedConfig(epochs=5, learning_rate=Schedule(schedule="cosine", start=2e-3, warmup=10))
        fit_task(policy.demonstrations(find("feedback", "desk-demonstrations"), held_out=0.1), sft, policy.context)
        found = {}
        for name in names:
            reward, feedback, truth, _ = REWARDS[name]
            start = time.perf_counter()
            model = find("reward", reward)
            model.fit(find("feedback", feedback))
            seconds = time.perf_counter() - start
            true = getattr(gold, truth)(*columns, topic=topics)
            found[name] = rank_correlation(model.score(samples).values, torch.tensor(true)), seconds
            print(f"seed {seed} {name}: {found[name][0]:.3f}, {seconds:.0f} s", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("names", nargs="*", choices=[[], *REWARDS], help="rewards; by default all")
    args = parser.parse_args()
    names = args.names or list(REWARDS)
    found = [measure(seed, names) for seed in args.seeds]
    print(f"| reward | truth | {' | '.join(f'seed {seed}' for seed in args.seeds)} | least asked | seconds |")
    print("|---|---|" + "---|" * (len(args.seeds) + 2))
    for name in names:
        cells = " | ".join(f"{row[name][0]:.3f}" for row in found)
        asked, seconds = REWARDS[name][3], sum(row[name][1] for row in found) / len(found)
        print(f"| {name} | {REWARDS[name][2]} | {cells} | {'' if asked is None else f'{asked:.2f}'} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
