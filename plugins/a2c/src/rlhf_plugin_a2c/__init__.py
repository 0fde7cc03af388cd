"""A2C for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="optimizer",
            name="a2c",
            factory="rlhf_plugin_a2c.optimizer:A2C",
            config="rlhf_plugin_a2c.config:A2CConfig",
            summary="advantage actor-critic: unclipped policy gradient over n-step returns or GAE",
        )
    ]
