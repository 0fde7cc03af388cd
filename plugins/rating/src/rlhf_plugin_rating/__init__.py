"""Ratings for rlhf-core; importing this does not import torch."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="feedback",
            name="rating",
            factory="rlhf_plugin_rating.source:Ratings",
            config="rlhf_plugin_rating.config:RatingsConfig",
            summary="ratings on any scale, by aspect, token or span; thumbs, clicks and purchases as labels",
        ),
        ComponentSpec(
            kind="reward",
            name="rating",
            factory="rlhf_plugin_rating.reward:RatingReward",
            config="rlhf_plugin_rating.config:RatingRewardConfig",
            summary="regression, ordinal regression (CORAL) or pairs, on ratings corrected per annotator",
        ),
    ]
