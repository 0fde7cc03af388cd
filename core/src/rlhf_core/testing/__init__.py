"""For authors of components: a conformance kit, and small stand-ins for tests of your own. Public API.

A plugin's whole conformance test:

    from rlhf_core.testing import parametrize_components

    @parametrize_components("rlhf-plugin-mine")
    def test_conformance(component, check):
        check(component)

That is one test per component and check, named like ``optimizer/mine-config_round_trips``; ``rlhf check-plugin
rlhf-plugin-mine`` runs the same checks without pytest. What a check wants is in its docstring, and it fails with a
`ConformanceError` that says what was got, what was expected and how to mend it.

Most checks build the component. If its Config has required fields, its class says what to build it from:

    @staticmethod
    def conformance_examples(folder: Path) -> list[dict[str, Any]]:
        return [{"target": 20}, {"target": 5, "unit": "characters"}]

Files that an example needs are written into `folder`; names of other components are answered by `tiny_context`.
Without examples these checks are skipped, with that reason.

The stand-ins are deterministic: `tiny_context`, `tiny_policy` (and `tiny_model`, its config), `example_prompts`,
`example_samples`, `example_feedback`, `example_rollout`, `example_data`, what an optimizer is given in a step, and
`tiny_run`, what a stage is given, and what runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import attributes

if TYPE_CHECKING:
    from ..runs.signals import Interrupted
    from .kit import Check, Result, run_checks
    from .parametrize import parametrize_components
    from .records import example_feedback, example_prompts, example_samples
    from .rollouts import example_rollout
    from .runs import tiny_run
    from .subjects import ConformanceError, Example, Subject
    from .toys import example_data, tiny_context, tiny_model, tiny_policy

_NAMES = {
    "kit": ["Check", "Result", "run_checks"],
    "parametrize": ["parametrize_components"],
    "records": ["example_feedback", "example_prompts", "example_samples"],
    ".runs.signals": ["Interrupted"],
    "rollouts": ["example_rollout"],
    "runs": ["tiny_run"],
    "subjects": ["ConformanceError", "Example", "Subject"],
    "toys": ["example_data", "tiny_context", "tiny_model", "tiny_policy"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Check", "ConformanceError", "Example", "Interrupted", "Result", "Subject", "example_data", "example_feedback",
    "example_prompts", "example_rollout", "example_samples", "parametrize_components", "run_checks", "tiny_context",
    "tiny_model", "tiny_policy", "tiny_run",
]  # fmt: skip

__getattr__ = attributes(__name__, _MODULES)
