"""Every installed component holds to what its kind promises. An xfail needs a reason; there is no other way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from rlhf_core.testing import Check, Subject, example_feedback, parametrize_components, tiny_model

PROMPTS = [{"prompt": "What opens at nine?", "topic": "shop"}, {"prompt": [{"role": "user", "content": "Hello?"}]}]
DEMONSTRATIONS = [{"prompt": "Name a colour.", "completion": " Blue."}, {"prompt": "Thanks!", "response": " Welcome."}]
COMPARISONS = [
    {"prompt": "Name a colour.", "chosen": " Blue.", "rejected": " No."},
    {"prompt": "Count.", "responses": ["1", "2", "3"], "ranks": [0, 1, 1]},
]
RATINGS = [
    {"prompt": "Name a colour.", "response": " Blue.", "rating": 4, "aspects": {"quality": 5}},
    {"prompt": "Count.", "completion": "1", "label": True},
]

EDITS = [
    {"prompt": "Name a colour.", "original": " Blue, stupid.", "edited": " Blue, please.", "annotator": "ann"},
    {"prompt": "早上好!", "original": "你好吗", "edited": "您好吗?"},
]


def rows(records: list[dict[str, Any]], **options: Any) -> Callable[[Path], list[dict[str, Any]]]:
    """An example that reads `records` from a JSONL file."""

    def write(folder: Path) -> list[dict[str, Any]]:
        (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return [{"path": "rows.jsonl", **options}]

    return write


class Verdicts(BaseHTTPRequestHandler):
    """A judge over HTTP: pairs are ties, and a rating depends on how long the request is."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        said = {"winner": "tie"} if b"winner" in asked else {"score": len(asked) % 10 + 1}
        choice = {"message": {"role": "assistant", "content": json.dumps(said)}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Tests are quiet."""


def judges(*options: dict[str, Any]) -> Callable[[Path], list[dict[str, Any]]]:
    """Examples that ask a judge on this machine."""

    def start(_: Path) -> list[dict[str, Any]]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Verdicts)
        Thread(target=server.serve_forever, daemon=True).start()
        return [{"url": f"http://127.0.0.1:{server.server_port}/v1", "model": "toy", **own} for own in options]

    return start


def classifiers(folder: Path) -> list[dict[str, Any]]:
    """Examples that read a saved sequence classifier, made of the tiny policy's trunk."""
    from rlhf_core.testing import tiny_policy
    from transformers import AutoModelForSequenceClassification

    tiny_policy().export(folder / "model")
    AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=2).save_pretrained(folder / "model")
    return [{"model": "model", "label": "LABEL_1"}, {"model": "model", "label": 0, "of": "prompt-response"}]


