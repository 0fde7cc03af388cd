"""Speed, side by side with TRL: steps, seconds to a reward, decoding, what the framework costs, how cost grows.

    python benchmarks/speed.py [--parts ppo learn groups generation overhead growth] [--repeats N]
                               [--venvs DIR] [--out FILE.json]
    python benchmarks/speed.py --read FILE.json [FILE.json ...]     # print the tables of earlier runs again

Sizes are S, a llama of 4 layers, width 256 and 1,024 words, and M, of 8 layers, width 512 and 8,192 words (heads of 64,
MLPs of three times the width, untied), with random weights. A step is 32 prompts of 32 tokens with exactly 64 new ones
(fixed), or 128 prompts with 24 on average, geometric, at most 128 (ragged); `speed_task.py` says how the model is made
to end there. Updates are of 8 samples, one epoch. Model, prompts, rule (a share of words, microseconds), learning rate,
batches and clips are the same on both sides; TRL 1.12.0 is the last with PPO, RLOO and GRPO are those of 1.16.0, with a
KL of .05 and none, as their defaults are. Two threads. Every run is a process of its own; ours and theirs take turns in
an order that changes, and one turn of all is a repeat. The first step of a run is left out, the median of the others
is its time; a ratio is theirs over ours within a repeat. Shown are the median, smallest and largest over repeats.

- ppo: `separate, fp32`: ours with a critic and a precision like TRL's; `separate`: our default precision; `defaults`:
  our default critic too, on the policy's trunk. `TRL, bf16` is TRL with its own mixed precision.
- learn: seconds of steps, all of them, until the mean score of the last three is .75 (a half to begin with).
- groups: RLOO and GRPO, 4 samples a prompt.
- generation: `policy.generate` against transformers' generate on the same weights, in one process. Tokens a second.
- overhead: our step against a plain torch loop (`speed_plain.py`) with the same arithmetic, in one process. The loop
  draws with `policy.generate` as well: what it leaves out is everything else.
- growth: our step with defaults, along one axis at a time; memory as memory.py takes it.

What is not the same, beside what peers.py tells of the algorithms:

- Random numbers, so the samples.
- TRL's PPO reads the rule off token ids; ours and TRL's other trainers decode to text first.
- ours has text as its interface, so prompts are tokenized and responses decoded within the timed step; in TRL's PPO
  prompts are tokenized before.
- `defaults` differ from TRL in what they do: values from the policy's trunk, lambda 1, a gradient
  of norm 1 at most. That is why `learn` is there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import speed_task as task
from peers import ALGORITHMS, environment, train

HERE = Path(__file__).resolve()
OURS, TRL = HERE.with_name("speed_ours.py"), HERE.with_name("speed_trl.py")
Record = dict[str, Any]

# what a part does: sides of ours as changes to a job, the peer's, cases as (algorithm, size, lengths, steps, repeats)
SIDES: dict[str, dict[str, Any]] = {
    "separate, fp32": {"precision": "fp32", "defaults": False},
    "separate": {"precision": None, "defaults": False},
    "defaults": {"precision": None, "defaults": True},
    "fp32": {"precision": "fp32", "defaults": False},
    "default precision": {"precision": None, "defaults": False},
    "TRL": {},
    "TRL, bf16": {"bf16": True},
}
CONTESTS: dict[str, list[tuple[str, str, str, int, int, tuple[str, ...]]]] = {
    "ppo": [
        ("ppo", "S", "fixed", 6, 3, ("TRL", "separate, fp32", "separate", "defaults", "TRL, bf16")),
        ("ppo", "M", "fixed", 3, 2, ("TRL", "separate, fp32", "separate", "defaults")),
        ("ppo", "S", "ragged", 3, 2, ("TRL", "separate, fp32", "defaults")),
    ],
    "groups": [
        *((name, "S", "fixed", 6, 3, ("TRL", "fp32", "default precision")) for name in ("rloo", "grpo")),
        *((name, "M", "fixed", 3, 1, ("TRL", "fp32", "default precision")) for name in ("rloo", "grpo")),
        *((name, "S", "ragged", 3, 2, ("TRL", "fp32", "default precision")) for name in ("rloo", "grpo")),
    ],
}  # fmt: skip
LEARN = {"target": 0.75, "steps": 60, "seeds": 3, "settings": {"learning_rate": 1e-3, "kl_coef": 0.002}}
GENERATION = {"ragged": 5, "fixed": 5}  # repeats
OVERHEAD = {"size": "S", "steps": 9}
# one axis at a time from a small centre
GROWTH: dict[str, Any] = {
    "centre": {"vocab_size": 1024, "hidden_size": 128, "num_hidden_layers": 2},
    "batch": {"max_new_tokens": 32, "values": [8, 32, 128, 512]},
    "length": {"samples": 8, "values": [32, 128, 512, 1024]},
    "vocabulary": {"samples": 16, "max_new_tokens": 32, "values": [1024, 8192, 32_768, 131_072]},
}
TOY: dict[str, Any] = {
    "GENERATION": {"ragged": 1}, "OVERHEAD": {"size": "toy", "steps": 2},
    "GROWTH": {"centre": task.SIZES["toy"], "batch": {"max_new_tokens": 4, "values": [8, 16]},
               "vocabulary": {"samples": 8, "max_new_tokens": 4, "values": [128, 256]}},
    "LEARN": {"target": 0.1, "steps": 3, "seeds": 1, "settings": {}},
}  # fmt: skip
GOALS: dict[tuple[str, str, str], float] = {
    ("ppo", "ppo S fixed", "separate, fp32"): 1.35, ("ppo", "ppo M fixed", "separate, fp32"): 1.10,
    ("ppo", "ppo S fixed", "separate"): 1.8, ("ppo", "ppo M fixed", "separate"): 1.5,
    ("ppo", "ppo S fixed", "defaults"): 2.7, ("ppo", "ppo M fixed", "defaults"): 2.7,
    ("ppo", "ppo S ragged", "defaults"): 2.5, ("learn", "ppo S free", "defaults"): 2.0,
    ("groups", "rloo S fixed", "fp32"): 1.25, ("groups", "grpo S fixed", "fp32"): 1.15,
    ("groups", "rloo S fixed", "default precision"): 1.7, ("groups", "grpo S fixed", "default precision"): 1.6,
    ("groups", "rloo S ragged", "default precision"): 2.5, ("groups", "grpo S ragged", "default precision"): 2.5,
    ("generation", "ragged", "fp32"): 3.0, ("generation", "ragged", "default precision"): 3.0,
    ("overhead", "ppo S fixed", "separate, fp32"): 1 / 1.05,
}  # fmt: skip
UNITS = {"ppo": "samples/s", "groups": "samples/s", "learn": "s", "generation": "tokens/s", "overhead": "samples/s"}


class Bench:
    """Jobs, each in a process of its own, and the models that they share."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work, self.jobs = options, work, 0

    def repeats(self, usual: int) -> int:
        return int(self.options.repeats or usual)

    def size(self, name: str) -> str:
        return "toy" if self.options.toy else name

    def run(self, job: Mapping[str, Any], peer: str | None = None) -> Record:
        """What a job answers; `peer`: TRL's version."""
        self.jobs += 1
        out = self.work / f"job-{self.jobs}"
        python = environment(peer, self.options.venvs) if peer else Path(sys.executable)
        threads = 1 if self.options.toy else task.THREADS
        job = {**job, "out": str(out), "threads": threads}
        found = train(job, python, TRL if peer else OURS, self.work, threads)
        shutil.rmtree(out)
        return found

    def start(self, size: str | Mapping[str, Any], lengths: str) -> str:
        """The folder of a model, made when it is first asked for."""
        name = size if isinstance(size, str) else "-".join(map(str, size.values()))
        folder = self.work / f"model-{name}-{lengths}"
        if not folder.exists():
            self.run({"kind": "make", "start": str(folder), "size": size, "ends": task.LENGTHS[lengths]["ends"]})
        return str(folder)

    def job(
        self, algorithm: str, size: str | Mapping[str, Any], lengths: str, steps: int, side: str, **changes: Any
    ) -> Record:
        """A run of so many steps; `changes` are those of its settings."""
        settings = task.settings(algorithm, lengths, steps, **changes)
        return {
            "kind": "steps", "algorithm": algorithm, "seed": 0, "until": None, "settings": settings,
            "start": self.start(size, lengths), "prompts": task.prompts(size, max(512, settings["prompts"])),
            "precision": None, "defaults": True, **SIDES[side],
        }  # fmt: skip


