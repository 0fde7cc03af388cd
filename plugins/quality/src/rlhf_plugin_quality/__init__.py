"""Quality control of human feedback, and counterfactual augmentation; importing this imports nothing heavy."""

from typing import Any

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="feedback",
            name="quality",
            factory="rlhf_plugin_quality.source:Quality",
            config="rlhf_plugin_quality.config:QualityConfig",
            summary="other feedback without its bad records and annotators, weighted by how reliable people are",
        ),
        ComponentSpec(
            kind="feedback",
            name="counterfactual",
            factory="rlhf_plugin_quality.counterfactual:Counterfactual",
            config="rlhf_plugin_quality.config:CounterfactualConfig",
            summary="other feedback, each record also with its terms swapped (he/she, 他/她), against bias",
        ),
    ]


@hookimpl
def rlhf_commands(app: Any) -> None:
    from .commands import add_commands

    add_commands(app)
