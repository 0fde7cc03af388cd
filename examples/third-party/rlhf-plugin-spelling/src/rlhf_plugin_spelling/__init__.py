"""The reward `spelling` for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="reward",
            name="spelling",
            factory="rlhf_plugin_spelling.reward:SpellingReward",
            config="rlhf_plugin_spelling.config:SpellingRewardConfig",
            summary="share of words that a dictionary knows; wrong ones pay at their own place",
            api_version=1,
        )
    ]