# --- parts: each yields records as soon as they are there ---


def contest(bench: Bench, part: str) -> Iterator[Record]:
    """ppo, groups."""
    for algorithm, size, lengths, steps, repeats, sides in CONTESTS[part]:
        case = f"{algorithm} {size} {lengths}"
        if bench.options.cases and case not in bench.options.cases:
            continue
        if bench.options.toy:
            steps, sides = 2, tuple(side for side in sides if not side.startswith("TRL"))
        for repeat in range(bench.repeats(repeats)):
            record: Record = {"part": part, "case": case, "repeat": repeat, "amount": {}, "seconds": {}, "runs": {}}
            for side in task.shuffled(sides, repeat):
                job = bench.job(algorithm, bench.size(size), lengths, steps, side)
                found = bench.run(job, ALGORITHMS[algorithm]["trl"] if side.startswith("TRL") else None)
                record["runs"][side], record["amount"][side] = found, task.LENGTHS[lengths]["samples"]
                record["seconds"][side] = statistics.median(found["seconds"][1:])
            yield record


def learn(bench: Bench) -> Iterator[Record]:
    for seed in range(bench.repeats(LEARN["seeds"])):
        record: Record = {"part": "learn", "case": "ppo S free", "repeat": seed, "seconds": {}, "runs": {}}
        for side in task.shuffled(("defaults",) if bench.options.toy else ("TRL", "defaults"), seed):
            job = bench.job("ppo", bench.size("S"), "free", LEARN["steps"], side, **LEARN["settings"])
            job.update(seed=seed, until=LEARN["target"])
            found = bench.run(job, "1.12.0" if side == "TRL" else None)
            taken = task.first_reaching(found["scores"], LEARN["target"])
            record["runs"][side] = {**found, "steps": taken}
            record["seconds"][side] = None if taken is None else sum(found["seconds"][:taken])
        yield record


