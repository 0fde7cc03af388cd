"""ACER for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="optimizer",
            name="acer",
            factory="rlhf_plugin_acer.optimizer:ACER",
            config="rlhf_plugin_acer.config:ACERConfig",
            summary="actor-critic with experience replay: Retrace, truncated importance weights, trust region",
        )
    ]
