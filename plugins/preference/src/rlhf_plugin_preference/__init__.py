"""Human preferences for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="feedback",
            name="preference",
            factory="rlhf_plugin_preference.source:Preferences",
            config="rlhf_plugin_preference.config:PreferencesConfig",
            summary="comparisons from JSONL or the hub: TRL's preference formats, HH-RLHF transcripts, rankings",
        ),
        ComponentSpec(
            kind="feedback",
            name="strength",
            factory="rlhf_plugin_preference.strength:Strength",
            config="rlhf_plugin_preference.config:StrengthConfig",
            summary="comparisons cleaned by an ensemble: the weakest flipped, smoothed or dropped; adaptive margins",
        ),
        ComponentSpec(
            kind="reward",
            name="preference",
            factory="rlhf_plugin_preference.reward:PreferenceReward",
            config="rlhf_plugin_preference.config:PreferenceRewardConfig",
            summary="Bradley-Terry reward model: any transformers encoder or decoder with a scalar head",
        ),
    ]
