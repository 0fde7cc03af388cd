"""The optimizer `gspo` for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="optimizer",
            name="gspo",
            factory="rlhf_plugin_gspo.optimizer:GspoOptimizer",
            config="rlhf_plugin_gspo.config:GspoOptimizerConfig",
            summary="GSPO: one clipped ratio per response",
            api_version=1,
        )
    ]