def generation(bench: Bench) -> Iterator[Record]:
    for lengths, repeats in GENERATION.items():
        for side in ("fp32", "default precision"):
            job = bench.job("ppo", bench.size("S"), lengths, 1, side)
            count = task.LENGTHS[lengths]["samples"]
            job.update(kind="generation", repeats=bench.repeats(repeats), prompts=job["prompts"][:count])
            for repeat, found in enumerate(bench.run(job)["repeats"]):
                names = {"ours": side, "fp32": "generate, fp32", "bf16": "generate, bf16"}
                yield {"part": "generation", "case": lengths, "repeat": repeat,
                       "amount": {names[name]: one["tokens"] for name, one in found.items()},
                       "seconds": {names[name]: one["seconds"] for name, one in found.items()}}  # fmt: skip


def overhead(bench: Bench) -> Iterator[Record]:
    job = bench.job("ppo", OVERHEAD["size"], "fixed", OVERHEAD["steps"], "separate, fp32", max_grad_norm=1e9)
    found = bench.run({**job, "kind": "overhead"})
    for repeat, (ours, plain) in enumerate(zip(found["seconds"][1:], found["plain"][1:], strict=True)):
        count = job["settings"]["prompts"]
        yield {"part": "overhead", "case": "ppo S fixed", "repeat": repeat,
               "amount": {"separate, fp32": count, "plain loop": count},
               "seconds": {"separate, fp32": ours, "plain loop": plain}}  # fmt: skip


