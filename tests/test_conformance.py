"""Every installed component holds to what its kind promises. An xfail needs a reason; there is no other way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_core.testing import Check, Subject, parametrize_components, tiny_model

PROMPTS = [{"prompt": "What opens at nine?", "topic": "shop"}, {"prompt": [{"role": "user", "content": "Hello?"}]}]
DEMONSTRATIONS = [{"prompt": "Name a colour.", "completion": " Blue."}, {"prompt": "Thanks!", "response": " Welcome."}]
COMPARISONS = [
    {"prompt": "Name a colour.", "chosen": " Blue.", "rejected": " No."},
    {"prompt": "Count.", "responses": ["1", "2", "3"], "ranks": [0, 1, 1]},
]


def rows(records: list[dict[str, Any]], **options: Any) -> Callable[[Path], list[dict[str, Any]]]:
    """An example that reads `records` from a JSONL file."""

    def write(folder: Path) -> list[dict[str, Any]]:
        (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return [{"path": "rows.jsonl", **options}]

    return write


FRESH = tiny_model()["fresh"]
LLAMA = {
    "architecture": "llama",
    "sizes": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
    },
    "tokenizer": FRESH["tokenizer"],
}
EXAMPLES: dict[str, Any] = {
    "policy/causal-lm": [
        tiny_model(),
        {"fresh": LLAMA, "lora": {"r": 2}, "critic": "separate"},
    ],
    "prompts/jsonl": rows(PROMPTS),
    "prompts/dataset": rows(PROMPTS, limit=1),
    "prompts/feedback": [{"feedback": "toy"}],
    "feedback/demonstrations": rows(DEMONSTRATIONS),
    "feedback/preference": rows(COMPARISONS),
    "reward/function": [{"function": "length"}],
    "reward/preference": [
        {"fresh": FRESH, "max_tokens": 64},
        {"policy": "toy", "max_tokens": 64, "pooling": "mean"},
    ],
    "reward/keywords": [{"prefer": ["thanks", "谢谢"], "avoid": ["know"], "max_count": 2}],
    "reward/length": [{"target": 5}, {"target": 20, "unit": "characters"}],
    "reward/regex": [{"pattern": r"\.$"}, {"pattern": ".*!", "match": "fullmatch"}],
    "shaper/kl": [{}, {"target": 1.0, "estimator": "k3"}],
    "shaper/scale": [{}, {"center": True, "clip": 1.0}],
    "optimizer/ppo": [{}, {"value_clip": None, "entropy_coef": 0.01, "dual_clip": 3.0, "bootstrap_truncated": True}],
    "stage/sft": [{"feedback": ["toy"]}],
    "stage/fit-reward": [{"reward": "toy", "feedback": ["toy"]}],
    "stage/optimize": [{"optimizer": "toy", "prompts": "toy", "rewards": {"toy": 1.0}, "steps": 2}],
    "stage/evaluate": [{"prompts": "toy"}],
}


@parametrize_components(examples=EXAMPLES)
def test_conformance(component: Subject, check: Check) -> None:
    check(component)
