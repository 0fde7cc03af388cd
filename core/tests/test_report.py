"""The run report: what it says, that it is safe to open, and that it copes with whatever part is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from rlhf_core.errors import RunError
from rlhf_core.runs.plots import Plots, StageLog
from rlhf_core.runs.report import write_report
from rlhf_core.runs.svg import window
from rlhf_core.runs.wording import Row, clean, duration, fixed, number

VOID = {"meta", "br", "link", "img", "input", "hr"}
EVIL = "<script>alert('x')</script> \"quoted\" & {{ 7 * 7 }} $x_1$ \x1b[31mred\x1b[0m \x00\x9b1m \u202erev \ud800"
EVIL_SHOWN = "<script>alert('x')</script> \"quoted\" & {{ 7 * 7 }} $x_1$ red rev \ufffd"


class Page(HTMLParser):
    """A page taken apart, strictly: every element is closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_bytes().decode("utf-8")
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "svg" not in self.open:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, outside of the plots."""
        return re.sub(r"\s+", " ", " ".join(self.pieces))

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]

    @property
    def titles(self) -> list[str]:
        """Titles of the plots."""
        return re.findall(r"<h4>(.*?)</h4>", self.source)


def optimize_steps(count: int, stage: str = "optimize") -> list[dict[str, Any]]:
    return [{"stage": stage, "step": i + 1, "reward/score": 0.1 * i, "reward/score_std": 0.5, "reward/shaped": 0.05 * i,
             "reward/helpful": 0.2 * i, "reward/polite": -0.1 * i, "kl/sequence": 0.3 * i - 1e-7,
             "response/length": 20.0 + i, "response/truncated": 0.25, "policy/entropy": 2 - 0.1 * i,
             "policy/clip_fraction": 0.1, "value/explained_variance": 0.1 * i, "policy/loss": 1.5}
            for i in range(count)]  # fmt: skip


def estimate(mean: float | None, error: float | None, n: int = 128) -> dict[str, Any]:
    return {"mean": mean, "error": error, "n": float(n)}


def paired(before: Mapping[str, Any], after: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    return {"before": before, "after": after, "change": change}


def a_run(directory: Path, *, steps: int = 6, **changes: Any) -> Path:
    """A complete run directory; `changes` replaces files, None leaves them out."""
    summary = {
        "pipeline": "quickstart", "seed": 3, "stages": {
            "sft": {"examples": 1342, "held_out": {"loss": 0.365273, "perplexity": 1.4409}},
            "fit-reward": {"reward": "helpful",
                           "held_out": {"accuracy": 0.726, "margin": 0.6, "ece": 0.0657, "pairs": 230.0}},
            "optimize": {"steps": steps, "rewards": {"helpful": 1.0, "polite": 0.2}},
            "evaluate": {"metrics": {
                "reward": paired(estimate(0.1, 0.077), estimate(1.434, 0.076), estimate(1.337, 0.095)),
                "polite": paired(estimate(0.5, 0.02), estimate(0.3, 0.02), estimate(-0.2, 0.03)),
                "length": paired(estimate(18.0, 0.6), estimate(18.4, 0.6), estimate(0.4, 0.5))}},
            "export": {"path": "/somewhere/export"}},
        "seconds": {"sft": 13.0, "optimize": 70.0}, "parameters": 459521, "trainable": 459521,
        "warnings": ["every token is paid a positive reward"]}  # fmt: skip
    metrics = [{"stage": "sft", "step": i + 1, "sft/loss": 6.0 - i, "sft/learning_rate": 1e-3} for i in range(4)]
    metrics += [{"stage": "fit-reward", "step": i + 1, "fit/loss": 0.7, "fit/accuracy": 0.6} for i in range(4)]
    metrics += optimize_steps(steps)
    metrics += [{"stage": "evaluate", "step": 1, "evaluate/reward": 1.434}, {"stage": "export", "step": 1}]
    files: dict[str, Any] = {
        "summary": summary, "metrics": metrics,
        "timings": [{"stage": line["stage"], "step": line["step"], "seconds": 0.5} for line in metrics],
        "samples": [{"stage": "evaluate", "prompt": "Customer: hi\nAgent:",
                     "before": {"response": " No.", "reward": -1.5},
                     "after": {"response": " Please wait.", "reward": 1.25}}],
        "provenance": {"pipeline": "quickstart", "seed": 3, "started": "2026-11-20T23:31:51+00:00",
                       "command": ["rlhf", "run", "quickstart"], "versions": {"rlhf-core": "0.1.0", "torch": "2.13.0"},
                       "machine": {"processor": "EPYC", "threads": 2, "device": "cpu"},
                       "git": {"commit": "abc123", "changed": True}, "files": {"/data/prompts.jsonl": "sha256:00ff"}},
        "registry": "pipelines:\n  quickstart:\n    description: a help desk\n    seed: 3\n",
    } | changes  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        if value is None:
            continue
        if name == "registry":
            (directory / "registry.yaml").write_text(value, encoding="utf-8", errors="surrogatepass")
        elif isinstance(value, list):
            (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in value))
        else:
            (directory / f"{name}.json").write_text(json.dumps(value))
    return directory


def report(directory: Path) -> Page:
    assert write_report(directory) == directory / "report.html"
    return Page(directory / "report.html")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(a_run(tmp_path_factory.mktemp("full") / "run"))


# --- what it says ---


def test_the_verdict_is_in_words_with_the_interval_of_the_paired_change(full: Page) -> None:
    assert "After training, on 128 held-out prompts:" in full.text
    # 1.337 ± 1.96 * 0.095 = 1.337 ± 0.186
    assert "reward rose from 0.10 to 1.43 (change +1.34, 95 % interval +1.15 to +1.52)" in full.text
    assert "polite fell from 0.500 to 0.300 (change −0.200, 95 % interval −0.259 to −0.141)" in full.text
    assert "length shows no clear change, 18.00 before and 18.40 after" in full.text
    assert "95 % interval −0.58 to +1.38" in full.text


def test_the_page_has_its_parts_in_order(full: Page) -> None:
    parts = [
        "quickstart", "a help desk", "seed 3", "2026-11-20 23:31 UTC", "8.0 s in steps", "rose from",
        "metric before after change", "every token is paid", "Curves", "Samples", "Please wait.", "Held-out results",
        "0.726", "0.066", "230", "Configuration", "rlhf run quickstart", "commit abc123, with uncommitted changes",
        "EPYC, cpu, 2 threads", "torch 2.13.0", "/data/prompts.jsonl", "sha256:00ff", "description: a help desk",
        "Time", "Reproduce", "rlhf run quickstart --registry registry.yaml --set seed=3"]  # fmt: skip
    place = 0
    for part in parts:
        assert part in full.text[place:], f"{part!r} is missing, or too early"
        place = full.text.index(part, place)


def test_metrics_are_shown_with_their_intervals(full: Page) -> None:
    assert "reward 0.10 ± 0.15 1.43 ± 0.15 +1.34 ± 0.19" in full.text


def test_every_plot_has_a_title_axis_labels_with_units_and_a_caption(full: Page) -> None:
    assert full.titles == [
        "Reward in total", "Reward by component", "Distance from the reference (KL)", "Reward against distance",
        "Response length", "Truncated responses", "Entropy", "Clip fraction", "Explained variance of the critic",
        "Loss of supervised fine-tuning", "Loss of the reward model", "Accuracy of the reward model"]  # fmt: skip
    plots = re.findall(r'<div class="plot".*?</figcaption>', full.source, re.DOTALL)
    assert len(plots) == len(full.titles)
    for plot in plots:
        labels = re.findall(r"<text[^>]*>([^<]+)</text>", plot)
        assert "step" in labels or "√KL from the reference, in √nats" in labels
        assert any(re.search("per|%|share", label) for label in labels), labels
        caption = plot.split("<figcaption>")[1].removesuffix("</figcaption>")
        assert caption.endswith(".") and caption.count(". ") == 0
    assert "falling towards 0 means the policy repeats itself" in full.text
    assert "helpful (weight 1)" in full.text and "polite (weight 0.2)" in full.text


def test_the_optimize_stage_comes_first_and_each_stage_tells_its_place(full: Page) -> None:
    assert re.findall(r"<h3><bdi>(.*?)</bdi>", full.source) == ["optimize", "sft", "fit-reward", "sft", "fit-reward"]
    assert "Stage 3 of 5, 6 steps" in full.text


def test_samples_stand_side_by_side_with_their_values(full: Page) -> None:
    assert "before No. reward −1.50" in full.text
    assert "after Please wait. reward 1.25" in full.text


def test_all_statistics_are_listed_even_those_without_a_plot(full: Page) -> None:
    assert "policy/loss 1.5 1.5 1.5 1.5" in full.text
    assert "sft/learning_rate 0.001 0.001" in full.text


@pytest.mark.parametrize(("metric", "word"), [
    (paired(estimate(1, 0.1), estimate(2, 0.1), estimate(1, 0.5)), "rose"),
    (paired(estimate(1, 0.1), estimate(2, 0.1), estimate(1, 0.52)), "shows no clear change"),  # 1.96 * 0.52 > 1
    (paired(estimate(2, 0.1), estimate(1, 0.1), estimate(-1, 0.5)), "fell"),
    (paired(estimate(1, 0), estimate(1, 0), estimate(0, 0)), "shows no clear change"),
    (paired(estimate(1, None, 1), estimate(2, None, 1), estimate(1, None, 1)), "has no interval"),
    (paired(estimate(None, None, 0), estimate(2, 0.1), estimate(None, None, 0)), "could not be compared"),
])  # fmt: skip
def test_the_word_for_a_change(tmp_path: Path, metric: Mapping[str, Any], word: str) -> None:
    assert Row.of("m", metric).word == word
    page = report(a_run(tmp_path, summary={"stages": {"evaluate": {"metrics": {"m": metric}}}}, metrics=[]))
    said = {"has no interval": "m went from 1.00 to 2.00; from so few prompts"}.get(word, f"m {word}")
    assert said in page.text


def test_without_a_reference_nothing_is_said_to_have_changed(tmp_path: Path) -> None:
    stages = {"evaluate": {"metrics": {"reward": {"after": estimate(1.5, 0.1, 9)}}}}
    page = report(a_run(tmp_path, summary={"stages": stages}, metrics=[], provenance=None))
    assert "On 9 held-out prompts:" in page.text and "reward is 1.50 ± 0.20" in page.text
    assert "there is nothing to compare with" in page.text
    assert " rose " not in page.text and "change" not in page.text


def test_metrics_that_skip_prompts_show_how_many_they_have(tmp_path: Path) -> None:
    metrics = {"reward": {"after": estimate(1.5, 0.1, 9)}, "style": {"after": estimate(0.5, 0.1, 4)}}
    page = report(a_run(tmp_path, summary={"stages": {"evaluate": {"metrics": metrics}}}, metrics=[]))
    assert "On 4 to 9 held-out prompts" in page.text and "metric value prompts" in page.text


# --- that it is safe ---


def test_the_page_runs_nothing_and_fetches_nothing(full: Page) -> None:
    assert not set(full.tags) & {"script", "iframe", "object", "embed", "link", "img", "form", "base"}
    assert not [name for _, name, _ in full.attributes if name.startswith("on") or name in ("style", "src", "srcset")]
    assert not re.search(r"https?:|//[a-z]|@import|data:|javascript:", full.source, re.IGNORECASE)
    assert "url(" not in full.source.replace("url(#", "")
    ids = full.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in full.values("href")} <= set(ids)
    assert set(re.findall(r"url\(#(.*?)\)", full.source)) <= set(ids)


def test_the_policy_allows_the_page_s_own_style_sheet_only(full: Page) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", full.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = full.values("content")[0]
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "prefers-color-scheme: dark" in style and "@media print" in style


def test_text_of_models_data_and_configurations_stays_text(tmp_path: Path) -> None:
    name = EVIL
    summary = {"pipeline": name, "seed": name, "warnings": [name], "parameters": 5, "trainable": 1, "stages": {
        name: {"reward": name, "rewards": {name: 1.0}, "held_out": {name: 0.5}, "examples": name,
               "metrics": {name: {key: estimate(1, 0.1) for key in ("before", "after", "change")}}}}}  # fmt: skip
    metrics = [{"stage": name, "step": i, f"reward/{name}": i, "reward/score": 2 * i, f"eval/{name}": i, name: i}
               for i in range(5)]  # fmt: skip
    metrics += [{"stage": "other", "step": i, name: i} for i in range(3)]
    samples = [{"stage": name, "prompt": name, "before": {"response": name, name: 1.5}, "after": {"response": name}}]
    provenance = {
        "started": name,
        "command": ["rlhf", name],
        "versions": {name: name, "rlhf-core": name},
        "machine": {"processor": name, "threads": name},
        "git": {"commit": name},
        "files": {name: name},
    }
    page = report(a_run(tmp_path, summary=summary, metrics=metrics, samples=samples, provenance=provenance,
                        timings=[{"stage": name, "step": 1, "seconds": 1.0}],
                        registry="pipelines: {p: {description: '" + EVIL.replace("'", "''") + "'}}"))  # fmt: skip
    assert "script" not in page.tags
    assert page.text.count(EVIL_SHOWN) >= 25
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page.source)
    assert "&#34;quoted&#34;" in page.source and "$x_1$" in page.source
    assert not any("<script" in piece for piece in re.findall(r"<[^>]*>", page.source))
    assert "script" not in "".join(re.findall(r"<svg.*?</svg>", page.source))


def test_clean_takes_out_what_a_terminal_or_a_browser_would_obey() -> None:
    assert clean("\x1b]8;;http://x\x07link\x1b]8;;\x07 \x1b[1;31mred\x1b[0m\r\nnext\ttab\x08") == "link red\nnext\ttab"
    assert clean("שלום 你好 👩‍💻 é") == "שלום 你好 👩‍💻 é"


# --- that it copes ---


def test_a_summary_is_enough(tmp_path: Path) -> None:
    page = report(a_run(tmp_path, summary={}, metrics=None, timings=None, samples=None, provenance=None, registry=None))
    assert "This run has no evaluate stage" in page.text and "The run gave no warnings." in page.text
    assert page.titles == []
    for absent in ("Curves", "Samples", "Time", "Held-out results", "resolved registry", "Hashes", "in steps"):
        assert absent not in page.text


@pytest.mark.parametrize("missing", ["metrics", "timings", "samples", "provenance", "registry"])
def test_any_one_part_may_be_missing(tmp_path: Path, missing: str) -> None:
    parts: dict[str, Any] = {"metrics": optimize_steps(2), missing: None}
    page = report(a_run(tmp_path, **parts))
    assert "rose from 0.10 to 1.43" in page.text


def test_a_run_without_an_optimize_stage(tmp_path: Path) -> None:
    summary = {"pipeline": "sft-only", "seed": 0, "stages": {"sft": {"examples": 10, "held_out": {}}}}
    metrics = [{"stage": "sft", "step": i + 1, "sft/loss": 3.0 - i} for i in range(6)]
    metrics[1]["eval/loss"] = metrics[3]["eval/loss"] = 2.5
    page = report(a_run(tmp_path, summary=summary, metrics=metrics, samples=None))
    assert page.titles == ["Loss of supervised fine-tuning"]
    assert "held-out loss that rises again means memorising" in page.text
    assert "training held out" in page.text and "Held-out results" not in page.text


def test_one_step_gives_numbers_and_no_empty_plots(tmp_path: Path) -> None:
    page = report(a_run(tmp_path, steps=1, metrics=optimize_steps(1)))
    assert page.titles == []
    assert "1 step; too few values to draw" in page.text
    assert ("details", "open", "") in page.attributes and "response/length 20" in page.text


def test_nan_and_null_leave_gaps_and_nothing_else(tmp_path: Path) -> None:
    metrics = optimize_steps(8)
    for i in (2, 3):
        metrics[i] |= {"reward/score": None, "kl/sequence": math.nan, "policy/entropy": math.inf}
    for line in metrics:
        line["value/explained_variance"] = None
    page = report(a_run(tmp_path, metrics=metrics))
    assert "Entropy" in page.titles and "Reward against distance" in page.titles
    assert "Explained variance of the critic" not in page.titles
    assert "nan" not in page.source.lower().replace("nats", "") and "inf" not in re.findall(r' d="[^"]*"', page.source)


def test_several_optimize_stages_are_kept_apart(tmp_path: Path) -> None:
    summary = {"stages": {"warm-up": {"rewards": {"helpful": 1.0}}, "main": {"rewards": {"polite": 1.0}}}}
    metrics = [{"stage": "sft", "step": 1, "sft/loss": 1.0}, *optimize_steps(4, "warm-up"), *optimize_steps(5, "main")]
    page = report(a_run(tmp_path, summary=summary, metrics=metrics))
    assert re.findall(r"<h3><bdi>(.*?)</bdi>", page.source) == ["warm-up", "main", "sft"]
    assert page.titles.count("Entropy") == 2
    assert "Stage 1 of 2, 4 steps" in page.text and "Stage 2 of 2, 5 steps" in page.text


def test_many_samples_are_cut_with_a_word_about_it(tmp_path: Path) -> None:
    samples = [{"stage": "evaluate", "prompt": f"prompt {i}", "after": {"response": ""}} for i in range(23)]
    page = report(a_run(tmp_path, samples=samples, metrics=[]))
    assert "prompt 19" in page.text and "prompt 20" not in page.text and "3 more are in samples.jsonl" in page.text
    assert "(empty)" in page.text and "before (empty)" not in page.text


def test_a_damaged_or_unfinished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"summary\.json cannot be read.*finish the run with --resume"):
        write_report(tmp_path)
    directory = a_run(tmp_path / "run")
    (directory / "metrics.jsonl").write_text('{"stage": "sft"')
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be read.*one JSON object per line"):
        write_report(directory)


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    directory = a_run(tmp_path, metrics=[])
    (directory / "report.html").write_text("old")
    (directory / ".report.html.partial").mkdir()
    with pytest.raises(RunError, match=r"cannot be written.*the run itself is complete"):
        write_report(directory)
    assert (directory / "report.html").read_text() == "old"


# --- how it draws ---


def test_equal_runs_give_equal_bytes_whatever_a_user_set_in_matplotlib(tmp_path: Path) -> None:
    first = report(a_run(tmp_path / "a")).source
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        second = report(a_run(tmp_path / "b")).source
        assert matplotlib.rcParams["font.size"] == 30
    assert first == second


def log(count: int, **values: Any) -> StageLog:
    return StageLog("s", np.arange(1.0, count + 1), {name: np.asarray(v, dtype=float) for name, v in values.items()})


def titles(stage: StageLog, rewards: Mapping[str, float] | None = None) -> list[str]:
    return [plot.title for plot in Plots().of(stage, rewards or {})]


def test_a_single_component_that_is_the_total_is_not_drawn_twice() -> None:
    same = log(3, **{"reward/score": [1, 2, 3], "reward/helpful": [1, 2, 3]})
    assert titles(same, {"helpful": 1.0}) == ["Reward in total"]
    other = log(3, **{"reward/score": [1, 2, 3], "reward/helpful": [2, 4, 6]})
    assert titles(other, {"helpful": 0.5}) == ["Reward in total", "Reward by component"]


def test_parts_of_a_reward_are_no_components() -> None:
    parts = {"reward/a": [0, 1, 0], "reward/a/abstained": [1, 2, 3], "reward/b": [1, 1, 1]}
    stage = log(3, **{"reward/score": [1, 2, 3], **parts})
    (plot,) = [p for p in Plots().of(stage, {}) if p.title == "Reward by component"]
    assert [key.label for key in plot.keys] == ["a", "b"]


def test_many_components_are_spread_over_plots() -> None:
    stage = log(3, **{f"reward/r{i}": [1, 2, i] for i in range(8)})
    assert [len(p.keys) for p in Plots().of(stage, {})] == [6, 2]


def test_nothing_truncated_is_said_and_not_drawn() -> None:
    plots = Plots().of(log(3, **{"response/length": [5, 6, 7], "response/truncated": [0, 0, 0]}), {})
    assert [p.title for p in plots] == ["Response length"]
    assert plots[0].caption.endswith("; none was cut off at the length limit.")


def test_a_stage_of_a_plugin_gets_plots_of_what_it_logs() -> None:
    assert titles(log(3, **{"dpo/loss": [3, 2, 1], "dpo/margin": [0, 1, 2]})) == ["dpo/loss", "dpo/margin"]


def test_a_very_bad_critic_does_not_flatten_the_plot() -> None:
    (plot,) = Plots().of(log(4, **{"value/explained_variance": [-900, -0.5, 0.2, 0.6]}), {})
    assert "lower values than −1 are not shown" in plot.caption
    assert "−900" not in plot.svg and "0.5" in plot.svg


def test_evaluations_during_training_are_drawn_where_they_were_made() -> None:
    scores = [math.nan, 0.5, math.nan, 0.7, math.nan, 0.9]
    (plot,) = Plots().of(log(6, **{"eval/gold": scores}), {})
    assert plot.title == "Evaluation: gold"
    assert plot.label == "Evaluation: gold: from 0.5 to 0.9, lowest 0.5, highest 0.9"


def test_long_runs_stay_small_and_keep_their_spikes(tmp_path: Path) -> None:
    rewards = np.zeros(20_000)
    rewards[12_345] = 50.0
    started = time.perf_counter()
    (plot,) = Plots().of(log(20_000, **{"reward/score": rewards}), {})
    assert time.perf_counter() - started < 4
    assert len(plot.svg) < 40_000
    assert ">50<" in plot.svg or ">40<" in plot.svg  # the axis reaches to the spike


def test_smoothing_windows_are_odd_and_short_runs_have_none() -> None:
    assert [window(n) for n in (1, 29, 30, 60, 126)] == [1, 1, 3, 5, 11]


# --- numbers ---


def test_numbers_as_they_are_shown() -> None:
    assert [number(v) for v in (0.0003, 1234.5, 12345678, -0.5, None, math.nan, 2.0, 1e-9, 3e20, "x", 10**400)] == [
        "0.0003", "1,234", "12,345,678", "−0.5", "–", "–", "2", "1e-9".replace("-", "−"), "3e20", "–", "–"]  # fmt: skip
    assert [fixed(v, 2) for v in (-0.001, 1234.567, math.nan)] == ["0.00", "1,234.57", ""]
    assert [fixed(v, 1, sign=True) for v in (1.26, -1.26, 0.01)] == ["+1.3", "−1.3", "0.0"]
    assert [duration(s).replace("\xa0", " ") for s in (0.288, 53.2, 80.4, 7380)] == [
        "0.3 s", "53 s", "1 min 20 s", "2 h 03 min"]  # fmt: skip


def test_the_template_is_part_of_the_wheel() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    builder = wheel.WheelBuilder(str(Path(__file__).parents[1]))
    packed = {file.distribution_path for file in builder.recurse_included_files()}
    assert "rlhf_core/runs/report.html.j2" in packed
