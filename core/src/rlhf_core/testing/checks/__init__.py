"""The checks, one module per group; importing this registers them all."""

from . import (  # noqa: F401
    alike,
    drift,
    engine,
    environment,
    every,
    metric,
    monitor,
    optimizer,
    optimizer_steps,
    policy,
    precision,
    reward,
    shaper,
    sources,
    stage,
)
