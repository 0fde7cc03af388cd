"""The distribution: light to import, and a README that says what is so."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rlhf_core.interfaces import FeedbackSource
from rlhf_plugin_quality import rlhf_components
from ruamel.yaml import YAML

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def classes(spec: Any) -> tuple[Any, Any]:
    factory, config = (getattr(import_module(m), c) for m, c in (p.split(":") for p in (spec.factory, spec.config)))
    return factory, config


def test_entry_point_and_import_are_light() -> None:
    (point,) = entry_points(group="rlhf", name="quality")
    code = (
        f"import sys, {point.value}, {point.value}.config; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("spec", rlhf_components(), ids=lambda spec: spec.name)
def test_specs_resolve_and_the_readme_lists_every_option(spec: Any) -> None:
    factory, config = classes(spec)
    assert issubclass(factory, FeedbackSource) and factory.Config is config
    section = README.split(f"\n## {spec.name}\n")[1].split("\n## ")[0]
    for name, field in config.model_fields.items():
        assert field.description
        assert f"| `{name}` |" in section, name


def test_the_example_of_the_readme_is_valid() -> None:
    example = YAML(typ="safe").load(StringIO(README.split("```yaml\n")[1].split("```")[0]))
    configs = {spec.name: classes(spec)[1] for spec in rlhf_components()}
    ours = [entry for entry in example["components"]["feedback"].values() if entry["use"] in configs]
    assert {entry["use"] for entry in ours} == configs.keys()
    for entry in ours:
        configs[entry["use"]](**entry["config"])
