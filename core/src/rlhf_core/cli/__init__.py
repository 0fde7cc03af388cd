"""The command line `rlhf`."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, NoReturn

from ..errors import RLHFError


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 2 bad input, 130 or 143 stopped by a signal, 1 anything else."""
    from .app import build_app

    warnings.showwarning = _show_warning
    debug = "--debug" in sys.argv[1:] or bool(os.environ.get("RLHF_DEBUG"))
    try:
        build_app()()
    except RLHFError as error:
        if debug:
            raise
        report(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


_show_plainly = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
    """Print what a registry file should no longer say in one line; other warnings with their lines of code."""
    from ..interfaces.deprecation import DeprecatedFieldWarning

    if issubclass(category, DeprecatedFieldWarning):
        from rich.markup import escape

        from ..terminal import Console

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[yellow]warning:[/yellow] {escape(str(message))}")
    else:
        _show_plainly(message, category, *place, **options)


def report(error: RLHFError) -> None:
    """Print an error to standard error, one line per problem."""
    from rich.markup import escape

    from ..terminal import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in str(error).splitlines():
        console.print(f"[red]error:[/red] {escape(line)}")
