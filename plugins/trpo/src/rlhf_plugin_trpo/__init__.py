"""TRPO for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="optimizer",
            name="trpo",
            factory="rlhf_plugin_trpo.optimizer:TRPO",
            config="rlhf_plugin_trpo.config:TRPOConfig",
            summary="trust region policy optimisation: natural gradient steps of a bounded KL, with a line search",
        )
    ]