def edits(folder: Path) -> list[dict[str, Any]]:
    """Examples of every form that an edit can take."""
    (config,) = rows(EDITS)(folder)
    return [{**config, "gives": form} for form in ("edits", "comparisons", "demonstrations", "salt")]


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
WIDE = {**LLAMA, "sizes": {**LLAMA["sizes"], "hidden_size": 64, "intermediate_size": 64}}  # 4 bits need rows of 64
T5 = {
    "architecture": "t5",
    "sizes": {"d_model": 64, "d_kv": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2},
    "tokenizer": FRESH["tokenizer"],
}
BART = {
    "architecture": "bart",
    "sizes": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
              "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 128,
              "init_std": 0.2},
    "tokenizer": FRESH["tokenizer"],
}  # fmt: skip
EXAMPLES: dict[str, Any] = {
    "policy/causal-lm": [
        tiny_model(),
        {"fresh": LLAMA, "lora": {"r": 2}, "critic": "separate"},
        {"fresh": LLAMA, "lora": {"r": 2}, "critic": "adapter", "gradient_checkpointing": True},
        {"fresh": LLAMA, "frozen_layers": 1},
    ],
    "policy/seq2seq-lm": [
        {"fresh": T5},
        {"fresh": BART, "lora": {"r": 2}, "critic": "separate"},
        {"fresh": T5, "lora": {"r": 2}, "quantization": {}, "critic": "adapter"},
    ],
    "policy/qlora": [{"fresh": WIDE, "lora": {"r": 2}}, {"fresh": WIDE, "lora": {"r": 2}, "critic": "adapter"}],
    "engine/refill": [{}, {"slots": 2}],
    "engine/compaction": [{}],
    "engine/continuous": [{}, {"slots": 2}],
    "engine/vllm": [{}],  # no server is asked for anything before the first draw
    "prompts/jsonl": rows(PROMPTS),
    "prompts/dataset": rows(PROMPTS, limit=1),
    "prompts/feedback": [{"feedback": "toy"}],
    "feedback/counterfactual": [{"feedback": "toy"}, {"feedback": ["toy"], "swaps": [["You", "They"]]}],
    "feedback/demonstrations": rows(DEMONSTRATIONS),
    "feedback/records": rows([record.model_dump(mode="json") for record in example_feedback()]),
    "feedback/preference": rows(COMPARISONS),
    "feedback/strength": [{"feedback": "toy", "members": 2, "member": {"fresh": FRESH, "max_tokens": 64}}],
    "feedback/edit": edits,
    "reward/edit": [{"fresh": FRESH, "max_tokens": 64}, {"policy": "toy", "max_tokens": 64, "pooling": "last"}],
    "reward/function": [{"function": "length"}],
    "reward/mix": [
        {"rewards": {"toy": 1.0, "other": -0.5}, "scale": {"toy": {"mean": 0.5, "std": 0.1}}},
        {"rewards": {"toy": 1.0, "other": 0.5}, "combine": "product"},
        {"rewards": {"toy": 1.0, "other": 0.5}, "combine": "minimum"},
        {"rewards": {"toy": 1.0}, "combine": "gate", "gate": "safe", "threshold": 0.5},
    ],
    "reward/preference": [
        {"fresh": FRESH, "max_tokens": 64},
        {"policy": "toy", "max_tokens": 64, "pooling": "mean"},
    ],
    "feedback/quality": [{"feedback": "toy"}, {"feedback": ["toy", "toy"], "gold": "toy", "coverage": "answer"}],
    "feedback/rating": rows(RATINGS, aspects={"quality": 1.0}),
    "reward/rating": [
        {"fresh": FRESH, "max_tokens": 64},
        {"policy": "toy", "max_tokens": 64, "loss": "ordinal", "aspects": {"quality": 1.0}, "span_coef": 1.0},
    ],
    "feedback/judge": judges({"feedback": "toy"}),
    "reward/judge": judges(
        {}, {"mode": "pairwise"}, {"url": "http://127.0.0.1:9/v1", "retries": 0, "on_failure": "abstain"}
    ),
    "feedback/keywords": rows([{"prompt": "Tea?", "wanted": ["tea", "茶"], "unwanted": "no, never"}]),
    "feedback/sentiment": rows([{"prompt": "Tea?", "response": "Gladly!", "label": "positive"}]),
    "reward/irl": [
        {"fresh": FRESH, "max_tokens": 64, "samples_from": "toy"},
        {"policy": "toy", "max_tokens": 64, "pooling": "mean", "algorithm": "gail", "demonstrations": "demonstration"},
    ],
    "reward/keywords": [{"prefer": ["thanks", "谢谢"], "avoid": ["know"], "max_count": 2}],
    "reward/linear": [{"held_out": 0}, {"held_out": 0, "analyzer": "char", "ngrams": (1, 3), "cross": False}],
    "reward/sentiment": [{"fresh": FRESH, "max_tokens": 64}],
    "reward/coherence": [{"policy": "toy", "max_tokens": 64}],
    "reward/length": [{"target": 5}, {"target": 20, "unit": "characters"}],
    "reward/regex": [{"pattern": r"\.$"}, {"pattern": ".*!", "match": "fullmatch"}],
    "reward/format": [{"tags": ["a"], "sentences": [1, 2]}, {"json_keys": ["a"], "bullets": [0, 3]}],
    "reward/answer": [{"extract": "whole"}, {"extract": "after", "markers": ["at"], "wrong": -1.0}],
    "reward/metric": [{"metric": metric} for metric in ("bleu", "chrf", "rouge1", "rouge2", "rougeL")],
    "reward/classifier": classifiers,
    "reward/factual": rows([{"subject": ["shop", "sea"], "relation": ["opens", "on"], "object": ["nine", "a calm day"]}]),
    "shaper/kl": [{}, {"target": 1.0, "estimator": "k3"}],
    "shaper/scale": [{}, {"center": True, "clip": 1.0}],
    "shaper/prompt-baseline": [{}, {"decay": 0.9}],
    "shaper/success-bonus": [{"threshold": 0.0}, {"threshold": 0.0, "max_tokens": 5}],
    "shaper/overlong": [{"max_tokens": 7, "buffer": 4}],
    "shaper/spread": [{}, {"decay": 0.9}],
    "shaper/potential": [{"reward": "toy"}, {"reward": "toy", "every": 1, "gamma": 0.9}],
    "optimizer/acer": [{}, {"top_k": 3, "entropy_coef": 0.01, "replay_size": 8, "bootstrap_truncated": True}],
    "optimizer/ilql": [{}, {"tau": 0.9, "gamma": 0.9, "cql_coef": 0.0, "batch_size": 4}],
    "optimizer/ppo": [{}, {"value_clip": None, "entropy_coef": 0.01, "dual_clip": 3.0, "bootstrap_truncated": True}],
    "optimizer/reinforce": [
        {"gamma": 0.9, "entropy_coef": 0.01},
        {"baseline": "greedy", "clip": 0.2},
        {"baseline": "leave-one-out", "samples_per_prompt": 2, "resample": 1},
        {"baseline": "group", "scale": "std", "samples_per_prompt": 2, "kl_coef": 0.04, "clip": 0.2, "clip_high": 0.28},
        {"baseline": "group", "samples_per_prompt": 2, "aggregation": "seq-mean-token-sum-norm", "norm_tokens": 8},
        {"baseline": "batch", "clip": {"schedule": "linear", "start": 0.2, "end": 0.1}, "aggregation": "token-mean"},
    ],
    "optimizer/a2c": [
        {"n_steps": 2, "lam": 0.9, "gamma": 0.9, "entropy_coef": 0.01},
        {"normalize_advantages": True, "lam": 0.9, "bootstrap_truncated": True},
    ],
    "optimizer/trpo": [{}, {"fisher_tokens": 9, "bootstrap_truncated": True, "cg_iterations": 5}],
    "optimizer/es": [
        {"population": 4, "sigma": 0.1, "learning_rate": 0.1, "prompts_per_step": 8},
        {"population": 6, "sigma": {"schedule": "linear", "start": 0.1, "end": 0.05}, "learning_rate": 0.1,
         "fitness": "rank", "prompts_per_step": 4},
    ],
    "stage/sft": [{"feedback": ["toy"], "batch_size": 2, "epochs": 2, "evaluate_every": 1, "best": "-loss"}],
    "stage/fit-reward": [{"reward": "toy", "feedback": ["toy"], "baseline": "other"}],
    "stage/optimize": [
        {"optimizer": "toy", "prompts": "toy", "rewards": {"toy": 1.0}, "shapers": ["toy"], "steps": 2,
         "sampling": {"max_new_tokens": 6}, "evaluate_every": 1, "evaluation": {"prompts": "toy"}},
    ],
    "stage/evaluate": [{"prompts": "toy", "rewards": {"toy": 1.0}, "sampling": {"max_new_tokens": 6}}],
    "stage/trl": [
        {"trainer": "rloo", "prompts": "toy", "rewards": {"toy": 1.0}, "steps": 2, "arguments": {"beta": 0.0},
         "sampling": {"max_new_tokens": 6}},
        {"trainer": "dpo", "feedback": ["toy"], "steps": 1},
    ],
}


@parametrize_components(examples=EXAMPLES)
def test_conformance(component: Subject, check: Check) -> None:
    check(component)
