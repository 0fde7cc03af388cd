"""rlhf-core: RLHF from swappable parts.

Light on purpose: importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import RLHFError
from .interfaces.specs import API_VERSION, ComponentSpec, KindSpec, hookimpl

if TYPE_CHECKING:
    from .api import load

__version__ = "0.1.0"
__all__ = ["API_VERSION", "ComponentSpec", "KindSpec", "RLHFError", "__version__", "hookimpl", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from .api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
