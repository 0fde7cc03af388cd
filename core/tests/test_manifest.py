"""Manifests: what a run writes about where its numbers come from, and reading them back."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rlhf_core.errors import RunError
from rlhf_core.interfaces import Config, Context, FeedbackSource
from rlhf_core.records import Demonstration
from rlhf_core.runs import lineage
from rlhf_core.runs.difference import difference
from rlhf_core.runs.manifest import Ledger, _weights_of
from rlhf_core.runs.provenance import _masked, _without_secrets, digest


class NoOptions(Config):
    """Nothing."""


class Two(FeedbackSource[NoOptions]):
    """Two records."""

    def __iter__(self):
        for annotator in ("ann", None):
            yield Demonstration(prompt="a", response=f"by {annotator}", annotator=annotator)


class Again(Two):
    """Reads through its base class."""

    def __iter__(self):
        yield from super().__iter__()


def write_manifest(run: Path, stage: str, index: int = 0, **parts) -> None:
    """A manifest with the least that `lineage` reads, changed by `parts`."""
    whole = {
        "pipeline": "p", "seed": 0, "stage": stage, "use": stage, "index": index, "finished": f"2026-01-0{index + 1}",
        "policy": None, "inputs": {"components": {}, "feedback": {}, "files": {}}, "outputs": {}, "parents": [],
    }  # fmt: skip
    for key, value in parts.items():
        whole[key] = {**whole[key], **value} if isinstance(whole[key], dict) else value
    (run / "manifests").mkdir(parents=True, exist_ok=True)
    (run / "manifests" / f"{index:02d}-{stage}.json").write_text(json.dumps(whole))


def read(source: str, stage: str, **annotators: int) -> dict:
    """What a manifest says of a feedback source."""
    count = sum(annotators.values())
    return {source: {"records": count, "kinds": {"rating": count}, "annotators": annotators, "sha256": "sha256:ab",
                     "read_in": stage}}  # fmt: skip


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_the_ledger_writes_each_record_once_per_stage(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, write=True)
    source = Again(NoOptions(), Context(id="said", seen=ledger.seen))
    ledger.stage = "sft"
    assert [len(list(source)) for _ in range(2)] == [2, 2]  # read twice, through two classes
    ledger.stage = "fit"
    next(iter(source))
    ledger.flush()
    entries = [(e["stage"], e["source"], e["annotator"]) for e in lineage.read_records(ledger.path)]
    assert entries == [("sft", "said", "ann"), ("sft", "said", None), ("fit", "said", "ann")]
    assert next(e["id"] for e in lineage.read_records(ledger.path)) == next(iter(source)).id


def test_a_resumed_ledger_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    """A line that was being written when the process was killed is not a record, and does not spoil the next one."""
    for _ in range(2):
        ledger = Ledger(tmp_path, write=True)
        ledger.restore(0)
        ledger.stage = "sft"
        list(Two(NoOptions(), Context(id="said", seen=ledger.seen)))
        ledger.flush()
        entries = list(lineage.read_records(ledger.path))
        assert [e["annotator"] for e in entries] == ["ann", None]
        whole = ledger.path.read_bytes()
        os.truncate(ledger.path, len(whole) - 5)


def test_what_comes_after_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    for index, stage in enumerate(("a", "b", "c")):
        write_manifest(tmp_path, stage, index)
    Ledger(tmp_path, write=True).restore(1)
    assert [m["stage"] for m in lineage.manifests(tmp_path)] == ["a"]


def test_a_change_of_the_weights_is_seen_whoever_made_it() -> None:
    layer = torch.nn.Linear(3, 2)
    policy = SimpleNamespace(module=layer)
    before = _weights_of(policy)
    assert before == _weights_of(policy) and before != _weights_of(None)
    layer.weight.data[0, 0] += 1e-3  # not counted as a change by the tensor itself
    assert _weights_of(policy) != before


# --- hashes and secrets ----------------------------------------------------------------------------------------------


def test_the_hash_of_a_folder_is_of_names_and_contents_without_the_pointer(tmp_path: Path) -> None:
    (tmp_path / "f" / "in").mkdir(parents=True)
    (tmp_path / "f" / "in" / "a").write_text("1")
    first = digest(tmp_path / "f")
    (tmp_path / "f" / "rlhf-run.json").write_text("{}")
    assert digest(tmp_path / "f") == first
    (tmp_path / "f" / "in" / "a").rename(tmp_path / "f" / "in" / "b")
    second = digest(tmp_path / "f")
    (tmp_path / "f" / "in" / "b").write_text("2")
    assert len({first, second, digest(tmp_path / "f")}) == 3


@pytest.mark.parametrize(("word", "shown"), [
    ("reward.judge.key=sk-123", "reward.judge.key=(hidden)"),
    ("feedback.mine.hf_token=abc", "feedback.mine.hf_token=(hidden)"),
    ("reward.judge.key=${env:KEY}", "reward.judge.key=${env:KEY}"),
    ("policy.lm.pad_token=<pad>", "policy.lm.pad_token=<pad>"),
    ("stages.optimize.steps=5", "stages.optimize.steps=5"),
    ("--resume", "--resume"),
])  # fmt: skip
def test_a_secret_on_the_command_line_is_hidden(word: str, shown: str) -> None:
    assert _masked(word) == shown


def test_secrets_are_hidden_at_any_depth() -> None:
    hidden = _without_secrets("", {"a": [{"api_key": "x", "keys": "y"}], "password": None})
    assert hidden == {"a": [{"api_key": "(hidden)", "keys": "y"}], "password": None}


# --- lineage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Run `a` fits a reward on ann and bo; `b` trains a policy on it; `c` has read only cy; `d` builds on b's export."""
    a, b, c, d = (tmp_path / name for name in "abcd")
    write_manifest(a, "fit", outputs={"components/reward.r": "sha256:r"},
                   inputs={"feedback": read("votes", "fit", ann=2, bo=1)})  # fmt: skip
    rows = [("ann", "1"), ("bo", "2"), ("ann", "3")]
    (a / "manifests" / "records.jsonl").write_text("".join(
        json.dumps({"stage": "fit", "source": "votes", "id": id, "kind": "rating", "annotator": who}) + "\n"
        for who, id in rows))  # fmt: skip
    loaded = {"run": str(a), "stage": "fit", "through": f"{a}/components/reward.r", "sha256": "sha256:r",
              "changed_since": False}  # fmt: skip
    write_manifest(b, "optimize", parents=[loaded], policy={"id": "lm", "changed": True})
    before = {"run": None, "stage": "optimize", "through": "policy", "sha256": None}
    write_manifest(
        b, "export", 1, parents=[before], outputs={"export": "sha256:e"}, policy={"id": "lm", "changed": False}
    )
    write_manifest(c, "fit", inputs={"feedback": read("votes", "fit", cy=1)})
    line = {"stage": "fit", "source": "votes", "id": "9", "kind": "rating", "annotator": "cy"}
    (c / "manifests" / "records.jsonl").write_text(json.dumps(line) + "\n")
    gone = {"run": "/moved/away", "stage": "export", "through": "/moved/away/export", "sha256": "sha256:e",
            "changed_since": False}  # fmt: skip
    write_manifest(d, "sft", parents=[gone], policy={"id": "lm", "changed": True})
    return tmp_path