def growth(bench: Bench) -> Iterator[Record]:
    key = {"batch": "samples", "length": "max_new_tokens", "vocabulary": "vocab_size"}
    for axis in (name for name in GROWTH if name != "centre"):
        rest = dict(GROWTH[axis])
        for value in rest.pop("values"):
            shape = {**rest, key[axis]: value}
            size = {**GROWTH["centre"], **({"vocab_size": value} if axis == "vocabulary" else {})}
            count, steps = shape.get("samples"), 3
            changes = {"prompts": count, "samples": count * steps, "max_new_tokens": shape["max_new_tokens"]}
            found = bench.run({**bench.job("ppo", size, "fixed", steps, "defaults", **changes), "kind": "growth"})
            yield {"part": "growth", "axis": axis, "value": value, "samples": count,
                   "tokens": shape["max_new_tokens"], "seconds": statistics.median(found["seconds"][1:]),
                   "memory": found["memory"]}  # fmt: skip


PARTS = {
    "ppo": lambda bench: contest(bench, "ppo"), "learn": learn, "groups": lambda bench: contest(bench, "groups"),
    "generation": generation, "overhead": overhead, "growth": growth,
}  # fmt: skip


# --- tables ---


def peer_of(record: Record, side: str) -> str | None:
    """Whom a side of ours is compared with; None: it is a peer itself."""
    if side.startswith(("TRL", "generate", "plain")):
        return None
    return next((name for name in ("TRL", "generate, fp32", "plain loop") if name in record["seconds"]), None)


def rate(record: Record, side: str) -> float | None:
    """What a side does in a second; where no amount is told, it is one thing that is done."""
    seconds = record["seconds"][side]
    return record.get("amount", {}).get(side, 1) / seconds if seconds else None


def table(found: Sequence[Record], part: str) -> str:
    """A Markdown table: a row per case and side, with the ratio to the peer, its spread, the goal and a verdict."""
    unit = UNITS[part]
    lines = [f"| {part} | | {unit} | ratio | spread | goal | verdict |", "|---" * 7 + "|"]
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        if record["part"] == part:
            for side in record["seconds"]:
                groups.setdefault((record["case"], side), []).append(record)
    for (case, side), records in sorted(groups.items(), key=lambda item: (item[0][0], rank(item[0][1]))):
        rates = [rate(record, side) for record in records]
        known = [1 / r if unit == "s" else r for r in rates if r]
        shown = f"{statistics.median(known):,.1f}" if known else "not reached"
        if 0 < len(known) < len(rates):
            shown += f" ({len(known)} of {len(rates)})"
        peer = peer_of(records[0], side)
        cells = ["", "", "", ""] if peer is None else against(records, side, peer, GOALS.get((part, case, side)))
        lines.append(f"| {' | '.join([case, side, shown, *cells])} |")
    return "\n".join(lines)


def rank(side: str) -> tuple[bool, int]:
    """Peers first, then ours as SIDES has them."""
    names = list(SIDES)
    return side in names and not side.startswith("TRL"), names.index(side) if side in names else len(names)


def against(records: Sequence[Record], side: str, peer: str, goal: float | None) -> list[str]:
    """Ratio, spread, goal and verdict; a repeat in which the peer alone never got there counts as infinitely better."""
    ratios = []
    for record in records:
        ours, theirs = rate(record, side), rate(record, peer)
        if ours is not None or theirs is not None:
            ratios.append(0.0 if ours is None else float("inf") if theirs is None else ours / theirs)
    if not ratios:
        return ["?", "", f"{goal:.2f}" if goal else "", "?"]
    middle = statistics.median(ratios)
    verdict = "" if goal is None else "reached" if middle >= goal else "missed"
    return [f"{middle:.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}", f"{goal:.2f}" if goal else "", verdict]


