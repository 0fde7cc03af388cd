"""Reading manifests: what an artefact was made from, and what depends on one annotator."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RunError, did_you_mean
from .provenance import POINTER, digest

MANIFESTS, RECORDS = "manifests", "records.jsonl"
UNNAMED = "(unnamed)"


@dataclass(frozen=True)
class Made:
    """An artefact: the run that left it, the manifest of the stage, and what the manifest calls it."""

    run: Path
    manifest: Mapping[str, Any]
    name: str


@dataclass(frozen=True)
class Node:
    """A part of a lineage: what it is in one line, the facts behind that, and what it was made from."""

    text: str
    facts: Mapping[str, Any]
    made_from: list[Node] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**self.facts, "text": self.text, "made_from": [node.to_dict() for node in self.made_from]}


@dataclass(frozen=True)
class Dependent:
    """A stage whose work depends on an annotator: what it left, and why.

    records: ids of the annotator's records that it read, by source. through: the stages and artefacts it builds on
    that depend on the annotator themselves.
    """

    run: Path
    stage: str
    artefacts: list[Path]
    records: dict[str, list[str]]
    through: list[str]


# --- files -----------------------------------------------------------------------------------------------------------


def manifests(run: Path) -> list[dict[str, Any]]:
    """The manifests of a run, in the order of its stages.

    Raises:
        RunError: one cannot be read.
    """
    found = []
    for path in sorted((run / MANIFESTS).glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise RunError(f"manifest {path}", f"cannot be read: {error}", "what a stage wrote") from error
    return found


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The feedback records that a run read; a last line that was never finished is left out."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


def find_outputs(path: Path) -> Made | None:
    """The artefact at `path`, or that `path` is part of; None if no run that can be found left it."""
    path = path.resolve()
    for folder in [path, *path.parents]:
        run, name = folder, str(path.relative_to(folder))
        if (folder / POINTER).is_file():
            run = (folder / json.loads((folder / POINTER).read_text(encoding="utf-8"))["run"]).resolve()
            name = str(folder.relative_to(run)) if folder.is_relative_to(run) else str(folder)
        if (run / MANIFESTS).is_dir():
            for manifest in reversed(manifests(run)):
                for output in manifest["outputs"]:
                    if Path(name).is_relative_to(output) and name != ".":
                        return Made(run, manifest, output)
            return None
    return None


def _elsewhere(path: Path, among: Path) -> Made | None:
    """The artefact of a run below `among` that is what stands at `path`."""
    wanted = digest(path)
    for run in runs_below(among):
        for manifest in manifests(run):
            for name, value in manifest["outputs"].items():
                if value == wanted:
                    return Made(run, manifest, name)
    return None


def runs_below(folder: Path) -> list[Path]:
    """The run directories in `folder` that have manifests, itself included."""
    return sorted(
        path.parent.resolve() for path in folder.rglob(MANIFESTS) if path.is_dir() and any(path.glob("*.json"))
    )


# --- what was it made from? ------------------------------------------------------------------------------------------


def trace(path: Path, among: Path) -> Node:
    """The lineage of a run's policy, or of an artefact: an exported model, ``components/reward.helpful``.

    Args:
        among: where to look for the run if the artefact itself does not say which it was.

    Raises:
        RunError: there is nothing at `path`, or nothing is known of it.
    """
    if not path.exists():
        raise RunError(f"trace {path}", "there is nothing", "a run directory, an exported model or a kept component")
    if (path / MANIFESTS).is_dir():
        return _run(path.resolve())
    made = find_outputs(path) or _elsewhere(path, among)
    if made is None:
        raise RunError(
            f"trace {path}",
            "no run is known that left it",
            "a run directory, an exported model or a kept component",
            f"name the folder of the runs with --in; {among} holds {len(runs_below(among))}",
        )
    return _artefact(made, digest(path) if path.resolve() == (made.run / made.name).resolve() else None)


def _run(run: Path) -> Node:
    stages = manifests(run)
    if not stages:
        raise RunError(f"trace {run}", "no stage of the run is done", "a run with at least one whole stage")
    changers = [m for m in stages if (m["policy"] or {}).get("changed")]
    first = stages[0]
    children = [_stage(run, changers[-1])] if changers else [_stage(run, manifest) for manifest in stages]
    what = f"policy {changers[-1]['policy']['id']}" if changers else "no policy was changed"
    text = f"{what}, in {_short(run)} (pipeline {first['pipeline']}, seed {first['seed']})"
    return Node(text, {"run": str(run), "pipeline": first["pipeline"], "seed": first["seed"]}, children)


def _artefact(made: Made, now: str | None) -> Node:
    recorded = made.manifest["outputs"][made.name]
    changed = now is not None and now != recorded
    text = f"{made.name} of {_short(made.run)}, {_brief(recorded)}" + (", CHANGED SINCE" if changed else "")
    facts = {"run": str(made.run), "artefact": made.name, "sha256": recorded, "changed_since": changed}
    return Node(text, facts, [_stage(made.run, made.manifest)])


def _stage(run: Path, manifest: Mapping[str, Any]) -> Node:
    """A stage with what it used. Each step back goes to an earlier stage, or to a run that was done before."""
    inputs = manifest["inputs"]
    children: list[Node] = []
    inside = {parent["through"]: parent for parent in manifest["parents"] if parent["run"] is None}
    for name, use in inputs["components"].items():
        kind, _, id = name.partition(".")
        if kind in ("reward", "policy", "optimizer") and (kind != "policy" or "policy" not in inside):
            parent = inside.get(f"components/{name}")
            below = [_parent(run, parent)] if parent else []
            fitted = f", {_brief(parent['sha256'])}" if parent else ""
            children.append(Node(f"{kind} {id} ({use}){fitted}", {"component": name, "use": use}, below))
    children += [_source(run, name, source) for name, source in inputs["feedback"].items()]
    children += [_parent(run, parent) for parent in manifest["parents"] if parent["run"] is not None]
    children += [
        Node(f"{'folder' if Path(path).is_dir() else 'file'} {_short(Path(path))}, {_brief(value)}",
             {"file": path, "sha256": value})
        for path, value in inputs["files"].items()
    ]  # fmt: skip
    if "policy" in inside:
        before = _parent(run, inside["policy"])
        children.append(Node("the policy before", {"policy": "before"}, [before]))
    use = "" if manifest["use"] == manifest["stage"] else f" ({manifest['use']})"
    facts = {"run": str(run), "stage": manifest["stage"], "use": manifest["use"], "finished": manifest["finished"]}
    return Node(f"stage {manifest['stage']}{use}, finished {manifest['finished']}", facts, children)


def _parent(run: Path, parent: Mapping[str, Any]) -> Node:
    other = run if parent["run"] is None else Path(parent["run"])
    for manifest in manifests(other):
        if manifest["stage"] == parent["stage"]:
            node = _stage(other, manifest)
            if parent["run"] is None:
                return node
            changed = ", CHANGED SINCE" if parent["changed_since"] else ""
            through, value = parent["through"], _brief(parent["sha256"])
            return Node(f"{_short(Path(through))} of an earlier run, {value}{changed}", dict(parent), [node])
    text = f"{parent['through']}: the run {_short(other)} is not there any more"
    return Node(text, {**parent, "missing": True})


def _source(run: Path, name: str, source: Mapping[str, Any]) -> Node:
    kinds = " and ".join(f"{count} {_plural(kind, count)}" for kind, count in source["kinds"].items())
    read = read_records(run / MANIFESTS / RECORDS)
    mine = [entry for entry in read if entry["source"] == name and entry["stage"] == source["read_in"]]
    people = []
    for annotator, count in sorted(source["annotators"].items(), key=lambda item: (-item[1], item[0])):
        ids = [entry["id"] for entry in mine if (entry["annotator"] or "") == annotator]
        shown = ", ".join(ids[:2]) + (", ..." if len(ids) > 2 else "")
        text = f"{annotator or UNNAMED}: {count} {_plural('record', count)} ({shown})"
        people.append(Node(text, {"annotator": annotator or None, "records": ids}))
    return Node(f"feedback {name}: {kinds}, {_brief(source['sha256'])}", {"feedback": name, **source}, people)


# --- what depends on an annotator? -----------------------------------------------------------------------------------


def dependents(annotator: str, among: Path) -> list[Dependent]:
    """The stages of all runs below `among` that depend on `annotator`, earlier runs and stages first.

    What a stage reads counts as used: a source that weighs or drops records depends on those that it drops as well.

    Raises:
        RunError: there are no runs, or none has read a record of that annotator.
    """
    runs = runs_below(among)
    if not runs:
        raise RunError(f"trace --in {among}", "holds no runs with manifests", "a folder of run directories")
    stages = {(run, manifest["stage"]): manifest for run in runs for manifest in manifests(run)}
    by_hash = {(m["outputs"][name]): key for key, m in stages.items() for name in m["outputs"]}
    direct = {
        key: found for key, m in stages.items() if (found := _records_of(annotator, key[0], m["inputs"]["feedback"]))
    }
    if not direct:
        known = {name for m in stages.values() for s in m["inputs"]["feedback"].values() for name in s["annotators"]}
        raise RunError(
            f"annotator {annotator!r}",
            f"none of {len(runs)} runs in {among} has read a record of that name",
            f"one of {', '.join(sorted(known - {''})[:12]) or 'none: the records name nobody'}",
            did_you_mean(annotator, known),
        )
    through: dict[tuple[Path, str], list[str]] = {}
    tainted = set(direct)
    while True:
        for key, manifest in stages.items():
            parents = _parents(key[0], manifest, stages, by_hash)
            through[key] = [words for parent, words in parents if parent in tainted]
        news = {key for key, words in through.items() if words} - tainted
        if not news:
            break
        tainted |= news
    order = sorted(tainted, key=lambda key: (stages[key]["finished"], str(key[0]), stages[key]["index"]))
    return [
        Dependent(run, stage, _artefacts(run, stages[run, stage]), direct.get((run, stage), {}), through[run, stage])
        for run, stage in order
    ]


def _records_of(annotator: str, run: Path, feedback: Mapping[str, Any]) -> dict[str, list[str]]:
    wanted = {(name, s["read_in"]) for name, s in feedback.items() if annotator in s["annotators"]}
    found: dict[str, list[str]] = {}
    for entry in read_records(run / MANIFESTS / RECORDS) if wanted else ():
        if entry["annotator"] == annotator and (entry["source"], entry["stage"]) in wanted:
            found.setdefault(entry["source"], []).append(entry["id"])
    return found


def _parents(
    run: Path,
    manifest: Mapping[str, Any],
    stages: Mapping[tuple[Path, str], Any],
    by_hash: Mapping[str, tuple[Path, str]],
) -> Iterable[tuple[tuple[Path, str], str]]:
    """The stages that one builds on, with words; a run that has moved is known by the hash of what it left."""
    for parent in manifest["parents"]:
        key = (run if parent["run"] is None else Path(parent["run"]), parent["stage"])
        where = "" if parent["run"] is None else f" of {_short(key[0])}"
        yield (key if key in stages else by_hash.get(parent["sha256"], key)), f"{parent['stage']}{where}"
    for value in manifest["inputs"]["files"].values():
        if value in by_hash and by_hash[value] != (run, manifest["stage"]):
            yield by_hash[value], f"{by_hash[value][1]} of {_short(by_hash[value][0])}"


def _artefacts(run: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """What the stage left that is still there; checkpoints hold the policy too."""
    found = [run / name for name in manifest["outputs"]]
    if (manifest["policy"] or {}).get("changed"):
        found.append(run / "checkpoints")
    return [path for path in found if path.exists()]


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) and path != Path.cwd() else str(path)


def _brief(value: str) -> str:
    return f"sha256 {value.removeprefix('sha256:')[:12]}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 or word == "keywords" else f"{word}s"
