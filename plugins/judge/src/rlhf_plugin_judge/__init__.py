"""A language model as judge; importing this imports neither torch nor an HTTP client."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="reward",
            name="judge",
            factory="rlhf_plugin_judge.reward:JudgeReward",
            config="rlhf_plugin_judge.config:JudgeRewardConfig",
            summary="a language model rates responses, or compares them with a reference, over an OpenAI-style API",
        ),
        ComponentSpec(
            kind="feedback",
            name="judge",
            factory="rlhf_plugin_judge.source:JudgedPairs",
            config="rlhf_plugin_judge.config:JudgeFeedbackConfig",
            summary="a language model compares the responses of another source anew (AI feedback)",
        ),
    ]
