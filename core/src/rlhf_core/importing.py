"""Importing what a reference names, never from the working directory, and near names for misspelled ones."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pluggy

from .errors import ConfigError, PluginError, did_you_mean

REFERENCE = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


def import_object(reference: str, where: str = "import") -> Any:
    """What ``package.module:Name`` stands for.

    Raises `PluginError` for another form, for a module that is missing or fails, and for a name it does not have.
    """
    check_reference(where, reference)
    module, _, path = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(
            where,
            f"importing {module} failed: {first_line(error)}",
            fix="install what is missing, or upgrade its distribution",
        ) from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise PluginError(where, f"{module} has no {path!r}", fix=did_you_mean(name, dir(found))) from None
    return found


def is_loose(entry: str) -> bool:
    """Whether an entry of sys.path is the working directory, and not a folder that pip installs into."""
    try:
        return Path(entry).samefile(".") and Path.cwd().name not in ("site-packages", "dist-packages")
    except OSError:  # a zip file that is not there, or a working directory that was removed
        return not entry


def bitsandbytes(where: str) -> Any:
    """The library bitsandbytes, imported without what it logs on the way (kernels that it would like to download).

    Raises:
        ConfigError: it is not installed, or does not work here.
    """
    needed = "the library bitsandbytes, for 4-bit weights and 8-bit or paged moments"
    upgrade = "pip install -U bitsandbytes, or leave out what asks for it"
    logger = logging.getLogger("bitsandbytes")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        library = importlib.import_module("bitsandbytes")
        native = importlib.import_module("bitsandbytes.cextension").lib
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "bitsandbytes"
        if missing:
            raise ConfigError(
                where, "bitsandbytes is not installed", needed, "pip install rlhf-plugin-qlora"
            ) from error
        raise ConfigError(where, f"bitsandbytes cannot be used here: {first_line(error)}", needed, upgrade) from error
    finally:
        logger.setLevel(before)
    if "error" in type(native).__name__.lower() and importlib.import_module("torch").cuda.is_available():
        # it imports without its library, and fails at the first use; on a CPU it can do without
        reason = str(getattr(native, "error_msg", "its native library is missing")).strip().splitlines()[0]
        raise ConfigError(where, f"bitsandbytes cannot be used here: {reason}", needed, upgrade)
    return library


@contextmanager
def installed_only() -> Iterator[None]:
    """Import without the working directory, which Python puts first on the path for `-m`, `-c` and notebooks.

    Only that first entry goes: an editable install may have added the same folder again, further down.
    """
    first = sys.path[:1] if not sys.flags.safe_path and any(map(is_loose, sys.path[:1])) else []
    del sys.path[: len(first)]
    try:
        yield
    finally:
        sys.path[:0] = first


# --- words -----------------------------------------------------------------------------------------------------------


def check_reference(where: str, reference: str) -> None:
    if not REFERENCE.fullmatch(reference):
        raise PluginError(where, f"reference {reference!r}", "the form 'package.module:Name'")


def first_line(error: BaseException) -> str:
    """One line: all of our own or pluggy's words, or the type and first line of anything else."""
    if isinstance(error, (PluginError, pluggy.PluginValidationError)):
        return " ".join(str(error).split())
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])
