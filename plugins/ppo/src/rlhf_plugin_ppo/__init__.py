"""PPO for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="optimizer",
            name="ppo",
            factory="rlhf_plugin_ppo.optimizer:PPO",
            config="rlhf_plugin_ppo.config:PPOConfig",
            summary="proximal policy optimisation: clipped policy and value losses over GAE advantages",
        )
    ]
