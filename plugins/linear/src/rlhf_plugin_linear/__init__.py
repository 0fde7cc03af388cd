"""The classical reward, for rlhf-core: a linear model of words; importing this imports neither torch nor sklearn."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="reward",
            name="linear",
            factory="rlhf_plugin_linear.reward:LinearReward",
            config="rlhf_plugin_linear.config:LinearRewardConfig",
            summary="TF-IDF of prompt and response with ranking SVM, ridge or linear SVR: the baseline, in seconds",
        )
    ]
