"""`tiny_run`: the runner over toys, for tests of a stage alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rlhf_core.errors import ConfigError, RunError
from rlhf_core.interfaces import PromptSource
from rlhf_core.plugins import load_plugins
from rlhf_core.records import Prompt
from rlhf_core.stages.config import EvaluateConfig, ExportConfig, FitRewardConfig, OptimizeConfig
from rlhf_core.stages.evaluate import Evaluate
from rlhf_core.stages.export import Export
from rlhf_core.stages.fit_reward import FitReward
from rlhf_core.stages.optimize import Optimize
from rlhf_core.testing import Interrupted, run_checks, tiny_context, tiny_run
from rlhf_core.testing.toys import NoOptions

OPTIMIZE = {"optimizer": "toy", "prompts": "toy", "rewards": {"toy": 1.0}, "sampling": {"max_new_tokens": 4}}


class TwoPrompts(PromptSource[NoOptions]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Prompt:
        return Prompt(text="ab"[index])


def test_a_stage_is_set_up_and_stepped_by_hand(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    stage = FitReward(FitRewardConfig(reward="any", feedback=["any"]), run.context.named("stage", "mine"))
    stage.setup(run)
    before = run.component("reward", "any").state_dict()
    assert stage.total == 1 and stage.step(0) == {"fit/records": len(list(run.component("feedback", "any")))}
    assert run.component("reward", "any").state_dict() != before
    stage.finish()
    assert (tmp_path / run.artefacts["kept"]["reward.any"]).is_dir()


def test_a_run_that_is_stopped_and_resumed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    config = OptimizeConfig(**OPTIMIZE, shapers=["toy"], steps=3)
    whole = tiny_run(tmp_path / "whole", Optimize, config)
    summary = whole.run(resume=False)
    with pytest.raises(Interrupted, match="stopped by SIGINT at a checkpoint"):
        tiny_run(tmp_path / "cut", Optimize, config, stop_after=2).run(resume=False)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    resumed = tiny_run(tmp_path / "cut", Optimize, config)
    assert resumed.run(resume=True)["stages"] == summary["stages"]
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    for mine, other in zip(whole.policy.module.parameters(), resumed.policy.module.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_an_evaluation_stopped_after_its_only_step_keeps_what_it_measured(tmp_path: Path) -> None:
    config = EvaluateConfig(prompts="toy", metrics=["length"])
    with pytest.raises(Interrupted):
        tiny_run(tmp_path, Evaluate, config, stop_after=1).run(resume=False)
    summary = tiny_run(tmp_path, Evaluate, config).run(resume=True)
    assert summary["stages"]["tiny"]["metrics"]["length"]["after"]["n"] == 5


def test_own_components_stand_in_for_toys() -> None:
    makers = {("prompts", "two"): lambda context: TwoPrompts(NoOptions(), context)}
    run = tiny_run(None, Evaluate, EvaluateConfig(prompts="two", metrics=["any"]), components=makers)
    assert run.run(resume=False)["stages"]["tiny"]["metrics"]["any"]["after"]["n"] == 2
    assert len(run.component("prompts", "other")) == 5
    assert run.directory.is_dir()


def test_settings_are_those_of_a_pipeline() -> None:
    run = tiny_run(dtype="float64", seed=3)
    assert next(run.policy.module.parameters()).dtype == torch.float64
    assert run.seed == run.context.seed == 3


def test_a_dry_run_takes_one_step() -> None:
    run = tiny_run(None, Optimize, OptimizeConfig(**OPTIMIZE, steps=3), dry_run=True)
    run.run(resume=False)
    assert len((run.directory / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("ask", [tiny_run, tiny_context])
def test_what_there_is_no_toy_of(ask: object) -> None:
    with pytest.raises(ConfigError, match=r"judge 'x': .* no toy of this kind; expected one of feedback.*metric"):
        ask().component("judge", "x")  # type: ignore[operator]


def outcomes(examples: dict[str, object]) -> Iterator[tuple[str, str, str]]:
    for result in run_checks("rlhf-core", load_plugins(disable="all"), kinds=["stage"], examples=examples):  # type: ignore[arg-type]
        if result.component in examples and result.check in ("runs_all_its_steps", "resumes_bit_for_bit"):
            yield result.check, result.outcome, result.reason


def test_a_stage_that_refuses_the_toys_is_skipped_with_its_words() -> None:
    found = list(outcomes({"stage/optimize": [{**OPTIMIZE, "steps": 1, "reference": "nowhere"}]}))
    assert [outcome for _, outcome, _ in found] == ["skipped"] * 2
    assert found[0][2].startswith("it does not run here: policy 'toy' reference: nothing to load at nowhere")


def test_a_stage_that_fails_later_fails_one_check() -> None:
    (first, outcome, reason), (second, other, why) = outcomes({"stage/export": [{"weights": "adapters"}]})
    assert (first, outcome) == ("runs_all_its_steps", "failed")
    assert "step 0 raises ConfigError: policy 'toy' export: adapters of full fine-tuning" in reason
    assert (second, other) == ("resumes_bit_for_bit", "skipped")
    assert why == "it does not run to its end: see runs_all_its_steps"


def test_an_export_that_was_interrupted_goes_on_and_one_in_the_way_is_left_alone(tmp_path: Path) -> None:
    """Also where it was stopped half way, with a folder that is not finished."""
    place = tmp_path / "elsewhere" / "model"
    config = ExportConfig(path=str(place))
    half = place.with_name(".model.unfinished")
    half.mkdir(parents=True)
    (half / "junk").touch()
    with pytest.raises(Interrupted):
        tiny_run(tmp_path / "run", Export, config, stop_after=1).run(resume=False)
    summary = tiny_run(tmp_path / "run", Export, config).run(resume=True)
    assert summary["stages"]["tiny"]["path"] == str(place)
    assert (place / "model.safetensors").is_file() and not (place / "junk").exists() and not half.exists()
    with pytest.raises(RunError, match=r"model is not empty; expected a new or empty folder; choose another path"):
        tiny_run(tmp_path / "again", Export, config).run(resume=False)
