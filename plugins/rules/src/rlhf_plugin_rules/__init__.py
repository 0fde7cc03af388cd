"""Rewards that follow written rules: nothing to fit, the same score for the same text, in any script."""

from rlhf_core import ComponentSpec, hookimpl


def _spec(name: str, class_name: str, summary: str) -> ComponentSpec:
    return ComponentSpec("reward", name, f"rlhf_plugin_rules.rewards:{class_name}",
                         f"rlhf_plugin_rules.config:{class_name}Config", summary)  # fmt: skip


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        _spec("keywords", "Keywords", "weights of preferred words found, minus those of avoided ones; credit per span"),
        _spec("length", "Length", "how far a response is from a target length, in words or characters"),
        _spec("regex", "Regex", "one value if a regular expression matches, another if not"),
        _spec("repetition", "Repetition", "penalty on the share of n-grams that were said before"),
    ]