def growth_table(found: Sequence[Record]) -> str:
    """A row per point. Own: weights, reference, gradients, moments; rest: of the peak, beside that and the imports."""
    lines = ["| axis | | s a step | ms a sample | µs a token | peak, MB | own | rest |", "|---" * 8 + "|"]
    for record in found:
        if record["part"] != "growth":
            continue
        seconds, kept, samples = record["seconds"], record["memory"], record["samples"]
        own = kept["peak"] - kept["imports"] - kept["rest"]
        cells = [record["axis"], f"{record['value']:,}", f"{seconds:.3f}", f"{1e3 * seconds / samples:.1f}",
                 f"{1e6 * seconds / samples / record['tokens']:.0f}",
                 *(f"{megabytes:,.0f}" for megabytes in (kept["peak"], own, kept["rest"]))]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *flatness(found)])


def flatness(found: Sequence[Record]) -> Iterator[str]:
    """How much of the growth of memory with the vocabulary is not the model's own; goal: a tenth at most."""
    ends = [record["memory"] for record in found if record["part"] == "growth" and record["axis"] == "vocabulary"]
    if len(ends) > 1:
        first, last = ends[0], ends[-1]
        rest, peak = (last[name] - first[name] for name in ("rest", "peak"))
        verdict = "reached" if rest <= 0.1 * max(peak, 0) else "missed"
        yield f"\nFrom the smallest vocabulary to the largest the peak grows by {peak:,.0f} MB, the rest by"
        yield f"{rest:,.0f} MB (goal: flat, read as a tenth of that at most): {verdict}."


def tables(found: Sequence[Record]) -> str:
    parts = dict.fromkeys(record["part"] for record in found)
    return "\n\n".join(growth_table(found) if part == "growth" else table(found, part) for part in parts)


def write(path: Path, found: Sequence[Record], seconds: Mapping[str, float]) -> None:
    versions = {name: importlib.metadata.version(name) for name in ("rlhf-core", "torch", "transformers")}
    document = {"python": sys.version.split()[0], "machine": f"{platform.machine()}, {os.cpu_count()} processors",
                "threads": task.THREADS, "versions": versions, "part_seconds": seconds, "records": found}  # fmt: skip
    path.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--cases", nargs="+", help="of ppo and groups, only these, such as 'ppo S fixed'")
    parser.add_argument("--repeats", type=int, help="of each case, instead of each part's own number")
    parser.add_argument("--venvs", type=Path, default=Path("~/.cache/rlhf-core-peers"), help="where they are kept")
    parser.add_argument("--out", type=Path, help="write what is found to this JSON file, after every repeat")
    parser.add_argument("--read", type=Path, nargs="+", help="print the tables of such files; nothing is run")
    parser.add_argument("--toy", action="store_true", help="ours alone with a toy, to see that the script runs")
    options = parser.parse_args()
    if options.read:
        print(tables([record for path in options.read for record in json.loads(path.read_text())["records"]]))
        return
    if options.toy:
        globals().update(TOY)
        task.LENGTHS["fixed"].update(samples=8, max_new_tokens=4)
        task.LENGTHS["ragged"].update(samples=8, max_new_tokens=8)
    options.venvs = options.venvs.expanduser().resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whoever stops this stops what it started too
    found: list[Record] = []
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rlhf-speed-") as scratch:
        bench = Bench(options, Path(scratch))
        for part in options.parts:
            begun = time.perf_counter()
            for record in PARTS[part](bench):
                found.append(record)
                print(json.dumps({k: v for k, v in record.items() if k != "runs"}), file=sys.stderr, flush=True)
                seconds[part] = time.perf_counter() - begun
                if options.out:
                    write(options.out, found, seconds)
    print(tables(found))
    print("\nSeconds a part: " + ", ".join(f"{part} {value:,.0f}" for part, value in seconds.items()))


if __name__ == "__main__":
    main()
