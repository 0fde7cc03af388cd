"""Rankings, ties, votes, and cleaning by preference strength, each against a known truth."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_core.interfaces import Context
from rlhf_core.records import Comparison, Demonstration, Sample
from rlhf_plugin_preference import strength
from rlhf_plugin_preference.config import PreferenceRewardConfig, StrengthConfig
from rlhf_plugin_preference.strength import Strength
from rlhf_plugin_preference.ties import TiedPair
from scipy.stats import spearmanr

from .toys import WORDS, comparisons, fresh, make_reward


def reply(rng: random.Random) -> tuple[str, int]:
    worth = rng.randint(0, 4)
    words = rng.choices(WORDS, k=rng.randint(4, 7)) + ["please"] * worth
    rng.shuffle(words)
    return " " + " ".join(words), worth


def rankings(count: int, seed: int, kind: str) -> list[Comparison]:
    """Of four responses the politer ones are better; `kind`: full (ties where equal), votes (the best only)."""
    rng = random.Random(seed)
    made: list[Comparison] = []
    while len(made) < count:
        texts, worths = zip(*[reply(rng) for _ in range(4)], strict=True)
        noisy = [w + (rng.gauss(0, 0.5) if kind == "full" else 0) for w in worths]
        order = sorted({*noisy}, reverse=True)
        ranks = [order.index(w) for w in noisy]
        if len(set(texts)) < 4 or (kind == "votes" and ranks.count(0) > 1):
            continue
        if kind == "votes":
            ranks = [int(rank > 0) for rank in ranks]
        made.append(
            Comparison(prompt=f"Ask {len(made)}:", responses=texts, ranks=tuple(ranks), ties_judged=kind == "ties")
        )
    return made


def agreement(reward: Any, seed: int = 50) -> float:
    rng = random.Random(seed)
    texts, worths = zip(*[reply(rng) for _ in range(300)], strict=True)
    prompt = comparisons(1)[0].prompt
    return float(spearmanr(reward.score([Sample(prompt, t) for t in texts]).values, worths).statistic)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("kind", "config"), [
    ("full", {"rankings": "plackett-luce"}),
    ("full", {}),
    ("votes", {"rankings": "plackett-luce"}),
    ("ties", {"ties": "davidson"}),
])  # fmt: skip
def test_what_is_learnt_from_rankings_agrees_with_the_truth(kind: str, config: dict[str, Any], seed: int) -> None:
    reward = make_reward(Context("reward", "mine", seed, resolve=lambda kind, id: comparisons(40)), **config)
    metrics = reward.fit(rankings(160, seed, kind))
    assert agreement(reward) > 0.85, metrics
    if "rankings" in config:
        assert metrics["top1"] > 0.6 and metrics["rankings"] > 0


def task_of(*records: Comparison, **config: Any) -> Any:
    return make_reward(held_out=0.0, **config).task(records)


RANKING = Comparison(prompt="p:", responses=("third", "first", "also", "second"), ranks=(2, 0, 2, 1))


def test_ties_are_examples_only_where_they_were_judged_and_asked_for() -> None:
    task = task_of(RANKING, RANKING.model_copy(update={"ties_judged": False}), ties="davidson")
    decode = task.reward.codec.decode
    ties = [(decode(e.better), decode(e.worse)) for e in task.train if isinstance(e, TiedPair)]
    assert ties == [("p:third", "p:also")]
    assert len(task.train) == 5 + 1 + 5
    assert len(task_of(RANKING).train) == 5


def test_a_row_of_choices_by_hand() -> None:
    """Scores 0, 2, 0, 1: first of all four, second of three, then two equals out of two."""
    task = task_of(RANKING, rankings="plackett-luce", center_coef=0.1)
    task.reward.scores = lambda texts: torch.tensor([0.0, 2.0, 0.0, 1.0])
    e, e2 = torch.e, torch.e**2
    terms = [torch.log(torch.tensor(x)) for x in ((2 + e + e2) / e2, (2 + e) / e, 2.0, 2.0)]
    found = task.loss(task.train)
    assert float(found.total) == pytest.approx(float(sum(terms)) + 0.1 * 1.5**2)  # twice the mean, squared
    assert (found.count, found.stats) == (1, {"top1": 1})


def test_rankings_of_different_length_and_weight_in_one_batch() -> None:
    short = Comparison(prompt="q:", responses=("a", "b"), ranks=(1, 0), weight=2.0)
    task = task_of(RANKING, short, rankings="plackett-luce", center_coef=0)
    both = task.loss(task.train)
    apart = [task.loss([example]) for example in task.train]
    assert float(both.total.detach()) == pytest.approx(sum(float(x.total.detach()) for x in apart), rel=1e-4)
    assert both.count == 3
    metrics = task.evaluate(task.train)
    assert metrics["pairs"] == 6 and metrics["rankings"] == 2


def test_nobody_said_anything() -> None:
    silent = Comparison(prompt="q:", responses=("a", "b"), ranks=(0, 0), ties_judged=False)
    assert task_of(silent, rankings="plackett-luce").train == []
    assert task_of(silent, ties="davidson").train == []
    tied = task_of(silent.model_copy(update={"ties_judged": True}), ties="davidson")
    assert tied.evaluate(tied.train) == {"ties": 1.0}


def test_the_share_of_ties_is_learnt_and_saved() -> None:
    records = rankings(80, 0, "ties")
    reward = make_reward(ties="davidson")
    reward.fit(records)
    assert float(reward.network.log_tie) != 0
    other = make_reward(ties="davidson")
    other.load_state_dict(reward.state_dict())
    assert float(other.network.log_tie) == float(reward.network.log_tie)


@pytest.mark.parametrize(("config", "words"), [
    ({"rankings": "plackett-luce", "ties": "davidson"}, "Davidson's ties are for pairs"),
    ({"rankings": "plackett-luce", "label_smoothing": 0.1}, "label_smoothing is for pairs"),
])  # fmt: skip
def test_options_that_exclude_each_other(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PreferenceRewardConfig.model_validate({"model": "m", **config})


# --- cleaning --------------------------------------------------------------------------------------------------------

WRONG = 0.15


def spoiled(count: int = 300, seed: int = 0) -> tuple[list[Comparison], set[str]]:
    """Comparisons of which some were noted the wrong way round, and the ids of those."""
    rng = random.Random(seed)
    made, wrong = [], set()
    for record in comparisons(count, seed):
        if rng.random() < WRONG:
            record = record.model_copy(update={"ranks": (0, 1)})
            wrong.add(record.id)
        made.append(record)
    return made, wrong


def clean(records: list[Comparison], directory: Path | None = None, **config: Any) -> Strength:
    member = {"fresh": fresh(), "learning_rate": 3e-3, "epochs": 1, "batch_size": 16}
    source, texts = records, comparisons(40)
    context = Context("feedback", "cleaned", 0, directory=directory,
                      resolve=lambda kind, id: source if id == "raw" else texts)  # fmt: skip
    config = {"members": 4, "lowest_share": WRONG, "ambiguous_share": 0.1, **config}
    return Strength(StrengthConfig.model_validate({"feedback": "raw", "member": member, **config}), context)


def test_what_was_noted_the_wrong_way_round_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, wrong = spoiled()
    source = clean(records, tmp_path, margin=True)
    cleaned = list(source)
    assert len(cleaned) == len(records)
    before = {(r.prompt.text, r.responses): r for r in records}
    flipped = {
        before[r.prompt.text, r.responses].id for r in cleaned if r.ranks != before[r.prompt.text, r.responses].ranks
    }
    held_out = {r.id for r in records if r.prompt.in_share(0.1)}
    assert sum(source.counts.values()) <= len(records) - len(held_out)
    assert len(flipped & wrong) > 0.6 * len(wrong - held_out)
    assert len(flipped - wrong) < 0.4 * len(flipped)
    assert not flipped & held_out, "what is measured stays what people said"
    smoothed = [r for r in cleaned if r.confidence is not None]
    assert smoothed and all(0.5 <= r.confidence < 1 for r in smoothed if r.confidence is not None)
    assert any(r.margin for r in cleaned) and all(r.margin is None or r.margin > 0 for r in cleaned)

    monkeypatch.setattr(strength, "fit_task", None)  # a resumed run does not train the ensemble again
    assert [r.model_dump() for r in clean(records, tmp_path, margin=True)] == [r.model_dump() for r in cleaned]


def test_dropping_and_keeping() -> None:
    records, _ = spoiled(80)
    dropped = clean(records, members=2, lowest="drop", ambiguous="keep")
    assert len(list(dropped)) == len(records) - dropped.counts["drop"] < len(records)
    kept = clean(records, members=2, lowest="keep", ambiguous="keep")
    assert [r.id for r in kept] == [r.id for r in records]


def test_what_is_no_pair_passes_and_shares_are_at_most_all() -> None:
    others = [
        RANKING,
        Demonstration(prompt="p", response="r"),
        Comparison(prompt="p", responses=("a", "b"), ranks=(0, 0)),
    ]
    assert list(clean(others)) == others  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="together are more than all"):
        clean([], lowest_share=0.6, ambiguous_share=0.6)
