"""Reward models on real preferences: 10-fold cross-validation, split by prompt, every model in the same folds.

    python benchmarks/hh_folds.py --pairs hh_rlhf_harmless_1500.jsonl.gz --encoder MODEL_FOLDER [--out FILE] [NAME ...]

`NAME` are variants of the table below (by default those without a star). What is done is kept in `--out`, pair by pair,
and not done again. Prints accuracy over all pairs (a tie counts half) with the standard error over folds, and the
difference to a reference in the same folds, whose error is that of paired folds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FOLDS = 10
SCRATCH = {
    "fresh": {
        "architecture": "llama",
        "sizes": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 4, "max_position_embeddings": 256},
        "tokenizer": {"text": ["train"], "vocab_size": 2048},
    },
    "pooling": "mean", "max_tokens": 256, "learning_rate": {"schedule": "cosine", "start": 3e-4, "warmup": 10},
    "epochs": 2, "weight_decay": 0.1,
}  # fmt: skip
ENCODER = {"model": "ENCODER", "pooling": "mean", "max_tokens": 160, "micro_batch_tokens": 2048}
STRENGTH = {"members": 4, "lowest_share": 0.1, "ambiguous_share": 0.2}
VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {"use": "linear"},
    "scratch": {"use": "preference", **SCRATCH},
    "encoder": {"use": "preference", **ENCODER},
    # what may help, each alone; on the small model what needs many runs
    "frozen 3*": {"use": "preference", **ENCODER, "frozen_layers": 3},
    "smoothing*": {"use": "preference", **ENCODER, "label_smoothing": 0.2},
    "scratch, smoothing*": {"use": "preference", **SCRATCH, "label_smoothing": 0.2},
    "scratch, flip*": {"use": "preference", **SCRATCH, "clean": {**STRENGTH, "lowest": "flip", "ambiguous": "keep"}},
    "scratch, smooth*": {"use": "preference", **SCRATCH,
                         "clean": {**STRENGTH, "lowest": "smooth", "ambiguous": "smooth"}},
    "scratch, drop*": {"use": "preference", **SCRATCH, "clean": {**STRENGTH, "lowest": "drop", "ambiguous": "keep"}},
    "scratch, margin*": {"use": "preference", **SCRATCH,
                         "clean": {**STRENGTH, "lowest": "keep", "ambiguous": "keep", "margin": True}},
}  # fmt: skip
ENSEMBLES = {
    "encoder + linear": ["encoder", "linear"],
    "encoder + frozen 3": ["encoder", "frozen 3"],
    "encoder + frozen 3 + linear": ["encoder", "frozen 3", "linear"],
    "encoder + linear + scratch": ["encoder", "linear", "scratch"],
}


def fold(record: Any) -> int:
    """Which fold a record is tested in; a hash of its prompt decides."""
    text = json.dumps(["fold", record.prompt.messages], ensure_ascii=False)
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % FOLDS


def differences(
    variant: dict[str, Any], train: list[Any], test: list[Any], encoder: str, number: int, kept: Path
) -> list[float]:
    """score(better) - score(worse) of every test pair, by a model fitted on `train`.

    What an ensemble found that cleans is kept in the folder `kept`, for the next variant.
    """
    from accelerate import Accelerator
    from rlhf_core.interfaces import Context
    from rlhf_core.plugins import load_plugins
    from rlhf_core.records import Sample

    options = dict(variant)
    use, seed, clean = options.pop("use"), options.pop("seed", 0), options.pop("clean", None)
    if options.get("model") == "ENCODER":
        options["model"] = encoder
    plugins = load_plugins()
    sources: dict[str, Iterable[Any]] = {"train": train}
    # the encoder runs in mixed precision, as on a GPU; here too it takes two thirds of the time
    mixed = Accelerator(cpu=True, mixed_precision="bf16") if options.get("model") else None
    context = Context("reward", f"{use}-{number}", seed, accelerator=mixed, resolve=lambda kind, id: sources[id])

    def build(kind: str, name: str, config: dict[str, Any], own: Context) -> Any:
        spec = plugins.find(kind, name)
        make, schema = (plugins.import_class(spec, role) for role in ("factory", "config"))
        return make(schema.model_validate(config), own)

    if clean is not None:
        config = {"feedback": "train", "member": {**SCRATCH, "held_out": 0.0}, **clean}
        own = replace(context.named("feedback", f"clean-{number}"), directory=kept)
        sources["train"] = list(build("feedback", "strength", config, own))
    reward = build("reward", use, {**options, "held_out": 0.0}, context)
    reward.fit(sources["train"])
    better = reward.score([Sample(r.prompt, r.best) for r in test]).values
    worse = reward.score([Sample(r.prompt, next(r.pairs())[1]) for r in test]).values
    return [float(d) for d in better - worse]


def accuracy(values: Sequence[float]) -> float:
    return sum((d > 0) + 0.5 * (d == 0) for d in values) / len(values)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def joined(done: dict[str, Any], names: Sequence[str]) -> dict[str, list[float]]:
    """An ensemble: every model's differences over their root mean square in the fold, added up."""
    folds = {}
    for number in done[names[0]]:
        parts = [done[name][number] for name in names]
        sizes = [math.sqrt(sum(d * d for d in part) / len(part)) or 1.0 for part in parts]
        folds[number] = [sum(d / s for d, s in zip(row, sizes, strict=True)) for row in zip(*parts, strict=True)]
    return folds


