"""Reward shapers. Each says what it changes of the optimum, the policy that training is after."""

from rlhf_core import ComponentSpec, hookimpl


def _spec(name: str, class_name: str, summary: str) -> ComponentSpec:
    return ComponentSpec("shaper", name, f"rlhf_plugin_shaping.shapers:{class_name}",
                         f"rlhf_plugin_shaping.config:{class_name}Config", summary)  # fmt: skip


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        _spec(
            "whiten", "Whiten", "token rewards to variance 1 in each batch; also moves every token, so length counts"
        ),
        _spec(
            "clip", "Clip", "scores held in [low, high]; beyond a bound all are equally good, inside nothing changes"
        ),
        _spec(
            "scale", "Scale", "scores by their running deviation; keeps their order, changes their weight against KL"
        ),
        _spec(
            "missing-eos", "MissingEOS", "penalty on responses cut at the limit; moves the optimum to those that end"
        ),
        _spec(
            "length-penalty", "LengthPenalty", "penalty per token beyond a free length; moves the optimum to shorter"
        ),
    ]
