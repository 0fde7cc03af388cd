"""The dry run: every component is built, every stage takes small steps, and what the run would take is worked out."""

from .driver import DryRun

__all__ = ["DryRun"]
