"""Our side of speed.py: what is done in a process of its own, with rlhf-core.

python benchmarks/speed_ours.py --job JOB.json          # speed.py writes the job, and starts this
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any

import memory
import peers
import speed_task as task


class Enough(KeyboardInterrupt):
    """What was asked for is measured; no handler of errors holds this up."""


def registry(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The registry of a run, as peers.py has it. With `defaults`, critic, lambda and limit of the gradient are those of
    a user who names none; where `precision` is null, so is the precision."""
    found = peers.registry(dict(job), folder)
    pipeline = found["pipelines"]["peers"]
    found["functions"]["rule"] = f"{Path(task.__file__).resolve()}:reward"
    pipeline["checkpoint_every"] = 0
    pipeline["stages"] = pipeline["stages"][:1]  # no export
    if job["precision"] is not None:
        pipeline["precision"] = job["precision"]
    if job["defaults"]:
        found["components"]["policy"]["start"]["config"] = {"model": job["start"]}
        for name in ("lam", "max_grad_norm"):
            found["components"]["optimizer"]["learner"]["config"].pop(name, None)
    return found


def run(job: Mapping[str, Any], listener: Any) -> None:
    """Run the registry of `job` with a listener, until it is done or the listener has enough."""
    import rlhf_core
    import torch

    torch.set_num_threads(job["threads"])
    out = Path(job["out"])
    task.write_prompts(out / "prompts.jsonl", job["prompts"])
    (out / "registry.yaml").write_text(json.dumps(registry(job, out)))  # JSON is YAML
    project = rlhf_core.load(out / "registry.yaml", trust_functions=True)
    project.plugins.manager.register(listener)
    with suppress(Enough):
        project.run("peers", out=out / "run")


def steps(job: Mapping[str, Any], after: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """Seconds, score and response length of every step. `after` is called with the run after each, and not timed."""
    import rlhf_core

    seconds: list[float] = []
    scores: list[float] = []
    tokens: list[float] = []

    class Watcher:
        @rlhf_core.hookimpl
        def rlhf_run_started(self) -> None:
            self.marked = time.perf_counter()

        @rlhf_core.hookimpl
        def rlhf_step_finished(self, run: Any, stats: Any) -> None:
            seconds.append(time.perf_counter() - self.marked)
            scores.append(stats["reward/score"])
            tokens.append(stats["response/length"])
            if after is not None:
                after(run)
            if job["until"] is not None and task.first_reaching(scores, job["until"]):
                raise Enough
            self.marked = time.perf_counter()

    run(job, Watcher())
    names = ("rlhf-core", "transformers", "torch")
    return {"seconds": seconds, "scores": scores, "tokens": tokens,
            "versions": {name: importlib.metadata.version(name) for name in names}}  # fmt: skip


def generation(job: Mapping[str, Any]) -> dict[str, Any]:
    """`policy.generate` and transformers' generate in turn: seconds and tokens drawn, of every repeat but the first."""
    import rlhf_core
    import torch
    from rlhf_core.interfaces import Sampling
    from rlhf_core.records import Prompt
    from transformers import AutoModelForCausalLM

    found: list[dict[str, dict[str, float]]] = []
    prompts = [Prompt(text=text) for text in job["prompts"]]
    longest = job["settings"]["max_new_tokens"]

    class Watcher:
        @rlhf_core.hookimpl
        def rlhf_run_started(self, run: Any) -> None:
            policy = run.policy
            ids = policy.tokenizer(job["prompts"], return_tensors="pt").input_ids
            theirs = {"fp32": AutoModelForCausalLM.from_pretrained(job["start"], dtype=torch.float32)}
            if job["precision"] is None:
                theirs["bf16"] = AutoModelForCausalLM.from_pretrained(job["start"], dtype=torch.bfloat16)

            def ours(seed: int) -> int:
                policy.weights_changed()  # as after every step: what is kept of the weights is made anew
                return int(policy.generate(prompts, Sampling(max_new_tokens=longest), seed=seed).attention.sum())

            def peer(model: Any) -> Callable[[int], int]:
                def draw(seed: int) -> int:
                    torch.manual_seed(seed)
                    drawn = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest,
                                           do_sample=True, top_k=0, top_p=1.0, temperature=1.0)  # fmt: skip
                    return int((drawn[:, ids.shape[1] :] != model.generation_config.pad_token_id).sum())

                return draw

            who = {"ours": ours, **{name: peer(model.eval()) for name, model in theirs.items()}}
            for number in range(job["repeats"] + 1):
                record: dict[str, dict[str, float]] = {}
                for name in task.shuffled(list(who), number):
                    begun = time.perf_counter()
                    with torch.no_grad():
                        drawn = who[name](number)
                    record[name] = {"seconds": time.perf_counter() - begun, "tokens": drawn}
                found.append(record)
            raise Enough

    run(job, Watcher())
    complete(found, job["repeats"] + 1)
    return {"repeats": found[1:]}


def complete(found: Sized, count: int) -> None:
    """A listener that fails only warns."""
    if len(found) < count:
        raise SystemExit(f"{len(found)} of {count} were measured; the warning above says why")


def overhead(job: Mapping[str, Any]) -> dict[str, Any]:
    """A step of ours and one of the plain loop in turn."""
    from rlhf_core.interfaces import Sampling
    from rlhf_core.records import Prompt
    from speed_plain import PlainPPO

    plain: Any = None
    seconds: list[float] = []

    def after(run: Any) -> None:
        nonlocal plain
        if plain is None:
            policy = type(run.policy)(run.policy.config, run.context.named("policy", "plain"))
            plain = PlainPPO(policy, job["settings"], Sampling(max_new_tokens=job["settings"]["max_new_tokens"]))
        size, number = job["settings"]["prompts"], len(seconds)
        chosen = [Prompt(text=job["prompts"][(number * size + i) % len(job["prompts"])]) for i in range(size)]
        begun = time.perf_counter()
        plain.step(chosen)
        seconds.append(time.perf_counter() - begun)

    ours = steps(job, after)
    complete(seconds, len(ours["seconds"]))
    return {**ours, "plain": seconds}


def growth(job: Mapping[str, Any]) -> dict[str, Any]:
    """Steps, and at the end the peak of memory and what it is made of, in MB, as memory.py tells them apart."""
    import rlhf_core  # noqa: F401
    from transformers import AutoTokenizer
    from transformers.models.llama import modeling_llama  # noqa: F401

    AutoTokenizer.from_pretrained(job["start"])  # its words are no part of what grows here: they count as imports
    before, found = memory.imports(), {}

    def after(run: Any) -> None:
        policy, optimizer = run.policy, run.component("optimizer", "learner").gradient.optimizer
        roles = [
            ("critic", policy.value_parameters),
            ("base", memory.tensors_of(policy.module)),
            ("reference", memory.tensors_of(policy)),  # with whatever copies of its weights it keeps for decoding
            ("optimizer", memory.tensors_of(dict(optimizer.state))),
        ]
        own = memory.weights(roles, [p for group in optimizer.param_groups for p in group["params"]])
        found["memory"] = memory.answer(before, own, 0.0)

    ours = steps(job, after)
    complete(found, 1)
    return {**ours, **found}


def make(job: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a job, in a process of its own: a peak of memory is inherited by what is started."""
    task.make_start(Path(job["start"]), job["size"], job["ends"])
    return {}


KINDS = {"steps": steps, "generation": generation, "overhead": overhead, "growth": growth, "make": make}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--job", type=Path, required=True)
    job = json.loads(parser.parse_args().job.read_text())
    found = KINDS[job["kind"]](job)
    Path(job["out"], "answer.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
