"""Inverse reinforcement learning for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="reward",
            name="irl",
            factory="rlhf_plugin_irl.reward:IRLReward",
            config="rlhf_plugin_irl.config:IRLRewardConfig",
            summary="a reward from demonstrations alone: what tells them from the policy's own samples",
        ),
    ]
