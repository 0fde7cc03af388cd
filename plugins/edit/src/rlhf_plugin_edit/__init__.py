"""Human edits for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="feedback",
            name="edit",
            factory="rlhf_plugin_edit.source:Edits",
            config="rlhf_plugin_edit.config:EditsConfig",
            summary="edits of responses, as edits, comparisons with a margin, weighted demonstrations, or SALT's pairs",
        ),
        ComponentSpec(
            kind="reward",
            name="edit",
            factory="rlhf_plugin_edit.reward:EditReward",
            config="rlhf_plugin_edit.config:EditRewardConfig",
            summary="learns from edits how good a response is, and which of its words people would change",
        ),
    ]
