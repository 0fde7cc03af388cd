"""QLoRA for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="policy",
            name="qlora",
            factory="rlhf_plugin_qlora.policy:QLoRA",
            config="rlhf_plugin_qlora.config:QLoRAConfig",
            summary="a decoder-only language model whose frozen base is held in 4 bits, trained by adapters",
        )
    ]
