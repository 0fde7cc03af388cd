"""Everything that rlhf-core asks of components of kind optimizer, one test per check."""

from rlhf_core.testing import Check, Subject, parametrize_components


@parametrize_components("rlhf-plugin-gspo")
def test_conformance(component: Subject, check: Check) -> None:
    check(component)
