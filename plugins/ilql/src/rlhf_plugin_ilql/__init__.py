"""Implicit language Q-learning for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="optimizer",
            name="ilql",
            factory="rlhf_plugin_ilql.optimizer:ILQL",
            config="rlhf_plugin_ilql.config:ILQLConfig",
            summary="implicit language Q-learning: action values from rated responses alone, which steer decoding",
        )
    ]
