"""Runs: the runner, the run directory, checkpoints, provenance, metrics, trackers and the report."""