def table(done: dict[str, Any], reference: str, count: int) -> None:
    """The Markdown table of everything that has the first `count` folds, over those."""
    wanted = [str(number) for number in range(count)]
    rows = {name: {n: folds[n] for n in wanted} for name, folds in done.items() if set(wanted) <= folds.keys()}
    rows |= {name: joined(rows, parts) for name, parts in ENSEMBLES.items() if all(part in rows for part in parts)}
    print(f"| model | accuracy, % | difference to {reference}, points | seconds a fold |\n|---|---|---|---|")
    for name, folds in rows.items():
        own = {number: 100 * accuracy(values) for number, values in folds.items()}
        whole = 100 * accuracy([d for values in folds.values() for d in values])
        _, error = mean_and_error(list(own.values()))
        difference = ""
        if reference in rows and name != reference:
            gap, gap_error = mean_and_error([own[n] - 100 * accuracy(rows[reference][n]) for n in own])
            difference = f"{gap:+.1f} ± {gap_error:.1f}"
        seconds = done["seconds"].get(name)
        print(f"| {name} | {whole:.1f} ± {error:.1f} | {difference} | {f'{seconds:.0f}' if seconds else ''} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="JSONL with chosen and rejected, such as HH-RLHF")
    parser.add_argument("--encoder", required=True, help="folder of a small pretrained encoder")
    parser.add_argument("--out", type=Path, default=Path("hh_folds.json"))
    parser.add_argument("--reference", default="linear", help="what the others are compared with")
    parser.add_argument("--folds", type=int, default=FOLDS, help="only the first so many")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as it likes")
    parser.add_argument("names", nargs="*", help="variants; by default those without a star")
    args = parser.parse_args()

    import torch
    from rlhf_core.interfaces import Context
    from rlhf_plugin_preference.config import PreferencesConfig
    from rlhf_plugin_preference.source import Preferences

    if args.threads:
        torch.set_num_threads(args.threads)
    source = Preferences(PreferencesConfig(path=str(Path(args.pairs).resolve())), Context("feedback", "hh"))
    records = [r for r in source if len(set(r.ranks)) == 2]  # type: ignore[union-attr]
    done: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"seconds": {}}
    variants = {name.rstrip("*"): config for name, config in VARIANTS.items()}
    for name in args.names or [name for name in VARIANTS if not name.endswith("*")]:
        for number in range(args.folds):
            if str(number) in done.setdefault(name, {}):
                continue
            train, test = [r for r in records if fold(r) != number], [r for r in records if fold(r) == number]
            start = time.perf_counter()
            done[name][str(number)] = differences(variants[name], train, test, args.encoder, number, args.out.parent)
            seconds = time.perf_counter() - start
            done["seconds"][name] = seconds
            percent = 100 * accuracy(done[name][str(number)])
            print(f"{name} fold {number}: {percent:.1f} % of {len(test)}, {seconds:.0f} s")
            args.out.write_text(json.dumps(done))
    print(f"\n{len(records)} pairs, the first {args.folds} of {FOLDS} folds by prompt\n")
    table(done, args.reference, args.folds)


if __name__ == "__main__":
    main()
