"""On one GPU: a 1B step beside TRL's, decoding against the memory's bandwidth, where a step goes, and 8B in 4 bits.

    python benchmarks/gpu.py [--parts step share decoding qlora] [--seconds 540] [--before FILE.json] [--out FILE.json]
    python benchmarks/gpu.py --read FILE.json [--before FILE.json]  # print the tables of an earlier run again
    python benchmarks/gpu.py --tiny                                 # the same script with a toy, on the CPU

For a card of 24 to 80 GB, with 6 GB free where temporary files go. All of it keeps to --seconds: what is left is
divided among the parts that are left, a part that no longer fits is skipped, and one that takes longer is stopped and
keeps what it has. Both are said. The JSON is written after every job. Every job is a process of its own, so what one
leaves on the card is gone before the next.

- step: RLOO of a llama of 1B (the shape of Llama 3.2 1B, random weights, tied, all in bf16: gradients and moments
  too) against TRL's RLOO with transformers' generate, as it is by default. 16 prompts of 128 tokens, 4 responses of
  256 to each, updates of 8, a KL of .05. Ours and theirs take turns. The first step of a run is left out, the median
  of the others is its time; a ratio is theirs over ours within a repeat.
- share: the same step with `profile=True`: where it goes. Waiting at the borders of phases costs a little.
- decoding: tokens per second of `policy.generate` with every engine, and of transformers' generate on the same weights,
  at three batch sizes, beside what the memory allows: at every token all weights are read once, and of the cache all
  that is there, at the bandwidth of a large copy on the card. Reading the prompts counts in the time, not in that
  bound, and so does what ours does beyond drawing: log-probabilities of every token (`continuous` needs a forward
  pass for them) and text.
- qlora: PPO of 8B, four roles on one base in 4 bits (`gpu_qlora.py`); --before is the JSON of an earlier run of this
  script, or of its first version, and stands beside.

What is not the same in `step`, beside what peers.py tells of RLOO:

- Random numbers, so the samples. A response ends early with a probability of about 1 in 128,000 at every token.
- ours draws with its own engine and cuts updates by tokens; TRL draws with generate and takes 8 rows whole. Both use
  torch's fused AdamW, no checkpointing of activations, and log-probabilities in chunks of the vocabulary.
- TRL's reference is a second model, ours a copy of the weights that is swapped in. Ours also writes that copy to the
  disk, and TRL loads its own, before the second step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gpu_task as task
from gpu_table import STEP_GOAL, tables
from memory import prompts
from speed_task import shuffled

HERE = Path(__file__).resolve()
Record = dict[str, Any]


class NoTime(Exception):
    """What is left is less than a job needs."""


class Bench:
    """Jobs, each in a process of its own, and the time that is left for them."""

    def __init__(self, tiny: bool, seconds: float, work: Path) -> None:
        self.tiny, self.work, self.jobs = tiny, work, 0
        self.sizes, self.device = task.SIZES["tiny" if tiny else "large"], "cpu" if tiny else "cuda"
        self.end = self.part_end = time.monotonic() + seconds

    def divide(self, part: str, left: list[str]) -> None:
        """Give `part` its share of the time, beside the parts that are `left` after it."""
        now = time.monotonic()
        share = task.WEIGHTS[part] / sum(task.WEIGHTS[name] for name in [part, *left])
        self.part_end = now + share * (self.end - now)

    def run(self, kind: str, script: str = "gpu_ours.py", **changes: Any) -> Record:
        """What a job answers; with `error` or `cut` where it failed or ran out of time, and what it had until then.

        Raises:
            NoTime: there is too little left to begin.
        """
        left, needed = self.part_end - time.monotonic(), 0 if self.tiny else task.NEEDS[kind]
        if left < max(needed, 1):
            raise NoTime(f"{max(left, 0):.0f} s are left for it, and {needed} are needed")
        self.jobs += 1
        out = self.work / f"job-{self.jobs}"
        out.mkdir()
        job = {"kind": kind, "out": str(out), "device": self.device, "sizes": self.sizes, "seed": 0, "profile": False,
               "start": str(self.work / "model"), "threads": 1 if self.tiny else None, **changes}  # fmt: skip
        (out / "job.json").write_text(json.dumps(job))
        found: Record = {}
        with (out / "log.txt").open("w") as log:
            command = [sys.executable, str(HERE.with_name(script)), "--job", str(out / "job.json")]
            try:
                code = subprocess.run(
                    command, env=self.environment(), cwd=self.work, stdout=log, stderr=log, timeout=left
                ).returncode
            except subprocess.TimeoutExpired:
                code, found["cut"] = 0, True
        if (out / "answer.json").exists():
            found |= json.loads((out / "answer.json").read_text())
        if code:
            found["error"] = (out / "log.txt").read_text()[-1500:]
            print(f"{kind} failed:\n{found['error']}", file=sys.stderr, flush=True)
        shutil.rmtree(out)  # a reference of 1B is 2.5 GB
        return found

    def environment(self) -> dict[str, str]:
        """One card, and nothing from the network."""
        chosen = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        if self.tiny:
            chosen |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        else:
            chosen["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return {**os.environ, **chosen}

    def step(self, side: str, profile: bool = False) -> Record:
        """A run of the 1B step by "ours" or "TRL"."""
        sizes = self.sizes["step"]
        settings = task.settings(sizes)
        count = settings["prompts"] * sizes["steps"]
        texts = prompts(count, sizes["prompt_tokens"], self.sizes["model"]["vocab_size"])
        script = "gpu_trl.py" if side == "TRL" else "gpu_ours.py"
        return self.run("step", script, settings=settings, prompts=texts, profile=profile)


# --- parts: each yields its record as often as there is more in it ---


def step(bench: Bench) -> Iterator[Record]:
    sizes = bench.sizes["step"]
    found: Record = {"goal": STEP_GOAL, "samples": sizes["samples"], "runs": [], "ratios": []}
    for repeat in range(sizes["repeats"]):
        seconds: dict[str, float] = {}
        for side in shuffled(("ours", "TRL"), repeat):
            run = bench.step(side)
            found["runs"].append({"side": side, "repeat": repeat, **run})
            if len(run.get("seconds", ())) > 1:
                found["runs"][-1]["median"] = seconds[side] = statistics.median(run["seconds"][1:])
            if len(seconds) == 2:
                found["ratios"].append(seconds["TRL"] / seconds["ours"])
            yield found


def share(bench: Bench) -> Iterator[Record]:
    run = bench.step("ours", profile=True)
    steps = run.get("phases", [])[1:]
    if steps:
        sums = {name: statistics.fmean(one.get(name, 0.0) for one in steps) for name in steps[-1]}
        run.update(seconds_of=sums, decoding=sums["generation"] / sum(sums.values()))
    yield run


def decoding(bench: Bench) -> Iterator[Record]:
    sizes = bench.sizes["decoding"]
    found = bench.run("decoding")
    found["bound"] = {}
    if "weight_bytes" in found:
        found["bound"] = {str(batch): bound(found, batch, sizes) for batch in sizes["batches"]}
    for cell in found.get("cells", ()):
        if cell["seconds"]:
            rates = (tokens / seconds for tokens, seconds in zip(cell["tokens"], cell["seconds"], strict=True))
            cell["tokens_per_second"] = statistics.median(rates)
            cell["of_bound"] = cell["tokens_per_second"] / found["bound"][str(cell["batch"])]
    yield found


def bound(found: Mapping[str, Any], batch: int, sizes: Mapping[str, Any]) -> float:
    """Tokens per second of `batch` rows if reading weights and cache were all there is to do."""
    prompt, new = sizes["prompt_tokens"], sizes["max_new_tokens"]
    cached = sum(range(prompt, prompt + new))  # tokens of a row that are read, over all its steps
    read = new * found["weight_bytes"] + batch * cached * found["cache_bytes"]
    return float(batch * new * found["bytes_per_second"] / read)


def qlora(bench: Bench) -> Iterator[Record]:
    yield bench.run("qlora", "gpu_qlora.py")


PARTS: dict[str, Callable[[Bench], Iterator[Record]]] = {
    "step": step, "share": share, "decoding": decoding, "qlora": qlora
}  # fmt: skip


def measure(options: argparse.Namespace, bench: Bench) -> Record:
    """All parts that are asked for and fit; --out has them from the first job on."""
    begun = time.monotonic()
    wanted = [part for part in PARTS if part in options.parts]
    head = bench.run("begin", start=str(bench.work / "model") if set(wanted) - {"qlora"} else None)
    if head.get("missing"):
        raise SystemExit("no GPU that torch can use; --tiny runs the same script with a toy on the CPU")
    if "card" not in head or "error" in head:
        raise SystemExit("the model could not be made: it failed, as told above, or took all the time there is")
    document: Record = {**head, "made": time.strftime("%Y-%m-%d"), "seconds_allowed": options.seconds,
                        "sizes": bench.sizes, "skipped": {}, "part_seconds": {}}  # fmt: skip

    def write() -> None:
        document["seconds"] = time.monotonic() - begun
        if options.out:
            task.write_json(options.out, document)

    write()
    for number, part in enumerate(wanted):
        bench.divide(part, wanted[number + 1 :])
        started = time.monotonic()
        try:
            for record in PARTS[part](bench):
                document[part], document["part_seconds"][part] = record, time.monotonic() - started
                write()
        except NoTime as reason:
            document["skipped"][part] = f"{'the rest of it: ' if part in document else ''}{reason}"
        write()
    return document


def failed(document: Mapping[str, Any]) -> bool:
    """Whether a process failed: a way to decode that cannot is no failure, and neither is what found no time."""
    records = [document[part] for part in PARTS if part in document]
    return any("error" in one for record in records for one in (record, *record.get("runs", ())))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seconds", type=float, default=540.0, help="that all of it may take")
    parser.add_argument("--before", type=Path, help="the JSON of an earlier run, whose 8B step is shown beside")
    parser.add_argument("--tiny", action="store_true", help="a toy on the CPU, to see that the script runs")
    parser.add_argument("--out", type=Path, help="write what is found to this JSON file, after every job")
    parser.add_argument("--read", type=Path, help="print the tables of such a file; nothing is run")
    options = parser.parse_args()
    before = json.loads(options.before.read_text()) if options.before else None
    if options.read:
        print(tables(json.loads(options.read.read_text()), before))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whoever stops this stops what it started too
    with tempfile.TemporaryDirectory(prefix="rlhf-gpu-") as scratch:
        document = measure(options, Bench(options.tiny, options.seconds, Path(scratch)))
    print(tables(document, before))
    if failed(document):
        raise SystemExit("a part failed; its error is above and in the JSON")


if __name__ == "__main__":
    main()
