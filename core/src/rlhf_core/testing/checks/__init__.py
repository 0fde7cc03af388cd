"""The checks, one module per group; importing this registers them all."""

from . import engine, every, metric, optimizer, policy, reward, shaper, sources  # noqa: F401
