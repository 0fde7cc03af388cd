"""Reward shapers. Each says what it changes of the optimum, the policy that training is after."""

from rlhf_core import ComponentSpec, hookimpl

SHAPERS = [
    # module, name, class, summary
    ("scores", "clip", "Clip",
     "scores held in [low, high]; beyond a bound all are equally good, inside nothing changes"),
    ("scores", "scale", "Scale",
     "scores by their running deviation; keeps their order, changes their weight against KL"),
    ("scores", "prompt-baseline", "PromptBaseline",
     "scores less what their prompt got in earlier steps; less noise, the optimum stays"),
    ("scores", "success-bonus", "SuccessBonus",
     "bonus for scores from a threshold on, or for brief ones among them; success weighs more, failure stays below"),
    ("lengths", "missing-eos", "MissingEOS",
     "penalty on responses cut at the limit; moves the optimum to those that end"),
    ("lengths", "length-penalty", "LengthPenalty",
     "penalty per token beyond a free length; moves the optimum to shorter"),
    ("lengths", "overlong", "Overlong",
     "penalty that sets in before the length limit; moves the optimum away from it, shorter ones are left alone"),
    ("tokens", "whiten", "Whiten",
     "token rewards to variance 1 in each batch; also moves every token, so length counts"),
    ("tokens", "discount", "Discount",
     "later rewards count less; moves the optimum to what pays early, nothing else"),
    ("tokens", "repetition-penalty", "RepetitionPenalty",
     "penalty on tokens that repeat an n-gram; moves the optimum to responses that do not, others are left alone"),
    ("tokens", "spread", "Spread",
     "the score over all tokens; keeps every sum, but optimizers that look ahead from a token see only what is left"),
    ("potential", "potential", "Potential",
     "a reward model's progress from token to token; earlier credit, the optimum stays"),
]  # fmt: skip


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    package = "rlhf_plugin_shaping"
    return [
        ComponentSpec("shaper", name, f"{package}.{module}:{cls}", f"{package}.config:{cls}Config", summary)
        for module, name, cls, summary in SHAPERS
    ]
