"""REINFORCE and its family for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="optimizer",
            name="reinforce",
            factory="rlhf_plugin_reinforce.optimizer:Reinforce",
            config="rlhf_plugin_reinforce.config:ReinforceConfig",
            summary="policy gradient without a critic: REINFORCE, ReMax, RLOO, GRPO, Dr. GRPO, DAPO, REINFORCE++",
        )
    ]
