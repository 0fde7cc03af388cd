"""Discovery and diagnosis of plugins: what is installed, what works, and why the rest does not."""

from __future__ import annotations

from .catalogue import CORE, DISABLE, FIRST_PARTY, KNOWN, PluginInfo, Plugins
from .loader import HOOKS, load_plugins

__all__ = ["CORE", "DISABLE", "FIRST_PARTY", "HOOKS", "KNOWN", "PluginInfo", "Plugins", "load_plugins"]
