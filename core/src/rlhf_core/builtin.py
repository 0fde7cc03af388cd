"""The components that come with the core, announced through the same hook as any plugin's."""

from __future__ import annotations

from .interfaces.specs import ComponentSpec, KindSpec, hookimpl

KINDS = [
    KindSpec("policy", "rlhf_core.interfaces:Policy", "the language model that acts and is improved"),
    KindSpec("engine", "rlhf_core.interfaces:Generator", "draws responses with the policy's weights"),
    KindSpec("prompts", "rlhf_core.interfaces:PromptSource", "what responses are sampled for"),
    KindSpec("feedback", "rlhf_core.interfaces:FeedbackSource", "what people said, as typed records"),
    KindSpec("reward", "rlhf_core.interfaces:RewardModel", "scores responses; learns from feedback if it can"),
    KindSpec("shaper", "rlhf_core.interfaces:RewardShaper", "changes rewards on their way to the optimizer"),
    KindSpec("optimizer", "rlhf_core.interfaces:PolicyOptimizer", "improves the policy"),
    KindSpec("environment", "rlhf_core.interfaces:Environment", "turns prompts into rollouts"),
    KindSpec("metric", "rlhf_core.interfaces:Metric", "measures finished responses"),
    KindSpec("monitor", "rlhf_core.interfaces:Monitor", "watches a stage, and raises an alarm"),
    KindSpec("stage", "rlhf_core.interfaces:Stage", "one stage of a pipeline"),
]


def _spec(kind: str, name: str, module: str, factory: str, summary: str) -> ComponentSpec:
    """A built-in whose Config stands in the light module `config` beside the module of its class."""
    package = module.rpartition(".")[0]
    return ComponentSpec(
        kind, name, f"rlhf_core.{module}:{factory}", f"rlhf_core.{package}.config:{factory}Config", summary
    )


COMPONENTS = [
    _spec("policy", "causal-lm", "policies.causal_lm", "CausalLM",
          "any transformers causal LM: from a path, the hub or fresh; full fine-tuning or LoRA"),
    _spec("policy", "seq2seq-lm", "policies.seq2seq_lm", "Seq2SeqLM",
          "any transformers encoder-decoder (T5, BART): from a path, the hub or fresh; full fine-tuning or LoRA"),
    _spec("engine", "refill", "policies.decoding", "Refill",
          "draws so many rows at a time; the place of one that is done goes to the next prompt"),
    _spec("engine", "compaction", "policies.decoding", "Compaction",
          "draws all rows at once; those that are done leave the batch"),
    _spec("engine", "continuous", "policies.continuous", "Continuous",
          "transformers' continuous batching: a paged cache, filled by a scheduler in a thread of its own"),
    _spec("prompts", "jsonl", "components.prompts", "Prompts", "prompts from a JSONL, CSV or Parquet file"),
    _spec("prompts", "dataset", "components.prompts", "Prompts", "prompts from a dataset of the hub"),
    _spec("prompts", "feedback", "components.prompts", "FeedbackPrompts", "prompts of a feedback source, each once"),
    _spec("feedback", "demonstrations", "components.demonstrations", "Demonstrations",
          "responses to imitate, from JSONL, CSV, Parquet or the hub"),
    _spec("feedback", "records", "components.records", "Records", "the framework's own records of any kind"),
    _spec("reward", "function", "components.function", "FunctionReward",
          "a Python function named in the registry's `functions:` section"),
    _spec("reward", "mix", "components.mix", "Mix", "several rewards as one: sum, product, minimum or gate, scaled"),
    _spec("shaper", "kl", "components.kl", "KL",
          "penalty on drifting from the reference; moves the optimum from the best score to the best of both"),
    _spec("metric", "reward", "components.metrics", "RewardMetric", "the score of a reward, or of the pipeline's mix"),
    _spec("metric", "kl", "components.metrics", "KLMetric", "divergence from the reference per response, in nats"),
    _spec("metric", "length", "components.metrics", "LengthMetric", "tokens per response"),
    _spec("metric", "truncated", "components.metrics", "TruncatedMetric", "share of responses cut at the limit"),
    _spec("environment", "single-turn", "rl.environment", "SingleTurn", "one response per prompt"),
    _spec("stage", "sft", "stages.sft", "SFT", "supervised fine-tuning on demonstrations"),
    _spec("stage", "fit-reward", "stages.fit_reward", "FitReward", "fit a reward model on feedback"),
    _spec("stage", "optimize", "stages.optimize", "Optimize", "improve the policy against rewards"),
    _spec("stage", "evaluate", "stages.evaluate", "Evaluate", "measure the policy before and after, on given prompts"),
    _spec("stage", "export", "stages.export", "Export", "write the policy as a Hugging Face model folder"),
]  # fmt: skip


@hookimpl
def rlhf_kinds() -> list[KindSpec]:
    return KINDS


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return COMPONENTS
