"""Write the data files of the help desk.

    python examples/desk/make_data.py [--out DIR] [--seed 0]

rewrites every JSONL file bit for bit. Everything is simulated. The modules of `making` say how each file is made:

    world        the words: prompts and the sentences of replies
    replies      replies of mixed quality, and how they are damaged
    people       the five simulated annotators: ada and ben careful, chloe and dan usual, eve careless
    compared     demonstrations, comparisons, rankings
    judged       ratings, sentiment, keywords
    rewritten    edits, expert
    tickets      summary_*: a second small task

**Prompts** combine a greeting, a problem of one of 8 topics, a time and a question. Held-out prompts, the prompts of
`prompts.jsonl`, of the demonstrations and of the comparisons have no text in common, so the held-out ones are new to
every stage. The other kinds of feedback are given on prompts of the comparisons. Topics are equally frequent.

**Randomness**: the first four files share one `random.Random(seed)`; every other file has its own,
`Random(f"{seed}:{name}")`, so that one can change without the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from making import compared, judged, rewritten, tickets
from making.world import PROBLEMS, Row, prompts

COUNTS = {"held_out": 128, "prompts": 400, "demonstrations": 1500, "comparisons": 2500}
MORE: dict[str, tuple[int, Callable[[Random, list[Row]], Iterator[Row]]]] = {  # name -> prompts, what is made of them
    "ratings": (2400, judged.ratings),
    "rankings": (1200, compared.rankings),
    "edits": (1500, rewritten.edits),
    "keywords": (800, judged.keywords),
    "sentiment": (1200, judged.sentiment),
    "expert": (2000, rewritten.expert),
}


def pick(rng: Random, pool: list[Row], count: int) -> list[Row]:
    """`count` rows of `pool` in random order, none twice, as many of each topic."""
    columns = [[row for row in pool if row["topic"] == topic] for topic in PROBLEMS]
    for column in columns:
        rng.shuffle(column)
    picked = [row for rows in zip(*columns, strict=False) for row in rows][:count]
    rng.shuffle(picked)
    return picked


def make(seed: int) -> dict[str, list[Row]]:
    """The rows of every file."""
    rng = Random(seed)
    columns = [[{"prompt": prompt, "topic": topic} for prompt in prompts(rng, topic)] for topic in PROBLEMS]
    pool: list[Row] = [row for rows in zip(*columns, strict=True) for row in rows]  # topics in turn
    files: dict[str, list[Row]] = {}
    for name, count in COUNTS.items():
        files[name], pool = pool[:count], pool[count:]
        rng.shuffle(files[name])
    files["demonstrations"] = list(compared.demonstrations(rng, files["demonstrations"]))
    asked = files["comparisons"]
    files["comparisons"] = list(compared.comparisons(rng, asked))
    for name, (count, rows_of) in MORE.items():
        rng = Random(f"{seed}:{name}")
        files[name] = list(rows_of(rng, pick(rng, asked, count)))
    return files | tickets.make(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the data files of the help desk.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="the folder they go to")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in make(args.seed).items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (args.out / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
