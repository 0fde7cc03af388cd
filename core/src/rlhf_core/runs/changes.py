"""What differs between the configuration of a checkpoint and today's, and which differences do no harm.

Harmless is what cannot have changed a number so far, or no more than its rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import RunError
from ..registry import ResolvedPipeline
from .provenance import HIDDEN, SECRET

Snapshot: TypeAlias = dict[str, Any]
"""A resolved pipeline as JSON data: settings, stages by id, components by ``KIND.ID``, functions by name."""

SETTINGS = ("description", "trackers", "checkpoint_every", "keep_checkpoints")
"""Settings of a pipeline that no number depends on."""
MEMORY = ("micro_batch_tokens", "forward_tokens", "gradient_checkpointing")
"""Settings, of whatever, that change the rounding alone."""


def snapshot(resolved: ResolvedPipeline) -> Snapshot:
    """What a checkpoint keeps of the configuration; variables stay ``${env:NAME}``."""
    return {
        "settings": {key: value for key, value in resolved.written.items() if key != "stages"},
        "stages": {stage.id: {"use": stage.name, **stage.written} for stage in resolved.stages},
        "components": {f"{kind}.{id}": dict(d.written) for (kind, id), d in resolved.components.items()},
        "functions": {name: function.written for name, function in resolved.functions.items()},
    }


@dataclass(frozen=True)
class Change:
    """A setting, as `--set` names it, that differs; None: it is not there. `harmless` as in the module's docstring."""

    key: str
    old: Any
    new: Any
    harmless: bool

    def __str__(self) -> str:
        if SECRET.fullmatch(_last(self.key)):
            return f"{self.key} {HIDDEN}"
        return f"{self.key} {_shown(self.old)} -> {_shown(self.new)}"


def check(old: Snapshot, new: Snapshot, begun: int, done: int, where: str, *, allow: bool) -> list[Change]:
    """The changes from `old` to `new`, all of them harmless.

    Args:
        begun: stages that have begun. done: of those, stages that are over. allow: whether harmless changes may pass.

    Raises:
        RunError: something differs that may not; says what, with the old value and the new one.
    """
    found = changes(old, new, begun, done)
    wrong = [change for change in found if not (change.harmless and allow)]
    if not wrong:
        return found
    many = len(wrong) != 1
    harmless = [change.key for change in wrong if change.harmless]
    if len(harmless) == len(wrong):
        fix = f"add --allow-config-change: {'these do' if many else 'this does'} no harm to what was computed so far"
    else:
        fix = "leave what was computed with it as it was, or start a new run without --resume"
        if harmless:
            fix += f"; {', '.join(harmless)} alone may change, with --allow-config-change"
    raise RunError(
        where,
        f"{len(wrong)} setting{'s differ' if many else ' differs'} from its own: {'; '.join(map(str, wrong))}",
        "the configuration that it was taken with",
        fix,
    )


def changes(old: Snapshot, new: Snapshot, begun: int, done: int) -> list[Change]:
    """Every setting that differs, in the order of the file."""
    stages = list(old["stages"])
    started = stages[:begun]
    in_use = {key for one in (old, new) for key in _in_use(one, started)}
    found = []
    if stages != list(new["stages"]):
        found.append(Change("stages", stages, list(new["stages"]), list(new["stages"])[:begun] == started))
    for key, before, now in _differences(old["settings"], new["settings"]):
        found.append(Change(key, before, now, key in SETTINGS))
    for id in dict.fromkeys((*stages, *new["stages"])):
        if id in old["stages"] and id in new["stages"]:
            place = stages.index(id)
            for key, before, now in _differences(old["stages"][id], new["stages"][id]):
                harmless = place >= begun or (place >= done and _harmless_in_a_stage(key, id, old, new))
                found.append(Change(f"stages.{id}.{key}", before, now, harmless))
    for id in dict.fromkeys((*old["components"], *new["components"])):
        one, other = old["components"].get(id), new["components"].get(id)
        if one is None or other is None:  # whoever names it differs as well, and is judged
            found.append(Change(id, one and one["use"], other and other["use"], True))
            continue
        before_and_now = [{**d.get("config", {}), "use": d["use"], "load": d.get("load")} for d in (one, other)]
        for key, before, now in _differences(before_and_now[0], before_and_now[1]):
            only_watches = id.startswith("monitor.")
            harmless = id not in in_use or only_watches or _last(key) in MEMORY
            found.append(Change(f"{id}.{key}", before, now, harmless))
    for name, before, now in _differences(old["functions"], new["functions"]):
        used = any(name in words for words in map(_words, (old["components"], new["components"])))
        found.append(Change(f"functions.{name}", before, now, not used))
    return found


def _harmless_in_a_stage(key: str, id: str, old: Snapshot, new: Snapshot) -> bool:
    """Whether a setting of the stage under way may change: no step behind it can have depended on it."""
    both = (old["stages"][id], new["stages"][id])
    if _last(key) in MEMORY:
        return True
    if both[0]["use"] == both[1]["use"] == "optimize" and key == "steps":  # schedules are stretched over the steps
        return not any(_scheduled(one) for one in (old, new))
    if key.startswith("monitors"):  # they look on
        return True
    looks = key == "evaluate_every" or key.startswith("evaluation")
    return looks and not any(stage.get("best") or stage.get("until") for stage in both)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, old, new) of what differs; mappings are looked into, lists are not."""
    for key in dict.fromkeys((*old, *new)):
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _differences(before, now, f"{path}{key}.")
        elif before != now:
            yield f"{path}{key}", before, now


def _in_use(config: Snapshot, started: list[str]) -> set[str]:
    """Components that the policy and the stages that have begun reach: a name among their values is taken for one."""
    words = {config["settings"].get("policy")}
    words.update(*(_words(config["stages"].get(id)) for id in started))
    reached: set[str] = set()
    while fresh := {id for id in config["components"] if id.partition(".")[2] in words} - reached:
        reached |= fresh
        words.update(*(_words(config["components"][id]) for id in fresh))
    return reached


def _words(value: Any) -> Iterator[str]:
    """Every string in `value`, keys included."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _words(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _words(item)
    elif isinstance(value, str):
        yield value


def _scheduled(value: Any) -> bool:
    """Whether something in `value` changes over the steps of a stage, as ``{schedule: cosine, ...}`` does."""
    if isinstance(value, Mapping):
        return value.get("schedule", "constant") != "constant" or any(map(_scheduled, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_scheduled, value))


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _shown(value: Any) -> str:
    """A value in an error: short, and "nothing" for None."""
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
