"""What edits do to a policy in sft: SALT teaches more of an edit than its result alone."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from rlhf_core.interfaces import SupervisedConfig
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.records import Demonstration, Edit, Feedback, Sample
from rlhf_core.training import fit_task
from rlhf_plugin_edit.alignment import align

from .toys import POLITE, RUDE, WORDS, make_context, make_policy, source, text, write


def reproaches(count: int, seed: int) -> list[Edit]:
    """Somewhere in the original stands "you are daft"; it goes, and a polite word comes at the end."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        words, place = rng.choices(WORDS, k=rng.randint(6, 8)), rng.randint(1, 3)
        original = [*words[:place], "you", "are", rng.choice(RUDE), *words[place:]]
        edited = [*words, rng.choice(POLITE)]
        made.append(Edit(prompt=f"Ask {number}:", original=text(original), edited=text(edited)))
    return made


def imitate(policy: CausalLM, records: Iterable[Feedback], epochs: int) -> None:
    """What the sft stage does."""
    task = policy.demonstrations([r for r in records if isinstance(r, Demonstration)], held_out=0.0)
    config = SupervisedConfig(epochs=epochs, learning_rate=3e-3, batch_size=16, held_out=0.0)
    fit_task(task, config, policy.context.named("stage", "sft"))


@torch.no_grad()
def changed(policy: CausalLM, records: list[Edit]) -> tuple[float, float]:
    """Mean log-probability of what editors deleted, in the originals, and of what they put in, in the edited texts."""
    means = []
    for name, ranges in (("original", "deleted"), ("edited", "inserted")):
        rollout = policy.encode([Sample(r.prompt, getattr(r, name)) for r in records])
        found = []
        for row, record in enumerate(records):
            ends = policy.token_ends(rollout.response_ids[row][rollout.attention[row]].tolist())
            for start, end in getattr(align(record.original, record.edited), ranges):
                found += [float(rollout.logprobs[row, t]) for t, e in enumerate(ends) if start < e <= end]
        means.append(sum(found) / len(found))
    return means[0], means[1]


@cache
def trained() -> tuple[list[Edit], CausalLM]:
    """Edits, and a policy that has learnt from their originals; it is not to be changed."""
    records = reproaches(120, seed=0)
    writer = make_policy(make_context(records))
    imitate(writer, [Demonstration(prompt=r.prompt, response=r.original) for r in records], epochs=8)
    return records, writer


def after(feedback: Iterable[Feedback], epochs: int) -> tuple[float, float]:
    """What is `changed` on edits nobody has seen once a copy of the `trained` policy has imitated `feedback`."""
    records, writer = trained()
    policy = make_policy(make_context(records))
    policy.load_state_dict(writer.state_dict())
    imitate(policy, feedback, epochs)
    return changed(policy, reproaches(40, seed=1))


def rows(folder: Path) -> Path:
    records, _ = trained()
    return write(
        folder / "rows.jsonl",
        *({"prompt": r.prompt.text, "original": r.original, "edited": r.edited} for r in records),
    )


def test_salt_makes_deleted_words_rarer_and_inserted_ones_likelier_than_plain_sft(tmp_path: Path) -> None:
    """What follows "you are" the edited texts do not say, for they never get there: only SALT makes it rarer."""
    deleted, inserted = changed(trained()[1], reproaches(40, seed=1))
    plain = list(source(rows(tmp_path), gives="demonstrations", changed_weight=1)) * 2  # as many updates for each
    salt = list(source(rows(tmp_path), gives="salt"))
    assert len(plain) == len(salt) == 240
    plain_deleted, plain_inserted = after(plain, 1)
    salt_deleted, salt_inserted = after(salt, 1)
    assert plain_inserted > inserted + 1
    assert salt_deleted < plain_deleted - 1 < deleted - 1
    assert salt_inserted > plain_inserted


def test_weighted_demonstrations_learn_new_words_faster(tmp_path: Path) -> None:
    even, weighted = (
        after(source(rows(tmp_path), gives="demonstrations", changed_weight=weight), 2)[1] for weight in (1, 8)
    )
    assert weighted > even + 0.2
