"""Evolution strategies for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="optimizer",
            name="es",
            factory="rlhf_plugin_es.optimizer:ES",
            config="rlhf_plugin_es.config:ESConfig",
            summary="evolution strategies: antithetic perturbations of the weights, weighted by what they earn",
        )
    ]