def texts(node: lineage.Node) -> list[str]:
    return [node.text, *(text for child in node.made_from for text in texts(child))]


def test_a_policy_is_followed_to_the_annotators_of_another_run(runs: Path) -> None:
    found = "\n".join(texts(lineage.trace(runs / "b", runs)))
    assert "policy lm, in" in found and "stage fit" in found
    assert "feedback votes: 3 ratings" in found
    assert "ann: 2 records (1, 3)" in found and "bo: 1 record (2)" in found


def test_what_depends_on_an_annotator_goes_through_runs_even_moved_ones(runs: Path) -> None:
    found = lineage.dependents("ann", runs)
    assert [(one.run.name, one.stage) for one in found] == [
        ("a", "fit"),
        ("b", "optimize"),
        ("d", "sft"),
        ("b", "export"),
    ]
    assert found[0].records == {"votes": ["1", "3"]} and found[1].records == {}
    assert [(one.run.name, one.stage) for one in lineage.dependents("cy", runs)] == [("c", "fit")]


def test_an_artefact_that_was_changed_says_so(runs: Path) -> None:
    (runs / "b" / "export").mkdir()
    assert "CHANGED SINCE" in lineage.trace(runs / "b" / "export", runs).text
    assert lineage.find_outputs(runs / "b" / "export" / "model.safetensors").name == "export"


