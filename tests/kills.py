"""Kills runs of tiny pipelines with SIGKILL at seeded moments, resumes them, and compares with a run that was left alone.

One process imports everything and forks the runs, so that a life costs a second. Moments are counted: in a life that
is left alone (how many of each kind there are), and then in each life that is to end at the n-th of a kind. Kinds:

- generation: before a forward pass while responses are drawn
- update: before and after a forward pass, a backward pass, or a step of an optimizer, in a step's update
- checkpoint: before and after each file is made, written, synced, renamed or removed; and within a half-written file
- between: before and after the same file operations outside of steps and checkpoints (logs, references, kept
  components, the registry, the summary), within half a line of a log, in the set-up of a stage, and in the export

    python tests/kills.py PIPELINE... [--moments N] [--seed N] [--write docs/reliability.md]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core.api import Project, load
from rlhf_core.runs.display import Display

KINDS = ("generation", "update", "checkpoint", "between")
START, END = "<!-- kills -->", "<!-- end of kills -->"

REGISTRY = """\
schema_version: 1
components:
  policy:
    tiny:
      use: causal-lm
      config:
        fresh: &fresh
          architecture: gpt2
          sizes: {n_embd: 16, n_layer: 1, n_head: 2, n_positions: 64}
          tokenizer: {text: [demos], vocab_size: 270}
    adapters: {use: causal-lm, config: {fresh: *fresh, lora: {r: 4, dropout: 0.1}, critic: adapter}}
    four-bit:
      use: qlora
      config:
        fresh:
          architecture: llama
          sizes: {hidden_size: 64, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2,
                  num_key_value_heads: 1, max_position_embeddings: 64, initializer_range: 0.1}
          tokenizer: {text: [demos], vocab_size: 270}
        lora: {r: 4, dropout: 0.1}
        critic: adapter
  feedback:
    demos: {use: demonstrations, config: {path: demos.jsonl}}
    rated: {use: rating, config: {path: rated.jsonl}}
  prompts:
    questions: {use: jsonl, config: {path: prompts.jsonl}}
  reward:
    short: {use: length, config: {target: 6, tolerance: 0.5}}
    expert:
      use: irl
      config: {policy: tiny, algorithm: airl, demonstrations: demos, samples_from: tiny, batch_size: 8, epochs: 1,
               samples_per_demonstration: 1, sampling: {max_new_tokens: 5}, learning_rate: 3e-3}
  shaper:
    kl: {use: kl, config: {target: 2.0, horizon: 50}}
    scale: {use: scale, config: {center: true, clip: 5.0}}
    level: {use: prompt-baseline}
  optimizer:
    ppo: {use: ppo, config: {prompts_per_step: 4, minibatch_size: 2, learning_rate: {schedule: cosine, start: 3e-3}}}
    ppo-8bit: {use: ppo, config: {prompts_per_step: 4, minibatch_size: 4, learning_rate: 3e-3, adamw: 8bit}}
    reinforce: {use: reinforce, config: {prompts_per_step: 4, minibatch_size: 4, learning_rate: 3e-3}}
    a2c: {use: a2c, config: {prompts_per_step: 4, minibatch_size: 4, learning_rate: 3e-3}}
    acer: {use: acer, config: {prompts_per_step: 4, capacity: 6, replay_ratio: 2, learning_rate: 3e-3}}
    trpo: {use: trpo, config: {prompts_per_step: 4, learning_rate: 3e-3, cg_iterations: 3}}
    es: {use: es, config: {prompts_per_step: 2, population: 4, sigma: 0.05, learning_rate: 0.05}}
    ilql: {use: ilql, config: {batch_size: 4, learning_rate: 3e-3}}
pipelines:
  ppo:
    policy: tiny
    device: cpu
    precision: fp32
    checkpoint_every: 2
    stages:
      - sft: {feedback: [demos], epochs: 1, batch_size: 8, learning_rate: 3e-3, held_out: 0.2}
      - optimize:
          optimizer: ppo
          prompts: questions
          rewards: {short: 1.0}
          shapers: [scale, level, kl]
          steps: 6
          sampling: {max_new_tokens: 5, temperature: {schedule: linear, start: 1.0, end: 0.7}}
          evaluate_every: 2
          evaluation: {prompts: questions, metrics: [reward, kl], limit: 2}
          best: reward
      - evaluate: {prompts: questions, metrics: [reward, kl], samples: 2}
      - export
  reinforce: {extends: ppo, override: {stages.optimize.optimizer: reinforce}}
  a2c: {extends: ppo, override: {stages.optimize.optimizer: a2c}}
  acer: {extends: ppo, override: {stages.optimize.optimizer: acer}}
  trpo: {extends: ppo, override: {stages.optimize.optimizer: trpo}}
  es: {extends: ppo, override: {stages.optimize.optimizer: es}}
  ilql:
    extends: ppo
    override:
      stages.optimize.optimizer: ilql
      stages.optimize.prompts: null
      stages.optimize.feedback: [rated]
      stages.optimize.shapers: []
      stages.optimize.rewards: {short: 1.0}
  ppo-adapters: {extends: ppo, policy: adapters}
  ppo-qlora: {extends: ppo, policy: four-bit, override: {stages.optimize.optimizer: ppo-8bit}}
  ppo-airl:
    policy: tiny
    device: cpu
    precision: fp32
    checkpoint_every: 2
    stages:
      - sft: {feedback: [demos], epochs: 1, batch_size: 8, learning_rate: 3e-3}
      - fit-reward: {reward: expert, feedback: [demos]}
      - optimize: {optimizer: ppo, prompts: questions, rewards: {expert: 1.0}, shapers: [kl], steps: 6,
                   sampling: {max_new_tokens: 5}}
      - evaluate: {prompts: questions, metrics: [reward, kl], samples: 2}
      - export
