"""Randomness that is counted, not stored.

Every random number is a function of (run seed, stream, step, ...), so that a resumed run draws what an uninterrupted
one would have drawn, and there is no generator state to save.
"""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` of the run seeded with `seed`."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch, so that dropout and third-party code repeat."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@lru_cache(maxsize=8)
def permutation(seed: int, length: int) -> tuple[int, ...]:
    """A permutation of ``range(length)`` that depends on `seed` alone."""
    order = list(range(length))
    random.Random(seed).shuffle(order)
    return tuple(order)


def _mix(x: Any) -> Any:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014), on uint64 arrays with wrap-around."""
    import numpy as np

    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, samples: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) for every (sample, position).

    Args:
        seed: from `derive_seed`, so it already stands for the run, the stream and the step.
        samples: (B,) int64 identifiers of the samples.
        positions: (T,) int64 token positions.

    Returns:
        (B, T) float64. Entry (b, t) depends on `seed`, ``samples[b]`` and ``positions[t]`` alone: neither on the other
        rows nor on their order.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        row = _mix(np.uint64(seed) + golden * (samples.astype(np.uint64) + np.uint64(1)))
        cell = _mix(row[:, None] + golden * (positions.astype(np.uint64)[None, :] + np.uint64(1)))
    return np.asarray((cell >> np.uint64(11)).astype(np.float64) * 2.0**-53)
