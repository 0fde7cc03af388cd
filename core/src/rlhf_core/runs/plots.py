"""The report's plots: which statistics of a stage are drawn, and one sentence on how to read each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from .svg import COLOUR, DASHES, MOST, POINTS, Axis, Key, Values, limit, line, render, whole_steps
from .wording import real


@dataclass(frozen=True)
class StageLog:
    """What one stage logged: `steps` (N,), and per statistic `values` (N,), nan where it is missing or not finite."""

    name: str
    steps: Values
    values: Mapping[str, Values]


@dataclass(frozen=True)
class Plot:
    """A plot for the page; `keys` is empty where there is but one line."""

    title: str
    caption: str
    label: str
    svg: Markup
    keys: tuple[Key, ...] = ()


class Spec(NamedTuple):
    """A plot that is made where its statistics are there: name -> label, its axis and how to read it."""

    title: str
    names: Mapping[str, str]
    axis: Axis
    caption: str


REWARD = Spec(
    "Reward in total",
    {"reward/score": "score", "reward/shaped": "shaped"},
    Axis("mean per response"),
    "Mean reward of the sampled responses, as scored, and as the optimizer sees it after shaping (such as a price on "
    "KL); rising is the aim, as far as the reward can be trusted.",
)
PARTS = "Mean of each reward on its own, before its weight; one that falls while the total rises is being traded away."
KL = Spec(
    "Distance from the reference (KL)",
    {"kl/sequence": "KL"},
    Axis("nats per response", zero=True),
    "How far the policy has moved from its reference; 0 means unchanged, and a steep climb often comes just before the "
    "text breaks down.",
)
FRONTIER = (
    "One point per step, pale early and strong late; where they bend downwards, moving further from the "
    "reference no longer pays."
)
TRUNCATED = Spec(
    "Truncated responses",
    {"response/truncated": "truncated"},
    Axis("% of responses", zero=True, percent=True),
    "Responses cut off at the length limit; near 100 % the limit is too short or the policy does not know how to stop.",
)
SPECS = (
    Spec("Response length", {"response/length": "length"}, Axis("tokens per response", zero=True),
         "Mean length of a response; a steady climb along with the reward may mean that length itself is rewarded."),
    TRUNCATED,
    Spec("Entropy", {"policy/entropy": "entropy"}, Axis("nats per token", zero=True),
         "How undecided the policy is at each token; falling towards 0 means the policy repeats itself."),
    Spec("Clip fraction", {"policy/clip_fraction": "clipped"}, Axis("% of tokens", zero=True, percent=True),
         "Tokens whose probability moved further in an update than the clip range allows; a high or rising share means "
         "that the steps are too large."),
    Spec("Explained variance of the critic", {"value/explained_variance": "explained variance"},
         Axis("share of variance explained", zero=True, floor=-1.0),
         "How much of the differences in return the critic foresees; 1 is perfect, 0 no better than a constant, and "
         "below 0 worse than one."),
    Spec("Loss of supervised fine-tuning", {"sft/loss": "training", "eval/loss": "held out"},
         Axis("nats per token"),
         "How badly the policy predicts the demonstrations; it should fall and then level off."),
    Spec("Loss of the reward model", {"fit/loss": "training", "eval/loss": "held out"}, Axis("mean loss per example"),
         "How badly the reward model predicts the feedback; it should fall and then level off."),
    Spec("Accuracy of the reward model", {"fit/accuracy": "training", "eval/accuracy": "held out"},
         Axis("% of examples", percent=True),
         "Share of the feedback that the reward model gets right; between two responses, 50 % is guessing."),
)  # fmt: skip
UNITS = {"kl": "nats per response", "length": "tokens per response"}
EVALUATION = (
    "Measured on held-out data during training; where it turns while the training curve still improves, "
    "training has gone on too long."
)
OTHER = "As the stage logged it; what it means is up to the component that logs it."
# of evaluations: counts, and what the loss says already
UNDRAWN = {"eval/pairs", "eval/perplexity", "eval/examples"}


@dataclass
class Plots:
    """Draws; each plot of a page gets a number, so that ids in the page are unique."""

    count: int = field(default=0)

    def of(self, stage: StageLog, rewards: Mapping[str, Any]) -> list[Plot]:
        """The plots of a stage, none of them empty: a line is drawn from two finite values on.

        rewards: the rewards that an optimize stage mixes, with their weights.
        """
        lines = {name: values for name, values in stage.values.items() if np.isfinite(values).sum() > 1}
        parts = _parts(lines, rewards)
        drawn = set(parts)
        plots = self._specs(stage, lines, (REWARD,), drawn)
        if not (len(parts) == 1 and "reward/score" in lines and _same(lines, "reward/score", *parts)):
            names = list(parts)
            for start in range(0, len(names), MOST):
                chosen = {name: parts[name] for name in names[start : start + MOST]}
                plots.append(self._curves(stage, lines, Spec("Reward by component", chosen, REWARD.axis, PARTS)))
        plots += self._specs(stage, lines, (KL,), drawn)
        if {"kl/sequence", "reward/score"} <= lines.keys():
            plots.append(self._frontier(stage, lines))
        plots += self._specs(stage, lines, SPECS, drawn)
        for name in lines:
            if name.startswith("eval/") and name not in drawn | UNDRAWN:
                short = name.removeprefix("eval/")
                spec = Spec(f"Evaluation: {short}", {name: short}, Axis(UNITS.get(short, "held-out mean")), EVALUATION)
                plots.append(self._curves(stage, lines, spec))
        if not plots:
            for name in list(lines)[:MOST]:
                plots.append(self._curves(stage, lines, Spec(name, {name: name}, Axis("value"), OTHER)))
        return plots

    def _specs(
        self, stage: StageLog, lines: Mapping[str, Values], specs: Iterable[Spec], drawn: set[str]
    ) -> list[Plot]:
        """Those of `specs` whose first statistic is there; the names they draw are added to `drawn`."""
        plots = []
        for spec in specs:
            if next(iter(spec.names)) in lines and not (spec is TRUNCATED and not lines["response/truncated"].any()):
                plots.append(self._curves(stage, lines, spec))
                drawn.update(spec.names)
        return plots

    def _curves(self, stage: StageLog, lines: Mapping[str, Values], spec: Spec) -> Plot:
        names = [name for name in spec.names if name in lines]
        keys = tuple(Key(spec.names[name], i, DASHES[i % len(DASHES)]) for i, name in enumerate(names))
        caption = spec.caption
        if "response/length" in names and "response/truncated" in lines and not lines["response/truncated"].any():
            caption = caption[:-1] + "; none was cut off at the length limit."
        if "eval/loss" in names:
            caption = caption[:-1] + ", and held-out loss that rises again means memorising."
        if min(np.nanmin(lines[name]) for name in names) < spec.axis.floor:
            caption = caption[:-1] + f"; lower values than {spec.axis.floor:g} are not shown.".replace("-", "−")

        def draw(axes: Any) -> None:
            scale = 100.0 if spec.axis.percent else 1.0
            for key, name in zip(keys, names, strict=True):
                line(axes, stage.steps, lines[name] * scale, key)
            whole_steps(axes)
            limit(axes, spec.axis)

        svg = self._render("step", spec.axis.unit, draw)
        return Plot(spec.title, caption, _label(spec.title, lines[names[0]]), svg, keys if len(keys) > 1 else ())

    def _frontier(self, stage: StageLog, lines: Mapping[str, Values]) -> Plot:
        far = np.sqrt(np.maximum(lines["kl/sequence"], 0.0))  # estimates from samples can fall below 0
        reward = lines["reward/score"]
        kept = np.flatnonzero(np.isfinite(far) & np.isfinite(reward))
        kept = kept[:: max(1, len(kept) // POINTS)]

        def draw(axes: Any) -> None:
            shades = np.ceil(np.linspace(0.15, 1.0, len(kept)) * 20) / 20
            for shade in np.unique(shades):
                rows = kept[shades == shade]
                axes.plot(far[rows], reward[rows], "o", ms=4.5, mew=0, alpha=shade, color=COLOUR["c0"], clip_on=False)
            axes.set_xlim(left=0)

        title = "Reward against distance"
        svg = self._render("√KL from the reference, in √nats", "score, mean per response", draw)
        return Plot(title, FRONTIER, _label(title, reward), svg)

    def _render(self, across: str, up: str, draw: Callable[[Any], None]) -> Markup:
        self.count += 1
        return render(across, up, draw, f"plot{self.count}-")


def logs_of(metrics: Iterable[Mapping[str, Any]]) -> list[StageLog]:
    """The lines of metrics.jsonl by stage, as columns."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for entry in metrics:
        stages.setdefault(str(entry.get("stage", "")), []).append(entry)
    logs = []
    for stage, entries in stages.items():
        names = dict.fromkeys(name for entry in entries for name in entry if name not in ("stage", "step"))
        steps = np.array([real(entry.get("step", i + 1)) for i, entry in enumerate(entries)])
        values = {name: np.array([real(entry.get(name)) for entry in entries]) for name in names}
        logs.append(StageLog(stage, steps, values))
    return logs


def _parts(lines: Mapping[str, Values], rewards: Mapping[str, Any]) -> dict[str, str]:
    """Statistics of single rewards, with their labels; by the stage's own list, or by the form of the name."""
    if rewards:
        return {
            f"reward/{name}": f"{name} (weight {real(weight):g})"
            for name, weight in rewards.items()
            if f"reward/{name}" in lines and name not in ("score", "shaped")
        }
    taken = {"reward/score", "reward/score_std", "reward/shaped"}
    return {
        name: name.removeprefix("reward/")
        for name in lines
        if name.startswith("reward/") and name.count("/") == 1 and name not in taken
    }


def _same(lines: Mapping[str, Values], first: str, second: str) -> bool:
    return bool(np.allclose(lines[first], lines[second], rtol=1e-5, atol=1e-6, equal_nan=True))


def _label(title: str, values: Values) -> str:
    known = values[np.isfinite(values)]
    return f"{title}: from {known[0]:.3g} to {known[-1]:.3g}, lowest {known.min():.3g}, highest {known.max():.3g}"
