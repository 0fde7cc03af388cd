"""Monitors that watch an optimize stage for reward hacking; importing this imports no torch."""

from rlhf_core import ComponentSpec, hookimpl


def _monitor(name: str, place: str, summary: str) -> ComponentSpec:
    class_name = place.split(":")[1]
    return ComponentSpec("monitor", name, f"rlhf_plugin_monitors.{place}",
                         f"rlhf_plugin_monitors.config:{class_name}Config", summary)  # fmt: skip


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        _monitor("gold", "rewards:Gold", "the score rises while a reward that is kept out of training falls"),
        _monitor("disagreement", "rewards:Disagreement", "score and other rewards agree less than at first"),
        _monitor("kl-budget", "statistics:KLBudget", "the policy is further from its reference than it may be"),
        _monitor("length-drift", "statistics:LengthDrift", "responses are much longer or shorter than at first"),
        _monitor("repetition-drift", "samples:RepetitionDrift", "responses repeat themselves more than at first"),
        _monitor("entropy-collapse", "statistics:EntropyCollapse", "the policy has all but stopped to vary"),
        _monitor("advantage-variance", "samples:AdvantageVariance",
                 "scores no longer differ, or differ far more: advantages mean little"),
    ]  # fmt: skip