"""
PIPELINES = ("ppo", "reinforce", "a2c", "acer", "trpo", "es", "ilql", "ppo-adapters", "ppo-qlora", "ppo-airl")


def write_project(folder: Path) -> None:
    """The registry and its data."""
    (folder / "registry.yaml").write_text(REGISTRY)
    words = ["parcel", "password", "printer", "refund", "login", "screen"]
    rows = [{"prompt": f"my {w} {n}:", "response": f" see the {w} page"} for w in words for n in "ab"]
    rated = [{**row, "rating": 1 + i % 5} for i, row in enumerate(rows)]
    asked = [{"prompt": f"my {w}:"} for w in words]
    for name, lines in (("demos", rows), ("rated", rated), ("prompts", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# --- moments, in the process of a run --------------------------------------------------------------------------------


class Moments:
    """Counts moments by kind, and ends the process at the one it was told."""

    def __init__(self, end: tuple[str, int] | None) -> None:
        self.end, self.counts = end, Counter[str]()
        self.phase, self.saving, self.stepping = "", 0, 0

    def kind(self) -> str:
        if self.saving:
            return "checkpoint"
        return self.phase if self.phase in ("generation", "update") and self.stepping else "between"

    def pass_by(self, kind: str) -> bool:
        """True if this is the end; the caller may make a mess before it calls `die`."""
        self.counts[kind] += 1
        return self.end == (kind, self.counts[kind])

    def here(self, kind: str | None = None) -> None:
        if self.pass_by(kind or self.kind()):
            self.die()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def plant(moments: Moments) -> None:
    """Make every function that matters pass by `moments`."""
    import torch
    from rlhf_core.interfaces.clock import Clock
    from rlhf_core.runs import checkpoint
    from rlhf_core.runs.directory import Log
    from rlhf_core.runs.runner import Runner
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        setattr(owner, name, make(getattr(owner, name)))

    def around(true: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            moments.here()
            result = true(*arguments, **options)
            moments.here()
            return result

        return call

    def during(attribute: str) -> Callable[[Any], Any]:
        def make(true: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                setattr(moments, attribute, getattr(moments, attribute) + 1)
                try:
                    return true(*arguments, **options)
                finally:
                    setattr(moments, attribute, getattr(moments, attribute) - 1)

            return call

        return make

    def torn_tensors(true: Any) -> Any:
        def call(tensors: Any, path: Any, *arguments: Any, **options: Any) -> None:
            true(tensors, path, *arguments, **options)
            if moments.pass_by(moments.kind()):
                os.truncate(path, Path(path).stat().st_size // 2)
                moments.die()

        return call

    def torn_line(true: Any) -> Any:
        def call(log: Log, entry: Any) -> None:
            moments.here("between")
            before = log.size
            true(log, entry)
            if moments.pass_by("between"):
                os.truncate(log.path, (before + log.size) // 2)
                moments.die()

        return call

    def phases(true: Any) -> Any:
        @contextmanager
        def call(clock: Clock, phase: str, **options: Any) -> Iterator[None]:
            outer, moments.phase = moments.phase, phase
            try:
                with true(clock, phase, **options):
                    yield
            finally:
                moments.phase = outer

        return call

    for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "truncate"):
        replace(os, name, around)
    replace(checkpoint, "save_file", torn_tensors)
    replace(checkpoint, "save", during("saving"))
    replace(checkpoint, "remove", during("saving"))
    replace(Log, "append", torn_line)
    replace(Clock, "__call__", phases)
    replace(Runner, "_step", during("stepping"))
    replace(Runner, "component", around)
    replace(torch.Tensor, "backward", around)
    torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: moments.here() if moments.kind() in ("generation", "update") else None
    )
    register_optimizer_step_pre_hook(lambda *a: moments.here())
    register_optimizer_step_post_hook(lambda *a: moments.here())


def load_everything(pipelines: Sequence[str]) -> Project:
    """The project, after everything that its runs import, so that they need not."""
    import rlhf_core.runs.plots
    import rlhf_core.runs.report  # noqa: F401
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama  # noqa: F401
    from rlhf_core.runs import provenance

    if {"ppo-adapters", "ppo-qlora"} & set(pipelines):
        import peft  # noqa: F401
    if "ppo-qlora" in pipelines:
        import bitsandbytes  # noqa: F401
    provenance._versions()  # remembers
    project = load("registry.yaml")
    for pipeline in pipelines:
        resolved = project.resolve(pipeline)
        for spec in (*(d.spec for d in resolved.components.values()), *(stage.spec for stage in resolved.stages)):
            project.plugins.import_class(spec, "factory")
    return project


def live(project: Project, pipeline: str, out: Path, end: tuple[str, int] | None) -> tuple[int, float]:
    """A life of a run, in a process of its own: until it is done, or until `end`. Returns its wait status, and the
    seconds of processor time that it took."""
    child = os.fork()
    if child:
        _, status, usage = os.wait4(child, 0)
        return status, usage.ru_utime + usage.ru_stime
    code = 1
    try:
        warnings.simplefilter("ignore")
        moments = Moments(end)
        plant(moments)
        resume = (out / "registry.yaml").exists()
        if not all((out / name).exists() for name in ("summary.json", "report.html")):  # else killed when all was done
            project.run(pipeline, out=out, resume=resume, display=Display(quiet=True))
        if end is None:
            Path(f"{out}.counts.json").write_text(json.dumps(moments.counts))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


# --- the campaign ----------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of a pipeline: kills by kind, runs that were killed and ended all the same, and differences."""

    pipeline: str
    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    wrong: list[str] = field(default_factory=list)


