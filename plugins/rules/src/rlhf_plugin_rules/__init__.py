"""Rewards that follow written rules, references, facts and labels, in any script; importing this imports no torch."""

from rlhf_core import ComponentSpec, hookimpl


def _reward(name: str, place: str, summary: str) -> ComponentSpec:
    class_name = place.split(":")[1]
    return ComponentSpec("reward", name, f"rlhf_plugin_rules.{place}",
                         f"rlhf_plugin_rules.config:{class_name}Config", summary)  # fmt: skip


def _feedback(name: str, class_name: str, summary: str) -> ComponentSpec:
    return ComponentSpec("feedback", name, f"rlhf_plugin_rules.feedback:{class_name}",
                         f"rlhf_plugin_rules.config:{class_name}Config", summary)  # fmt: skip


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        _feedback("keywords", "KeywordFeedback", "words that people want and do not want in a response"),
        _feedback("sentiment", "SentimentFeedback", "how responses feel: positive, neutral, negative, or a score"),
        _reward(
            "keywords", "keywords:Keywords", "weights of words found, given or learnt from people; credit per span"
        ),
        _reward("length", "surface:Length", "how far a response is from a target length, in words or characters"),
        _reward("regex", "surface:Regex", "one value if a regular expression matches, another if not"),
        _reward("repetition", "surface:Repetition", "penalty on the share of n-grams that were said before"),
        _reward(
            "format", "formats:Format", "share of checks passed: tags in order, JSON with keys, sentences, bullets"
        ),
        _reward("answer", "answer:Answer", "whether the answer equals the prompt's: as text, number or choice"),
        _reward("metric", "metric:Metric", "BLEU, chrF or ROUGE against a reference of the prompt"),
        _reward("classifier", "classifier:Classifier", "probability of a label under any transformers classifier"),
        _reward(
            "sentiment",
            "learned:SentimentReward",
            "P(positive) - P(negative) of a classifier trained on people's labels",
        ),
        _reward(
            "coherence", "learned:CoherenceReward", "probability that the sentences of a response stand in their order"
        ),
        _reward("factual", "factual:Factual", "statements that a file of facts supports, minus those it contradicts"),
    ]
