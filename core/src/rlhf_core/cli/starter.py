"""`rlhf init`: a registry file with a little data that runs with what is installed."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import RunError
from ..plugins import Plugins

REGISTRY = """\
# A pipeline to start from: change a name to change a part. `rlhf components` lists what is installed,
# `rlhf describe KIND NAME` shows a component's options, `rlhf validate` checks this file.
schema_version: 1
requires: [{requires}]

functions:
  polite: rewards.py:polite            # f(prompts, completions, **columns) -> list of numbers, as in TRL

components:
  policy:
    small-lm:                          # a new model, so that this runs anywhere; to start from a real one:
      use: causal-lm                   #   config: {{model: Qwen/Qwen3-0.6B, lora: {{r: 16}}}}
      config:
        fresh:
          architecture: llama
          sizes: {{hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
                  num_key_value_heads: 4, max_position_embeddings: 128}}
          tokenizer: {{text: [demonstrations], vocab_size: 320}}
  feedback:
    demonstrations: {{use: demonstrations, config: {{path: demonstrations.jsonl}}}}
  prompts:
    questions: {{use: jsonl, config: {{path: prompts.jsonl}}}}
{rl_components}
pipelines:
  first:
    description: "{description}"
    policy: small-lm
    stages:
      - sft: {{feedback: [demonstrations], epochs: 30, batch_size: 16, learning_rate: 3e-3, held_out: 0}}
{rl_stages}      - export
"""

RL_COMPONENTS = """\
  reward:
    polite: {use: function, config: {function: polite}}
  shaper:
    kl: {use: kl, config: {coef: 0.05}}
  optimizer:
    ppo: {use: ppo, config: {learning_rate: 1e-3, prompts_per_step: 32, minibatch_size: 16}}
"""

RL_STAGES = """\
      - optimize:
          optimizer: ppo
          prompts: questions
          rewards: {polite: 1.0}
          shapers: [kl]
          steps: 20
          sampling: {max_new_tokens: 24}
      - evaluate: {prompts: questions, metrics: [reward, kl, length]}
"""

REWARDS = '''\
"""Rewards of this project. A reward gets lists of equal length and returns one number per completion."""


def polite(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """1 for a reply that thanks, and 0.5 more if it ends with a full stop."""
    return [float("thank" in text.lower()) + 0.5 * text.rstrip().endswith(".") for text in completions]
'''

QUESTIONS = [
    "where is my parcel",
    "how do I reset my password",
    "when do you open",
    "can I change my order",
    "do you ship abroad",
    "how do I pay",
    "what does it cost",
    "who can help me",
]
ANSWERS = [
    "Thank you for asking. Please see our page.",
    "Please see our page.",
    "No idea",
    "Thank you, one moment",
    "We will look at it.",
    "Later",
]


def write_starter(directory: Path, plugins: Plugins, *, force: bool) -> tuple[str, list[Path]]:
    """Write the files; returns the pipeline's name and what was written.

    Without an optimizer installed the pipeline ends after sft and export, and its description says so.

    Raises:
        RunError: one of the files is there already and `force` is off.
    """
    has_ppo = "ppo" in plugins.names("optimizer")
    requires = ['"rlhf-core>=0.1"', *(['"rlhf-plugin-ppo>=0.1"'] if has_ppo else [])]
    description = (
        "imitate demonstrations, then PPO against a Python function"
        if has_ppo
        else "imitate demonstrations; for PPO: pip install rlhf-plugin-ppo, and rlhf init again"
    )
    registry = REGISTRY.format(
        requires=", ".join(requires),
        description=description,
        rl_components=RL_COMPONENTS if has_ppo else "",
        rl_stages=RL_STAGES if has_ppo else "",
    )
    if not has_ppo:
        registry = registry.replace("  polite: rewards.py:polite  ", "  # polite: rewards.py:polite")
    prompts = [f"Customer: {question}?\nAgent:" for question in QUESTIONS]
    contents = {
        "registry.yaml": registry,
        "rewards.py": REWARDS,
        "prompts.jsonl": "".join(json.dumps({"prompt": p}) + "\n" for p in prompts),
        "demonstrations.jsonl": "".join(
            json.dumps({"prompt": p, "completion": f" {a}"}) + "\n" for p in prompts for a in ANSWERS
        ),
    }
    there = [name for name in contents if (directory / name).exists()]
    if there and not force:
        raise RunError(
            f"rlhf init {directory}",
            f"{', '.join(there)} is there already",
            "a folder without these files",
            "name another folder, or add --force to overwrite",
        )
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in contents.items():
        (directory / name).write_text(text, encoding="utf-8")
        written.append(directory / name)
    return "first", written
