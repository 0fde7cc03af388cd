"""TRL's trainers for rlhf-core; importing this imports neither torch nor trl."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="stage",
            name="trl",
            factory="rlhf_plugin_trl.stage:TRL",
            config="rlhf_plugin_trl.config:TRLConfig",
            summary="TRL's own trainers: RLOO, GRPO, DPO, KTO or SFT",
        )
    ]