def test_a_copied_artefact_is_known_by_its_hash(runs: Path, tmp_path: Path) -> None:
    (runs / "copy").mkdir()
    (runs / "copy" / "weights").write_text("w")
    write_manifest(runs / "a", "fit", outputs={"components/reward.r": digest(runs / "copy")})
    assert lineage.trace(runs / "copy", runs).facts["artefact"] == "components/reward.r"


def test_a_run_that_is_gone_is_named(runs: Path) -> None:
    assert "the run /moved/away is not there any more" in "\n".join(texts(lineage.trace(runs / "d", runs)))


@pytest.mark.parametrize(("call", "words"), [
    (lambda runs: lineage.trace(runs / "nowhere", runs), "there is nothing; expected a run directory, an exported model"),
    (lambda runs: lineage.trace(runs, runs), "no run is known that left it.*name the folder of the runs with --in"),
    (lambda runs: lineage.dependents("anna", runs), "none of 4 runs .* has read a record of that name; expected one of "
                                                    "ann, bo, cy; did you mean 'ann'"),
    (lambda runs: lineage.dependents("ann", runs / "a" / "none"), "holds no runs with manifests"),
    (lambda runs: difference(runs / "a", runs / "b"), "holds no run; expected a directory with provenance.json"),
])  # fmt: skip
def test_errors_say_what_to_do(runs: Path, call, words: str) -> None:
    with pytest.raises(RunError) as raised:
        call(runs)
    assert re.search(words, str(raised.value))


def test_a_manifest_that_cannot_be_read_is_named(runs: Path) -> None:
    (runs / "a" / "manifests" / "00-fit.json").write_text("{")
    with pytest.raises(RunError, match=r"00-fit\.json: cannot be read"):
        lineage.trace(runs / "a", runs)


# --- differences -----------------------------------------------------------------------------------------------------


def write_run(run: Path, seed: int, values: dict[str, list[float]], prompts: list[str], **settings) -> None:
    run.mkdir()
    config = {"seed": {"value": seed, "origin": "default"}, **settings}
    head = {"config": config, "files": {"/x/data.jsonl": f"sha256:{seed}"}, "versions": {"torch": "2"}, "git": None}
    (run / "provenance.json").write_text(json.dumps({**head, "machine": {"threads": 1}}))
    means = {name: {"after": {"mean": sum(v) / len(v), "error": 0.5, "n": len(v)}} for name, v in values.items()}
    (run / "summary.json").write_text(json.dumps({"stages": {"evaluate": {"metrics": means}}}))
    (run / "evaluations").mkdir()
    (run / "evaluations" / "evaluate.json").write_text(json.dumps({"prompts": prompts, "metrics": values}))


def test_results_are_paired_by_prompt(tmp_path: Path) -> None:
    """Changes +1, +2 and +3 whatever the order of the prompts: mean 2, standard error 1/sqrt(3)."""
    write_run(tmp_path / "a", 0, {"reward": [10, 20, 30, 40]}, ["p", "q", "r", "only-a"])
    write_run(tmp_path / "b", 1, {"reward": [33, 22, 11]}, ["r", "q", "p"], steps={"value": 5, "origin": "--set steps"})
    found = difference(tmp_path / "a", tmp_path / "b")
    (result,) = found.results
    assert (result.a, result.b, result.change, result.paired) == (20, 22, 2, 3)
    assert result.low == pytest.approx(2 - 1.96 / 3**0.5, abs=1e-4) and result.clear
    assert [(c.what, c.a, c.b) for c in found.config] == [("seed", 0, 1), ("steps", None, 5)]
    assert [(c.what, c.a, c.b) for c in found.data] == [("file data.jsonl", "sha256:0", "sha256:1")]
    assert found.versions == [] and found.unfinished == []


def test_without_common_prompts_results_are_not_paired(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0, {"reward": [1, 1]}, ["p", "q"])
    write_run(tmp_path / "b", 0, {"reward": [2, 2]}, ["r", "s"])
    (result,) = difference(tmp_path / "a", tmp_path / "b").results
    assert result.paired == 0 and result.change == 1
    assert result.high == pytest.approx(1 + 1.96 * 0.5**0.5, abs=1e-4)  # errors .5 and .5: sqrt(.25 + .25)


def test_a_run_without_results_is_unfinished(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0, {"reward": [1]}, ["p"])
    write_run(tmp_path / "b", 0, {"reward": [1]}, ["p"])
    (tmp_path / "b" / "summary.json").unlink()
    assert difference(tmp_path / "a", tmp_path / "b").unfinished == [str(tmp_path / "b")]
