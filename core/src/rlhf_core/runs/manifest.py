"""Manifests: what each stage was given, what it left, and what that was made from.

``manifests/NN-STAGE.json`` holds hashes of inputs and outputs, the settings of what the stage uses with their origins,
and its parents: the stages, in this run or another, whose work it builds on. ``manifests/records.jsonl`` names every
feedback record that was read, in which stage, with its annotator. `lineage` reads both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..interfaces.config import references
from ..records import Feedback
from ..registry import ResolvedPipeline, ResolvedStage
from .directory import PROVENANCE, write_json
from .lineage import MANIFESTS, RECORDS, find_outputs, read_records
from .provenance import POINTER, digest, hashes, now, settings, surroundings

if TYPE_CHECKING:
    from ..interfaces import Component, Stage

FORMAT = 1
LEFT = ("components", "references", "best", "evaluations")
"""Folders of the run directory that hold what stages leave."""


class Ledger:
    """Keeps, for every stage, which feedback records it read, and writes them down as they come.

    A source gives the same records at each reading, so that only what lies beyond the earlier readings is news.

    Attributes:
        stage: id of the stage that is running.
    """

    def __init__(self, directory: Path, *, write: bool) -> None:
        self.path, self.stage = directory / MANIFESTS / RECORDS, ""
        self._write = write
        self._read: dict[tuple[str, str], int] = {}
        self._waiting: list[str] = []

    def restore(self, index: int) -> None:
        """Take up what an interrupted run has written, which goes on with the stage at `index`."""
        if self._write:
            for path in self.path.parent.glob("*.json"):
                if int(path.name.partition("-")[0]) >= index:  # it went on from an earlier checkpoint than the latest
                    path.unlink()
            _drop_torn_line(self.path)
        for entry in read_records(self.path):
            key = entry["stage"], entry["source"]
            self._read[key] = self._read.get(key, 0) + 1

    def seen(self, source: str, place: int, record: Feedback) -> None:
        """`record` was read; the `place`-th of its source."""
        key = self.stage, source
        if not self._write or place < self._read.get(key, 0):
            return
        self._read[key] = place + 1
        entry = {"stage": self.stage, "source": source, "id": record.id, "kind": record.kind}
        self._waiting.append(json.dumps({**entry, "annotator": record.annotator}, ensure_ascii=False) + "\n")
        if len(self._waiting) >= 1000:
            self.flush()

    def flush(self) -> None:
        """Put on disk what has been noted."""
        if self._waiting:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
            self._waiting = []


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that was being written when the process was killed."""
    if path.is_file() and not (data := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


class StageRecord:
    """Writes the manifest of one stage: made once the stage is set up, and asked to `write` when it is done.

    Args:
        resumed: whether the stage began in an interrupted run.
    """

    def __init__(
        self,
        directory: Path,
        resolved: ResolvedPipeline,
        index: int,
        stage: Stage[Any],
        policy: Component[Any] | None,
        *,
        resumed: bool = False,
    ) -> None:
        self.directory, self.resolved, self.index = directory, resolved, index
        self.declared = resolved.stages[index]
        self.of_policy = stage.trained() is None
        self._before = None if resumed else _weights_of(policy)

    def write(
        self, policy: Component[Any] | None, result: Mapping[str, Any], ledger: Ledger, device: str, processes: int
    ) -> None:
        """Write it.

        Args:
            result: what the stage left for summary.json; a path in it is an output.
        """
        ledger.flush()
        resolved = self.resolved
        reached = _reached(resolved, self.declared, policy=self.of_policy)
        written = [dict(self.declared.written), *(dict(resolved.components[key].written) for key in reached)]
        written += [
            {name: f.written for name, f in resolved.functions.items() if name in _functions(resolved, reached)}
        ]
        earlier = [json.loads(path.read_text(encoding="utf-8")) for path in self._earlier()]
        feedback = _feedback(
            read_records(ledger.path), self.declared.id, {id for kind, id in reached if kind == "feedback"}
        )
        changed = self.of_policy and (self._before is None or self._before != _weights_of(policy))
        manifest = {
            "format": FORMAT,
            "pipeline": resolved.name,
            "stage": self.declared.id,
            "use": self.declared.name,
            "index": self.index,
            "seed": resolved.settings.seed,
            "finished": now(),
            "policy": {"id": resolved.settings.policy, "changed": changed} if self.of_policy else None,
            "config": self._settings(reached),
            "inputs": {
                "components": {f"{kind}.{id}": resolved.components[kind, id].use for kind, id in reached},
                "feedback": feedback,
                "files": hashes(resolved, written, folders=True),
            },
            "outputs": self._outputs(result, earlier),
            "parents": [*_within(earlier, reached, self.of_policy), *_elsewhere(self.directory, resolved, written)],
            **surroundings(resolved.root, device, processes),
        }
        name = f"{self.index:02d}-{self.declared.id}.json"
        (self.directory / MANIFESTS).mkdir(exist_ok=True)
        write_json(self.directory / MANIFESTS / name, manifest)
        self._point(manifest["outputs"])

    def _earlier(self) -> Iterator[Path]:
        for index, stage in enumerate(self.resolved.stages[: self.index]):
            path = self.directory / MANIFESTS / f"{index:02d}-{stage.id}.json"
            if path.is_file():
                yield path

    def _settings(self, reached: list[tuple[str, str]]) -> dict[str, Any]:
        """The settings of the stage and of what it reaches, as they were written when the run was started; what
        ``--set`` changed at a resume is as it is now."""
        current = settings(self.resolved)
        try:
            head = json.loads((self.directory / PROVENANCE).read_text(encoding="utf-8")).get("config", {})
        except (OSError, ValueError):
            head = {}
        mine = {f"stages.{self.declared.id}", *(f"{kind}.{id}" for kind, id in reached)}
        mine |= {f"functions.{name}" for name in _functions(self.resolved, reached)}
        found = {}
        for path, entry in current.items():
            if ".".join(path.split(".")[:2]) in mine or "." not in path:
                first = head.get(path, entry)
                found[path] = first if first["value"] == entry["value"] else entry
        return found

    def _outputs(self, result: Mapping[str, Any], earlier: list[dict[str, Any]]) -> dict[str, str]:
        """Hashes of what this stage has left and no stage before it: by path, relative to the run where in it."""
        folders = [path for name in LEFT for path in sorted((self.directory / name).glob("[!.]*"))]
        told = [Path(v) for v in result.values() if isinstance(v, str) and v.startswith("/") and Path(v).exists()]
        known = {item for manifest in earlier for item in manifest["outputs"].items()}
        found = {}
        for path in [*folders, *told]:
            inside = path.is_relative_to(self.directory)
            found[str(path.relative_to(self.directory) if inside else path)] = digest(path)
        return {name: value for name, value in found.items() if (name, value) not in known}

    def _point(self, outputs: Mapping[str, str]) -> None:
        """Leave in a folder outside ``components`` and the like which run it came from, for `rlhf trace`."""
        for name in outputs:
            folder = self.directory / name
            if folder.is_dir() and name.partition("/")[0] not in LEFT:
                run = os.path.relpath(self.directory, folder)
                write_json(folder / POINTER, {"run": run, "stage": self.declared.id})


def _weights_of(policy: Component[Any] | None) -> dict[str, tuple[float, float]]:
    """Sum and norm of each parameter that is trained, of this process's part of it; to see whether a stage changed it.

    Not a tensor's own count of changes: fused optimizers leave that as it is.
    """
    if policy is None:
        return {}
    trained = ((name, p.detach()) for name, p in policy.module.named_parameters() if p.requires_grad)  # type: ignore[attr-defined]
    parts = ((name, (p.to_local() if hasattr(p, "to_local") else p).float()) for name, p in trained)
    return {name: (float(part.sum()), float(part.norm())) for name, part in parts}


def _reached(resolved: ResolvedPipeline, stage: ResolvedStage, *, policy: bool) -> list[tuple[str, str]]:
    """The components that the stage's settings name, and those that theirs name; the policy where it has part in it."""
    waiting = [(kind, id) for _, kind, id in references(stage.config)]
    waiting += [("policy", resolved.settings.policy)] if policy else []
    found: dict[tuple[str, str], None] = {}
    while waiting:
        key = waiting.pop(0)
        if key not in found and key in resolved.components:
            found[key] = None
            waiting += [(kind, id) for _, kind, id in references(resolved.components[key].config)]
    return list(found)


def _functions(resolved: ResolvedPipeline, reached: list[tuple[str, str]]) -> set[str]:
    named = (references(resolved.components[key].config) for key in reached)
    return {id for refs in named for _, kind, id in refs if kind == "function"}


def _feedback(records: Iterator[dict[str, Any]], stage: str, sources: set[str]) -> dict[str, Any]:
    """Per source that the stage reaches: count, kinds, annotators, and the hash of the ids, in the order of reading.

    A source that the stage has not read itself was read by what it uses, such as a tokenizer, in an earlier one.
    """
    read: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for entry in records:
        if entry["source"] in sources:
            read.setdefault(entry["source"], {}).setdefault(entry["stage"], []).append(entry)
    found = {}
    for source, stages in sorted(read.items()):
        by = stage if stage in stages else max(stages, key=lambda s: len(stages[s]))
        entries = stages[by]
        annotators: dict[str, int] = {}
        kinds: dict[str, int] = {}
        for entry in entries:
            annotators[entry["annotator"] or ""] = annotators.get(entry["annotator"] or "", 0) + 1
            kinds[entry["kind"]] = kinds.get(entry["kind"], 0) + 1
        found[source] = {
            "records": len(entries),
            "kinds": kinds,
            "annotators": annotators,
            "sha256": records_hash(entry["id"] for entry in entries),
            "read_in": by,
        }
    return found


def _within(earlier: list[dict[str, Any]], reached: list[tuple[str, str]], of_policy: bool) -> list[dict[str, Any]]:
    """The stages of this run that the stage builds on: the last that left each component, and the last that changed
    the policy."""
    parents = []
    for kind, id in reached:
        name = f"components/{kind}.{id}"
        makers = [manifest for manifest in earlier if name in manifest["outputs"]]
        if makers:
            parents.append({"run": None, "stage": makers[-1]["stage"], "through": name,
                            "sha256": makers[-1]["outputs"][name]})  # fmt: skip
    changers = [manifest for manifest in earlier if (manifest["policy"] or {}).get("changed")]
    if of_policy and changers:
        parents.append({"run": None, "stage": changers[-1]["stage"], "through": "policy", "sha256": None})
    return parents


def _elsewhere(directory: Path, resolved: ResolvedPipeline, written: Any) -> Iterator[dict[str, Any]]:
    """The stages of other runs whose outputs `written` names."""
    for path, value in hashes(resolved, written, folders=True).items():
        source = Path(path)
        if source.is_relative_to(directory):
            continue
        if (made := find_outputs(source)) is not None:
            yield {
                "run": str(made.run),
                "stage": made.manifest["stage"],
                "through": path,
                "sha256": value,
                "changed_since": made.manifest["outputs"].get(made.name) != value,
            }


def records_hash(ids: Iterator[str]) -> str:
    """One hash of many record ids."""
    import hashlib

    return "sha256:" + hashlib.sha256("\n".join(ids).encode()).hexdigest()
