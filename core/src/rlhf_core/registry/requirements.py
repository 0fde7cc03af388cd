"""What a registry file `requires`, checked before anything is imported."""

from __future__ import annotations

import shlex
from importlib import metadata
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from ..errors import ConfigError, PluginError, RLHFError
from .words import show


def check_requirement(text: Any, where: str) -> RLHFError | None:
    """What is wrong with one requirement, with the pip command; None if it is met or not for this machine."""
    try:
        requirement = Requirement(text)
    except (InvalidRequirement, TypeError):
        return ConfigError(where, f"got {show(text)}", "a requirement such as 'rlhf-plugin-ppo>=0.1'")
    if requirement.marker and not requirement.marker.evaluate():
        return None
    command = f"pip install {shlex.quote(str(requirement))}"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return PluginError(where, f"{requirement.name} is not installed", fix=command)
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return PluginError(where, f"{requirement.name} {version} is installed", str(requirement.specifier), command)