def differences(one: Path, other: Path) -> list[str]:
    """Names of what is not the same in two runs, byte for byte; and what should not have been left."""
    names = [f"export/{path.name}" for path in (one / "export").glob("*.safetensors")]
    wrong = [
        n for n in ("metrics.jsonl", "samples.jsonl", *names) if (one / n).read_bytes() != (other / n).read_bytes()
    ]
    return wrong + [str(p.relative_to(other)) for p in other.rglob(".*") if p.suffix in (".partial", ".old")]


def campaign(project: Project, pipeline: str, moments: int, seed: int, folder: Path) -> Outcome:
    """Run it to the end; then kill runs of it at so many moments, and compare each run that ends."""
    outcome = Outcome(pipeline)
    whole = folder / f"{pipeline}-whole"
    status, outcome.seconds = live(project, pipeline, whole, None)
    if status:
        outcome.wrong.append("it does not run")
        return outcome
    counts = json.loads(Path(f"{whole}.counts.json").read_text())
    rng = random.Random(f"{seed} {pipeline}")
    ends = [(kind, rng.randint(1, counts[kind])) for i in range(moments) for kind in [KINDS[i % len(KINDS)]]]
    rng.shuffle(ends)
    run = folder / f"{pipeline}-killed-0"
    while ends or run.exists():
        end = ends[-1] if ends else None
        status, _ = live(project, pipeline, run, end)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and end is not None:
            outcome.kills[end[0]] += 1
            ends.pop()
        elif status:
            outcome.wrong.append(f"status {status} after {sum(outcome.kills.values())} kills; the next was to be {end}")
            return outcome
        else:  # it came to its end; what is left of `ends` happens to a new run
            found = differences(whole, run)
            outcome.wrong += [f"{name} of run {outcome.runs}" for name in found]
            outcome.runs += 1
            if not found:
                shutil.rmtree(run)
            run = folder / f"{pipeline}-killed-{outcome.runs}"
    return outcome


def table(outcomes: list[Outcome]) -> str:
    """As Markdown."""
    lines = [
        f"| pipeline | CPU seconds alone | {' | '.join(f'kills: {kind}' for kind in KINDS)} | runs | differ |",
        "|---" * (len(KINDS) + 4) + "|",
    ]
    for o in outcomes:
        kills = " | ".join(str(o.kills[kind]) for kind in KINDS)
        lines.append(f"| {o.pipeline} | {o.seconds:.1f} | {kills} | {o.runs} | {len(o.wrong)} |")
    return "\n".join(lines)


def put(text: str, path: Path) -> None:
    """Replace what stands between the marks in a file."""
    page = path.read_text()
    path.write_text(f"{page[: page.index(START) + len(START)]}\n{text}\n{page[page.index(END) :]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pipelines", nargs="*", default=PIPELINES)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--write", type=lambda path: Path(path).resolve(), help="put the table between its marks in this file"
    )
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(1)  # before any fork: threads do not survive one
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="rlhf-kills-") as name:
        os.chdir(name)
        write_project(Path())
        project = load_everything(arguments.pipelines)
        for pipeline in arguments.pipelines:
            started = time.monotonic()
            outcomes.append(campaign(project, pipeline, arguments.moments, arguments.seed, Path()))
            print(f"{pipeline}: {time.monotonic() - started:.0f} s", *outcomes[-1].wrong, sep="; ", flush=True)
            if arguments.write:
                put(table(outcomes), arguments.write)
    print(table(outcomes))
    return int(any(o.wrong for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
